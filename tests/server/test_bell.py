"""No ring is missed, and nobody is woken by an old one."""

from __future__ import annotations

import asyncio

from server.bell import Bell


def test_wakes_all_who_wait() -> None:
    async def test() -> None:
        bell = Bell()
        waiting = [asyncio.ensure_future(bell.next_ring.wait()) for _ in range(5)]
        await asyncio.sleep(0)
        bell.ring()
        await asyncio.wait_for(asyncio.gather(*waiting), 20)

    asyncio.run(test())


def test_ring_between_looking_and_waiting_is_not_missed() -> None:
    async def test() -> None:
        bell = Bell()
        ring = bell.next_ring
        bell.ring()
        await asyncio.wait_for(ring.wait(), 20)

    asyncio.run(test())


def test_old_ring_wakes_nobody() -> None:
    bell = Bell()
    bell.ring()
    assert not bell.next_ring.is_set()

"""Who listens hears everything from then on, or is told that it did not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest

from server.announcer import BACKLOG, Announcer
from server.records import NewEvent

PATIENCE_SECONDS = 20.0
FIRST, SECOND = NewEvent("first", "the first"), NewEvent("second", "the second")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE_SECONDS))


async def listening(
    announcer: Announcer,
) -> tuple[AsyncGenerator[NewEvent, None], asyncio.Task[NewEvent]]:
    """A listener, and its wait for the first event."""
    listener = announcer.listen()
    first = asyncio.ensure_future(anext(listener))
    await asyncio.sleep(0)
    return listener, first


def test_listener_hears_what_happens_before_it_first_waits() -> None:
    async def scene() -> None:
        announcer = Announcer()
        listener = announcer.listen()
        announcer.publish([FIRST])
        assert await anext(listener) == FIRST

    run(scene())


def test_every_listener_hears_every_event_in_order() -> None:
    async def test() -> None:
        announcer = Announcer()
        listeners = [await listening(announcer) for _ in range(3)]
        announcer.publish([FIRST, SECOND])
        for listener, first in listeners:
            assert await first == FIRST
            assert await anext(listener) == SECOND

    run(test())


def test_publishing_without_listeners_is_nothing() -> None:
    Announcer().publish([FIRST])


def test_what_was_published_before_is_not_heard() -> None:
    async def test() -> None:
        announcer = Announcer()
        announcer.publish([FIRST])
        _, heard = await listening(announcer)
        announcer.publish([SECOND])
        assert await heard == SECOND

    run(test())


def test_slow_listener_is_cut_off_and_the_others_are_not() -> None:
    async def test() -> None:
        announcer = Announcer()
        slow, first = await listening(announcer)
        quick, quick_first = await listening(announcer)
        announcer.publish([FIRST])
        assert await first == await quick_first == FIRST
        for _ in range(BACKLOG):
            announcer.publish([SECOND])
            assert await anext(quick) == SECOND
        announcer.publish([FIRST])
        assert await anext(quick) == FIRST
        # It is told after what it had not heard yet.
        assert [event async for event in slow] == [SECOND] * BACKLOG
        announcer.publish([SECOND])
        assert await anext(quick) == SECOND

    run(test())


def test_listener_may_be_behind_by_the_backlog() -> None:
    async def test() -> None:
        announcer = Announcer()
        listener, first = await listening(announcer)
        announcer.publish([FIRST] * BACKLOG)
        assert await first == FIRST
        for _ in range(BACKLOG - 1):
            assert await anext(listener) == FIRST

    run(test())


def test_close_ends_waiting_listeners() -> None:
    async def test() -> None:
        announcer = Announcer()
        (_, waiting), (busy, first) = await listening(announcer), await listening(announcer)
        announcer.close()
        for task in (waiting, first):
            with pytest.raises(StopAsyncIteration):
                await task
        announcer.publish([FIRST])
        with pytest.raises(StopAsyncIteration):
            await anext(busy)

    run(test())


def test_what_was_published_before_the_close_is_still_heard() -> None:
    async def test() -> None:
        announcer = Announcer()
        listener, first = await listening(announcer)
        announcer.publish([FIRST, SECOND])
        announcer.close()
        assert await first == FIRST
        assert [event async for event in listener] == [SECOND]

    run(test())


def test_listener_that_goes_away_is_forgotten() -> None:
    async def test() -> None:
        announcer = Announcer()
        listener, first = await listening(announcer)
        announcer.publish([FIRST])
        await first
        await listener.aclose()
        assert announcer._listeners == set()

    run(test())

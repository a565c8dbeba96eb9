"""Who listens hears everything from then on, or is told that it did not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from server.announcer import BACKLOG, Announcer
from server.records import NewEvent

PATIENCE_SECONDS = 20.0
FIRST, SECOND = NewEvent("first", "the first"), NewEvent("second", "the second")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE_SECONDS))


def test_every_listener_hears_every_event_in_order() -> None:
    async def test() -> None:
        announcer = Announcer()
        with announcer.listening() as one, announcer.listening() as other:
            # Nobody has begun to wait: what happens meanwhile is not missed.
            announcer.publish([FIRST, SECOND])
            for events in (one, other):
                assert [await anext(events), await anext(events)] == [FIRST, SECOND]

    run(test())


def test_listener_that_waits_is_woken() -> None:
    async def test() -> None:
        announcer = Announcer()
        with announcer.listening() as events:
            heard = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            announcer.publish([FIRST])
            assert await heard == FIRST

    run(test())


def test_publishing_without_listeners_is_nothing() -> None:
    Announcer().publish([FIRST])


def test_what_was_published_before_is_not_heard() -> None:
    async def test() -> None:
        announcer = Announcer()
        announcer.publish([FIRST])
        with announcer.listening() as events:
            announcer.publish([SECOND])
            assert await anext(events) == SECOND

    run(test())


def test_slow_listener_is_cut_off_and_the_others_are_not() -> None:
    async def test() -> None:
        announcer = Announcer()
        with announcer.listening() as slow, announcer.listening() as quick:
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
        with announcer.listening() as events:
            announcer.publish([FIRST] * BACKLOG)
            for _ in range(BACKLOG):
                assert await anext(events) == FIRST
            announcer.publish([SECOND])
            assert await anext(events) == SECOND

    run(test())


def test_close_ends_waiting_listeners() -> None:
    async def test() -> None:
        announcer = Announcer()
        with announcer.listening() as events:
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            announcer.close()
            with pytest.raises(StopAsyncIteration):
                await waiting

    run(test())


def test_what_was_published_before_the_close_is_still_heard() -> None:
    async def test() -> None:
        announcer = Announcer()
        with announcer.listening() as events:
            announcer.publish([FIRST, SECOND])
            announcer.close()
            announcer.publish([FIRST])
            assert [event async for event in events] == [FIRST, SECOND]

    run(test())


def test_listener_that_goes_away_is_forgotten() -> None:
    announcer = Announcer()
    with announcer.listening():
        assert len(announcer._listeners) == 1
    assert announcer._listeners == set()


def test_who_may_not_listen_any_more_hears_nothing_and_ends() -> None:
    may = [True]

    async def test() -> None:
        announcer = Announcer()
        with announcer.listening(lambda: may[0]) as events:
            announcer.publish([FIRST])
            assert await anext(events) == FIRST
            may[0] = False
            announcer.publish([SECOND])
            assert [event async for event in events] == []
        # One that waits already, whether or not something is told meanwhile.
        for told in ([], [FIRST]):
            may[0] = True
            with announcer.listening(lambda: may[0]) as events:
                waiting = asyncio.ensure_future(anext(events, None))
                await asyncio.sleep(0)
                may[0] = False
                announcer.publish(told)
                assert await waiting is None

    run(test())

"""Tells whoever listens in this process (the page, the tests) what has just happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager

from server.records import NewEvent

#: Events that a listener may be behind; one that is slower is cut off and has to come again.
BACKLOG = 1000
#: How often a listener that hears nothing is asked whether it still may.
_GLANCE_SECONDS = 1.0


class Announcer:
    """Passes each event to every listener. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[NewEvent | None]] = set()

    def publish(self, events: Iterable[NewEvent]) -> None:
        """Tell every listener; never waits."""
        for event in events:
            for queue in list(self._listeners):
                if queue.qsize() >= BACKLOG:
                    self._cut(queue)
                else:
                    queue.put_nowait(event)

    @contextmanager
    def listening(
        self, may_listen: Callable[[], bool] = lambda: True
    ) -> Iterator[AsyncIterator[NewEvent]]:
        """Events from here on, until the server stops or the listener is too slow, or may not."""
        queue: asyncio.Queue[NewEvent | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield _events(queue, may_listen)
        finally:
            self._listeners.discard(queue)

    def close(self) -> None:
        """End every listener, after what it has not heard yet."""
        for queue in list(self._listeners):
            self._cut(queue)

    def _cut(self, queue: asyncio.Queue[NewEvent | None]) -> None:
        self._listeners.discard(queue)
        queue.put_nowait(None)


async def _events(
    queue: asyncio.Queue[NewEvent | None], may_listen: Callable[[], bool]
) -> AsyncIterator[NewEvent]:
    while may_listen():
        try:
            async with asyncio.timeout(_GLANCE_SECONDS):
                event = await queue.get()
        except TimeoutError:
            continue
        if event is None or not may_listen():
            return
        yield event

"""The calls that are going on, by client, so that a client can be cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coppice.domain import ClientId
from server.member_records import revoked


class RunningCalls:
    """Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._tasks: dict[ClientId, set[asyncio.Task[Any]]] = {}
        self._cut: set[asyncio.Task[Any]] = set()

    @contextmanager
    def of(self, client_id: ClientId) -> Iterator[None]:
        """The current task is a call of this client; MemberRevoked when `cut` ends it."""
        task = asyncio.current_task()
        assert task is not None, "calls are tasks"
        tasks = self._tasks.setdefault(client_id, set())
        tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._cut:
                raise
            task.uncancel()
            raise revoked(client_id) from None
        finally:
            self._cut.discard(task)
            tasks.discard(task)
            if not tasks:
                self._tasks.pop(client_id, None)

    def cut(self, client_id: ClientId) -> None:
        """End all calls of this client."""
        for task in self._tasks.get(client_id, ()):
            self._cut.add(task)
            task.cancel()

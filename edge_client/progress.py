"""The transfer that is under way: whether bytes still move, which is all that its time is about."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

#: A transfer in which nothing has moved for so long is over. A chunk of the first size and what
#: gRPC has on its way need less on a link of 2 KiB/s.
STALLED_SECONDS = 120.0


class Cancellable(Protocol):
    """A call."""

    def cancel(self) -> object: ...  # noqa: D102


class Progress:
    """Written by the thread that transfers; `check` is for another one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._call: Cancellable | None = None
        self._moved_at = 0.0
        #: Share of the blob that is being fetched; None while there is none.
        self.fetched: float | None = None
        #: Whether the last transfer was cancelled because nothing moved.
        self.has_stalled = False

    @contextmanager
    def of(self, call: Cancellable) -> Iterator[None]:
        """This call transfers something meanwhile."""
        self.has_stalled = False
        self._moved_at = self._clock()
        self._call = call
        try:
            yield
        finally:
            self._call = self.fetched = None

    def moved(self) -> None:
        """Bytes came, or gRPC took more of them."""
        self._moved_at = self._clock()

    def has_fetched(self, share: float) -> None:
        """So much of a blob is here."""
        self.moved()
        self.fetched = share

    def check(self) -> None:
        """Cancel a transfer in which nothing moves any more."""
        call = self._call
        if call is not None and self._clock() - self._moved_at > STALLED_SECONDS:
            self.has_stalled = True
            call.cancel()

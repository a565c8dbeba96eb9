"""How many calls may go on at the same time: of one device, and of all."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from coppice.errors import ServerBusy

#: When who found no place comes again; several times that, where it is everybody's.
_RETRY_SECONDS = 2.0
_RETRY_TOTAL_SECONDS = 10.0


class Places:
    """Belongs to the event loop's thread."""

    def __init__(self, total: int, each: int) -> None:
        """So many for all, and for each."""
        self._total = total
        self._each = each
        self._taken: dict[Hashable, int] = {}
        #: Calls that go on.
        self.count = 0

    @contextmanager
    def taken(self, who: Hashable) -> Iterator[None]:
        """A call goes on meanwhile; ServerBusy where it is one too many."""
        if self._taken.get(who, 0) >= self._each:
            raise ServerBusy(
                f"this caller has {self._each} calls going on already; it may have no more",
                _RETRY_SECONDS,
            )
        if self.count >= self._total:
            raise ServerBusy(
                f"the server answers {self._total} calls at present, and takes no more",
                _RETRY_TOTAL_SECONDS,
            )
        self.count += 1
        self._taken[who] = self._taken.get(who, 0) + 1
        try:
            yield
        finally:
            self.count -= 1
            self._taken[who] -= 1
            if not self._taken[who]:
                del self._taken[who]

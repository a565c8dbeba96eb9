"""A time without the server: told when it begins, ever more rarely while it lasts, at its end."""

from __future__ import annotations

from collections.abc import Callable

from coppice.errors import CoppiceError
from edge_client.journal import Journal

#: After so long it is said again, then after twice that, and so on, but not less often than …
AGAIN_SECONDS = 60.0
RAREST_SECONDS = 6 * 3600.0


class Outage:
    """Attempts that fail, from the first one on."""

    def __init__(
        self,
        journal: Journal,
        clock: Callable[[], float],
        begin: Callable[[CoppiceError, float], None],
    ) -> None:
        """`begin` tells of the first failure, and in how many seconds the next attempt is."""
        self._journal = journal
        self._clock = clock
        self._begin = begin
        self._began_at: float | None = None
        self._tell_at = 0.0
        self._pause_seconds = AGAIN_SECONDS

    @property
    def seconds(self) -> float | None:
        """How long it has lasted; None where nothing has failed."""
        return None if self._began_at is None else self._clock() - self._began_at

    def failed(self, error: CoppiceError, next_seconds: float) -> None:
        """Another attempt has failed; the next one is in so many seconds."""
        now = self._clock()
        if self._began_at is None:
            self._began_at, self._tell_at = now, now + self._pause_seconds
            self._begin(error, next_seconds)
        elif now >= self._tell_at:
            self._journal.still_away(error, now - self._began_at, next_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, RAREST_SECONDS)
            self._tell_at = now + self._pause_seconds

"""How long to wait before the next attempt."""

from __future__ import annotations

import random

from coppice.errors import ServerBusy

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 60.0


class Backoff:
    """Full jitter: a random wait under a ceiling that doubles from 1 s to 60 s.

    Jitter over the whole range, because a restarted server meets all its devices at once.
    """

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance if chance is not None else random.Random()
        self._ceiling_seconds = FIRST_SECONDS

    def next_seconds(self, error: Exception | None = None) -> float:
        """The next wait; the ceiling after it is twice as high.

        Not shorter than a busy server asks for in `error`, which has jitter of its own.
        """
        ceiling = self._ceiling_seconds
        self._ceiling_seconds = min(2 * ceiling, LONGEST_SECONDS)
        asked = error.retry_seconds if isinstance(error, ServerBusy) else 0.0
        return max(self._chance.uniform(0.0, ceiling), asked)

    def reset(self) -> None:
        """Start again: something went well."""
        self._ceiling_seconds = FIRST_SECONDS

"""What is noted of those who were kept from something: enough to see it, too little to fill a disk.

What is done is noted in its own transaction, by whoever does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from coppice.errors import ServerBusy
from server.access_records import Actor
from server.attempts import Attempts, Pace
from server.resources import Resources

#: Refusals that are noted: ten of an address at once, and one in two minutes from then on.
_NOTED = Pace(10.0, 1 / 120, 100.0, 1 / 12)


class Audit:
    """Belongs to the event loop's thread."""

    def __init__(self, resources: Resources, clock: Callable[[], float] = time.monotonic) -> None:
        self._resources = resources
        self._noted = Attempts(clock, _NOTED)
        self._left_out = 0

    async def refused(self, actor: Actor, action: str, reason: str) -> None:
        """Note it, unless too many were; the next one that is noted says how many were not."""
        try:
            self._noted.count(actor.address)
        except ServerBusy:
            self._left_out += 1
            return
        others = f" (and {self._left_out} others that are not listed)" if self._left_out else ""
        self._left_out = 0
        entry = actor.was_refused(action, reason[:400] + others)
        await self._resources.write(self._resources.store.append, events=[entry])

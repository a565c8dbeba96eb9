"""How often strangers may try: some attempts at once, then a few in a minute."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from coppice.errors import ServerBusy

#: Calls of one address at once, and in a second from then on. A device needs two, many devices may
#: be behind one address, and nobody guesses a secret: this is about the server's time.
BURST, PER_SECOND = 60.0, 1.0
#: The same of all addresses together.
TOTAL_BURST, TOTAL_PER_SECOND = 400.0, 40.0
#: Bounds of when who tried too often is asked to come again.
_SHORTEST_SECONDS, _LONGEST_SECONDS = 1.0, 60.0
#: Addresses that are remembered; of more, those that were silent for longest are forgotten.
MOST_ADDRESSES = 4096


@dataclass(frozen=True)
class Pace:
    """How often one may try, and how often all together: at once, and in a second from then on."""

    burst: float
    per_second: float
    total_burst: float
    total_per_second: float


def enrolment_pace(per_minute: int) -> Pace:
    """So many calls of an address at once, and then in a minute."""
    share = per_minute / BURST
    return Pace(per_minute, PER_SECOND * share, TOTAL_BURST * share, TOTAL_PER_SECOND * share)


ENROLMENT = Pace(BURST, PER_SECOND, TOTAL_BURST, TOTAL_PER_SECOND)
#: A device needs one in days.
RENEWAL = Pace(5.0, 1 / 60, 1000.0, 20.0)
#: People who type and paste: nobody needs more.
LOGIN = Pace(10.0, 0.2, 100.0, 2.0)


@dataclass
class _Bucket:
    left: float
    at: float


class Attempts:
    """Counts attempts. Belongs to the event loop's thread."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        pace: Pace = ENROLMENT,
        whose: str = "address",
    ) -> None:
        """`whose` says what is counted by: an address, unless told otherwise."""
        self._whose = whose
        self._clock = clock
        self._pace = pace
        self._total = _Bucket(pace.total_burst, clock())
        self._addresses: OrderedDict[str, _Bucket] = OrderedDict()

    def count(self, address: str) -> None:
        """One more attempt of this address; ServerBusy when it is one too many."""
        now, pace = self._clock(), self._pace
        source = _network(address)
        bucket = self._addresses.setdefault(source, _Bucket(pace.burst, now))
        self._addresses.move_to_end(source)
        if len(self._addresses) > MOST_ADDRESSES:
            self._addresses.popitem(last=False)
        # An address that tries too often takes nothing from the others.
        if not _take(bucket, pace.burst, pace.per_second, now):
            raise ServerBusy(
                f"too many attempts from this {self._whose}; wait a minute and try again",
                _retry_seconds(bucket, pace.per_second),
            )
        if not _take(self._total, pace.total_burst, pace.total_per_second, now):
            raise ServerBusy(
                "too many try at the same time; wait a little and try again",
                _retry_seconds(self._total, pace.total_per_second),
            )


def _take(bucket: _Bucket, burst: float, per_second: float, now: float) -> bool:
    bucket.left = min(burst, bucket.left + (now - bucket.at) * per_second)
    bucket.at = now
    if bucket.left < 1.0:
        return False
    bucket.left -= 1.0
    return True


def _retry_seconds(bucket: _Bucket, per_second: float) -> float:
    """Until there is an attempt again, for whoever comes first."""
    return min(max((1.0 - bucket.left) / per_second, _SHORTEST_SECONDS), _LONGEST_SECONDS)


def _network(address: str) -> str:
    """The address, or of IPv6 the network: who has one address there has all of them."""
    try:
        if isinstance(ipaddress.ip_address(address), ipaddress.IPv6Address):
            return str(ipaddress.ip_network(f"{address}/64", strict=False))
    except ValueError:
        # The name of a device, or nothing.
        pass
    return address

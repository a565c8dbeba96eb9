"""Who is logged in at the page: sessions, known by the hash of what their cookies say."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

#: A session ends so long after its login, whatever is done in it.
LIFE_SECONDS = 12 * 3600.0
#: Sessions at a time; of more, the oldest end.
MOST_SESSIONS = 256
_SECRET_BYTES = 32
_LONGEST_COOKIE = 100


@dataclass(frozen=True)
class Session:
    """A login that has not ended."""

    #: The token that was shown.
    access_id: int
    #: By the clock of `Sessions`.
    ends_at: float


class Sessions:
    """In memory only: a server that starts again knows nobody. Belongs to the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: OrderedDict[str, Session] = OrderedDict()

    def open(self, access_id: int) -> str:
        """A new session; returns what its cookie says."""
        now = self._clock()
        for key in [key for key, session in self._open.items() if session.ends_at <= now]:
            del self._open[key]
        if len(self._open) >= MOST_SESSIONS:
            self._open.popitem(last=False)
        cookie = secrets.token_urlsafe(_SECRET_BYTES)
        self._open[_hash(cookie)] = Session(access_id, now + LIFE_SECONDS)
        return cookie

    def find(self, cookie: str) -> Session | None:
        """The session of a cookie, unless it has ended."""
        # Only hashes are looked up: how long that takes tells nothing of any cookie.
        session = self._open.get(_hash(cookie)) if len(cookie) <= _LONGEST_COOKIE else None
        return session if session is not None and self._clock() < session.ends_at else None

    def close(self, cookie: str) -> None:
        """End a session; one that is over stays so."""
        self._open.pop(_hash(cookie[:_LONGEST_COOKIE]), None)


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()

"""Who may use the page and the HTTP API: tokens are given out, shown, and revoked."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coppice.domain import valid_name
from coppice.errors import InvalidMessage, NotLoggedIn, UnknownToken
from coppice.files import write_file
from server.access_records import SERVER, AccessRecord, Actor, Line, Role
from server.records import NewEvent
from server.resources import Resources
from server.sessions import Sessions

PREFIX = "coppice-api-"
#: The token that the server makes for the command line of its own user.
LOCAL_NAME = "operator"
_SECRET_BYTES = 32
_LONGEST_TOKEN = 100
_REMEDY = "an operator makes another one: fedserver access create"


@dataclass(frozen=True)
class Grant:
    """Somebody is known, for as long as `holds` says so."""

    actor: Actor
    role: Role
    holds: Callable[[], bool]
    #: The session's cookie; None when a token was shown.
    cookie: str | None = None


class Access:
    """Belongs to the event loop's thread. The store has the truth; this is what it said last."""

    def __init__(self, resources: Resources, sessions: Sessions | None = None) -> None:
        self._resources = resources
        self._store = resources.store
        self._sessions = sessions if sessions is not None else Sessions()
        #: By number, each with the hash of its token.
        self._known: dict[int, tuple[AccessRecord, str]] = {}

    async def load(self) -> None:
        """Read which tokens there are."""
        known = await self._resources.threads.store(self._store.access)
        self._known = {record.access_id: (record, token_hash) for record, token_hash in known}

    # ---- callers -------------------------------------------------------------------------------

    def by_token(self, token: str, address: str) -> Grant:
        """Whose token this is; NotLoggedIn when it is nobody's, or no good any more."""
        return self._grant(self._of_token(token), address)

    def by_cookie(self, cookie: str, address: str) -> Grant:
        """Whose session this is; NotLoggedIn when it is none, or has ended."""
        session = self._sessions.find(cookie)
        if session is None:
            raise NotLoggedIn("the session has ended: log in again")
        return self._grant(self._known[session.access_id][0], address, cookie)

    def log_in(self, token: str, address: str) -> Grant:
        """Open a session for whose token this is."""
        record = self._of_token(token)
        return self._grant(record, address, self._sessions.open(record.access_id))

    def log_out(self, cookie: str) -> None:
        """End a session, if it is one."""
        self._sessions.close(cookie)

    def _of_token(self, token: str) -> AccessRecord:
        shown = _hash(token[:_LONGEST_TOKEN].strip())
        found = None
        for record, token_hash in self._known.values():
            if hmac.compare_digest(shown, token_hash):
                found = record
        if found is None:
            raise NotLoggedIn(f"this server does not know the token; {_REMEDY}")
        self._require_valid(found)
        return found

    def _grant(self, record: AccessRecord, address: str, cookie: str | None = None) -> Grant:
        self._require_valid(record)

        def holds() -> bool:
            here = cookie is None or self._sessions.find(cookie) is not None
            return here and self._known[record.access_id][0].state(time.time()) == "valid"

        return Grant(Actor(record.name, record.role, address), record.role, holds, cookie)

    def _require_valid(self, record: AccessRecord) -> None:
        if (state := record.state(time.time())) != "valid":
            told = "has expired" if state == "expired" else "was revoked"
            raise NotLoggedIn(f"the token {record.name} {told}; {_REMEDY}")

    # ---- tokens --------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        role: Role,
        valid_seconds: float = math.inf,
        by: Actor = SERVER,
        *,
        replaces: bool = False,
    ) -> str:
        """A new token. Nobody can read it again."""
        if not valid_name(name):
            raise InvalidMessage(
                "a name has 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit"
            )
        token = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        expires_at = None if math.isinf(valid_seconds) else time.time() + valid_seconds
        event = NewEvent("access_created", f"{name} may use the page and the API as {role}")

        def add(**fields: object) -> AccessRecord:
            add_access: Callable[..., AccessRecord] = self._store.add_access
            return add_access(name, role, _hash(token), expires_at, replaces=replaces, **fields)

        lines: list[Line] = [event, by.did("create access", f"{name}, {role}")]
        await self._resources.write(add, events=lines)
        await self.load()
        return token

    async def revoke(self, name: str, by: Actor = SERVER) -> None:
        """The token and its sessions are good for nothing any more."""
        if not valid_name(name):
            raise UnknownToken(f"{name!r} is no token's name: fedserver access list")
        event = NewEvent("access_revoked", f"{name} may not use the page and the API any more")
        lines: list[Line] = [event, by.did("revoke access", name)]
        await self._resources.write(self._store.revoke_access, name, events=lines)
        await self.load()

    def all(self) -> list[AccessRecord]:
        """All tokens there ever were, without their secrets, oldest first."""
        return [record for record, _ in self._known.values()]

    async def keep_local(self, file: Path) -> str | None:
        """See that the file holds a good operator's token; returns one that had to be made.

        Who may write that file has the server's keys too: nothing is given away by it.
        """
        try:
            if self._of_token(file.read_text()).role is Role.OPERATOR:
                return None
        except (OSError, UnicodeDecodeError, NotLoggedIn):
            pass
        token = await self.create(LOCAL_NAME, Role.OPERATOR, replaces=True)
        remedy = "choose another data folder with --data"
        write_file(file, f"{token}\n".encode(), remedy=remedy, secret=True)
        return token


def _hash(token: str) -> str:
    # Tokens are long and random: nothing is gained by a slow hash.
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()

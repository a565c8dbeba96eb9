"""What the store does for enrolment: tokens, and the devices that were let in by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from coppice.domain import ClientId
from coppice.errors import (
    CertificateExpired,
    NameTaken,
    NotEnrolled,
    TokenRefused,
    UnknownMember,
    UnknownToken,
)
from server import tables
from server.access_records import Line
from server.member_records import Admission, MemberRecord, TokenRecord, revoked
from server.store_quarantine import StoreQuarantine

_TOKEN_COLUMNS = [column for column in tables.tokens.c if column.name != "secret_hash"]

_REFUSED: Mapping[str, str] = {
    "used": "this token has been used as often as it may be",
    "expired": "this token has expired",
    "revoked": "this token was revoked",
}
_ANOTHER = "ask for another one: fedserver token create"


class StoreMembers(StoreQuarantine):
    """The half for enrolment; each method is one transaction."""

    # ---- tokens --------------------------------------------------------------------------------

    def tokens(self) -> list[TokenRecord]:
        """All tokens, oldest first."""
        query = select(*_TOKEN_COLUMNS).order_by(tables.tokens.c.token_id)
        with self._database.read() as connection:
            return [TokenRecord(**row._mapping) for row in connection.execute(query)]

    def add_token(
        self,
        secret_hash: str,
        expires_at: float,
        uses: int,
        now: float,
        events: Sequence[Line] = (),
    ) -> int:
        """A new token; returns its number."""
        with self._write() as connection:
            result = connection.execute(
                insert(tables.tokens).values(
                    secret_hash=secret_hash,
                    created_at=now,
                    expires_at=expires_at,
                    uses=uses,
                    used=0,
                )
            )
            key: Any = result.inserted_primary_key
            self._append(connection, events, now)
        return int(key[0])

    def revoke_token(self, token_id: int, now: float, events: Sequence[Line] = ()) -> None:
        """It lets nobody in any more; UnknownToken when there is none of this number."""
        with self._write() as connection:
            if not _revoke_token(connection, token_id, now):
                raise UnknownToken(f"there is no token {token_id}, or it was revoked already")
            self._append(connection, events, now)

    # ---- members -------------------------------------------------------------------------------

    def members(self) -> list[MemberRecord]:
        """All devices that were ever let in, in that order."""
        query = select(tables.members).order_by(tables.members.c.enrolled_at)
        with self._database.read() as connection:
            return [MemberRecord(**row._mapping) for row in connection.execute(query)]

    def admit(self, asked: Admission, now: float, events: Sequence[Line] = ()) -> MemberRecord:
        """Let a device have a certificate: by its key where that is known, else by its token.

        A token is counted once for each device, however often a device has to ask.

        Raises:
            MemberRevoked, NotEnrolled, CertificateExpired, TokenRefused, NameTaken: It may not.
        """
        with self._write() as connection:
            known = _member(connection, asked.fingerprint)
            if known is not None:
                _check_known(known, asked)
            if known is None or known.expires_at < asked.expired_after:
                known = _let_in(connection, known, asked, now)
            values = {"serial": asked.serial, "expires_at": asked.expires_at}
            _set_member(connection, asked.fingerprint, values)
            admitted = _member(connection, asked.fingerprint)
            assert admitted is not None, "it was just written"
            self._append(connection, events, now)
        return admitted

    def revoke_member(self, name: str, now: float, events: Sequence[Line] = ()) -> MemberRecord:
        """A device may do nothing any more, nor may who comes with the token that it came by."""
        with self._write() as connection:
            known = _named(connection, name)
            if known is None:
                raise UnknownMember(f"no device is enrolled as {name!r}: fedserver client list")
            _set_member(connection, known.fingerprint, {"revoked_at": now})
            _revoke_token(connection, known.token_id, now)
            gone = _member(connection, known.fingerprint)
            assert gone is not None, "it was just written"
            self._append(connection, events, now)
        return gone


def _check_known(known: MemberRecord, asked: Admission) -> None:
    if known.revoked_at is not None:
        raise revoked(known.name)
    if asked.name not in ("", known.name):
        raise NameTaken(
            f"this device is enrolled as {known.name!r}: leave out --name, or give another --state "
            "for a second client"
        )


def _let_in(
    connection: Connection, known: MemberRecord | None, asked: Admission, now: float
) -> MemberRecord:
    if asked.secret_hash is None and known is None:
        raise NotEnrolled(f"this server does not know the device's key; {_ANOTHER}")
    if asked.secret_hash is None:
        raise CertificateExpired(
            "the device's certificate expired too long ago to be renewed without a token; "
            f"{_ANOTHER}"
        )
    token_id = _use_token(connection, asked.secret_hash, now)
    if known is not None:
        _set_member(connection, known.fingerprint, {"token_id": token_id})
        return known
    name = ClientId(asked.name)
    if _named(connection, name) is not None:
        raise NameTaken(
            f"another device is enrolled as {name!r}: join with another --name, or first have the "
            f"other one revoked (fedserver client revoke {name})"
        )
    made = MemberRecord(
        asked.fingerprint, name, asked.serial, token_id, now, asked.expires_at, None
    )
    connection.execute(insert(tables.members).values(**vars(made)))
    # Whoever had the name before it was enrolled, or was revoked, has it no more.
    client = tables.clients.c.client_id == name
    connection.execute(update(tables.clients).where(client).values(device_id=made.device_id))
    return made


def _use_token(connection: Connection, secret_hash: str, now: float) -> int:
    query = select(*_TOKEN_COLUMNS).where(tables.tokens.c.secret_hash == secret_hash)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise TokenRefused(f"this server does not know the token; {_ANOTHER}")
    token = TokenRecord(**row._mapping)
    if (state := token.state(now)) != "valid":
        raise TokenRefused(f"{_REFUSED[state]}; {_ANOTHER}")
    here = tables.tokens.c.token_id == token.token_id
    connection.execute(update(tables.tokens).where(here).values(used=token.used + 1))
    return token.token_id


def _revoke_token(connection: Connection, token_id: int, now: float) -> bool:
    here = (tables.tokens.c.token_id == token_id) & tables.tokens.c.revoked_at.is_(None)
    return connection.execute(update(tables.tokens).where(here).values(revoked_at=now)).rowcount > 0


def _member(connection: Connection, fingerprint: str) -> MemberRecord | None:
    query = select(tables.members).where(tables.members.c.fingerprint == fingerprint)
    row = connection.execute(query).one_or_none()
    return None if row is None else MemberRecord(**row._mapping)


def _named(connection: Connection, name: str) -> MemberRecord | None:
    """Who has the name now."""
    here = (tables.members.c.name == name) & tables.members.c.revoked_at.is_(None)
    row = connection.execute(select(tables.members).where(here)).one_or_none()
    return None if row is None else MemberRecord(**row._mapping)


def _set_member(connection: Connection, fingerprint: str, values: Mapping[str, Any]) -> None:
    here = tables.members.c.fingerprint == fingerprint
    connection.execute(update(tables.members).where(here).values(values))

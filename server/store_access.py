"""What the store does for the page and the API: their tokens, and the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from coppice.errors import NameTaken, UnknownToken
from server import tables
from server.access_records import AccessRecord, AuditRecord, Line, Role
from server.store_members import StoreMembers

_COLUMNS = [column for column in tables.access_tokens.c if column.name != "token_hash"]

#: Tokens that are not revoked: each call that shows one is compared with all of them.
MOST_TOKENS = 200


class StoreAccess(StoreMembers):
    """The half for people and programs; each method is one transaction."""

    def access(self) -> list[tuple[AccessRecord, str]]:
        """All tokens with their hashes, oldest first."""
        query = select(tables.access_tokens).order_by(tables.access_tokens.c.access_id)
        with self._database.read() as connection:
            return [(_record(row), row.token_hash) for row in connection.execute(query)]

    def add_access(
        self,
        name: str,
        role: Role,
        token_hash: str,
        expires_at: float | None,
        now: float,
        *,
        replaces: bool = False,
        events: Sequence[Line] = (),
    ) -> AccessRecord:
        """A new token; one of this name that is not revoked is revoked with `replaces`.

        NameTaken when there is one, or when there are too many.
        """
        with self._write() as connection:
            if replaces:
                _revoke(connection, name, now)
            valid = tables.access_tokens.c.revoked_at.is_(None)
            here = valid & (tables.access_tokens.c.name == name)
            if connection.execute(select(_COLUMNS[0]).where(here)).first():
                raise NameTaken(
                    f"there is a token named {name} already: choose another name, or "
                    f"fedserver access revoke {name}"
                )
            count = select(func.count()).select_from(tables.access_tokens).where(valid)
            if connection.execute(count).scalar_one() >= MOST_TOKENS:
                raise NameTaken(
                    f"there may be {MOST_TOKENS} tokens: revoke one that nobody needs any more"
                )
            result = connection.execute(
                insert(tables.access_tokens).values(
                    name=name,
                    role=role,
                    token_hash=token_hash,
                    created_at=now,
                    expires_at=expires_at,
                )
            )
            key: Any = result.inserted_primary_key
            self._append(connection, events, now)
        return AccessRecord(int(key[0]), name, role, now, expires_at, None)

    def revoke_access(self, name: str, now: float, events: Sequence[Line] = ()) -> None:
        """The token of this name is good for nothing any more; UnknownToken when there is none."""
        with self._write() as connection:
            if not _revoke(connection, name, now):
                raise UnknownToken(f"there is no token named {name!r}: fedserver access list")
            self._append(connection, events, now)

    def audit(
        self, after: int = 0, limit: int = 1000, *, newest: bool = False
    ) -> list[AuditRecord]:
        """Lines of the audit log after line `after`, in order: the first ones, or the newest."""
        query = select(tables.audit).where(tables.audit.c.audit_id > after)
        order = tables.audit.c.audit_id.desc() if newest else tables.audit.c.audit_id
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(order).limit(limit)).all()
        return [AuditRecord(**row._mapping) for row in (reversed(rows) if newest else rows)]


def _record(row: Any) -> AccessRecord:
    fields = {column.name: getattr(row, column.name) for column in _COLUMNS}
    return AccessRecord(**(fields | {"role": Role(row.role)}))


def _revoke(connection: Connection, name: str, now: float) -> bool:
    table = tables.access_tokens
    here = (table.c.name == name) & table.c.revoked_at.is_(None)
    return connection.execute(update(table).where(here).values(revoked_at=now)).rowcount > 0

"""Who may use the page and the HTTP API, and what the store keeps of what they did."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.records import NewEvent

_LONGEST_ACTION, _LONGEST_DETAIL = 63, 500


class Role(StrEnum):
    """What somebody may do."""

    #: Read.
    VIEWER = "viewer"
    #: Everything.
    OPERATOR = "operator"

    def includes(self, other: Role) -> bool:
        """Whether who has this role may do what the other one may."""
        return self is Role.OPERATOR or other is Role.VIEWER


@dataclass(frozen=True)
class AuditEntry:
    """Somebody did something, or was kept from it."""

    #: Name of a token or of a device; empty for one whom nobody knows.
    who: str
    #: A `Role`, "device" or "server".
    role: str
    #: Where the call came from; empty when it came from the server itself.
    address: str
    action: str
    detail: str
    #: "done" or "refused".
    outcome: str


#: What an operation of the store may write beside what it does: of the log, or of the audit log.
Line = NewEvent | AuditEntry


@dataclass(frozen=True)
class AuditRecord(AuditEntry):
    """A line of the audit log."""

    audit_id: int
    at: float


@dataclass(frozen=True)
class Actor:
    """Who does something."""

    name: str
    role: str
    address: str

    def did(self, action: str, detail: str = "") -> AuditEntry:
        """What to note when it is done."""
        return self._entry(action, detail, "done")

    def was_refused(self, action: str, detail: str) -> AuditEntry:
        """What to note when it may not be done."""
        return self._entry(action, detail, "refused")

    def _entry(self, action: str, detail: str, outcome: str) -> AuditEntry:
        return AuditEntry(
            self.name,
            self.role,
            self.address,
            _shown(action, _LONGEST_ACTION),
            _shown(detail, _LONGEST_DETAIL),
            outcome,
        )


def _shown(text: str, most: int) -> str:
    # Some of it comes from callers: nothing in it may move a terminal's cursor.
    return "".join(char if char.isprintable() else "?" for char in text[:most])


#: The server, of its own accord.
SERVER = Actor("fedserver", "server", "")


@dataclass(frozen=True)
class AccessRecord:
    """A token for the page and the API, without its secret. Times are seconds since the epoch."""

    access_id: int
    name: str
    role: Role
    created_at: float
    #: None for one that does not expire.
    expires_at: float | None
    revoked_at: float | None

    def state(self, now: float) -> str:
        """What becomes of somebody who shows it: "valid", "revoked" or "expired"."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if self.expires_at is None or now < self.expires_at else "expired"

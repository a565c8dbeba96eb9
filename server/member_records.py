"""Who may come in, and who has: what the store hands out of tokens and members."""

from __future__ import annotations

from dataclasses import dataclass

from coppice.domain import ClientId
from coppice.errors import MemberRevoked


@dataclass(frozen=True)
class TokenRecord:
    """What lets devices in, without its secret. Times are seconds since the epoch."""

    token_id: int
    created_at: float
    expires_at: float
    #: How many devices it lets in, and how many it has.
    uses: int
    used: int
    revoked_at: float | None

    def state(self, now: float) -> str:
        """What becomes of somebody who shows it: "valid", "revoked", "used" or "expired"."""
        if self.revoked_at is not None:
            return "revoked"
        if self.used >= self.uses:
            return "used"
        return "expired" if now >= self.expires_at else "valid"


@dataclass(frozen=True)
class MemberRecord:
    """A device that was let in."""

    #: SHA-256 of its public key: who has the key, is the device.
    fingerprint: str
    name: ClientId
    #: Of its newest certificate, hexadecimal.
    serial: str
    #: The token by which it came.
    token_id: int
    enrolled_at: float
    #: When its newest certificate expires.
    expires_at: float
    revoked_at: float | None

    @property
    def device_id(self) -> str:
        """Tells devices of one name apart."""
        return self.fingerprint[:32]


@dataclass(frozen=True)
class Admission:
    """A device asks for a certificate."""

    fingerprint: str
    #: Empty for the one that it has.
    name: str
    #: SHA-256 of the token's secret; None where the key has to do.
    secret_hash: str | None
    serial: str
    #: When the certificate will expire.
    expires_at: float
    #: A device whose last one expired before needs a token again.
    expired_after: float


def revoked(name: ClientId) -> MemberRevoked:
    """What a device is told that was revoked."""
    return MemberRevoked(
        f"{name} was revoked at the server. To be let in again it needs a new key and a new token: "
        "delete device.key and membership.json in its state folder, and join with the token"
    )

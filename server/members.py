"""Who belongs to this server: tokens are given out, devices let in, renewed and revoked."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache

from coppice.domain import ClientId, valid_name
from coppice.errors import CertificateExpired, InvalidMessage, NotEnrolled
from coppice.join_token import JoinToken, new_secret
from server.access_records import SERVER, Actor, Line
from server.authority import Authority, SigningRequest, certified, read_signing_request
from server.coordinator import Coordinator
from server.member_records import Admission, MemberRecord, TokenRecord, revoked
from server.records import NewEvent
from server.resources import Resources
from server.running_calls import RunningCalls

DAY_SECONDS = 86400.0

# A device shows the same certificate with each call.
_certified = lru_cache(maxsize=4096)(certified)


@dataclass(frozen=True)
class Issued:
    """A certificate for a device."""

    #: X.509 in DER.
    certificate: bytes
    name: ClientId
    valid_seconds: float


class Members:
    """Belongs to the event loop's thread. The store has the truth; this is what it said last."""

    def __init__(
        self,
        resources: Resources,
        coordinator: Coordinator,
        authority: Authority,
        certificate_seconds: float,
        grace_seconds: float,
    ) -> None:
        self.authority = authority
        #: Where devices enrol, which tokens tell them.
        self.port = 0
        self.calls = RunningCalls()
        self._resources = resources
        self._store = resources.store
        self._coordinator = coordinator
        self._certificate_seconds = certificate_seconds
        self._grace_seconds = grace_seconds
        self._known: dict[str, MemberRecord] = {}

    async def load(self) -> None:
        """Read who was let in before."""
        members = await self._resources.threads.store(self._store.members)
        self._known = {member.fingerprint: member for member in members}

    # ---- calls ---------------------------------------------------------------------------------

    def of_certificate(self, pem: bytes) -> tuple[MemberRecord, float]:
        """Whose certificate this is, and when it should be renewed; raises when it is no good.

        TLS has checked that the authority signed it, and that the caller has its key.
        """
        fingerprint, since, until = _certified(pem)
        member = self._known.get(fingerprint)
        if member is None:
            raise NotEnrolled(
                "this server does not know the device's key: join with a new token "
                "(fedserver token create)"
            )
        if member.revoked_at is not None:
            raise revoked(member.name)
        if time.time() >= until:
            raise CertificateExpired("the device's certificate has expired")
        return member, (since + until) / 2

    # ---- certificates --------------------------------------------------------------------------

    async def enrol(
        self, signing_request: bytes, secret: bytes, name: str, address: str = ""
    ) -> Issued:
        """Let a device in by a token's secret; `address` is where it calls from."""
        if not valid_name(name):
            raise InvalidMessage(
                "a name has 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit"
            )
        request = await self._read(signing_request)
        return await self._admit(request, name, _hash(secret), address)

    async def renew(self, signing_request: bytes, caller: ClientId | None = None) -> Issued:
        """A new certificate by a key that is known; `caller` must be whose it is, if given."""
        request = await self._read(signing_request)
        member = self._known.get(request.fingerprint)
        if caller is not None and (member is None or member.name != caller):
            raise InvalidMessage("the signing request is of another key than the certificate")
        return await self._admit(request, "", None)

    async def _read(self, signing_request: bytes) -> SigningRequest:
        return await self._resources.threads.transfer(lambda: read_signing_request(signing_request))

    async def _admit(
        self, request: SigningRequest, name: str, secret_hash: str | None, address: str = ""
    ) -> Issued:
        now = time.time()
        seconds = self._certificate_seconds
        known = self._known.get(request.fingerprint)
        serial = secrets.token_hex(16)
        asked = Admission(
            request.fingerprint, name, secret_hash, serial, now + seconds, now - self._grace_seconds
        )
        if known is None:
            event = NewEvent("member_enrolled", f"{name} enrolled", client_id=ClientId(name))
        else:
            text = f"{known.name} renewed its certificate"
            event = NewEvent("member_renewed", text, client_id=known.name)
        lines: list[Line] = [event]
        if known is None or known.expires_at < asked.expired_after:
            device = Actor(name or asked.fingerprint[:32], "device", address)
            lines.append(device.did("enrol", f"key {asked.fingerprint[:16]}"))
        member = await self._resources.write(self._store.admit, asked, events=lines)
        self._known[member.fingerprint] = member
        certificate = await self._resources.threads.transfer(
            lambda: self.authority.sign(request, member.name, int(serial, 16), seconds, now)
        )
        return Issued(certificate, member.name, seconds)

    async def revoke(self, name: str, by: Actor = SERVER) -> MemberRecord:
        """Cut a device off: its running calls end, and none of its calls is answered any more."""
        event = NewEvent("member_revoked", f"{name} was revoked", client_id=ClientId(name))
        lines: list[Line] = [event, by.did("revoke client", name)]
        member = await self._resources.write(self._store.revoke_member, name, events=lines)
        self._known[member.fingerprint] = member
        self.calls.cut(member.name)
        await self._coordinator.expel(member.name)
        return member

    async def all(self) -> list[MemberRecord]:
        """Everyone who was ever let in."""
        return await self._resources.threads.store(self._store.members)

    # ---- tokens --------------------------------------------------------------------------------

    async def create_token(
        self, uses: int, valid_seconds: float, by: Actor = SERVER
    ) -> tuple[int, JoinToken]:
        """A new token, and its number. Nobody can read it again."""
        secret = new_secret()
        devices = f"{uses} device{'s'[: uses != 1]}"
        event = NewEvent("token_created", f"a token for {devices} was made")
        lines: list[Line] = [event, by.did("create token", f"for {devices}")]
        token_id = await self._resources.write(
            self._store.add_token, _hash(secret), time.time() + valid_seconds, uses, events=lines
        )
        return token_id, JoinToken(secret, self.authority.fingerprint, self.port)

    async def revoke_token(self, token_id: int, by: Actor = SERVER) -> None:
        """It lets nobody in any more; who came by it stays."""
        event = NewEvent("token_revoked", f"token {token_id} was revoked")
        lines: list[Line] = [event, by.did("revoke token", str(token_id))]
        await self._resources.write(self._store.revoke_token, token_id, events=lines)

    async def tokens(self) -> list[TokenRecord]:
        """All tokens, without their secrets."""
        return await self._resources.threads.store(self._store.tokens)


def _hash(secret: bytes) -> str:
    # Secrets are long and random: nothing is gained by a slow hash.
    return hashlib.sha256(secret).hexdigest()

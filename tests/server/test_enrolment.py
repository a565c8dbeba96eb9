"""The two ports with TLS, in one process: what strangers may ask, and what members are told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from coppice.domain import PROTOCOL_VERSION, SERVER_TLS_NAME, ClientId
from coppice.errors import (
    CertificateExpired,
    CoppiceError,
    InvalidMessage,
    MemberRevoked,
    NameTaken,
    ProtocolMismatch,
    ServerBusy,
    TokenRefused,
)
from coppice.join_token import JoinToken
from coppice.wire import coordination_pb2 as pb
from coppice.wire.coordination_pb2_grpc import CoordinationStub, EnrolmentStub
from server import coordinator as coordinator_module
from server import members as members_module
from server import service as service_module
from server.access_records import AuditRecord
from server.attempts import BURST, RENEWAL
from server.audit import Audit
from server.authority import open_authority
from server.callers import Certified, address_of
from server.config import Address
from server.enrolment import EnrolmentService
from server.listeners import listen_for_devices, listen_for_strangers
from server.members import Members
from server.service import CoordinationService
from tests.server.host import PATIENCE_SECONDS, Host, _rebuilt

ANY = Address("127.0.0.1", 0)
_OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_TLS_NAME),
    ("grpc.use_local_subchannel_pool", 1),
)
CERTIFICATE_SECONDS, GRACE_SECONDS = 1000.0, 5000.0


class Clock:
    """Seconds by which the server's clock is ahead."""

    ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead


class Ports:
    """A server's two ports, and what a device says there."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.authority = open_authority(folder / "authority", "host", ["127.0.0.1"])
        self.members = Members(
            host.resources, host.coordinator, self.authority, CERTIFICATE_SECONDS, GRACE_SECONDS
        )
        self.key = ec.generate_private_key(ec.SECP256R1())

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Ports]:
        resources, coordinator = self.host.resources, self.host.coordinator
        callers = Certified(self.members)
        service = CoordinationService(
            coordinator,
            callers,
            resources.blobs,
            resources.threads,
            "host",
            self.host.receipt_key,
            Audit(resources),
        )
        devices, self.address = listen_for_devices(ANY, service, self.authority)
        enrolling = EnrolmentService(self.members, coordinator, Audit(resources))
        strangers, self.enrolment = listen_for_strangers(ANY, enrolling, self.authority)
        await asyncio.gather(devices.start(), strangers.start())
        try:
            yield self
        finally:
            await asyncio.gather(devices.stop(None), strangers.stop(None))

    def request(self, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        signed = builder.sign(key if key is not None else self.key, hashes.SHA256())
        return signed.public_bytes(Encoding.DER)

    async def stranger(self, method: str, request: Any) -> Any:
        credentials = grpc.ssl_channel_credentials(self.authority.pem)
        return await self._call(self.enrolment, credentials, EnrolmentStub, method, request)

    async def enrol(self, token: JoinToken, name: str = "pi-1", **fields: Any) -> pb.Certificate:
        values: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION,
            "signing_request": self.request(),
            "secret": token.secret,
            "name": name,
        }
        reply: pb.Certificate = await self.stranger("Enrol", pb.EnrolRequest(**(values | fields)))
        return reply

    async def device(self, certificate: pb.Certificate, method: str, request: Any) -> Any:
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = x509.load_der_x509_certificate(certificate.certificate).public_bytes(Encoding.PEM)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, key, chain)
        return await self._call(self.address, credentials, CoordinationStub, method, request)

    async def _call(
        self, address: Address, credentials: Any, stub: Any, method: str, request: Any
    ) -> Any:
        channel: Any = grpc.aio.secure_channel(str(address), credentials, options=_OPTIONS)
        async with channel:
            try:
                return await getattr(stub(channel), method)(request)
            except grpc.aio.AioRpcError as error:
                raise _rebuilt(error) from None


def play(folder: Path, scene: Callable[[Ports], Awaitable[None]]) -> None:
    async def performance() -> None:
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            Host(folder).open() as host,
            Ports(host, folder).open() as ports,
        ):
            await scene(ports)

    asyncio.run(performance())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(members_module, "time", made)
    return made


def audit(ports: Ports) -> list[AuditRecord]:
    return ports.host.store.audit()


JOIN = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, device_id="whatever")


def test_stranger_learns_the_authority_and_nothing_else(tmp_path: Path) -> None:
    async def scene(ports: Ports) -> None:
        reply = await ports.stranger("Authority", pb.AuthorityRequest())
        assert reply == pb.AuthorityReply(certificate=ports.authority.der)

    play(tmp_path, scene)


def test_device_is_let_in_and_known_by_its_key(tmp_path: Path) -> None:
    async def scene(ports: Ports) -> None:
        number, token = await ports.members.create_token(1, 100.0)
        got = await ports.enrol(token)
        assert (number, got.name, got.valid_seconds) == (1, "pi-1", CERTIFICATE_SECONDS)
        await ports.device(got, "Join", JOIN)
        (client,) = ports.host.store.clients()
        (member,) = await ports.members.all()
        assert (client.client_id, client.device_id) == ("pi-1", member.fingerprint[:32])
        serial = x509.load_der_x509_certificate(got.certificate).serial_number
        assert int(member.serial, 16) == serial
        # The token's secret is nowhere on the disk.
        assert token.secret.hex() not in str(await ports.members.tokens())
        lines = [(line.who, line.role, line.address, line.action) for line in audit(ports)]
        assert lines == [
            ("fedserver", "server", "", "create token"),
            ("pi-1", "device", "127.0.0.1", "enrol"),
        ]

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"name": "../x"}, InvalidMessage, "a name has 1 to 63"),
        ({"name": ""}, InvalidMessage, "a name has 1 to 63"),
        ({"signing_request": b"x"}, InvalidMessage, "cannot be read"),
        ({"signing_request": bytes(5000)}, InvalidMessage, "4096 bytes at most"),
        ({"secret": b""}, TokenRefused, "does not know the token"),
        ({"secret": bytes(9000)}, InvalidMessage, "allowed are 8192 at most"),
        ({"protocol_version": 2}, ProtocolMismatch, "install the same version"),
    ],
)
def test_bad_request_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], error: type[CoppiceError], says: str
) -> None:
    async def scene(ports: Ports) -> None:
        _, token = await ports.members.create_token(1, 100.0)
        with pytest.raises(error, match=says):
            await ports.enrol(token, **fields)
        assert await ports.members.all() == []
        assert ports.host.coordinator.snapshot().refusals == 1
        line = audit(ports)[-1]
        assert (line.role, line.address, line.action) == ("device", "127.0.0.1", "enrol")
        assert (line.outcome, says in line.detail) == ("refused", True)

    play(tmp_path, scene)


def test_too_many_attempts_are_told_to_wait(tmp_path: Path) -> None:
    async def scene(ports: Ports) -> None:
        asked = [ports.stranger("Authority", pb.AuthorityRequest()) for _ in range(2 * int(BURST))]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, ServerBusy)]
        assert 0 < len(refused) <= BURST
        assert "too many attempts from this address" in str(refused[0])

    play(tmp_path, scene)


def test_device_is_to_renew_after_half_the_time(tmp_path: Path) -> None:
    async def scene(ports: Ports) -> None:
        _, token = await ports.members.create_token(1, 100.0)
        got = await ports.enrol(token)
        pem = x509.load_der_x509_certificate(got.certificate).public_bytes(Encoding.PEM)
        _, renew_at = ports.members.of_certificate(pem)
        assert renew_at == pytest.approx(time.time() + CERTIFICATE_SECONDS / 2, abs=30)
        renewed = await ports.device(got, "Renew", pb.RenewRequest(signing_request=ports.request()))
        assert renewed.certificate != got.certificate
        await ports.device(renewed, "Join", JOIN)
        # Of somebody else's key, only that one may ask.
        other = ports.request(ec.generate_private_key(ec.SECP256R1()))
        with pytest.raises(InvalidMessage, match="of another key"):
            await ports.device(renewed, "Renew", pb.RenewRequest(signing_request=other))
        line = audit(ports)[-1]
        assert (line.who, line.role, line.address) == ("pi-1", "device", "127.0.0.1")
        assert (line.action, line.outcome) == ("renew", "refused")
        assert "of another key" in line.detail

    play(tmp_path, scene)


def test_device_that_renews_all_the_time_is_told_to_wait(tmp_path: Path) -> None:
    async def scene(ports: Ports) -> None:
        _, token = await ports.members.create_token(1, 100.0)
        got = await ports.enrol(token)
        again = pb.RenewRequest(signing_request=ports.request())
        for _ in range(int(RENEWAL.burst)):
            await ports.device(got, "Renew", again)
        with pytest.raises(ServerBusy, match="too many attempts from this device"):
            await ports.device(got, "Renew", again)
        line = audit(ports)[-1]
        assert (line.who, line.action, line.outcome) == ("pi-1", "renew", "refused")
        # That is nothing to another device.
        ports.key = ec.generate_private_key(ec.SECP256R1())
        _, second = await ports.members.create_token(1, 100.0)
        other = await ports.enrol(second, name="pi-2")
        await ports.device(other, "Renew", pb.RenewRequest(signing_request=ports.request()))

    play(tmp_path, scene)


def test_poll_of_an_old_certificate_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(ports: Ports) -> None:
        _, token = await ports.members.create_token(1, 100.0)
        got = await ports.enrol(token)
        await ports.device(got, "Join", JOIN)
        assert not (await ports.device(got, "PollTask", pb.PollRequest())).renew
        monkeypatch.setattr(service_module, "time", later)
        later.ahead = CERTIFICATE_SECONDS / 2 + 60
        assert (await ports.device(got, "PollTask", pb.PollRequest())).renew

    later = Clock()
    monkeypatch.setattr(coordinator_module, "POLL_SECONDS", 0.01)
    play(tmp_path, scene)


def test_revoking_ends_every_call_that_goes_on(tmp_path: Path) -> None:
    async def scene(ports: Ports) -> None:
        _, token = await ports.members.create_token(1, 100.0)
        name = ClientId((await ports.enrol(token)).name)

        async def transfer() -> None:
            with ports.members.calls.of(name):
                begun.set()
                await asyncio.Event().wait()

        begun = asyncio.Event()
        going_on = asyncio.create_task(transfer())
        await begun.wait()
        await ports.members.revoke(name)
        with pytest.raises(MemberRevoked):
            await going_on

    play(tmp_path, scene)


def test_expired_certificate_is_renewed_by_its_key_for_a_while(
    tmp_path: Path, clock: Clock
) -> None:
    async def scene(ports: Ports) -> None:
        _, token = await ports.members.create_token(1, 100.0)
        got = await ports.enrol(token)
        clock.ahead = CERTIFICATE_SECONDS + 1
        # TLS, which has the true time, lets it pass; a connection may be as old as that.
        with pytest.raises(CertificateExpired):
            await ports.device(got, "Join", JOIN)
        late = pb.RenewRequest(signing_request=ports.request())
        assert (await ports.stranger("Renew", late)).name == "pi-1"
        clock.ahead += CERTIFICATE_SECONDS + GRACE_SECONDS
        with pytest.raises(CertificateExpired, match="too long ago"):
            await ports.stranger("Renew", late)
        _, second = await ports.members.create_token(1, 100.0)
        with pytest.raises(NameTaken):
            await ports.enrol(second, name="pi-2")
        assert (await ports.enrol(second)).name == "pi-1"

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:51234", "10.0.0.7"),
        ("ipv6:%5B::1%5D:51234", "::1"),
        ("ipv6:[2001:db8::1]:1", "2001:db8::1"),
        ("unix:/tmp/socket", ""),
        ("", ""),
    ],
)
def test_address_is_read_from_what_grpc_says(peer: str, address: str) -> None:
    assert address_of(peer) == address

"""Who does not belong to a server: nobody of these gets in, and each is told why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.fleet import Fleet, Server
from benchmarks.program import Outcome, call
from coppice.domain import PROTOCOL_VERSION, SERVER_TLS_NAME
from coppice.join_token import new_secret, parse_token
from coppice.wire import coordination_pb2 as pb
from coppice.wire.status import CLIENT_KEY

CLIENT = "edge_client"
_OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_TLS_NAME),
    ("grpc.use_local_subchannel_pool", 1),
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, Path]) -> Iterator[Fleet]:
    """A server and a device that was let in."""
    with Fleet(tmp_path_factory.mktemp("guarded"), secure=True) as made:
        made.join("pi-1", digits["pi-1"])
        made.server.wait_for("client_joined", client_id="pi-1")
        yield made


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, Path]) -> Iterator[Fleet]:
    """The same elsewhere."""
    with Fleet(tmp_path_factory.mktemp("other"), secure=True) as made:
        made.join("pi-1", digits["pi-1"])
        made.server.wait_for("client_joined", client_id="pi-1")
        made.devices["pi-1"].program.terminate()
        yield made


def join(server: Server, data: Path, state: Path, *flags: object) -> Outcome:
    where = ("--data", data, "--state", state, "--wait", "0")
    return call(CLIENT, "join", server.address, *where, *flags)


def refused(outcome: Outcome, code: int, *says: str) -> None:
    assert (outcome.code, outcome.err.count("\n")) == (code, 1), outcome.err
    for text in says:
        assert text in outcome.err


# ---- by token -----------------------------------------------------------------------------------


def used(server: Server, other: Server) -> str:
    token = server.token()
    stranger = parse_token(token)
    device = Stranger(server, certificate=None)
    device.enrol(stranger.port, stranger.secret)
    return token


def expired(server: Server, other: Server) -> str:
    return server.token(valid_seconds=1e-6)


def revoked(server: Server, other: Server) -> str:
    token = server.token()
    server.api.post(f"/tokens/{server.api.get('/tokens')[-1]['token_id']}/revoke", {})
    return token


def invented(server: Server, other: Server) -> str:
    token = parse_token(server.token())
    return str(type(token)(new_secret(), token.fingerprint, token.port))


def of_another_server(server: Server, other: Server) -> str:
    # Even where it is sent to the right port, it gets no secret: that is another authority.
    token = parse_token(other.token())
    return str(type(token)(token.secret, token.fingerprint, parse_token(server.token()).port))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (used, "this token has been used as often as it may be"),
        (expired, "this token has expired"),
        (revoked, "this token was revoked"),
        (invented, "this server does not know the token"),
        (of_another_server, "is not the one that made this token"),
    ],
)
def test_with_such_a_token_is_refused(
    fleet: Fleet, other: Fleet, digits: dict[str, Path], tmp_path: Path, make: Any, says: str
) -> None:
    token = make(fleet.server, other.server)
    outcome = join(fleet.server, digits["pi-2"], tmp_path / "state", "--token", token)
    refused(outcome, 5, says, "fedserver token create")
    assert not (tmp_path / "state" / "membership.json").exists()


def test_without_a_token_is_refused(fleet: Fleet, digits: dict[str, Path], tmp_path: Path) -> None:
    outcome = join(fleet.server, digits["pi-2"], tmp_path / "state")
    refused(outcome, 5, "not enrolled at a server yet", "--token")


def test_another_device_of_a_name_is_refused(
    fleet: Fleet, digits: dict[str, Path], tmp_path: Path
) -> None:
    flags = ("--token", fleet.server.token(), "--name", "pi-1")
    outcome = join(fleet.server, digits["pi-2"], tmp_path / "state", *flags)
    refused(outcome, 5, "another device is enrolled as 'pi-1'", "fedserver client revoke pi-1")
    # It was not used up by that.
    assert fleet.server.api.get("/tokens")[-1]["is_now"] == "valid"


def test_without_tls_nobody_gets_in(fleet: Fleet, digits: dict[str, Path], tmp_path: Path) -> None:
    outcome = join(fleet.server, digits["pi-2"], tmp_path / "state", "--insecure")
    refused(outcome, 4, "closes the connection at once")


# ---- by certificate -----------------------------------------------------------------------------


class Stranger:
    """Calls a server as it likes. Without a certificate, only the server's is checked."""

    def __init__(self, server: Server, certificate: Path | None) -> None:
        """`certificate` is the state folder that has one."""
        self.server = server
        self.authority = (server.data / "authority" / "ca.pem").read_bytes()
        self._pair: tuple[bytes | None, bytes | None] = (None, None)
        if certificate is not None:
            membership = json.loads((certificate / "membership.json").read_text())
            key = (certificate / "device.key").read_bytes()
            self._pair = (key, membership["certificate"].encode())

    def call(self, method: str, request: Any, name: str = "", port: int | None = None) -> bytes:
        address = self.server.address if port is None else f"127.0.0.1:{port}"
        credentials = grpc.ssl_channel_credentials(self.authority, *self._pair)
        with grpc.secure_channel(address, credentials, options=_OPTIONS) as channel:
            make = channel.unary_unary(f"/coppice.wire.{method}", None, None)
            metadata = ((CLIENT_KEY, name),) if name else ()
            data = request.SerializeToString()
            return bytes(make(data, timeout=30.0, metadata=metadata))

    def enrol(self, port: int, secret: bytes, name: str = "stranger") -> bytes:
        request = pb.EnrolRequest(
            protocol_version=PROTOCOL_VERSION, signing_request=fresh_request(), secret=secret,
            name=name,
        )  # fmt: skip
        return self.call("Enrolment/Enrol", request, port=port)


def fresh_request() -> bytes:
    """A signing request by a new key."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


JOIN = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, device_id="0" * 32)


def closed(stranger: Stranger) -> bool:
    """Whether the server lets the stranger not even say what it wants."""
    with pytest.raises(grpc.RpcError) as caught:
        stranger.call("Coordination/Join", JOIN, name="pi-1")
    error: Any = caught.value
    return error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata()


def test_without_a_certificate_nothing_can_be_said(fleet: Fleet) -> None:
    assert closed(Stranger(fleet.server, None))


def test_certificate_of_another_authority_lets_nobody_in(fleet: Fleet, other: Fleet) -> None:
    assert closed(Stranger(fleet.server, other.devices["pi-1"].state))


def test_device_that_was_let_in_elsewhere_talks_to_no_other_server(
    fleet: Fleet, other: Fleet, digits: dict[str, Path], tmp_path: Path
) -> None:
    state = shutil.copytree(other.devices["pi-1"].state, tmp_path / "state")
    refused(
        join(fleet.server, digits["pi-1"], state),
        4,
        "its certificate is not by this device's server",
    )


def test_name_is_the_certificate_s_whatever_the_call_says(fleet: Fleet) -> None:
    stranger = Stranger(fleet.server, fleet.devices["pi-1"].state)
    stranger.call("Coordination/Join", JOIN, name="pi-9")
    assert [client["client_id"] for client in fleet.server.api.get("/clients")] == ["pi-1"]


def test_device_cannot_pose_as_the_server(
    fleet: Fleet, digits: dict[str, Path], tmp_path: Path
) -> None:
    own = fleet.devices["pi-1"].state
    membership = json.loads((own / "membership.json").read_text())
    pair = ((own / "device.key").read_bytes(), membership["certificate"].encode())
    poser = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    port = poser.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    poser.start()
    try:
        state = shutil.copytree(own, tmp_path / "state")
        where = ("--data", digits["pi-1"], "--state", state, "--wait", "0")
        outcome = call(CLIENT, "join", f"127.0.0.1:{port}", *where)
    finally:
        poser.stop(None).wait()
    refused(outcome, 4, "its certificate is not by this device's server")

"""How a device comes to a certificate: its key, and the calls to the port that lets devices in.

Imported only for that: it needs `cryptography`, which a device does without at all other times.
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from coppice.domain import PROTOCOL_VERSION, ClientId
from coppice.errors import AuthorityMismatch, ServerUnreachable, StoreUnusable
from coppice.files import write_file
from coppice.join_token import JoinToken, fingerprint_of
from coppice.wire import coordination_pb2 as pb
from coppice.wire.coordination_pb2_grpc import EnrolmentStub
from coppice.wire.status import error_from
from edge_client.connection import CALL_SECONDS, OPTIONS, explained
from edge_client.membership import Membership, write_membership
from edge_client.state_folder import REMEDY, StateFolder


def enrol(folder: StateFolder, host: str, token: JoinToken, name: ClientId) -> Membership:
    """Have this device let in at `host` by a token, and keep what comes of it."""
    address = f"{host}:{token.port}"
    authority = _authority(address, host, token)
    request = pb.EnrolRequest(
        protocol_version=PROTOCOL_VERSION,
        signing_request=signing_request(folder, name),
        secret=token.secret,
        name=name,
    )
    with _stub(address, authority.encode()) as stub:
        reply = _done(address, lambda: stub.Enrol(request, timeout=CALL_SECONDS))
    membership = Membership(ClientId(reply.name), token.port, authority, "", 0.0)
    return _keep(folder, membership, reply)


def renew_late(folder: StateFolder, host: str, membership: Membership) -> Membership:
    """A new certificate where the old one does not open the other port any more."""
    address = f"{host}:{membership.enrolment_port}"
    request = pb.RenewRequest(signing_request=signing_request(folder, membership.name))
    with _stub(address, membership.authority.encode()) as stub:
        reply = _done(address, lambda: stub.Renew(request, timeout=CALL_SECONDS))
    return _keep(folder, membership, reply)


def renew(
    folder: StateFolder, membership: Membership, call: Callable[[pb.RenewRequest], pb.Certificate]
) -> Membership:
    """A new certificate by the connection that there is; `call` makes the call."""
    reply = call(pb.RenewRequest(signing_request=signing_request(folder, membership.name)))
    return _keep(folder, membership, reply)


def signing_request(folder: StateFolder, name: str) -> bytes:
    """A request by this device's key, which is made if there is none (PKCS #10, DER)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(_key(folder), hashes.SHA256()).public_bytes(Encoding.DER)


def _key(folder: StateFolder) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(folder.key.read_bytes(), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key
    except FileNotFoundError:
        made = ec.generate_private_key(ec.SECP256R1())
        data = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_file(folder.key, data, remedy=REMEDY, secret=True)
        return made
    except OSError as error:
        raise StoreUnusable(f"{folder.key} cannot be read: {error.strerror}") from None
    except ValueError:
        pass
    raise StoreUnusable(
        f"{folder.key} is damaged; delete it and {folder.membership.name} beside it, and join with "
        "a new token"
    )


def _authority(address: str, host: str, token: JoinToken) -> str:
    """The certificate (PEM) of the authority that the token names."""
    # Whoever answers may be anybody so far: it gets no secret, only to show a certificate that
    # has the token's fingerprint. After that, only who has a key signed by it is talked to.
    try:
        shown = ssl.get_server_certificate((host.strip("[]"), token.port), timeout=CALL_SECONDS)
    except ssl.SSLError:
        raise ServerUnreachable(
            f"what listens at {address} does not enrol devices; is the address right?"
        ) from None
    except OSError as error:
        raise explained(ServerUnreachable(str(error.strerror or error)), address) from None
    with _stub(address, shown.encode()) as stub:
        reply = _done(address, lambda: stub.Authority(pb.AuthorityRequest(), timeout=CALL_SECONDS))
    if not hmac.compare_digest(fingerprint_of(reply.certificate), token.fingerprint):
        raise AuthorityMismatch(
            f"the server at {address} is not the one that made this token: is the address right, "
            "and was the server set up anew since? Ask for a new token there "
            "(fedserver token create)"
        )
    return ssl.DER_cert_to_PEM_cert(reply.certificate)


@contextmanager
def _stub(address: str, roots: bytes) -> Iterator[Any]:
    credentials = grpc.ssl_channel_credentials(roots)
    with grpc.secure_channel(address, credentials, options=OPTIONS) as channel:
        yield EnrolmentStub(channel)


def _done(address: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except grpc.RpcError as error:
        raise explained(error_from(error), address) from None


def _keep(folder: StateFolder, membership: Membership, reply: pb.Certificate) -> Membership:
    renewed = membership.renewed(reply.certificate, reply.valid_seconds)
    write_membership(folder, renewed)
    return renewed

"""The server's certificate authority: its key, the server's own certificate, and those of devices.

```
folder/ca.key      the authority's key, 0600: who has it, is the authority
folder/ca.pem      its certificate; written last, so that one that is there has its key beside it
folder/server.pem  the server's key and certificate, 0600; made anew whenever that is needed
```
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coppice.domain import SERVER_TLS_NAME
from coppice.errors import InvalidMessage, StoreUnusable
from coppice.files import reporting, write_file
from coppice.join_token import fingerprint_of

#: Far back, so that a device whose clock has not been set yet finds the certificates valid.
_SINCE = datetime(2000, 1, 1, tzinfo=UTC)
_AUTHORITY_DAYS = 10950
#: As long as the authority is good for: the two keys lie side by side.
_SERVER_DAYS = 3650
_SERVER_LEFT_DAYS = 365
#: The server's own clock may be set back.
_MARGIN = timedelta(days=1)
_LONGEST_REQUEST_BYTES = 4096
_LONGEST_DNS_NAME = 253


@dataclass(frozen=True)
class SigningRequest:
    """A device's request, checked: who sent it has the key."""

    public_key: ec.EllipticCurvePublicKey
    #: `key_fingerprint` of it.
    fingerprint: str


class Authority:
    """Signs for one server."""

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        server: tuple[bytes, bytes],
        is_new: bool,
    ) -> None:
        self._certificate = certificate
        self._key = key
        #: The server's key and certificate, in PEM.
        self.server_key, self.server_certificate = server
        self.der = certificate.public_bytes(Encoding.DER)
        self.pem = certificate.public_bytes(Encoding.PEM)
        #: What a token says of it.
        self.fingerprint = fingerprint_of(self.der)
        #: Whether it was made just now.
        self.is_new = is_new

    def sign(
        self, request: SigningRequest, name: str, serial: int, seconds: float, now: float
    ) -> bytes:
        """A device's certificate (DER), valid for so long."""
        at = datetime.fromtimestamp(now, UTC)
        builder = _builder(name, self._certificate.subject, request.public_key, serial)
        builder = builder.not_valid_before(at - _MARGIN)
        builder = builder.not_valid_after(at + timedelta(seconds=seconds))
        builder = _leaf(builder, ExtendedKeyUsageOID.CLIENT_AUTH)
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(Encoding.DER)


def open_authority(folder: Path, server_name: str, names: Sequence[str]) -> Authority:
    """The authority in a folder, made if there is none, with a certificate for these names.

    StoreUnusable when files are missing or do not belong together.
    """
    remedy = "choose another data folder with --data"
    with reporting(folder, remedy):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_file, certificate_file = folder / "ca.key", folder / "ca.pem"
    is_new = not certificate_file.exists()
    if is_new:
        made = ec.generate_private_key(ec.SECP256R1())
        write_file(key_file, _private_pem(made), remedy=remedy, secret=True)
        write_file(certificate_file, _self_signed(made, server_name), remedy=remedy)
    certificate, key = _read(certificate_file, key_file)
    server_file = folder / "server.pem"
    server = _read_server(server_file, certificate, names)
    if server is None:
        server = _server_pair(certificate, key, names)
        write_file(server_file, server[0] + server[1], remedy=remedy, secret=True)
    return Authority(certificate, key, server, is_new)


def read_signing_request(data: bytes) -> SigningRequest:
    """A request (PKCS #10, DER) that proves to have its key; InvalidMessage for any other."""
    if len(data) > _LONGEST_REQUEST_BYTES:
        raise InvalidMessage(f"a signing request has {_LONGEST_REQUEST_BYTES} bytes at most")
    try:
        request = x509.load_der_x509_csr(data)
        public_key = request.public_key()
        is_proven = request.is_signature_valid
    # What the parser raises depends on where the bytes are wrong.
    except Exception:
        raise InvalidMessage("the signing request cannot be read") from None
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != (
        "secp256r1"
    ):
        raise InvalidMessage("the signing request is not for an EC key on P-256")
    if not is_proven:
        raise InvalidMessage("the signing request is not signed by its own key")
    return SigningRequest(public_key, key_fingerprint(public_key))


def key_fingerprint(public_key: ec.EllipticCurvePublicKey) -> str:
    """Names a key, whatever certificate it is in: SHA-256 in hexadecimal."""
    data = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(data).hexdigest()


def certified(pem: bytes) -> tuple[str, float, float]:
    """Of a device's certificate that TLS has checked: `key_fingerprint`, since when, until when."""
    certificate = x509.load_pem_x509_certificate(pem)
    public_key = certificate.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey), "the authority signs no others"
    return (
        key_fingerprint(public_key),
        (certificate.not_valid_before_utc + _MARGIN).timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def _self_signed(key: ec.EllipticCurvePrivateKey, server_name: str) -> bytes:
    # A name has at most 64 characters; every authority has its own, so that none is taken for
    # another.
    name = f"Coppice CA {key_fingerprint(key.public_key())[:8]} {server_name}"[:64]
    builder = _builder(name, None, key.public_key())
    builder = builder.not_valid_before(_SINCE)
    builder = builder.not_valid_after(datetime.now(UTC) + timedelta(days=_AUTHORITY_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _server_pair(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, names: Sequence[str]
) -> tuple[bytes, bytes]:
    own = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(SERVER_TLS_NAME, certificate.subject, own.public_key())
    builder = builder.not_valid_before(_SINCE)
    builder = builder.not_valid_after(datetime.now(UTC) + timedelta(days=_SERVER_DAYS))
    builder = _leaf(builder, ExtendedKeyUsageOID.SERVER_AUTH)
    builder = builder.add_extension(_alternatives(names), critical=False)
    signed = builder.sign(key, hashes.SHA256())
    return _private_pem(own), signed.public_bytes(Encoding.PEM)


def _builder(
    name: str,
    issuer: x509.Name | None,
    public_key: ec.EllipticCurvePublicKey,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject)
    return builder.public_key(public_key).serial_number(
        x509.random_serial_number() if serial is None else serial
    )


def _leaf(
    builder: x509.CertificateBuilder, purpose: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    # The purpose keeps a device from posing as the server with its own certificate.
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    return builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: Sequence[str]) -> x509.SubjectAlternativeName:
    kinds: list[x509.GeneralName] = [x509.DNSName(SERVER_TLS_NAME)]
    for name in sorted(set(names) - {SERVER_TLS_NAME}):
        try:
            kinds.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            # Only what can be a host's name: the server's may be anything.
            if name.isascii() and " " not in name and 0 < len(name) <= _LONGEST_DNS_NAME:
                kinds.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(kinds)


def _read(
    certificate_file: Path, key_file: Path
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except OSError as error:
        raise StoreUnusable(
            f"{error.filename} cannot be read: {error.strerror}; put it back from a copy, or move "
            f"the folder {key_file.parent} away: every device then has to enrol anew"
        ) from None
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != (
        key.public_key()
    ):
        raise StoreUnusable(
            f"{key_file} and {certificate_file} do not belong together or are damaged; put both "
            f"back from a copy, or move the folder {key_file.parent} away: every device then has "
            "to enrol anew"
        )
    return certificate, key


def _read_server(
    path: Path, authority: x509.Certificate, names: Sequence[str]
) -> tuple[bytes, bytes] | None:
    """The server's key and certificate, if they are still what they have to be."""
    try:
        data = path.read_bytes()
        key, certificate = (
            load_pem_private_key(data, password=None),
            x509.load_pem_x509_certificate(data),
        )
        certificate.verify_directly_issued_by(authority)
        told = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return None
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != certificate.public_key()
        or left < timedelta(days=_SERVER_LEFT_DAYS)
        or told != _alternatives(names)
    ):
        return None
    return _private_pem(key), certificate.public_bytes(Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

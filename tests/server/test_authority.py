"""The authority's files, and what its certificates are good for."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from coppice.domain import SERVER_TLS_NAME
from coppice.errors import InvalidMessage, StoreUnusable
from coppice.join_token import fingerprint_of
from server import authority
from server.authority import Authority, certified, open_authority, read_signing_request

NAMES = ["localhost", "127.0.0.1", "10.0.0.7"]


def opened(folder: Path, names: list[str] = NAMES) -> Authority:
    return open_authority(folder / "authority", "lab", names)


def signing_request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    made = key if key is not None else ec.generate_private_key(ec.SECP256R1())
    return builder.sign(made, hashes.SHA256()).public_bytes(Encoding.DER)


def alternatives(made: Authority) -> set[str]:
    certificate = x509.load_pem_x509_certificate(made.server_certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


class TestFiles:
    def test_are_made_once_and_for_this_user_only(self, tmp_path: Path) -> None:
        first = opened(tmp_path)
        folder = tmp_path / "authority"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert modes.pop("ca.pem") & 0o022 == 0
        assert modes == {"ca.key": 0o600, "server.pem": 0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        second = opened(tmp_path)
        assert (first.is_new, second.is_new) == (True, False)
        assert second.der == first.der
        assert second.server_certificate == first.server_certificate
        assert second.fingerprint == fingerprint_of(first.der)

    def test_two_authorities_are_two(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        a, b = opened(tmp_path / "a"), opened(tmp_path / "b")
        assert a.fingerprint != b.fingerprint

    def test_authority_that_was_not_finished_is_made_anew(self, tmp_path: Path) -> None:
        opened(tmp_path)
        # Killed between the key and the certificate: nobody has seen it.
        (tmp_path / "authority" / "ca.pem").unlink()
        assert opened(tmp_path).is_new

    @pytest.mark.parametrize("damage", ["missing", "another's", "garbage"])
    def test_authority_without_its_key_is_refused_and_stays(
        self, tmp_path: Path, damage: str
    ) -> None:
        opened(tmp_path)
        (tmp_path / "else").mkdir()
        opened(tmp_path / "else")
        key = tmp_path / "authority" / "ca.key"
        key.unlink()
        if damage == "another's":
            key.write_bytes((tmp_path / "else" / "authority" / "ca.key").read_bytes())
        if damage == "garbage":
            key.write_text("garbage")
        before = (tmp_path / "authority" / "ca.pem").read_bytes()
        with pytest.raises(StoreUnusable, match="every device then has to enrol anew"):
            opened(tmp_path)
        assert (tmp_path / "authority" / "ca.pem").read_bytes() == before


class TestServerCertificate:
    def test_is_for_the_names_and_addresses(self, tmp_path: Path) -> None:
        made = opened(tmp_path, [*NAMES, "no host's name", ""])
        assert alternatives(made) == {SERVER_TLS_NAME, *NAMES}

    def test_is_made_anew_when_they_change(self, tmp_path: Path) -> None:
        before = opened(tmp_path)
        after = opened(tmp_path, [*NAMES, "10.0.0.8"])
        assert "10.0.0.8" in alternatives(after)
        assert after.der == before.der

    def test_is_made_anew_before_it_expires(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(authority, "_SERVER_DAYS", authority._SERVER_LEFT_DAYS - 1)
            before = opened(tmp_path)
        after = opened(tmp_path)
        assert after.server_certificate != before.server_certificate
        assert opened(tmp_path).server_certificate == after.server_certificate

    @pytest.mark.parametrize("content", [b"", b"garbage"])
    def test_is_made_anew_when_it_is_damaged(self, tmp_path: Path, content: bytes) -> None:
        opened(tmp_path)
        (tmp_path / "authority" / "server.pem").write_bytes(content)
        assert alternatives(opened(tmp_path)) == {SERVER_TLS_NAME, *NAMES}

    def test_is_valid_for_a_device_whose_clock_was_never_set(self, tmp_path: Path) -> None:
        made = opened(tmp_path)
        for pem in (made.pem, made.server_certificate):
            assert x509.load_pem_x509_certificate(pem).not_valid_before_utc.year == 2000


class TestDeviceCertificate:
    def test_is_for_clients_only_and_as_long_as_told(self, tmp_path: Path) -> None:
        made, now = opened(tmp_path), time.time()
        request = read_signing_request(signing_request())
        certificate = x509.load_der_x509_certificate(made.sign(request, "pi-1", 77, 1000.0, now))
        certificate.verify_directly_issued_by(x509.load_der_x509_certificate(made.der))
        assert certificate.serial_number == 77
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert not basic.ca
        fingerprint, since, until = certified(certificate.public_bytes(Encoding.PEM))
        assert fingerprint == request.fingerprint
        assert since == pytest.approx(now, abs=1)
        assert until == pytest.approx(now + 1000, abs=1)


class TestSigningRequest:
    def test_that_proves_its_key_is_read(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        assert read_signing_request(signing_request(key)).public_key == key.public_key()

    @pytest.mark.parametrize("data", [b"", b"garbage", b"\x30\x80" + bytes(100)])
    def test_that_is_none_is_refused(self, data: bytes) -> None:
        with pytest.raises(InvalidMessage, match="cannot be read"):
            read_signing_request(data)

    def test_that_is_too_long_is_refused(self) -> None:
        with pytest.raises(InvalidMessage, match="4096 bytes at most"):
            read_signing_request(bytes(4097))

    def test_by_another_kind_of_key_is_refused(self) -> None:
        for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
            with pytest.raises(InvalidMessage, match="EC key on P-256"):
                read_signing_request(signing_request(key))

    def test_that_does_not_have_its_key_is_refused(self) -> None:
        data = bytearray(signing_request())
        # The last bytes are the signature's.
        data[-1] ^= 1
        with pytest.raises(InvalidMessage, match="not signed by its own key"):
            read_signing_request(bytes(data))

"""The key of receipts: made once, for nobody else's eyes, and the same receipt every time."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from coppice.domain import ClientId
from coppice.errors import StoreUnusable
from coppice.wire.receipt import signed_text
from server.receipt_key import KEY_FILE, open_receipt_key
from server.records import Stored

STORED = Stored(ClientId("kitchen"), "1-0123456789abcdef", 7, "b" * 64, "d" * 64, 1_800_000_000)


def test_key_is_made_once_and_is_the_servers_alone(tmp_path: Path) -> None:
    first, again = open_receipt_key(tmp_path), open_receipt_key(tmp_path)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert len(first.public) == 32
    assert first.public == again.public
    assert first.receipt(STORED) == again.receipt(STORED)


def test_receipt_says_what_is_stored_and_is_signed(tmp_path: Path) -> None:
    key = open_receipt_key(tmp_path)
    receipt = key.receipt(STORED)
    assert (receipt.client, receipt.run_key, receipt.task_id) == ("kitchen", STORED.run_key, 7)
    assert (receipt.base, receipt.digest) == ("b" * 64, "d" * 64)
    assert receipt.stored_at == 1_800_000_000
    public = Ed25519PublicKey.from_public_bytes(key.public)
    public.verify(receipt.signature, signed_text(receipt))
    other = key.receipt(replace(STORED, task_id=8))
    with pytest.raises(InvalidSignature):
        public.verify(receipt.signature, signed_text(other))


def test_another_servers_receipt_is_not_this_ones(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert open_receipt_key(tmp_path).public != open_receipt_key(tmp_path / "other").public


def test_damaged_key_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("nonsense")
    with pytest.raises(StoreUnusable, match="put it back from a backup, or delete it"):
        open_receipt_key(tmp_path)
    wrong = ec.generate_private_key(ec.SECP256R1())
    pem = wrong.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / KEY_FILE).write_bytes(pem)
    with pytest.raises(StoreUnusable, match="is damaged"):
        open_receipt_key(tmp_path)

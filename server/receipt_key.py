"""The key that the server signs its receipts by: they prove later what it has said it stored.

It lies in the data folder beside the store that the receipts are about, and is told to devices when
they join.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from coppice.errors import StoreUnusable
from coppice.files import write_file
from coppice.wire import coordination_pb2 as pb
from coppice.wire.receipt import signed_text
from server.records import Stored

KEY_FILE = "receipts.key"


class ReceiptKey:
    """Signs receipts. The same update always gets the same one: Ed25519 uses no chance."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        #: What receipts are checked with, 32 bytes.
        self.public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def receipt(self, stored: Stored) -> pb.Receipt:
        """What a device is sent for an update that is stored."""
        receipt = pb.Receipt(
            task_id=stored.task_id,
            digest=stored.digest,
            client=stored.client_id,
            run_key=stored.run_key,
            base=stored.base,
            stored_at=stored.stored_at,
        )
        receipt.signature = self._key.sign(signed_text(receipt))
        return receipt


def open_receipt_key(folder: Path) -> ReceiptKey:
    """The key in this folder, made on the first call."""
    path = folder / KEY_FILE
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_file(path, pem, remedy="choose another folder with --data", secret=True)
    except OSError as error:
        raise StoreUnusable(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise StoreUnusable(
            f"{path} is damaged; put it back from a backup, or delete it: receipts are then signed "
            "by a new key, and those from before cannot be checked with that"
        ) from None
    return ReceiptKey(key)

"""The receipts of this device's newest updates, kept as proof of what the server said it stored.

A receipt is believed when it comes, because it comes over a connection whose other end has shown
who it is: checking its signature then would prove nothing more, and the library for it takes more
memory than a small device should spend on it while it trains. The bytes are kept, and are checked
when somebody asks for them (`fedclient receipts`), in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from coppice.errors import InvalidMessage
from coppice.files import reporting, write_file
from coppice.wire import coordination_pb2 as pb
from coppice.wire.receipt import signed_text
from edge_client.state_folder import REMEDY

#: The file grows to twice as many lines; a line that is added wears less than a file that is
#: written anew.
MOST_KEPT = 64


@dataclass(frozen=True)
class Kept:
    """A receipt, and the key that the server said it signs by."""

    receipt: pb.Receipt
    key: bytes

    @property
    def is_genuine(self) -> bool:
        """Whether that key has signed it. Loads `cryptography`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            key = Ed25519PublicKey.from_public_bytes(self.key)
            key.verify(self.receipt.signature, signed_text(self.receipt))
        except (InvalidSignature, ValueError):
            return False
        return True


class Receipts:
    """In a file with a line for each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count: int | None = None

    def keep(self, receipt: pb.Receipt, key: bytes) -> None:
        """Add a receipt; the oldest go."""
        line = json.dumps({"key": key.hex(), "receipt": receipt.SerializeToString().hex()})
        if self._count is None:
            self._count = sum(1 for _ in self.newest_last())
        # Not made durable: a receipt that a power cut takes is asked for again where it matters.
        if self._count >= 2 * MOST_KEPT:
            kept = [*self._lines(), line][-MOST_KEPT:]
            text = "".join(f"{each}\n" for each in kept)
            write_file(self._path, text.encode(), remedy=REMEDY, durable=False)
            self._count = len(kept)
        else:
            with reporting(self._path, REMEDY), self._path.open("a") as file:
                file.write(f"{line}\n")
            self._count += 1

    def newest_last(self) -> Iterator[Kept]:
        """All that are kept; a line that a crash has cut is passed over."""
        for line in self._lines():
            with suppress(ValueError, KeyError, TypeError, DecodeError):
                plain = json.loads(line)
                receipt = pb.Receipt.FromString(bytes.fromhex(plain["receipt"]))
                yield Kept(receipt, bytes.fromhex(plain["key"]))

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(errors="replace").splitlines()
        except OSError:
            return []


def check_receipt(receipt: pb.Receipt, client: str, run_key: str, task_id: int) -> None:
    """InvalidMessage unless it is a receipt of an answer to this device's task."""
    if (receipt.client, receipt.run_key, receipt.task_id) != (client, run_key, task_id):
        raise InvalidMessage(
            f"the server sent a receipt of task {receipt.task_id} of {receipt.client!r} for the "
            f"update of task {task_id}"
        )

"""What a receipt's signature is over. Imports no torch: light processes use it too."""

from __future__ import annotations

from coppice.wire import coordination_pb2 as pb


def signed_text(receipt: pb.Receipt) -> bytes:
    """All that the receipt says, in one way only; proto/README.md gives the lines."""
    lines = (
        "coppice receipt 1",
        receipt.client,
        receipt.run_key,
        str(receipt.task_id),
        receipt.base,
        receipt.digest,
        str(receipt.stored_at),
    )
    return "".join(f"{line}\n" for line in lines).encode()

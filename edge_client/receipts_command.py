"""`fedclient receipts`: what the server said it stored, and whether it can be held to that."""

from __future__ import annotations

import json

from edge_client.console import Console, day_text
from edge_client.receipts import Kept, Receipts
from edge_client.state_folder import StateFolder


def receipts(folder: StateFolder, as_json: bool) -> int:
    """List the receipts that are kept; exit code 1 when one is not genuine."""
    checked = [(kept, kept.is_genuine) for kept in Receipts(folder.receipts).newest_last()]
    if as_json:
        print(json.dumps([_plain(kept, genuine) for kept, genuine in checked], indent=2))
    else:
        _print(checked)
    return 0 if all(genuine for _, genuine in checked) else 1


def _print(checked: list[tuple[Kept, bool]]) -> None:
    console = Console()
    if not checked:
        console.say("receipts", "none yet")
    for kept, genuine in checked:
        receipt = kept.receipt
        text = (
            f"update {receipt.digest[:12]} of run {receipt.run_key}, stored "
            f"{day_text(receipt.stored_at)}"
        )
        if genuine:
            console.say(f"task {receipt.task_id}", text)
        else:
            console.warn(f"task {receipt.task_id}", f"{text}: NOT signed by the server's key")


def _plain(kept: Kept, genuine: bool) -> dict[str, object]:
    receipt = kept.receipt
    return {
        "task_id": receipt.task_id,
        "digest": receipt.digest,
        "client": receipt.client,
        "run_key": receipt.run_key,
        "base": receipt.base,
        "stored_at": receipt.stored_at,
        "signature": receipt.signature.hex(),
        "key": kept.key.hex(),
        "genuine": genuine,
    }

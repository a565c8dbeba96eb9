"""Receipts are kept, bounded, and shown to be genuine or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coppice.errors import InvalidMessage
from coppice.wire import coordination_pb2 as pb
from coppice.wire.receipt import signed_text
from edge_client.receipts import MOST_KEPT, Receipts, check_receipt
from edge_client.receipts_command import receipts as command
from edge_client.state_folder import StateFolder

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = KEY.public_key().public_bytes_raw()


def receipt(task_id: int = 7) -> pb.Receipt:
    made = pb.Receipt(
        task_id=task_id,
        digest="d" * 64,
        client="kitchen",
        run_key="1-0123456789abcdef",
        base="b" * 64,
        stored_at=1_800_000_000,
    )
    made.signature = KEY.sign(signed_text(made))
    return made


def test_signed_text_is_as_the_specification_says() -> None:
    assert signed_text(receipt()) == (
        b"coppice receipt 1\nkitchen\n1-0123456789abcdef\n7\n"
        + b"b" * 64
        + b"\n"
        + b"d" * 64
        + b"\n1800000000\n"
    )


def test_newest_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "receipts.jsonl"
    for task_id in range(1, 5 * MOST_KEPT):
        # Every process goes on with the file of the one before.
        Receipts(path).keep(receipt(task_id), PUBLIC)
    kept = [each.receipt.task_id for each in Receipts(path).newest_last()]
    assert MOST_KEPT <= len(kept) <= 2 * MOST_KEPT
    assert kept == list(range(5 * MOST_KEPT - len(kept), 5 * MOST_KEPT))


def test_line_that_was_cut_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "receipts.jsonl"
    Receipts(path).keep(receipt(1), PUBLIC)
    with path.open("a") as file:
        file.write('{"key": "00", "rec\n{}\n[]\n{"key": "zz", "receipt": ""}\n')
        file.write('{"key": "", "receipt": "ffff"}\n')
    Receipts(path).keep(receipt(2), PUBLIC)
    assert [each.receipt.task_id for each in Receipts(path).newest_last()] == [1, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_id", 8),
        ("digest", "e" * 64),
        ("client", "cellar"),
        ("run_key", "2-0123456789abcdef"),
        ("base", "c" * 64),
        ("stored_at", 1),
        ("signature", b""),
    ],
)
def test_receipt_that_was_changed_is_not_genuine(tmp_path: Path, field: str, value: object) -> None:
    kept = Receipts(tmp_path / "receipts.jsonl")
    changed = receipt()
    setattr(changed, field, value)
    kept.keep(receipt(), PUBLIC)
    kept.keep(changed, PUBLIC)
    kept.keep(receipt(), b"short")
    assert [each.is_genuine for each in kept.newest_last()] == [True, False, False]


@pytest.mark.parametrize(
    "update",
    [
        ("cellar", "1-0123456789abcdef", 7),
        ("kitchen", "2-", 7),
        ("kitchen", "1-0123456789abcdef", 8),
    ],
)
def test_receipt_of_another_update_is_refused(update: tuple[str, str, int]) -> None:
    check_receipt(receipt(), "kitchen", "1-0123456789abcdef", 7)
    with pytest.raises(InvalidMessage, match="receipt of task 7 of 'kitchen'"):
        check_receipt(receipt(), *update)


def test_command_lists_them(folder: StateFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folder, as_json=False) == 0
    assert "none yet" in capsys.readouterr().out
    kept = Receipts(folder.receipts)
    kept.keep(receipt(), PUBLIC)
    assert command(folder, as_json=True) == 0
    (plain,) = json.loads(capsys.readouterr().out)
    assert (plain["task_id"], plain["genuine"]) == (7, True)
    kept.keep(receipt(8), bytes(32))
    assert command(folder, as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "update dddddddddddd of run 1-0123456789abcdef" in lines[0]
    assert "NOT signed" in lines[1]
    assert "NOT" not in lines[0]

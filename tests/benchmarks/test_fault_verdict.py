"""The fault table's figures: each is wrong when something is."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.fault_verdict import Verdict, verdict_of
from coppice.wire import coordination_pb2 as pb

WANTED = [(1, "pi-1"), (1, "pi-2"), (2, "pi-1"), (2, "pi-2")]


def row(task_id: int, outcome: str = "counted") -> dict[str, Any]:
    round_number, client_id = WANTED[task_id - 1]
    return {
        "task_id": task_id,
        "round_number": round_number,
        "client_id": client_id,
        "outcome": outcome,
        "digest": f"of {task_id}",
    }


GOOD = [row(task_id) for task_id in (1, 2, 3, 4)]
RECEIPTS = [pb.Receipt(task_id=task_id, digest=f"of {task_id}") for task_id in (1, 2, 3, 4)]


def test_run_without_harm() -> None:
    verdict = verdict_of(GOOD, RECEIPTS, WANTED, is_same=True)
    assert verdict == Verdict(is_same=True, lost=0, counted_twice=0, missing=0)


@pytest.mark.parametrize(
    ("ledger", "receipts"),
    [
        pytest.param(GOOD[:3], [], id="no task"),
        pytest.param([*GOOD[:3], row(4, "uncounted")], [], id="stored, not counted"),
        pytest.param([*GOOD[:3], row(4, "refused")], [], id="refused"),
        pytest.param([*GOOD[:3], row(4, "missing")], RECEIPTS, id="missing in spite of a receipt"),
        pytest.param(GOOD, [pb.Receipt(task_id=4, digest="of another")], id="another counted"),
    ],
)
def test_lost_update(ledger: list[dict[str, Any]], receipts: list[pb.Receipt]) -> None:
    assert verdict_of(ledger, receipts, WANTED, is_same=True).lost == 1


def test_missing_client_is_in_the_ledger_and_not_lost() -> None:
    verdict = verdict_of([*GOOD[:3], row(4, "missing")], RECEIPTS[:3], WANTED, is_same=False)
    assert verdict == Verdict(is_same=False, lost=0, counted_twice=0, missing=1)


def test_update_that_counts_twice() -> None:
    again = row(4) | {"task_id": 5}
    assert verdict_of([*GOOD, again], RECEIPTS, WANTED, is_same=True).counted_twice == 1

"""What became of a run with a fault in it, by its ledger, the receipts and its parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coppice.wire import coordination_pb2 as pb


@dataclass(frozen=True)
class Verdict:
    """What a run came to."""

    #: Ended with the parameters of a run without faults.
    is_same: bool
    #: Updates with a receipt that do not count, and answers of devices that are just not there.
    lost: int
    counted_twice: int
    #: Tasks that the ledger calls missing.
    missing: int


def verdict_of(
    ledger: Sequence[Mapping[str, Any]],
    receipts: Iterable[pb.Receipt],
    wanted: Collection[tuple[int, str]],
    *,
    is_same: bool,
) -> Verdict:
    """The verdict on one run.

    Args:
        ledger: Its rows.
        receipts: Those of the run that its devices have.
        wanted: Rounds and devices of a run without faults.
        is_same: Whether it ended with the parameters of such a run.
    """
    counted = {row["task_id"]: row for row in ledger if row["outcome"] == "counted"}
    times = Counter((row["round_number"], row["client_id"]) for row in counted.values())
    missing = [row["task_id"] for row in ledger if row["outcome"] == "missing"]
    lost = {row["task_id"] for row in ledger} - set(counted) - set(missing)
    lost |= {
        receipt.task_id
        for receipt in receipts
        if receipt.task_id not in counted or receipt.digest != counted[receipt.task_id]["digest"]
    }
    planned = {(row["round_number"], row["client_id"]) for row in ledger}
    # Who was missing may have been left out of later rounds.
    unplanned = 0 if missing else len(set(wanted) - planned)
    return Verdict(
        is_same=is_same,
        lost=len(lost) + unplanned,
        counted_twice=sum(count - 1 for count in times.values()),
        missing=len(missing),
    )

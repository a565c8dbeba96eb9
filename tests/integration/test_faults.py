"""A tenth of what `python -m benchmarks run faults` tries, in one cluster of real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fault_cluster import Cluster, Reference, deal_digits
from benchmarks.fault_kinds import KINDS, FaultKind
from benchmarks.faults import open_cluster, try_once

TRIED = (
    "device killed, writing the outbox",
    "device killed, uploading",
    "device killed, waiting for the receipt",
    "server killed, planning",
    "server killed, committing",
    "server killed, migrating",
    "links cut at random bytes",
    "stored update damaged",
    "database truncated",
    "device's clock wrong",
)

# After a failed attempt devices wait, and longer each time.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Reference]]:
    folder: Path = tmp_path_factory.mktemp("faults")
    with open_cluster(folder / "cluster", deal_digits(folder)) as cluster:
        yield cluster, cluster.run_once()


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name in TRIED], ids=lambda kind: kind.name
)
def test_fault_loses_nothing_and_counts_nothing_twice(
    started: tuple[Cluster, Reference], kind: FaultKind
) -> None:
    cluster, reference = started
    case = try_once(kind, 1, 1, cluster, reference)
    assert case.is_good, case
    assert case.outcome == "same parameters"

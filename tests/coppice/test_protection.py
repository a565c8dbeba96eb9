"""What a run says of its protection, and how many updates a round needs."""

from __future__ import annotations

import pytest

from coppice.protection import Finding, ProtectionSpec, needed_updates


@pytest.mark.parametrize(
    ("needed", "planned", "refused", "fewest"),
    [
        (4, 8, 0, 4),
        (4, 8, 3, 4),
        # The quorum is everybody: one refused update does not fail the round.
        (8, 8, 1, 7),
        (8, 8, 3, 5),
        # Half or more: the fault is the run's.
        (8, 8, 4, 8),
        (4, 8, 7, 4),
        # Fewer were given a task than a quorum has.
        (4, 1, 0, 1),
        (1, 1, 1, 1),
    ],
)
def test_a_few_refused_updates_fail_no_round(
    needed: int, planned: int, refused: int, fewest: int
) -> None:
    assert needed_updates(needed, planned, refused) == fewest


def test_a_reason_is_one_short_line_whatever_a_device_has_put_into_it() -> None:
    finding = Finding("structure", "delta/\x1b[2J\n" + 1000 * "w" + " was not asked for")
    assert finding.reason.startswith("delta/ [2J www")
    assert len(finding.reason) == 400


def test_a_client_is_left_out_after_its_last_strike() -> None:
    assert [ProtectionSpec(strikes=2).leaves_out(count) for count in range(4)] == [
        False,
        False,
        True,
        True,
    ]
    assert not ProtectionSpec(strikes=0).leaves_out(1000)

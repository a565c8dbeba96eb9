"""A device on a link of a few kilobytes a second is slow, not dead, and the server says how far."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faulty_link import FaultyLink, Way
from benchmarks.fleet import Fleet
from benchmarks.program import until
from tests.integration.runs import run_file, saved, simulated

BYTES_PER_SECOND = 8 * 2**10
#: The least that a run file may say; the transfer of an update takes twice as long.
LOST_AFTER_SECONDS = 10
HIDDEN = 160
UPDATE_BYTES = 4 * (256 * HIDDEN + HIDDEN + HIDDEN * 10 + 10)
TEXT = run_file(
    model=f'{{ name = "mlp", hidden = [{HIDDEN}] }}',
    cohort=f"{{ size = 1, lost_after_seconds = {LOST_AFTER_SECONDS} }}",
    stop="{ rounds = 1 }",
)

pytestmark = pytest.mark.timeout(300)


def test_device_on_a_slow_link_is_waited_for_while_its_bytes_come(
    tmp_path: Path, digits: dict[str, Path]
) -> None:
    assert UPDATE_BYTES / BYTES_PER_SECOND > 2 * LOST_AFTER_SECONDS
    data = {"pi-1": digits["pi-1"]}
    with (
        Fleet(tmp_path, secure=True) as fleet,
        FaultyLink(fleet.server.address, bytes_per_second=BYTES_PER_SECOND) as link,
    ):
        server = fleet.server
        device = fleet.join("pi-1", data["pi-1"], "--no-kernels", address=link.address)
        run_id = server.submit(TEXT)

        def uploading() -> bool:
            text = str(server.status()["wait"]["text"])
            return text.startswith("1 of 1: pi-1, ") and text.endswith(" % uploaded")

        until(uploading, "the server says how much has come", server.program)
        run = server.finished(run_id)
        (row,) = server.ledger(run_id)
        assert (row["outcome"], row["client_id"]) == ("counted", "pi-1")
        assert saved(server.model(run)) == simulated(TEXT, data)
        # All of it went once, over one connection.
        assert "lost" not in device.program.printed
        assert UPDATE_BYTES < link.passed_bytes[Way.UP] < 1.2 * UPDATE_BYTES
        assert UPDATE_BYTES < link.passed_bytes[Way.DOWN] < 1.2 * UPDATE_BYTES
        kinds = {event["kind"] for event in server.api.get(f"/runs/{run_id}/log")}
        assert "round_failed" not in kinds

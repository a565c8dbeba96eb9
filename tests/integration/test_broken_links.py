"""Links that break at any byte, clients and servers killed in a transfer: as if it had not been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.faulty_link import Fault, FaultyLink, Kind, Way, random_cuts
from benchmarks.fleet import Fleet, Server
from benchmarks.program import PATIENCE_SECONDS
from tests.integration.runs import run_file, saved, simulated

#: Updates of 4 MB: many chunks, so that there is a middle to break off in.
TEXT = run_file(
    model='{ name = "mlp", hidden = [4000] }',
    # All of them, however slow the machine is.
    cohort="{ size = 3, quorum = 3, gather_seconds = 300 }",
    stop="{ rounds = 2 }",
)
UPDATE_BYTES = 4 * (256 * 4000 + 4000 + 4000 * 10 + 10)
ROUNDS = 2
#: What a transfer that breaks off may have to send again: a chunk that was not whole, and what was
#: on its way.
LOST_BYTES = 2**20
#: Polls, heartbeats, and what HTTP/2 adds.
OTHER_BYTES = 2**18

# After a failed attempt devices wait, and longer each time.
pytestmark = pytest.mark.timeout(300)


class Wired:
    """A server, and devices that reach it by links of their own."""

    def __init__(self, fleet: Fleet, links: dict[str, FaultyLink]) -> None:
        self.server: Server = fleet.server
        self.fleet = fleet
        self.links = links

    def finishes(self, run_id: int, digits: dict[str, Path]) -> None:
        """With each update counted once, and with the parameters of a run without faults."""
        run = self.server.finished(run_id)
        rows = self.server.ledger(run_id)
        assert {row["outcome"] for row in rows} == {"counted"}
        assert Counter((row["round_number"], row["client_id"]) for row in rows) == Counter(
            (round_number, name) for round_number in (1, 2) for name in digits
        )
        assert saved(self.server.model(run)) == simulated(TEXT, digits)

    def sent_bytes_are_bounded(self, name: str) -> None:
        link = self.links[name]
        again = len(link.happened) * LOST_BYTES
        assert link.passed_bytes[Way.UP] <= ROUNDS * UPDATE_BYTES * 1.01 + OTHER_BYTES + again


@pytest.fixture
def wired(tmp_path: Path, digits: dict[str, Path]) -> Iterator[Wired]:
    with ExitStack() as opened:
        fleet = opened.enter_context(Fleet(tmp_path))
        links = {name: opened.enter_context(FaultyLink(fleet.server.address)) for name in digits}
        for name, path in digits.items():
            fleet.join(name, path, "--no-kernels", address=links[name].address)
        yield Wired(fleet, links)


def test_links_cut_at_random_bytes_change_nothing(wired: Wired, digits: dict[str, Path]) -> None:
    for number, link in enumerate(wired.links.values()):
        link.add(*random_cuts(10 + number, 4, UPDATE_BYTES))
    wired.finishes(wired.server.submit(TEXT), digits)
    assert all(link.happened for link in wired.links.values())
    for name in wired.links:
        wired.sent_bytes_are_bounded(name)


def test_client_killed_in_its_upload_delivers_what_it_had_finished(
    wired: Wired, digits: dict[str, Path]
) -> None:
    link, device = wired.links["pi-2"], wired.fleet.devices["pi-2"]
    link.add(Fault(Way.UP, UPDATE_BYTES // 2, Kind.HOLD))
    run_id = wired.server.submit(TEXT)
    assert link.wait_for(1, PATIENCE_SECONDS)
    device.kill()
    link.release()
    device.start(wired.server, address=link.address)
    wired.finishes(run_id, digits)
    wired.sent_bytes_are_bounded("pi-2")
    assert "the update that was finished before has arrived" in device.program.printed


def test_server_killed_while_it_receives_goes_on_with_what_it_has(
    wired: Wired, digits: dict[str, Path]
) -> None:
    link = wired.links["pi-2"]
    link.add(Fault(Way.UP, UPDATE_BYTES // 2, Kind.HOLD))
    run_id = wired.server.submit(TEXT)
    assert link.wait_for(1, PATIENCE_SECONDS)
    wired.server.kill()
    (partial,) = (wired.server.data / "blobs" / "partial").glob("pi-2.*")
    assert partial.stat().st_size > UPDATE_BYTES // 2 - LOST_BYTES
    link.release()
    wired.server.start()
    wired.finishes(run_id, digits)
    wired.sent_bytes_are_bounded("pi-2")

"""The server's disk fills up in mid-run: it says so and stops; with room again the run goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fleet import Fleet
from tests.integration.runs import APP, app_file, saved, simulated

# After a failed attempt devices wait, and longer each time.
pytestmark = pytest.mark.timeout(300)

DISK_BYTES = 256 * 2**20
#: Else it would let no update in long before that.
WITHOUT_RESERVE = ("--disk-reserve-mb", "0")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "coppice-test", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(mount, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], timeout=30, check=True)


def test_server_with_a_full_disk_stops_and_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path, digits: dict[str, Path]
) -> None:
    text = app_file(stop="{ rounds = 2 }")
    with Fleet(tmp_path, data=disk / "server", flags=WITHOUT_RESERVE) as fleet:
        server = fleet.server
        for name, path in digits.items():
            fleet.join(name, path, "--app", APP).gate.close()
        run_id = server.submit(text)
        for device in fleet.devices.values():
            device.gate.wait_until_reached()
        filler = disk / "filler"
        fill(filler)
        for device in fleet.devices.values():
            device.gate.open()
        assert server.program.wait() == 7
        assert "Traceback" not in server.program.printed
        last = server.program.printed.splitlines()[-1]
        assert last.startswith(f"fedserver: no space is left on the disk of {server.data}")

        filler.unlink()
        server.start()
        run = server.finished(run_id)
        assert {row["outcome"] for row in server.ledger(run_id)} == {"counted"}
        assert saved(server.model(run)) == simulated(text, digits)


def fill(path: Path) -> None:
    """Write until there is no space."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass

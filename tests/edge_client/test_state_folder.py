"""The state folder: names, identity, one process at a time, whole files, clear errors."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from coppice.domain import valid_name
from coppice.errors import AlreadyRunning, StoreUnusable
from edge_client.state_folder import StateFolder, default_folder, default_name

HOLD = """
import sys
from pathlib import Path
from edge_client.state_folder import StateFolder
with StateFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_folder("kitchen") == Path("/var/state/coppice/kitchen")
    assert default_folder(None) == Path("/var/state/coppice/default")


def test_default_folder_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/pi")
    assert default_folder(None) == Path("/home/pi/.local/state/coppice/default")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("raspberrypi", "raspberrypi-abcd"),
        ("Bob's Pi!", "Bob-s-Pi-abcd"),
        ("küche.local", "k-che.local-abcd"),
        ("", "device-abcd"),
        ("-._", "device-abcd"),
        ("h" * 200, "h" * 58 + "-abcd"),
    ],
)
def test_default_name_is_the_host_and_four_digits(host: str, name: str) -> None:
    assert default_name(host, "abcd" * 8) == name
    assert valid_name(name)


def test_identity_is_made_once(folder: StateFolder) -> None:
    first = folder.identity()
    assert re.fullmatch(r"[0-9a-f]{32}", first.device_id)
    assert first.name == default_name(socket.gethostname(), first.device_id)
    assert StateFolder(folder.path).identity() == first


def test_two_folders_are_two_devices(tmp_path: Path) -> None:
    folders = [StateFolder(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        folder.make()
    assert folders[0].identity().device_id != folders[1].identity().device_id


def test_new_name_keeps_the_device_and_stays(folder: StateFolder) -> None:
    first = folder.identity()
    named = folder.identity("kitchen")
    assert named.name == "kitchen"
    assert named.device_id == first.device_id
    assert folder.identity() == named


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": "x"}', '{"name": "..", "device_id": "0"}']
)
def test_damaged_identity_is_named(folder: StateFolder, text: str) -> None:
    (folder.path / "device.json").write_text(text)
    with pytest.raises(StoreUnusable, match=r"device\.json is damaged; delete it"):
        folder.identity()


def test_folder_is_for_its_user_only(folder: StateFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_one_process_uses_the_folder(folder: StateFolder) -> None:
    assert folder.running_pid() is None
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert folder.running_pid() == other.pid
        with pytest.raises(AlreadyRunning, match=rf"pid {other.pid}"), folder.locked():
            pytest.fail("two processes held the lock")
        other.kill()
    assert folder.running_pid() is None
    with folder.locked():
        assert folder.running_pid() == os.getpid()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnusable, match=r"file/state cannot be written: Not a directory; give"):
        StateFolder(tmp_path / "file" / "state").make()

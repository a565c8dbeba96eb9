"""The two commands of the README on two hosts, and what somebody sees who listens between them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.program import until
from coppice.join_token import parse_token
from tests.integration.namespaces import NamedHost, trouble, two_hosts
from tests.integration.runs import run_file

pytestmark = pytest.mark.skipif(bool(trouble()), reason=trouble() or "there is nothing wrong")

NAME = "secret-orchard"
#: What nobody may see: the run, its model, the device and its labels, and what is called.
SECRETS = (NAME.encode(), b"kitchen-pi", b"attic", b"learning_rate", b"coppice.wire.Coordination")


@pytest.fixture
def hosts() -> Iterator[tuple[NamedHost, NamedHost]]:
    with two_hosts() as made:
        yield made


def printed_line(printed: Callable[[], str]) -> list[str]:
    """The join line of a server, as the arguments of a program, once it is printed."""
    found = until(lambda: re.search(r"fedclient (join .*)$", printed(), re.M), "it is up")
    return shlex.split(found[1])


def start(folder: Path) -> tuple[str, ...]:
    return ("-m", "server", "start", "--data", str(folder / "server"))


def submit(host: NamedHost, folder: Path) -> None:
    path = folder / "run.toml"
    path.write_text(run_file(name=f'"{NAME}"', cohort="{ size = 1 }", stop="{ rounds = 2 }"))
    arguments = ("run", "submit", path, "--data", folder / "server")
    outcome = host.call("-m", "server", *arguments)
    assert outcome.code == 0, outcome.err


def joined(host: NamedHost, line: list[str], data: Path, folder: Path) -> None:
    """Do what the line says, with this device's data, until the run has ended."""
    typed = [str(data) if word == "PATH" else word for word in line]
    flags = ("--once", "--name", "kitchen-pi", "--label", "room=attic")
    outcome = host.call("-m", "edge_client", *typed, *flags, XDG_STATE_HOME=str(folder / "device"))
    assert outcome.code == 0, outcome.out + outcome.err
    assert f"over     {NAME} finished" in outcome.out


def test_printed_line_is_all_and_nothing_travels_in_clear(
    hosts: tuple[NamedHost, NamedHost], tmp_path: Path, digits: dict[str, Path]
) -> None:
    server, device = hosts
    log = tmp_path / "server.log"
    with (
        server.captured(tmp_path) as frames,
        server.running(log, *start(tmp_path)) as printed,
    ):
        line = printed_line(printed)
        # It names the address that the other host can call, and brings a token.
        assert line[:3] == ["join", f"{server.address}:7433", "--token"]
        token = parse_token(line[3])
        submit(server, tmp_path)
        joined(device, line, digits["pi-1"], tmp_path)
    seen = frames.read_bytes()
    # Two models of 34 kB went each way.
    assert len(seen) > 4 * 30_000
    for port in (7433, 7434):
        assert port.to_bytes(2, "big") in seen
    for secret in (*SECRETS, token.secret, line[3].encode(), b"COPP\x02"):
        assert secret not in seen, secret


def test_without_tls_the_same_listener_sees_it_all(
    hosts: tuple[NamedHost, NamedHost], tmp_path: Path, digits: dict[str, Path]
) -> None:
    # What the other test looks for is there to be found.
    host, _ = hosts
    log = tmp_path / "server.log"
    with (
        host.captured(tmp_path, "lo") as frames,
        host.running(log, *start(tmp_path), "--insecure") as printed,
    ):
        line = printed_line(printed)
        assert line[2] == "--insecure"
        submit(host, tmp_path)
        joined(host, line, digits["pi-1"], tmp_path)
    seen = frames.read_bytes()
    for secret in (*SECRETS, b"COPP\x02"):
        assert secret in seen, secret

"""`fedserver status`: what it prints."""

from __future__ import annotations

import json

import pytest

from server import run_commands
from server.cli import main
from server.printing import clock
from tests.server.command_samples import IDLE, RUN, STATUS, WAIT, Api


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()
    monkeypatch.setattr(run_commands, "ApiClient", made)
    made.answers = {"/status": STATUS, "/runs/3": RUN}
    return made


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["status"]) == 0
    return capsys.readouterr().out.splitlines()


def test_tells_who_is_waited_for_until_when_and_what_then(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(capsys) == [
        "run 3: digits, round 13 of 20, devices are training",
        f"waiting for 1 of 8: pi-03, 71 % uploaded, until {clock(1e9)}",
        "then the round closes with what has come: 4 are enough",
        "",
        "client  presence  silent for  awaited",
        "──────  ────────  ──────────  ─────────────",
        "pi-03   working   1 s         71 % uploaded",
        "pi-04   idle      0 s",
    ]


def test_a_wait_without_a_deadline_has_no_time(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    wait = WAIT | {"text": "2 more clients (1 of 3 are here)", "until": None, "then": ""}
    api.answers["/status"] = STATUS | {"wait": wait, "phase": "gathering", "clients": {}}
    assert printed(capsys) == [
        "run 3: digits, round 13 of 20, gathering devices",
        "waiting for 2 more clients (1 of 3 are here)",
    ]


def test_a_server_without_a_run_says_so(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["/status"] = IDLE
    assert printed(capsys) == ["no run is open; submit one: fedserver run submit run.toml"]


def test_as_json_is_what_the_server_says(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS

"""The command line: what it takes, what it refuses, and the commands that need no server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from coppice.domain import Forecast, RoundReport, TaskKind
from coppice.method import Local, Task
from coppice.model_file import load_model, read_info, save_model
from coppice.sparse import Mask, SparseTensor
from edge_client import cli, commands
from edge_client.model_keeper import ModelKeeper
from edge_client.ready import ReadyRun
from edge_client.state_folder import StateFolder
from edge_client.status import Status, StatusFile
from tests.edge_client.fake_server import PATIENCE_SECONDS, model_payload
from tests.edge_client.test_model_keeper import local, ready

__all__ = ["local", "ready"]

ROOT = Path(__file__).parents[2]
#: Port 1 of loopback is privileged and unused.
NOBODY = ("127.0.0.1:1", "--insecure")

NAMED = Status(pid=7, server="host:1", name="kitchen", run="tiny", round_number=3, phase="training")

REPORT = RoundReport(
    round_number=2,
    steps=12,
    density=0.25,
    download_seconds=0.5,
    compute_seconds=12.2,
    upload_seconds=0.8,
    peak_bytes=312_000_000,
    budget_bytes=400_000_000,
    bound_by="a limit",
    forecast=Forecast(0.2, 11.5, 1.2, 300_000_000, "memory"),
)


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("command", [[], ["join"], ["status"], ["leave"], ["model"]])
def test_help_teaches(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert f"fedclient {' '.join(command)}" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["join", "pi-lab", "--data", "x"], "is not HOST:PORT; an example is"),
        (["join", "pi-lab:", "--data", "x"], "is not HOST:PORT"),
        (["join", ":7070", "--data", "x"], "is not HOST:PORT"),
        (["join", "pi-lab:70700", "--data", "x"], "is not HOST:PORT"),
        (["join", "http://pi-lab:7070", "--data", "x"], "leave out 'http://'"),
        (["join", "::1:7070", "--data", "x"], "in brackets"),
        (["join", "pi-lab:7070"], "--data"),
        (["join", "pi-lab:7070", "--data", "x", "--name", "../x"], "a name has 1 to 63"),
        (["join", "pi-lab:7070", "--data", "x", "--label", "room"], "is not KEY=VALUE"),
        (["join", "pi-lab:7070", "--data", "x", "--label", "=x"], "is not KEY=VALUE"),
        (["join", "pi-lab:7070", "--data", "x", "--label", "x" * 64 + "=1"], "at most 63"),
        (["join", "pi-lab:7070", "--data", "x", "--threads", "0"], "not a number from 1"),
        (["join", "pi-lab:7070", "--data", "x", "--wait", "soon"], "not a number of seconds"),
        (["join", "pi-lab:7070", "--data", "x", "--wait", "inf"], "not a number of seconds"),
        (["dance"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_wrong_command_lines_are_explained(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("address", ["pi-lab:7070", "192.168.1.10:1", "[fe80::1]:65535"])
def test_addresses_are_taken(address: str) -> None:
    assert cli._address(address) == address


def test_missing_data_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "typo.npz"
    assert run("join", "host:1", "--data", missing, "--state", tmp_path / "state") == 3
    error = capsys.readouterr().err
    assert (
        error
        == f"fedclient: {missing} does not exist; give the path of this device's data with --data\n"
    )
    assert not (tmp_path / "state").exists()


def test_missing_app_is_exit_code_6(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "typo.py"
    assert run("join", "host:1", "--data", data, "--app", missing, "--state", tmp_path / "s") == 6
    assert "typo.py" in capsys.readouterr().err


def test_no_server_is_exit_code_4(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    assert run("join", *NOBODY, "--data", data, "--state", state, "--wait", "0") == 4
    error = capsys.readouterr().err
    assert error.startswith("fedclient: no Coppice server can be reached at 127.0.0.1:1; ")
    assert error.count("\n") == 1


def test_second_client_of_a_folder_is_exit_code_7(
    folder: StateFolder, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with folder.locked():
        assert run("join", *NOBODY, "--data", data, "--state", folder.path) == 7
    assert f"running already (pid {os.getpid()})" in capsys.readouterr().err


def test_error_of_the_program_is_one_line_and_a_file(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: StateFolder, as_json: bool) -> int:
        raise ZeroDivisionError("that should not be")

    monkeypatch.setattr(commands, "status", fail)
    assert run("status", "--state", folder.path) == 1
    path = folder.path / "traceback.txt"
    said = f"fedclient: ZeroDivisionError: that should not be; the traceback is in {path}\n"
    assert capsys.readouterr().err == said
    assert "in fail" in path.read_text()


def test_ctrl_c_is_exit_code_130(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: StateFolder, as_json: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "status", interrupt)
    assert run("status", "--state", folder.path) == 130


def test_status_without_a_client_is_exit_code_7(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("status", "--state", tmp_path / "none") == 7
    assert "no client has run with the state folder" in capsys.readouterr().err


def test_status_of_a_running_client(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    StatusFile(folder.status, NAMED)
    with folder.locked():
        assert run("status", "--state", folder.path) == 0
        text = capsys.readouterr().out
        assert "kitchen  training for 0 s, process 7" in text
        assert "tiny, round 3, step 0" in text
        assert run("status", "--state", folder.path, "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["running"] is True
    assert (plain["run"], plain["phase"], plain["round_number"]) == ("tiny", "training", 3)


def test_status_tells_of_the_last_round(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    StatusFile(folder.status, replace(NAMED, last_round=REPORT))
    with folder.locked():
        run("status", "--state", folder.path)
        assert capsys.readouterr().out.splitlines()[-3:] == [
            "last     round 2: 12 steps, prune ratio 75.0 % (memory-bound)",
            "time     down 0.5 s (0.2 s predicted), compute 12.2 s (11.5 s predicted), "
            "up 0.8 s (1.2 s predicted)",
            "memory   312.0 MB of memory (300.0 MB predicted, 400.0 MB allowed), by a limit",
        ]
        run("status", "--state", folder.path, "--json")
    plain = json.loads(capsys.readouterr().out)
    assert plain["last_round"] == asdict(REPORT)


def test_status_of_a_round_without_predictions(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    StatusFile(folder.status, replace(NAMED, last_round=replace(REPORT, forecast=None)))
    run("status", "--state", folder.path)
    text = capsys.readouterr().out
    assert "predicted" not in text
    assert "prune ratio 75.0 %\n" in text
    assert "312.0 MB of memory (400.0 MB allowed)" in text


def test_status_of_a_client_that_ended(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    StatusFile(folder.status, NAMED)
    assert run("status", "--state", folder.path) == 7
    assert "not running; its last phase was 'training'" in capsys.readouterr().out
    assert run("status", "--state", folder.path, "--json") == 7
    assert json.loads(capsys.readouterr().out)["running"] is False


def test_name_finds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = StateFolder(tmp_path / "coppice" / "kitchen")
    folder.make()
    StatusFile(folder.status, NAMED)
    run("status", "--name", "kitchen")
    assert "tiny" in capsys.readouterr().out


def test_leave_without_a_client_is_exit_code_7(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("leave", "--state", folder.path) == 7
    assert "no client is running" in capsys.readouterr().err


def test_leave_that_is_not_followed_says_so(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(commands, "LEAVE_SECONDS", 0.0)
    with folder.locked():
        assert run("leave", "--state", folder.path) == 1
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert "still busy" in capsys.readouterr().err


def test_model_without_one_is_exit_code_3(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("model", "--state", folder.path) == 3
    assert "there is no model" in capsys.readouterr().err


@pytest.fixture
def saved(folder: StateFolder, ready: ReadyRun, local: Local) -> StateFolder:
    """A folder with a model of round 5."""
    keeper = ModelKeeper(folder.model)
    keeper.hold(ready, Task(TaskKind.KEEP, 5, model_payload()), local, {"accuracy": 0.875})
    keeper.save()
    return folder


def test_model_is_described_with_how_to_load_it(
    saved: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("model", "--state", saved.path) == 0
    text = capsys.readouterr().out
    assert "tiny, round 5, by fedavg" in text
    assert "left, right" in text
    assert "accuracy 0.875" in text
    lines = [line.strip() for line in text.splitlines()]
    names: dict[str, object] = {}
    exec("\n".join(lines[lines.index("from pathlib import Path") :]), names)
    assert names["info"] == read_info(saved.model)


def test_description_as_json_agrees_with_the_file(
    saved: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("model", "--state", saved.path, "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    info = read_info(saved.model)
    assert plain == {
        "path": str(saved.model),
        "run": info.workload.name,
        "method": "fedavg",
        "round_number": info.round_number,
        "classes": ["left", "right"],
        "app": None,
        "metrics": info.metrics,
        "density": None,
        "size_bytes": saved.model.stat().st_size,
        "written_by": info.written_by,
    }


def test_model_on_masks_tells_how_much_of_it_is_left_out(
    saved: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    info = read_info(saved.model)
    kept = SparseTensor(Mask.of(torch.arange(8) < 3), torch.ones(3))
    save_model(saved.model, {"w": kept}, info)
    assert run("model", "--state", saved.path) == 0
    assert "prune ratio 62.5 %" in capsys.readouterr().out
    run("model", "--state", saved.path, "--json")
    assert json.loads(capsys.readouterr().out)["density"] == 0.375


def test_model_is_copied(
    saved: StateFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine.safetensors"
    assert run("model", "--state", saved.path, "--output", output) == 0
    assert str(output) in capsys.readouterr().out
    _, info = load_model(output)
    assert info.round_number == 5


def test_copy_that_cannot_be_written_says_what_to_do(
    saved: StateFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "nowhere" / "mine.safetensors"
    assert run("model", "--state", saved.path, "--output", output) == 7
    assert "No such file or directory; give --output another path" in capsys.readouterr().err


def test_file_that_is_no_model_is_named(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.model.write_bytes(b"garbage")
    assert run("model", "--state", folder.path) == 3
    assert "is not a model of Coppice" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "leave", "model"])
def test_commands_without_a_server_import_neither_torch_nor_grpc(
    saved: StateFolder, command: str
) -> None:
    code = (
        "import sys\nfrom edge_client.cli import main\n"
        f"main([{command!r}, '--state', {str(saved.path)!r}])\n"
        "print(sorted({'torch', 'grpc'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith("[]\n")


def test_colours_are_for_terminals(
    fedclient: Callable[..., subprocess.Popen[str]], saved: StateFolder
) -> None:
    out, _ = fedclient("model", "--state", saved.path).communicate(timeout=PATIENCE_SECONDS)
    assert "\x1b" not in out

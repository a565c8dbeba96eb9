"""The real program against the fake server: it works, and ends well when it is told to."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coppice.domain import MethodSpec
from coppice.model_file import read_info
from edge_client.state_folder import StateFolder
from tests.edge_client.fake_server import PATIENCE_SECONDS, WORKLOAD, FakeServer, model_payload

Start = Callable[..., "subprocess.Popen[str]"]

#: A run whose training does not end by itself.
ENDLESS = replace(
    WORKLOAD,
    method=MethodSpec(name="fedavg", settings={"local_steps": 1_000_000, "batch_size": 1}),
)


@pytest.fixture
def join(fedclient: Start, server: FakeServer, data: Path, tmp_path: Path) -> Start:
    def start(*more: str, **env: str) -> subprocess.Popen[str]:
        return fedclient(
            "join",
            server.address,
            "--insecure",
            "--data",
            data,
            "--state",
            tmp_path / "state",
            "--threads",
            "1",
            *more,
            **env,
        )

    return start


#: Less than the deadline of any call: a call that is not cancelled makes the test fail.
END_SECONDS = 30.0


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a process that is about to end."""
    out, errors = process.communicate(timeout=END_SECONDS)
    return process.returncode, out, errors


def test_device_without_a_run_does_not_load_torch(join: Start, server: FakeServer) -> None:
    process = join("--once")
    server.wait_for("PollTask", 2)
    loaded = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libtorch" not in loaded
    assert "grpc" in loaded
    server.offer_run()
    server.end_run()
    assert end(process)[0] == 0


def test_threads_of_the_device_do_not_spin(join: Start, server: FakeServer) -> None:
    server.offer_run()
    server.end_run()
    # The OpenMP runtime that torch brings says by itself how it was set up.
    code, _, errors = end(join("--once", OMP_DISPLAY_ENV="TRUE"))
    assert code == 0
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in errors


def test_whole_life_with_once(join: Start, server: FakeServer, tmp_path: Path) -> None:
    ref = server.add_blob(model_payload())
    server.offer_run()
    server.offer_task(ref)
    server.end_run(keep=ref)
    code, out, errors = end(join("--once", "--label", "room=kitchen", "--label", "floor=1"))
    assert (code, errors) == (0, "")
    request = server.of("Join")[0]
    assert dict(request.labels) == {"room": "kitchen", "floor": "1"}
    assert request.protocol_version == 3
    assert request.software.startswith("coppice ")
    identity = StateFolder(tmp_path / "state").identity()
    assert request.device_id == identity.device_id
    assert {call.client_id for call in server.calls} == {identity.name}
    assert out.startswith(f"device   {identity.name}, state in ")
    assert read_info(tmp_path / "state" / "model.safetensors").round_number == 9


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_while_polling(
    join: Start, server: FakeServer, number: signal.Signals, code: int
) -> None:
    process = join()
    server.wait_for("PollTask")
    process.send_signal(number)
    assert end(process)[0::2] == (code, "")
    assert [request.reason for request in server.of("Leave")] == [""]


def test_signal_while_training(join: Start, server: FakeServer, tmp_path: Path) -> None:
    server.offer_run(ENDLESS)
    server.offer_task(server.add_blob(model_payload()), round_number=4)
    process = join()
    beats = 1
    while server.wait_for("Heartbeat", beats).steps_done == 0:
        beats += 1
    process.terminate()
    assert end(process)[0::2] == (0, "")
    assert len(server.of("Leave")) == 1
    assert server.of("PushUpdate") == []
    assert read_info(tmp_path / "state" / "model.safetensors").round_number == 4


def test_signal_while_pushing(join: Start, server: FakeServer) -> None:
    gate = server.gate("PushUpdate")
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()))
    process = join()
    assert gate.reached.wait(PATIENCE_SECONDS)
    process.terminate()
    assert end(process)[0::2] == (0, "")
    assert len(server.of("Leave")) == 1


def test_signal_while_there_is_no_server(join: Start, server: FakeServer) -> None:
    process = join()
    server.wait_for("PollTask")
    server.stop()
    assert process.stdout is not None
    while not process.stdout.readline().startswith("lost"):
        pass
    process.terminate()
    assert end(process)[0::2] == (0, "")


def test_signal_before_the_first_contact(join: Start, server: FakeServer) -> None:
    server.stop()
    process = join("--wait", "60")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("waiting"):
        pass
    process.terminate()
    assert end(process)[0::2] == (0, "")


def test_second_signal_ends_it_at_once(join: Start, server: FakeServer) -> None:
    gate = server.gate("Leave")
    process = join()
    server.wait_for("PollTask")
    process.terminate()
    assert gate.reached.wait(PATIENCE_SECONDS)
    process.terminate()
    assert end(process)[0] == 128 + signal.SIGTERM


def test_leave_ends_a_running_client(
    join: Start, fedclient: Start, server: FakeServer, tmp_path: Path
) -> None:
    process = join()
    server.wait_for("PollTask")
    state = ("--state", tmp_path / "state")
    status = json.loads(
        fedclient("status", "--json", *state).communicate(timeout=PATIENCE_SECONDS)[0]
    )
    assert status["running"] is True
    assert (status["phase"], status["pid"]) == ("waiting", process.pid)
    code, out, _ = end(fedclient("leave", *state))
    assert (code, out) == (0, f"left     process {process.pid} has ended\n")
    assert end(process)[0] == 0
    status = json.loads(
        fedclient("status", "--json", *state).communicate(timeout=PATIENCE_SECONDS)[0]
    )
    assert (status["running"], status["phase"]) == (False, "left")


def test_data_that_do_not_fit_are_exit_code_3(join: Start, server: FakeServer, data: Path) -> None:
    data.write_text("not an archive")
    server.offer_run()
    code, _, errors = end(join())
    assert code == 3
    assert errors.startswith(f"fedclient: {data}")
    assert errors.count("\n") == 1
    assert server.of("Leave")[0].reason == errors.removeprefix("fedclient: ").strip()


def test_failure_in_the_program_is_told_by_its_type(
    join: Start, server: FakeServer, tmp_path: Path
) -> None:
    server.offer_run()
    # FedAvg's tasks always have a learning rate; without it its half fails in its own way.
    server.offer_task(server.add_blob(model_payload()), settings_json="{}")
    code, _, errors = end(join())
    assert code == 1
    traceback = tmp_path / "state" / "traceback.txt"
    assert errors == f"fedclient: KeyError: 'learning_rate'; the traceback is in {traceback}\n"
    assert "KeyError" in traceback.read_text()
    assert server.of("Leave")[0].reason == "KeyError"

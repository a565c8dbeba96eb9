"""What users get wrong: one line that says what to do, the documented exit code, nothing left."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fleet import ANY_PORT, Fleet, Server
from benchmarks.program import PATIENCE_SECONDS, Outcome, call
from server.config import WHERE_FILE
from tests.integration.runs import APP, run_file

SERVER, CLIENT = "server", "edge_client"
#: More would only wait for each other.
PROGRAMS_AT_A_TIME = 3


def assert_one_line(outcome: Outcome, code: int, *texts: str) -> None:
    assert outcome.code == code, outcome
    (line,) = outcome.err.splitlines()
    assert line.startswith(("fedserver: ", "fedclient: "))
    for text in texts:
        assert text in line


# ---- what is there ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a run that waits for its devices."""
    with Fleet(tmp_path_factory.mktemp("host")) as fleet:
        fleet.server.submit(run_file())
        yield fleet.server


@pytest.fixture(scope="module")
def busy_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def idle_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that fit the run, and data that do not."""
    folder = tmp_path_factory.mktemp("files")
    x, y = np.zeros((8, 16, 16), np.uint8), np.arange(8)
    np.savez(folder / "good.npz", x=x, y=y)
    np.savez(folder / "label.npz", x=x, y=y + 3)
    np.savez(folder / "class.npz", x=x, y=np.array(list("0123456x")))
    np.savez(folder / "shape.npz", x=x[:, :5], y=y)
    (folder / "text.npz").write_text("these are no arrays")
    (folder / "other_app.py").write_text(APP.read_text() + "\n# another one\n")
    return folder


# ---- programs that end at once, several at a time -----------------------------------------------

#: A module and its arguments.
Call = tuple[str, tuple[object, ...]]


@dataclass(frozen=True)
class Scene:
    host: Server
    files: Path
    states: Path
    busy_port: str
    idle_port: str

    def start(self, data: Path, listen: str = ANY_PORT, dashboard: str = ANY_PORT) -> Call:
        ports = ("--listen", listen, "--dashboard", dashboard)
        return SERVER, ("start", "--data", data, *ports, "--insecure")

    def join(self, data: str, *flags: object, address: str | None = None) -> Call:
        name = f"device-{len(list(self.states.iterdir()))}"
        (self.states / name).mkdir()
        where = ("--name", name, "--state", self.states / name, "--wait", "0", "--threads", "1")
        return CLIENT, (
            "join", address or self.host.address, "--insecure", "--data", self.files / data,
            *where, *flags
        )  # fmt: skip


CASES: dict[str, tuple[Callable[[Scene], Call], int, str]] = {
    "port in use": (
        lambda scene: scene.start(scene.states / "in-use-1", listen=scene.busy_port),
        7,
        "choose another one with --listen HOST:PORT",
    ),
    "dashboard's port in use": (
        lambda scene: scene.start(scene.states / "in-use-2", dashboard=scene.busy_port),
        7,
        "choose another one with --dashboard HOST:PORT",
    ),
    "second server": (
        lambda scene: scene.start(scene.host.data),
        7,
        "stop it or use another store",
    ),
    "data folder below a file": (
        lambda scene: scene.start(scene.files / "good.npz" / "data"),
        7,
        "choose another one with --data",
    ),
    "address that is none": (
        lambda scene: scene.start(scene.states / "address", listen="7433:localhost"),
        6,
        "allowed is HOST:PORT",
    ),
    "no server": (
        lambda scene: scene.join("good.npz", address=scene.idle_port),
        4,
        "is `fedserver start` running there?",
    ),
    "dashboard's port": (
        lambda scene: scene.join("good.npz", address=scene.host.url.removeprefix("http://")),
        4,
        "is this the dashboard's port?",
    ),
    "data missing": (lambda scene: scene.join("nothing.npz"), 3, "does not exist"),
    "data unreadable": (lambda scene: scene.join("text.npz"), 3, "not a whole .npz file"),
    "label out of range": (lambda scene: scene.join("label.npz"), 3, "labels go from 3 to 10"),
    "unknown class": (lambda scene: scene.join("class.npz"), 3, "the run has no class 'x'"),
    "wrong shape": (lambda scene: scene.join("shape.npz"), 3, "shape [5, 16]"),
    "app where there is none": (
        lambda scene: scene.join("good.npz", "--app", APP),
        5,
        "join without --app",
    ),
    "app missing": (
        lambda scene: scene.join("good.npz", "--app", scene.files / "no_app.py"),
        6,
        "give the path of a Python file",
    ),
    "state folder below a file": (
        lambda scene: scene.join("good.npz", "--state", scene.files / "good.npz" / "state"),
        7,
        "give --state a folder",
    ),
    "no client": (
        lambda scene: (CLIENT, ("status", "--state", scene.states / "nobody")),
        7,
        "no client has run",
    ),
    "no model": (
        lambda scene: (CLIENT, ("model", "--state", scene.states / "nobody")),
        3,
        "there is no model",
    ),
    "no client to leave": (
        lambda scene: (CLIENT, ("leave", "--state", scene.states / "nobody")),
        7,
        "no client is running",
    ),
    "run without a server": (
        lambda scene: (SERVER, ("run", "list", "--server", f"http://{scene.idle_port}")),
        4,
        "start one with 'fedserver start'",
    ),
    "run on the wrong port": (
        lambda scene: (SERVER, ("run", "list", "--server", f"http://{scene.host.address}")),
        4,
        "http://",
    ),
    "run that is not there": (
        lambda scene: (SERVER, ("run", "show", "99", "--data", scene.host.data)),
        5,
        "there is no run 99",
    ),
    "run file missing": (
        lambda scene: (
            SERVER,
            ("run", "submit", scene.files / "run.toml", "--data", scene.host.data),
        ),
        6,
        "run.toml",
    ),
}


@pytest.fixture(scope="module")
def outcomes(
    host: Server,
    files: Path,
    busy_port: str,
    idle_port: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[Outcome]]]:
    scene = Scene(host, files, tmp_path_factory.mktemp("states"), busy_port, idle_port)
    calls = {name: case(scene) for name, (case, _, _) in CASES.items()}
    with ThreadPoolExecutor(PROGRAMS_AT_A_TIME) as pool:
        yield {
            name: pool.submit(call, module, *arguments)
            for name, (module, arguments) in calls.items()
        }
    left = [path.name for path in scene.states.rglob("*") if path.suffix in (".new", ".partial")]
    assert left == []
    assert json.loads((host.data / WHERE_FILE).read_text())["pid"] == host.program.process.pid


@pytest.mark.parametrize("name", CASES)
def test_mistake_gets_one_line_and_its_exit_code(
    outcomes: dict[str, Future[Outcome]], name: str
) -> None:
    _, code, text = CASES[name]
    assert_one_line(outcomes[name].result(2 * PATIENCE_SECONDS), code, text)


# ---- run files ----------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[str, str]] = {
    "unknown key": (run_file(epochs="3"), "epochs: is not a key; allowed are name, seed"),
    "unknown key below": (
        run_file(cohort="{ size = 3, dead_line = 5 }"),
        "cohort.dead_line: is not a key; allowed are size, quorum",
    ),
    "unknown key of the method": (
        run_file(method='{ name = "fedavg", local_steps = 1, lr = 0.1 }'),
        "method.lr: is not a key; allowed are local_steps",
    ),
    "wrong type": (run_file(seed='"seven"'), "seed: is 'seven'"),
    "out of range": (
        run_file(method='{ name = "fedavg", local_steps = 1, learning_rate = -1.0 }'),
        "method.learning_rate: is -1.0; input should be greater than 0",
    ),
    "missing": (run_file(stop=None), "stop: is missing"),
    "missing below": (run_file(stop="{}"), "stop.rounds: is missing"),
    "unknown method": (run_file(method='{ name = "fedsgd" }'), "allowed are 'fedavg'"),
    "unknown model": (run_file(model='{ name = "mlpp" }'), "allowed are 'conv2'"),
    "quorum above size": (
        run_file(cohort="{ size = 3, quorum = 4 }"),
        "cohort.quorum is 4; allowed is at most cohort.size (3)",
    ),
    "neither model nor app": (run_file(model=None), "a run needs [model] and [data], or an app"),
    "no TOML": ("name = ", "not valid TOML"),
    "no such app": (run_file(app='"my_app.py"', model=None, data=None), "app: there is no file"),
    "no such start": (run_file(warm_start='"old.safetensors"'), "warm_start: there is no file"),
    "shape that the model does not take": (
        run_file(
            model='{ name = "lenet" }', data='{ classes = ["a", "b"], input_shape = [1, 8, 8] }'
        ),
        "12",
    ),
    "mean that does not fit": (
        run_file(data='{ classes = ["a", "b"], input_shape = [3, 8, 8], mean = [0.5, 0.5] }'),
        "data.mean has 2 values",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_in_a_run_file_is_named_and_nothing_is_queued(
    host: Server, tmp_path: Path, name: str
) -> None:
    text, says = MISTAKES[name]
    (tmp_path / "run.toml").write_text(text)
    before = host.api.get("/runs")
    outcome = call(SERVER, "run", "submit", tmp_path / "run.toml", "--data", host.data)
    assert_one_line(outcome, 6, says)
    assert host.api.get("/runs") == before
    assert list((host.data / "apps").iterdir()) == []


def test_every_mistake_in_a_run_file_has_its_line(host: Server, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(run_file(seed="-1", cohort="{}", epochs="3"))
    outcome = call(SERVER, "run", "submit", tmp_path / "run.toml", "--data", host.data)
    assert outcome.code == 6
    keys = sorted(line.split(":")[1].strip() for line in outcome.err.splitlines())
    assert keys == ["cohort.size", "epochs", "seed"]


@pytest.mark.parametrize(
    ("data", "says"), [("nothing.npz", "does not exist"), ("shape.npz", "shape [5, 16]")]
)
def test_held_out_data_of_no_use_are_refused_at_once(
    host: Server, files: Path, tmp_path: Path, data: str, says: str
) -> None:
    (tmp_path / "run.toml").write_text(run_file(evaluation=f'{{ data = "{files / data}" }}'))
    before = host.api.get("/runs")
    outcome = call(SERVER, "run", "submit", tmp_path / "run.toml", "--data", host.data)
    assert_one_line(outcome, 3, says)
    assert host.api.get("/runs") == before


@pytest.mark.parametrize("arguments", [(), ("join",), ("join", "nowhere", "--data", "x")])
def test_wrong_usage_of_fedclient_ends_with_2(arguments: tuple[str, ...]) -> None:
    outcome = call(CLIENT, *arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


# ---- surroundings -------------------------------------------------------------------------------


def test_proxy_that_the_environment_names_is_not_asked_for_a_server_nearby(
    host: Server, files: Path, tmp_path: Path, idle_port: str
) -> None:
    proxy = f"http://{idle_port}"
    variables = {"http_proxy": proxy, "https_proxy": proxy, "grpc_proxy": proxy}
    listed = call(SERVER, "run", "list", "--data", host.data, **variables)
    assert (listed.code, listed.err) == (0, "")
    flags = ("--data", files / "label.npz", "--state", tmp_path / "state", "--wait", "0")
    joined = call(CLIENT, "join", host.address, "--insecure", *flags, **variables)
    assert_one_line(joined, 3, "labels go from 3 to 10")


# ---- names --------------------------------------------------------------------------------------


def test_second_client_with_the_same_state_or_name_is_refused(
    tmp_path: Path, digits: dict[str, Path]
) -> None:
    with Fleet(tmp_path) as fleet:
        fleet.join("pi-1", digits["pi-1"])
        fleet.server.wait_for("client_joined", client_id="pi-1")
        where = ("join", fleet.server.address, "--insecure")
        same = (*where, "--data", digits["pi-1"], "--name", "pi-1")
        outcome = call(CLIENT, *same, "--state", fleet.devices["pi-1"].state)
        assert_one_line(outcome, 7, "is running already", "fedclient leave")
        outcome = call(CLIENT, *same, "--state", tmp_path / "elsewhere")
        assert_one_line(outcome, 5, "another device has the name 'pi-1'")

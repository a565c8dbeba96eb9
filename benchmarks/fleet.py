"""The real programs as processes: a server, its devices, and what the server tells."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.program import PATIENCE_SECONDS, ROOT, Program, until
from coppice.errors import CoppiceError
from server.api_client import ApiClient, find_server
from server.config import WHERE_FILE
from server.store import Store

Flags = tuple[object, ...]

INSECURE: Flags = ("--insecure",)

ANY_PORT = "127.0.0.1:0"


class Server:
    """`fedserver start` on one data folder; killed, it can be started again on the same ports."""

    def __init__(
        self,
        folder: Path,
        data: Path | None = None,
        *,
        secure: bool = False,
        flags: Flags = (),
        module: str = "-m server",
        **variables: str,
    ) -> None:
        """`module` may be another program that takes its command line, with these variables."""
        self.data = data or folder / "server"
        self.log = folder / "server.log"
        self.secure = secure
        self._flags = flags
        self._module = module
        self._variables = variables
        self._listen = self._enrolment = self._dashboard = ANY_PORT

    def start(self) -> Server:
        """Returns once it can be called."""
        ports = ("--listen", self._listen, "--dashboard", self._dashboard)
        access = ("--enrolment", self._enrolment) if self.secure else INSECURE
        arguments = ("--data", self.data, *ports, *access, *self._flags)
        self.program = Program(
            self.log, self._module, "start", *arguments, "--durable", "true", **self._variables
        )
        where = until(self._where, "the server is up", self.program)
        self.address = self._listen = str(where["grpc"])
        self._enrolment = str(where["enrolment"])
        self.url = str(where["dashboard"])
        self._dashboard = urlsplit(self.url).netloc
        self.api = ApiClient(find_server(None, self.data))
        self.news = News(self.api, self.program)
        return self

    def _where(self) -> dict[str, Any] | None:
        path = self.data / WHERE_FILE
        where: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return where if where.get("pid") == self.program.process.pid else None

    @property
    def access(self) -> Flags:
        """What a device joins with for the first time."""
        return ("--token", self.token()) if self.secure else INSECURE

    def token(self, uses: int = 1, valid_seconds: float = 3600.0) -> str:
        """A new one, to join with."""
        made = self.api.post("/tokens", {"uses": uses, "valid_seconds": valid_seconds})
        return str(made["token"])

    def kill(self) -> None:
        """SIGKILL."""
        self.program.kill()

    def restart(self) -> None:
        """Killed if it still runs, then started again; devices are left alone."""
        self.kill()
        self.start()

    def close(self) -> None:
        """End it."""
        self.program.close()

    def submit(self, text: str, folder: Path = ROOT) -> int:
        """Queue a run; `folder` is where the paths in its file begin."""
        run_id: int = self.api.post("/runs", {"toml": text, "folder": str(folder)})["run_id"]
        return run_id

    def wait_for(self, kind: str, **fields: object) -> dict[str, Any]:
        """The first event of this kind with these fields that this process told, or will tell."""
        return self.news.wait_for(kind, fields)

    def finished(self, run_id: int) -> dict[str, Any]:
        """The run, once it has come to its proper end."""
        run = self.ended(run_id)
        assert run["state"] == "finished", run["reason"]
        return run

    def ended(self, run_id: int) -> dict[str, Any]:
        """The run, once it is over."""
        self.wait_for("run_ended", run_id=run_id)
        run: dict[str, Any] = self.api.get(f"/runs/{run_id}")
        return run

    def status(self) -> dict[str, Any]:
        """What the server is at."""
        status: dict[str, Any] = self.api.get("/status")
        return status

    def ledger(self, run_id: int) -> list[dict[str, Any]]:
        """What became of each task of a run."""
        rows: list[dict[str, Any]] = self.api.get(f"/runs/{run_id}/ledger")
        return rows

    def model(self, run: Mapping[str, Any]) -> Path:
        """The file of an ended run's model."""
        return self.data / "models" / f"{run['run_id']}-{run['spec']['name']}.safetensors"

    @contextmanager
    def store(self) -> Iterator[Store]:
        """What is on the disk, whether or not the server runs."""
        store = Store(f"sqlite:///{self.data / 'coppice.sqlite'}")
        try:
            yield store
        finally:
            store.close()


class News:
    """All that one server process has told in its log, as it tells it."""

    def __init__(self, api: ApiClient, program: Program) -> None:
        self._program = program
        self._changed = threading.Condition()
        self._over = False
        stream = api.events()
        # From "listening" on nothing is missed; what came before stands in the log.
        next(stream)
        self._events: list[dict[str, Any]] = api.get("/log?newest=true")
        threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    def _listen(self, stream: Iterator[dict[str, Any]]) -> None:
        try:
            for event in stream:
                with self._changed:
                    self._events.append(event)
                    self._changed.notify_all()
        except CoppiceError:
            # The server was killed.
            pass
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait_for(self, kind: str, fields: Mapping[str, object]) -> dict[str, Any]:
        """As `Server.wait_for`."""
        wanted = {"kind": kind, **fields}

        def found() -> dict[str, Any] | bool:
            for event in self._events:
                if wanted.items() <= event.items():
                    return event
            return self._over

        with self._changed:
            event = self._changed.wait_for(found, PATIENCE_SECONDS)
        assert isinstance(event, dict), f"no event {wanted}; the server printed:\n" + (
            self._program.printed
        )
        return event


class Device:
    """`fedclient join`; killed, it can be started again with the same state."""

    def __init__(
        self,
        name: str,
        folder: Path,
        data: Path,
        *flags: object,
        module: str = "-m edge_client",
        **variables: str,
    ) -> None:
        """`module` may be another program that takes its command line, with these variables."""
        self._module = module
        self._variables = variables
        self.name = name
        self.data = data
        self.state = folder / name
        self.log = folder / f"{name}.log"
        self.gate = Gate(folder / f"{name}.gate")
        self._flags = flags

    def start(
        self, server: Server, *flags: object, address: str | None = None, **variables: str
    ) -> Device:
        """`address` is where it finds the server, if not at the server's own."""
        # Who was let in once needs no token any more.
        known = server.secure and (self.state / "membership.json").exists()
        access = () if known else server.access
        arguments = ("--name", self.name, "--data", self.data, "--state", self.state)
        self.program = Program(
            self.log,
            self._module,
            *("join", address or server.address, *access, *arguments),
            *("--threads", "1", *self._flags, *flags),
            **{"GATE": str(self.gate.path), **self._variables, **variables},
        )
        return self

    def kill(self) -> None:
        """SIGKILL."""
        self.program.kill()

    def close(self) -> None:
        """End it."""
        self.gate.open()
        self.program.close()


class Gate:
    """Where `gated_app.py` holds its device in mid-training, while the gate is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener: socket.socket | None = None
        self._held: list[socket.socket] = []

    def close(self) -> None:
        """Hold who comes to it."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(PATIENCE_SECONDS)
        self._listener.bind(str(self.path))
        self._listener.listen()

    def wait_until_reached(self) -> None:
        """Returns when a device is held."""
        assert self._listener is not None
        self._held.append(self._listener.accept()[0])

    def open(self) -> None:
        """Let go who is held, and hold nobody any more."""
        if self._listener is not None:
            self.path.unlink()
            self._listener.close()
            self._listener = None
        while self._held:
            self._held.pop().close()


class Fleet:
    """A server and its devices; whatever still runs when the block ends is killed."""

    def __init__(
        self, folder: Path, data: Path | None = None, *, secure: bool = False, flags: Flags = ()
    ) -> None:
        """Logs and states are in `folder`, and so is the server's `data` unless given."""
        self.folder = folder
        self.devices: dict[str, Device] = {}
        self._open = ExitStack()
        self.server = Server(folder, data, secure=secure, flags=flags)

    def __enter__(self) -> Fleet:
        self._open.callback(self.server.close)
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def join(
        self,
        name: str,
        data: Path,
        *flags: object,
        module: str = "-m edge_client",
        address: str | None = None,
    ) -> Device:
        """`address` and `module` as a `Device` takes them."""
        device = self.devices[name] = Device(name, self.folder, data, *flags, module=module)
        device.start(self.server, address=address)
        self._open.callback(device.close)
        return device

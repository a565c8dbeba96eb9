"""One of the programs, killed in the middle of a phase: `python -m benchmarks.doomed MODULE …`.

It does what `python -m MODULE …` does. The file that DOOM names says when it dies: in which phase,
and how far into it, in lines of Python or in bytes; so every place between two statements can be
hit, and the same one again. SIGKILL, as the kernel gives it: nothing is cleaned up.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from coppice.files import write_file

UPLOADING = "uploading"
WAITING = "waiting for the receipt"
#: What each phase of a program is: calls, and how far it is counts the lines in them.
LINES = {
    "edge_client": {
        "downloading": ["edge_client.connection:Connection.fetch_rest"],
        "training": ["edge_client.ready:ReadyRun.answer"],
        "writing the outbox": [
            "edge_client.private:PrivateState.write",
            "edge_client.outbox:Outbox.put",
        ],
    },
    "server": {
        "planning": ["server.run_work:RunWork.plan", "server.store:Store.commit_tasks"],
        "receiving": [
            "server.uploads:Upload.write",
            "server.uploads:Upload.commit",
            "server.store:Store.store_update",
        ],
        "aggregating": ["server.run_work:RunWork.aggregate"],
        "committing": ["server.store:Store.commit_round"],
        "migrating": ["server.store:Store.migrate"],
    },
}
_OURS = ("coppice", "edge_client", "server")
#: Where what is killed is at other work, the phase counts something else: bytes handed over.
_PARTS = "edge_client.connection:Connection._parts"


@dataclass(frozen=True)
class Order:
    """What the file says. Without a phase nothing dies, and how long each phase is gets counted."""

    number: int
    phase: str = ""
    #: So far into it: lines or bytes; in WAITING, how many times it was reached.
    at: int = 0
    #: In WAITING, so much later.
    seconds: float = 0.0


class Doom:
    """Orders for one process, and what comes of them: files beside each other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._died = path.with_suffix(".died")
        self._counted = path.with_suffix(".counted")

    # ---- who orders ----

    def order(self, order: Order) -> None:
        """From the next phase on."""
        for path in (self._died, self._counted):
            path.unlink(missing_ok=True)
        write_file(self._path, json.dumps(asdict(order)).encode(), remedy="", durable=False)

    def withdraw(self) -> None:
        """It need not die any more."""
        self._path.unlink(missing_ok=True)

    def died(self) -> str:
        """Where; empty when it did not."""
        return self._died.read_text() if self._died.exists() else ""

    def counted(self) -> Counter[str]:
        """How long each phase was, all together."""
        return Counter(json.loads(self._counted.read_bytes()) if self._counted.exists() else {})

    # ---- who is ordered ----

    def read(self) -> Order | None:
        """The order, if there is one."""
        with suppress(OSError, ValueError):
            return Order(**json.loads(self._path.read_bytes()))
        return None

    def die(self, where: str) -> None:
        """Now. Once: who is started again lives."""
        self._died.write_text(where)
        self.withdraw()
        os.kill(os.getpid(), signal.SIGKILL)

    def count(self, lengths: Counter[str]) -> None:
        """Write down how long phases were so far."""
        write_file(self._counted, json.dumps(lengths).encode(), remedy="", durable=False)


class _Clock:
    """How far each phase is since the newest order."""

    def __init__(self, doom: Doom) -> None:
        self._doom = doom
        self._order: Order | None = None
        self._lengths: Counter[str] = Counter()
        self._writing = threading.Lock()

    def order_for(self, phase: str) -> Order | None:
        order = self._doom.read()
        if order != self._order:
            self._order, self._lengths = order, Counter()
        return order if order is not None and order.phase in ("", phase) else None

    def goes(self, order: Order, phase: str, by: int, where: Callable[[], str]) -> None:
        self._lengths[phase] += by
        if order.phase and self._lengths[phase] >= order.at:
            if order.seconds:
                threading.Timer(order.seconds, self._doom.die, [where()]).start()
            else:
                self._doom.die(where())

    def write(self, order: Order) -> None:
        if not order.phase:
            with self._writing:
                self._doom.count(self._lengths)


def _by_lines(clock: _Clock, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def watched(*arguments: Any, **named: Any) -> Any:
        order = clock.order_for(phase)
        if order is None:
            return call(*arguments, **named)

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if event == "line":
                clock.goes(order, phase, 1, lambda: _place(frame))
            return trace

        sys.settrace(trace)
        try:
            return call(*arguments, **named)
        finally:
            sys.settrace(None)
            clock.write(order)

    return watched


def _by_bytes(clock: _Clock, parts: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @functools.wraps(parts)
    def watched(*arguments: Any) -> Iterator[Any]:
        for part in parts(*arguments):
            order = clock.order_for(UPLOADING)
            if order is not None:
                clock.goes(order, UPLOADING, len(part.data), lambda: "handing bytes over")
                clock.write(order)
            yield part
        order = clock.order_for(WAITING)
        if order is not None:
            clock.goes(order, WAITING, 1, lambda: f"{1000 * order.seconds:.1f} ms later")
            clock.write(order)

    return watched


def _place(frame: FrameType) -> str:
    """The line of this project that it is in, or in something called by it."""
    ours: FrameType | None = frame
    while ours is not None:
        path = Path(ours.f_code.co_filename)
        if path.parent.name in _OURS:
            return f"{path.parent.name}/{path.name}:{ours.f_lineno}"
        ours = ours.f_back
    return frame.f_code.co_filename


def _replace(target: str, by: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module_name, _, path = target.partition(":")
    owner_name, _, name = path.partition(".")
    owner = getattr(importlib.import_module(module_name), owner_name)
    setattr(owner, name, by(getattr(owner, name)))


def main() -> None:
    """Run the program."""
    module = sys.argv[1]
    clock = _Clock(Doom(Path(os.environ["DOOM"])))
    for phase, targets in LINES[module].items():
        for target in targets:
            _replace(target, functools.partial(_by_lines, clock, phase))
    if module == "edge_client":
        _replace(_PARTS, functools.partial(_by_bytes, clock))
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

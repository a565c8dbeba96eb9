"""Evaluates models on the server's held-out set, in a process of low priority beside the rounds.

The parent writes a request a line, as JSON, and reads an answer a line. The child keeps the app and
the examples of the last run, and ends when its input does, so that it never outlives the server.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from coppice.app import App, build_model, make_app
from coppice.data import Examples
from coppice.domain import Metrics, Workload
from coppice.errors import AppError, CoppiceError, DataError
from coppice.method import server_half
from coppice.tensors import assign
from coppice.training import evaluate
from coppice.tree import from_plain, load, to_plain

#: Longest time that one evaluation may take.
TIMEOUT_SECONDS = 3600.0
_NICENESS = 19
_MAX_LINE_BYTES = 2**24


class Evaluator:
    """The parent's side: one child, one request at a time."""

    def __init__(self) -> None:
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def check(self, workload: Workload, app_path: Path | None, data: str) -> int:
        """The number of examples in a held-out set; DataError or AppError when it is of no use."""
        answer = await self._ask(_request(workload, app_path, data, None))
        return int(answer["num_examples"])

    async def evaluate(
        self, workload: Workload, app_path: Path | None, data: str, state: Path
    ) -> dict[str, Metrics]:
        """The metrics of each model in a saved state, by its name; "global" is there."""
        answer = await self._ask(_request(workload, app_path, data, state))
        return {
            model: {name: float(value) for name, value in metrics.items()}
            for model, metrics in answer["metrics"].items()
        }

    async def close(self) -> None:
        """End the child."""
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()

    async def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        async with self._turn:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    line = await self._exchange(json.dumps(request).encode() + b"\n")
            except TimeoutError:
                await self.close()
                raise DataError(f"an evaluation took more than {TIMEOUT_SECONDS:.0f} s") from None
            except BaseException:
                # Cancelled between request and answer: the next answer would be the wrong one.
                await self.close()
                raise
        if not line:
            raise DataError("the evaluating process has died; is there enough memory?")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise (AppError if answer["kind"] == "AppError" else DataError)(answer["error"])
        return answer

    async def _exchange(self, line: bytes) -> bytes:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                # The folder that we are in may have a package "server" of its own.
                "-P",
                "-m",
                "server.evaluation",
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_MAX_LINE_BYTES,
                # Ctrl-C in a terminal is for the parent, which then ends the child.
                start_new_session=True,
            )
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(line)
            await child.stdin.drain()
            answer = await child.stdout.readline()
        except ConnectionError:
            answer = b""
        if not answer:
            # Only one that is known to be dead is replaced.
            await child.wait()
        return answer


def _request(
    workload: Workload, app_path: Path | None, data: str, state: Path | None
) -> dict[str, Any]:
    return {
        "workload": to_plain(workload),
        "app": None if app_path is None else str(app_path),
        "data": data,
        "state": None if state is None else str(state),
    }


class _Child:
    """The child's side."""

    def __init__(self) -> None:
        self._loaded: tuple[Any, App, Examples] | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._answer(request)
        except CoppiceError as error:
            return {"error": str(error), "kind": type(error).__name__}

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        workload = from_plain(Workload, request["workload"])
        app, examples = self._examples(request, workload)
        if request["state"] is None:
            return {"num_examples": len(examples)}
        half = server_half(workload.method)
        models = half.models(load(half.state_type, Path(request["state"]).read_bytes()))
        if "global" not in models:
            raise DataError(f"method {workload.method.name} has no global model to evaluate")
        model = build_model(app, workload.seed)
        found = {}
        for name, weights in models.items():
            assign(model, weights)
            metrics = evaluate(model, app, examples)
            # A diverged model has metrics that are not finite; those cannot be compared.
            found[name] = {key: value for key, value in metrics.items() if math.isfinite(value)}
        return {"metrics": found}

    def _examples(self, request: Mapping[str, Any], workload: Workload) -> tuple[App, Examples]:
        key = (request["workload"], request["app"], request["data"])
        if self._loaded is None or self._loaded[0] != key:
            app = make_app(workload, Path(request["app"]) if request["app"] else None)
            self._loaded = (key, app, app.load(Path(request["data"])))
        return self._loaded[1:]


def main() -> None:
    """Answer requests until there are no more, or nobody is there to read an answer."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # What an app prints is for people, not for the parent.
    os.dup2(2, 1)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    child = _Child()
    while True:
        print(json.dumps(child.answer(json.loads(requests.get()))), file=answers)


def _read(requests: queue.SimpleQueue[str]) -> NoReturn:
    for line in sys.stdin:
        requests.put(line)
    # The parent is gone. An evaluation may still be going on, for nobody.
    os._exit(0)


if __name__ == "__main__":
    main()

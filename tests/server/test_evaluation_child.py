"""The evaluating process: how it ends, and how it is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from coppice.errors import DataError
from server import evaluation
from server.evaluation import Evaluator
from tests.server.evaluation_samples import (
    PATIENCE_SECONDS,
    WORKLOAD,
    OwnApp,
    Run,
    child_of,
    evaluating,
    until,
    write_data,
)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with evaluating() as play:
        yield play


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


class TestDeath:
    def test_child_killed_at_rest_is_replaced(self, run: Run, data: Path) -> None:
        async def scene(evaluator: Evaluator) -> None:
            await evaluator.check(WORKLOAD, None, str(data))
            first = child_of(evaluator)
            first.kill()
            assert evaluator._child is not None
            await evaluator._child.wait()
            assert await evaluator.check(WORKLOAD, None, str(data)) == 8
            assert child_of(evaluator) != first

        run(scene)

    def test_child_killed_at_work_is_one_error_and_is_replaced(
        self, run: Run, tmp_path: Path
    ) -> None:
        app = OwnApp(tmp_path)

        async def scene(evaluator: Evaluator) -> None:
            await evaluator.check(app.workload, app.path, app.data)
            app.hold.touch()
            child = child_of(evaluator)
            work = asyncio.create_task(
                evaluator.evaluate(app.workload, app.path, app.data, app.state)
            )
            started = child.cpu_times().user
            await until(lambda: child.cpu_times().user > started + 0.1)
            child.kill()
            with pytest.raises(DataError, match="has died; is there enough memory"):
                await work
            app.hold.unlink()
            metrics = await evaluator.evaluate(app.workload, app.path, app.data, app.state)
            assert metrics["global"]["error"] == 0.25

        run(scene)

    def test_cancelled_question_does_not_leave_its_answer_to_the_next(
        self, run: Run, tmp_path: Path, data: Path
    ) -> None:
        app = OwnApp(tmp_path)

        async def scene(evaluator: Evaluator) -> None:
            await evaluator.check(WORKLOAD, None, str(data))
            child = child_of(evaluator)
            app.hold.touch()
            work = asyncio.create_task(
                evaluator.evaluate(app.workload, app.path, app.data, app.state)
            )
            await until(evaluator._turn.locked)
            next_one = asyncio.create_task(evaluator.check(WORKLOAD, None, str(data)))
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert not child.is_running()
            assert await next_one == 8

        run(scene)

    def test_cancelled_while_it_waits_its_turn_disturbs_nobody(
        self, run: Run, tmp_path: Path, data: Path
    ) -> None:
        async def scene(evaluator: Evaluator) -> None:
            first = asyncio.create_task(evaluator.check(WORKLOAD, None, str(data)))
            second = asyncio.create_task(evaluator.check(WORKLOAD, None, str(data)))
            await asyncio.sleep(0)
            second.cancel()
            assert await first == 8
            assert second.cancelled()

        run(scene)

    def test_question_that_takes_too_long_is_one_error(
        self, run: Run, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = OwnApp(tmp_path)

        async def scene(evaluator: Evaluator) -> None:
            app.hold.touch()
            monkeypatch.setattr(evaluation, "TIMEOUT_SECONDS", 0.3)
            with pytest.raises(DataError, match="took more than 0 s"):
                await evaluator.evaluate(app.workload, app.path, app.data, app.state)
            monkeypatch.undo()
            assert await evaluator.check(WORKLOAD, None, str(data)) == 8

        run(scene)

    def test_close_ends_the_child(self, run: Run, data: Path) -> None:
        async def scene(evaluator: Evaluator) -> None:
            await evaluator.check(WORKLOAD, None, str(data))
            child = child_of(evaluator)
            await evaluator.close()
            assert not child.is_running()

        run(scene)

    def test_close_without_a_child_is_nothing(self) -> None:
        asyncio.run(Evaluator().close())


PARENT = """
import asyncio, sys
from pathlib import Path
from server.evaluation import Evaluator
from tests.server.evaluation_samples import OwnApp

async def main():
    evaluator, app = Evaluator(), OwnApp(Path(sys.argv[1]))
    await evaluator.check(app.workload, app.path, app.data)
    print(evaluator._child.pid, flush=True)
    if sys.argv[2] == "busy":
        app.hold.touch()
        await evaluator.evaluate(app.workload, app.path, app.data, app.state)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_child_does_not_outlive_a_killed_parent(tmp_path: Path, state: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), state],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        try:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            if state == "busy":
                started = child.cpu_times().user
                while child.cpu_times().user < started + 0.1:
                    os.sched_yield()
        finally:
            parent.send_signal(signal.SIGKILL)
    child.wait(PATIENCE_SECONDS)
    assert not child.is_running()

"""The evaluating process: what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coppice import tree
from coppice.app import app_digest, build_model, make_app
from coppice.domain import AppSpec
from coppice.errors import AppError, AppMismatch, DataError
from coppice.method import server_half
from coppice.methods.fedavg.server import State
from coppice.tensors import assign, buffers_of, parameters_of
from coppice.training import evaluate
from server.evaluation import Evaluator
from tests.server.evaluation_samples import (
    WORKLOAD,
    OwnApp,
    Run,
    child_of,
    evaluating,
    write_data,
)
from tests.server.run_samples import with_cuts


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with evaluating() as play:
        yield play


@pytest.fixture
def run_alone() -> Iterator[Run]:
    with evaluating() as play:
        yield play


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A model that always says class 0: right for 6 of the 8 examples."""
    model = build_model(make_app(WORKLOAD), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        list(model.parameters())[-1][0] = 1.0
    path = tmp_path / "state"
    path.write_bytes(tree.save(State(parameters_of(model), buffers_of(model))))
    return path


class TestAnswers:
    def test_data_are_counted_and_a_model_is_evaluated(
        self, run: Run, data: Path, state: Path
    ) -> None:
        async def scene(evaluator: Evaluator) -> None:
            assert await evaluator.check(WORKLOAD, None, str(data)) == 8
            metrics = await evaluator.evaluate(WORKLOAD, None, str(data), state)
            assert metrics.keys() == {"global"}
            assert metrics["global"]["accuracy"] == 0.75
            assert metrics["global"]["loss"] > 0

        run(scene)

    def test_every_model_of_a_state_is_evaluated(
        self, run: Run, tmp_path: Path, data: Path
    ) -> None:
        spec, state = with_cuts()
        path = tmp_path / "state"
        path.write_bytes(tree.save(state))
        app = make_app(spec)
        expected = {}
        for name, weights in server_half(spec.method).models(state).items():
            model = build_model(app, spec.seed)
            assign(model, weights)
            expected[name] = evaluate(model, app, app.load(data))
        assert len({metrics["loss"] for metrics in expected.values()}) == 3

        async def scene(evaluator: Evaluator) -> None:
            found = await evaluator.evaluate(spec.workload, None, str(data), path)
            assert list(found) == ["global", "cut-0.4", "cut-0.7"]
            for name, metrics in found.items():
                assert metrics == pytest.approx(expected[name])

        run(scene)

    def test_one_child_answers_all_at_low_priority(self, run: Run, data: Path, state: Path) -> None:
        async def scene(evaluator: Evaluator) -> None:
            await evaluator.check(WORKLOAD, None, str(data))
            child = child_of(evaluator)
            assert child.nice() == 19
            answers = await asyncio.gather(
                *(evaluator.evaluate(WORKLOAD, None, str(data), state) for _ in range(3)),
                evaluator.check(WORKLOAD, None, str(data)),
            )
            assert answers[3] == 8
            assert answers[0] == answers[1] == answers[2]
            assert child_of(evaluator) == child

        run(scene)

    def test_packages_of_the_folder_it_starts_in_are_not_ours(
        self, run_alone: Run, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "server").mkdir()
        (tmp_path / "server" / "__init__.py").touch()
        monkeypatch.syspath_prepend(Path(__file__).parents[2])
        monkeypatch.chdir(tmp_path)

        async def scene(evaluator: Evaluator) -> None:
            assert await evaluator.check(WORKLOAD, None, str(data)) == 8

        run_alone(scene)

    def test_what_an_app_prints_is_not_taken_for_an_answer(
        self, run_alone: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        app = OwnApp(tmp_path)

        async def scene(evaluator: Evaluator) -> None:
            assert await evaluator.check(app.workload, app.path, app.data) == 5
            metrics = await evaluator.evaluate(app.workload, app.path, app.data, app.state)
            assert metrics == {"global": {"error": 0.25, "count": 5.0}}

        run_alone(scene)
        said = capfd.readouterr()
        assert said.out == ""
        assert "a child of the app" in said.err
        assert "metrics" in said.err

    @pytest.mark.parametrize("metric", ["float('nan')", "float('inf')"])
    def test_metric_that_is_not_finite_is_left_out(
        self, run: Run, tmp_path: Path, metric: str
    ) -> None:
        app = OwnApp(tmp_path, metric)

        async def scene(evaluator: Evaluator) -> None:
            metrics = await evaluator.evaluate(app.workload, app.path, app.data, app.state)
            assert metrics == {"global": {"count": 5.0}}

        run(scene)

    def test_bad_data_is_one_error_and_the_child_goes_on(
        self, run: Run, tmp_path: Path, data: Path
    ) -> None:
        async def scene(evaluator: Evaluator) -> None:
            with pytest.raises(DataError, match=r"none\.npz"):
                await evaluator.check(WORKLOAD, None, str(tmp_path / "none.npz"))
            child = child_of(evaluator)
            np.savez(tmp_path / "bad.npz", x=np.ones((8, 5), np.float32), y=np.zeros(8, int))
            with pytest.raises(DataError, match=r"bad\.npz"):
                await evaluator.check(WORKLOAD, None, str(tmp_path / "bad.npz"))
            assert await evaluator.check(WORKLOAD, None, str(data)) == 8
            assert child_of(evaluator) == child

        run(scene)

    def test_state_of_another_model_is_one_error(
        self, run: Run, tmp_path: Path, data: Path
    ) -> None:
        other = tmp_path / "other"
        other.write_bytes(tree.save(State({"w": torch.zeros(3)}, {})))

        async def scene(evaluator: Evaluator) -> None:
            with pytest.raises(DataError, match="not this model's"):
                await evaluator.evaluate(WORKLOAD, None, str(data), other)

        run(scene)

    @pytest.mark.parametrize(
        ("before", "after", "kind", "match"),
        [
            ("return torch.ones(5, 3), torch.ones(5)", "1 / 0", AppError, "ZeroDivisionError"),
            ("return torch.ones(5, 3), torch.ones(5)", "return 7", AppError, "load_data"),
            ("def loss", "def lost", AppError, "has no function loss"),
        ],
    )
    def test_mistake_of_the_app_is_named(
        self, run: Run, tmp_path: Path, before: str, after: str, kind: type[AppError], match: str
    ) -> None:
        app = OwnApp(tmp_path)
        app.path.write_text(app.path.read_text().replace(before, after))
        spec = AppSpec(name="own.py", digest=app_digest(app.path))
        workload = replace(app.workload, app=spec)

        async def scene(evaluator: Evaluator) -> None:
            with pytest.raises(kind, match=match):
                await evaluator.check(workload, app.path, app.data)

        run(scene)

    def test_another_app_than_the_run_s_is_an_error(self, run: Run, tmp_path: Path) -> None:
        app = OwnApp(tmp_path)
        app.path.write_text("# edited\n" + app.path.read_text())

        async def scene(evaluator: Evaluator) -> None:
            with pytest.raises((DataError, AppMismatch), match="digest"):
                await evaluator.check(app.workload, app.path, app.data)

        run(scene)

"""The example app, its run file, the page about them, and the demo's data."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from coppice.app import App, build_model, make_app
from coppice.data import examples_from
from coppice.domain import DataSpec
from coppice.errors import AppError, DataError
from coppice.models import MODELS
from coppice.readers import read
from server.run_file import RunFile, parse_run_file

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/bring-your-own.md").read_text()
HEADER = "x,y,z,temperature"


@pytest.fixture
def run() -> RunFile:
    path = ROOT / "docs/examples/my_app.toml"
    return parse_run_file(path.read_text(), path.parent)


@pytest.fixture
def app(run: RunFile) -> App:
    return make_app(run.spec.workload, run.app_path)


@pytest.fixture
def readings(tmp_path: Path) -> Path:
    """Two minutes of a machine that turns once in 8 seconds, with noise."""
    seconds = np.arange(120)
    turn = 2 * np.pi * seconds / 8
    noise = np.random.default_rng(0).normal(0, 0.02, (120, 4))
    rows = np.stack([np.sin(turn), np.cos(turn), 1 + 0.5 * np.sin(turn), 45 + 0 * turn], 1) + noise
    path = tmp_path / "readings.csv"
    np.savetxt(path, rows, delimiter=",", header=HEADER, comments="")
    return path


def test_the_example_app_learns(run: RunFile, app: App, readings: Path) -> None:
    examples = app.load(readings)
    assert examples.inputs.shape == (14, 64)
    inputs, targets = examples.batch(torch.arange(len(examples)))
    model = build_model(app, seed=0)
    first = app.metrics(model(inputs), targets)
    for _ in range(200):
        model.zero_grad()
        app.loss(model(inputs), targets).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=run.spec.method.settings["learning_rate"])
    last = app.metrics(model(inputs), targets)
    assert last["loss"] < first["loss"] / 2
    assert first["badly_rebuilt"] > last["badly_rebuilt"] == 0


def test_the_example_app_refuses_other_files_in_one_line(app: App, tmp_path: Path) -> None:
    path = tmp_path / "readings.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(AppError, match=r"my_app\.py: load_data\(\) failed: .* has 2 columns; 4"):
        app.load(path)
    path.write_text(f"{HEADER}\n1,2,3,4\n")
    with pytest.raises(DataError, match="holds no examples"):
        app.load(path)


def test_the_example_run_judges_by_a_metric_of_its_app(
    run: RunFile, app: App, readings: Path
) -> None:
    examples = app.load(readings)
    assert run.spec.evaluation.metric in app.metrics(examples.inputs, examples.targets)


def test_the_page_names_every_model_and_its_run_file_is_valid() -> None:
    assert all(f"`{name}`" in PAGE for name in MODELS)
    block = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    rest = """
        name = "run"
        method = {name = "fedavg", local_steps = 1}
        cohort = {size = 1}
        stop = {rounds = 1}
    """
    spec = parse_run_file(rest + block[1], ROOT).spec
    assert build_model(make_app(spec.workload), seed=0)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_the_demos_digits_are_all_there() -> None:
    spec = DataSpec(classes=tuple("0123456789"), input_shape=(1, 8, 8), scale=16.0)
    examples = examples_from(read(ROOT / "deploy/demo/digits.npz", spec), spec)
    assert examples.inputs.dtype == torch.uint8
    assert torch.bincount(examples.targets).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180
    ]  # fmt: skip
    inputs, _ = examples.batch(torch.arange(len(examples)))
    assert inputs.shape == (1797, 1, 8, 8)
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)

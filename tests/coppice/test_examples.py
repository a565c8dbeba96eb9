"""The example app, its run file, the page about them, and the demo's data."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coppice.app import App, app_digest, build_model, make_app
from coppice.data import examples_from
from coppice.domain import AppSpec, CohortSpec, DataSpec, EvaluationSpec, StopSpec, Workload
from coppice.errors import AppError, DataError
from coppice.method import settings_type
from coppice.models import MODELS, make_model
from coppice.readers import read
from coppice.tree import from_plain

ROOT = Path(__file__).parents[2]
APP = ROOT / "docs/examples/my_app.py"
RUN = tomllib.loads((ROOT / "docs/examples/my_app.toml").read_text())
PAGE = (ROOT / "docs/bring-your-own.md").read_text()
HEADER = "x,y,z,temperature"


def split_method(run: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings out of a run file's [method]."""
    settings = dict(run["method"])
    return settings.pop("name"), settings


@pytest.fixture
def app() -> App:
    name, settings = split_method(RUN)
    method = {"name": name, "settings": settings}
    spec = AppSpec(name=RUN["app"], digest=app_digest(APP))
    plain = {"name": RUN["name"], "seed": RUN["seed"], "method": method}
    return make_app(from_plain(Workload, {**plain, "app": vars(spec)}), APP)


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


def test_the_example_app_learns(app: App, readings: Path) -> None:
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
                parameter.sub_(parameter.grad, alpha=RUN["method"]["learning_rate"])
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


def test_the_example_run_file_is_valid(app: App, readings: Path) -> None:
    name, settings = split_method(RUN)
    from_plain(settings_type(name), settings)
    for kind, key in ((CohortSpec, "cohort"), (EvaluationSpec, "evaluation"), (StopSpec, "stop")):
        from_plain(kind, RUN[key])
    assert RUN["app"] == APP.name
    examples = app.load(readings)
    assert RUN["evaluation"]["metric"] in app.metrics(examples.inputs, examples.targets)


def test_the_page_names_every_model_and_its_run_file_is_valid() -> None:
    assert all(f"`{name}`" in PAGE for name in MODELS)
    block = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    run = tomllib.loads(block[1])
    workload = from_plain(Workload, {"name": "run", "method": {"name": "fedavg"}, **run})
    assert workload.model is not None
    assert workload.data is not None
    make_model(workload.model, workload.data.input_shape, len(workload.data.classes))


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

"""Apps: classification, a user's module, and which of the two a run takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coppice.app import App, app_digest, build_model, make_app
from coppice.domain import AppSpec, DataSpec, MethodSpec, ModelSpec, Workload
from coppice.errors import AppError, AppMismatch, DataError, RunFileError, UnreadableData

METHOD = MethodSpec(name="fedavg")
MODEL = ModelSpec(name="mlp", hidden=(5,))
DATA = DataSpec(classes=("a", "b"), input_shape=(3,), scale=10.0, held_out=0.25)
REGISTRY = Workload(name="run", model=MODEL, data=DATA, method=METHOD)

GOOD = """
import torch
from torch import nn

def model():
    return nn.Linear(3, 1)

def loss(outputs, targets):
    return ((outputs - targets) ** 2).mean()

def load_data(path):
    return torch.ones(4, 3), torch.zeros(4, 1)
"""


def user_app(folder: Path, source: str = GOOD) -> App:
    path = folder / "mine.py"
    path.write_text(source)
    return make_app(workload_of(path), path)


def workload_of(path: Path) -> Workload:
    spec = AppSpec(name=path.name, digest=app_digest(path), held_out=0.5)
    return Workload(name="run", app=spec, method=METHOD)


# ---- classification ----------------------------------------------------------------------------


def test_classification_builds_the_model_of_the_run() -> None:
    app = make_app(REGISTRY)
    assert app.held_out == 0.25
    assert app.model()(torch.zeros(2, 3)).shape == (2, 2)


def test_classification_measures_accuracy_and_cross_entropy() -> None:
    app = make_app(REGISTRY)
    outputs = torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 4.0], [0.0, 4.0]], requires_grad=True)
    targets = torch.tensor([0, 1, 1, 0])
    right, wrong = np.log1p(np.exp(-4)), np.log1p(np.exp(4))
    metrics = app.metrics(outputs, targets)
    assert metrics["accuracy"] == 0.75
    assert metrics["loss"] == pytest.approx((3 * right + wrong) / 4)
    assert app.loss(outputs, targets).item() == pytest.approx(metrics["loss"])


def test_classification_loads_data_in_the_meaning_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([[10, 20, 30], [0, 5, 0]], np.uint8), y=np.array(["b", "a"]))
    examples = make_app(REGISTRY).load(path)
    assert examples.inputs.dtype == torch.uint8
    inputs, targets = examples.batch(torch.arange(2))
    assert inputs.tolist() == [[1, 2, 3], [0, 0.5, 0]]
    assert targets.tolist() == [1, 0]


def test_data_that_do_not_fit_the_run_are_refused_by_path(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((2, 4)), y=np.zeros(2, int))
    with pytest.raises(DataError) as caught:
        make_app(REGISTRY).load(path)
    assert str(caught.value).startswith(f"{path}: one example has shape [4]; the run wants [3]")
    with pytest.raises(UnreadableData, match="does not exist"):
        make_app(REGISTRY).load(tmp_path / "none.npz")


def test_a_model_that_does_not_take_the_data_is_refused() -> None:
    workload = Workload(name="run", model=ModelSpec(name="conv2"), data=DATA, method=METHOD)
    with pytest.raises(RunFileError, match=r"'conv2' does not take data\.input_shape \[3\]"):
        make_app(workload).model()


# ---- which app ---------------------------------------------------------------------------------


def test_a_run_without_an_app_takes_none(tmp_path: Path) -> None:
    with pytest.raises(AppMismatch, match=r"'run' trains a model .* leave --app away"):
        make_app(REGISTRY, tmp_path / "mine.py")


def test_a_run_with_an_app_needs_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    with pytest.raises(AppMismatch, match=r"the app mine\.py; copy that file here .* --app"):
        make_app(workload_of(path))


def test_another_app_than_the_runs_is_refused_unrun(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    workload = workload_of(path)
    ran = tmp_path / "ran"
    path.write_text(GOOD + f"\nopen({str(ran)!r}, 'w')\n")
    with pytest.raises(AppMismatch) as caught:
        make_app(workload, path)
    assert workload.app is not None
    for digest in (workload.app.digest, app_digest(path)):
        assert f" {digest[:12]}" in str(caught.value)
    assert "copy the run's file over it" in str(caught.value)
    assert not ran.exists()


def test_an_app_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.py", tmp_path):
        with pytest.raises(AppError, match="cannot read the app module") as caught:
            app_digest(path)
        assert str(path) in str(caught.value)
    large = tmp_path / "large.py"
    with large.open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(AppError, match="is over 16 MiB"):
        app_digest(large)


# ---- a user's module ---------------------------------------------------------------------------


def test_a_users_functions_are_the_app(tmp_path: Path) -> None:
    app = user_app(tmp_path)
    assert app.held_out == 0.5
    assert isinstance(app.model(), nn.Linear)
    outputs, targets = torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]])
    assert float(app.loss(outputs, targets)) == 2.0
    assert app.metrics(outputs, targets) == {"loss": 2.0}
    examples = app.load(tmp_path)
    assert len(examples) == 4
    assert torch.equal(examples.batch(torch.arange(2))[0], torch.ones(2, 3))


def test_a_users_metrics_replace_the_loss(tmp_path: Path) -> None:
    own = "\ndef metrics(outputs, targets):\n    return {'largest': outputs.max(), 'n': 2}\n"
    outputs = torch.tensor([3.0, 4.0], requires_grad=True)
    assert user_app(tmp_path, GOOD + own).metrics(outputs, outputs) == {"largest": 4.0, "n": 2.0}


def test_arrays_are_taken_as_well_as_tensors(tmp_path: Path) -> None:
    own = """
import numpy as np
def load_data(path):
    return np.zeros((2, 3), np.float32)[:, ::-1], [np.frombuffer(b"ab", np.uint8)][0]
"""
    examples = user_app(tmp_path, GOOD + own).load(tmp_path)
    assert examples.inputs.dtype == torch.float32
    assert examples.targets.tolist() == [97, 98]


def test_the_path_of_the_data_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UnreadableData, match=r"none\.csv does not exist"):
        user_app(tmp_path).load(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def model(): return 3", "model() must return a torch.nn.Module; it returned a int"),
        ("def loss(o, t): return 0.5", "loss() must return a floating-point tensor with one value"),
        ("def loss(o, t): return o - t", "it returned one of shape (2,) and type torch.float32"),
        ("def loss(o, t): return (o > t).sum()", "and type torch.int64"),
        ("def metrics(o, t): return 0.5", "metrics() must return a mapping from names to numbers"),
        ("def metrics(o, t): return {1: 0.5}", "metrics() must return a mapping"),
        ("def metrics(o, t): return {'a': 'b'}", "it returned values that are none"),
        ("def metrics(o, t): return {'a': o}", "it returned values that are none"),
        ("def load_data(path): return None", "load_data() must return (inputs, targets)"),
        ("def load_data(path): return 1, 2, 3", "load_data() must return (inputs, targets)"),
        ("def load_data(path): return [1], [2]", "it returned a list among them"),
        (
            "def load_data(path): return torch.zeros(3, 1), torch.zeros(2)",
            "with an equal first dimension; it returned shapes (3, 1) and (2,)",
        ),
        ("def load_data(path): return torch.tensor(0), torch.tensor(0)", "shapes () and ()"),
        (
            "import numpy\ndef load_data(path): return numpy.array(['a']), numpy.array(['b'])",
            "it returned an array of <U1",
        ),
    ],
)
def test_a_wrong_result_is_named_with_what_is_expected(
    tmp_path: Path, source: str, message: str
) -> None:
    app = user_app(tmp_path, GOOD + source)
    outputs = torch.tensor([1.0, 2.0])
    calls: dict[str, Callable[[], object]] = {
        "model": app.model,
        "loss": lambda: app.loss(outputs, outputs),
        "metrics": lambda: app.metrics(outputs, outputs),
        "load_data": lambda: app.load(tmp_path),
    }
    changed = source.partition("def ")[2].partition("(")[0]
    with pytest.raises(AppError) as caught:
        calls[changed]()
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.py'}: ")


def test_an_app_without_examples_is_refused(tmp_path: Path) -> None:
    own = "def load_data(path): return torch.zeros(0, 3), torch.zeros(0)"
    with pytest.raises(DataError, match="holds no examples"):
        user_app(tmp_path, GOOD + own).load(tmp_path)


# ---- models ------------------------------------------------------------------------------------


def test_a_model_depends_on_its_seed_and_leaves_global_chance_alone() -> None:
    app = make_app(REGISTRY)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = values(build_model(app, seed=7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(values(build_model(app, seed=7)), first)
    assert not torch.equal(values(build_model(app, seed=8)), first)


def values(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_workload_says_what_is_trained() -> None:
    fields: dict[str, Any] = {"name": "run", "method": METHOD}
    with pytest.raises(ValueError, match="needs"):
        Workload(**fields)

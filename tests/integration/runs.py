"""Run files of these tests, and what the same runs end with in one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coppice.app import make_app
from coppice.domain import ClientId
from coppice.model_file import load_weights
from coppice.simulation import Simulation
from coppice.sparse import SparseTensor
from coppice.tensors import Weights
from server.run_file import parse_run_file

HERE = Path(__file__).parent
APP = HERE / "gated_app.py"

_DIGITS = {
    "name": '"digits"',
    "seed": "7",
    "model": '{ name = "mlp", hidden = [32] }',
    "data": '{ classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], '
    "input_shape = [1, 16, 16], scale = 16.0 }",
    "method": '{ name = "fedavg", local_steps = 5, batch_size = 8 }',
    "cohort": "{ size = 3 }",
    "stop": "{ rounds = 3 }",
}


def run_file(**keys: str | None) -> str:
    """A run on digits; `keys` replace what is written here, or remove it with None."""
    lines = {key: value for key, value in (_DIGITS | keys).items() if value is not None}
    return "\n".join(f"{key} = {value}" for key, value in lines.items())


def app_file(**keys: str | None) -> str:
    """The same with the app of these tests."""
    return run_file(app=f'"{APP}"', model=None, data=None, **keys)


def simulated(text: str, data: Mapping[str, Path]) -> dict[str, bytes]:
    """The tensors, as bytes, that a run ends with in one process. `data` is by client."""
    return as_bytes(simulated_model(text, data))


def simulated_model(text: str, data: Mapping[str, Path]) -> Weights:
    """The global model that a run ends with in one process."""
    file = parse_run_file(text, HERE)
    app = make_app(file.spec.workload, file.app_path)
    clients = {ClientId(name): app.load(path) for name, path in data.items()}
    return Simulation(file.spec, app, clients).run().models["global"]


def saved(path: Path) -> dict[str, bytes]:
    """The tensors of a model file, as bytes."""
    return as_bytes(load_weights(path))


def as_bytes(weights: Weights) -> dict[str, bytes]:
    """Of a sparse tensor, the mask's bytes and the values'."""
    return {
        name: item.mask.packed.numpy().tobytes() + item.values.numpy().tobytes()
        if isinstance(item, SparseTensor)
        else item.contiguous().numpy().tobytes()
        for name, item in weights.items()
    }

"""What a run trains: a model, its loss and metrics, and how a device's data are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from coppice import readers
from coppice.app_module import AppModule, digest_of, read_source
from coppice.data import Examples, examples_from
from coppice.domain import AppSpec, DataSpec, ModelSpec, Workload
from coppice.errors import AppMismatch, DataError, UnreadableData
from coppice.models import make_model

_DIGEST_SHOWN = 12

#: What `Classification.metrics` gives.
CLASSIFICATION_METRICS = ("accuracy", "loss")


class App(ABC):
    """What a run trains."""

    #: Share of a device's examples that is never trained on and serves to evaluate there.
    held_out: float

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model; its weights come from torch's global generator (see `build_model`)."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the batch, a scalar to call backward() on."""

    @abstractmethod
    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Means over the batch, by name."""

    @abstractmethod
    def load(self, path: Path) -> Examples:
        """The examples of a device; DataError when they do not fit the run."""


class Classification(App):
    """One class out of a list, by a model of the registry."""

    def __init__(self, model: ModelSpec, data: DataSpec) -> None:
        self.held_out = data.held_out
        self._model = model
        self._data = data

    def model(self) -> nn.Module:
        """The registry's model for the run's input shape and classes."""
        return make_model(self._model, self._data.input_shape, len(self._data.classes))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy."""
        return nn.functional.cross_entropy(outputs, targets)

    @torch.no_grad()
    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Accuracy and mean cross entropy."""
        return {
            "accuracy": float((outputs.argmax(dim=1) == targets).float().mean()),
            "loss": float(self.loss(outputs, targets)),
        }

    def load(self, path: Path) -> Examples:
        """The examples in any format of `coppice.readers`."""
        raw = readers.read(path, self._data)
        try:
            return examples_from(raw, self._data)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


class UserApp(App):
    """A user's own module, loaded by path."""

    def __init__(self, path: Path, source: bytes, held_out: float) -> None:
        self.held_out = held_out
        self._module = AppModule(path, source)
        self._make_model = self._module.require("model()")
        self._loss = self._module.require("loss(outputs, targets)")
        self._load_data = self._module.require("load_data(path)")
        self._metrics = None
        if self._module.has("metrics"):
            self._metrics = self._module.require("metrics(outputs, targets)")

    def model(self) -> nn.Module:
        """What the module's model() returns."""
        model = self._make_model()
        if not isinstance(model, nn.Module):
            raise self._module.wrong("model", "a torch.nn.Module", f"a {type(model).__name__}")
        return model

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the module's loss() returns."""
        loss = self._loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            shown = (
                f"one of shape {tuple(loss.shape)} and type {loss.dtype}"
                if isinstance(loss, Tensor)
                else f"a {type(loss).__name__}"
            )
            raise self._module.wrong("loss", "a floating-point tensor with one value", shown)
        return loss

    @torch.no_grad()
    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """What the module's metrics() returns, or the loss when it has none."""
        if self._metrics is None:
            return {"loss": float(self.loss(outputs, targets))}
        metrics = self._metrics(outputs, targets)
        wanted = "a mapping from names to numbers"
        if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
            raise self._module.wrong("metrics", wanted, f"a {type(metrics).__name__}")
        try:
            return {name: float(value) for name, value in metrics.items()}
        except (TypeError, ValueError, RuntimeError):
            raise self._module.wrong("metrics", wanted, "values that are none") from None

    def load(self, path: Path) -> Examples:
        """What the module's load_data() returns for the path."""
        if not path.exists():
            raise UnreadableData(f"{path} does not exist; give the path of this device's data")
        data = self._load_data(path)
        wanted = "(inputs, targets), two tensors or numeric arrays with an equal first dimension"
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise self._module.wrong("load_data", wanted, f"a {type(data).__name__}")
        inputs, targets = (self._tensor(item, wanted) for item in data)
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            shapes = f"shapes {tuple(inputs.shape)} and {tuple(targets.shape)}"
            raise self._module.wrong("load_data", wanted, shapes)
        if len(inputs) == 0:
            raise DataError(f"{path} holds no examples; at least one is needed")
        return Examples(inputs, targets)

    def _tensor(self, value: object, wanted: str) -> Tensor:
        if isinstance(value, Tensor):
            return value
        if not isinstance(value, np.ndarray):
            raise self._module.wrong("load_data", wanted, f"a {type(value).__name__} among them")
        try:
            return torch.from_numpy(np.require(value, requirements=["C", "W"]))
        except TypeError:
            raise self._module.wrong("load_data", wanted, f"an array of {value.dtype}") from None


def make_app(workload: Workload, module_path: Path | None = None) -> App:
    """What the workload trains; an app's module comes from `module_path`.

    Raises AppMismatch when that is not the module of the run, and AppError when it cannot be used.
    """
    if workload.app is None:
        if module_path is not None:
            raise AppMismatch(
                f"the run {workload.name!r} trains a model of the registry, not an app; "
                "leave --app away"
            )
        # Workload checks that one of the two is there.
        assert workload.model is not None
        assert workload.data is not None
        return Classification(workload.model, workload.data)
    return _user_app(workload.name, workload.app, module_path)


def _user_app(run_name: str, spec: AppSpec, path: Path | None) -> UserApp:
    if path is None:
        raise AppMismatch(
            f"the run {run_name!r} trains the app {spec.name}; "
            "copy that file here and give it with --app"
        )
    source = read_source(path)
    digest = digest_of(source)
    if digest != spec.digest:
        raise AppMismatch(
            f"{path} has digest {digest[:_DIGEST_SHOWN]}, the run's {spec.name} has "
            f"{spec.digest[:_DIGEST_SHOWN]}; copy the run's file over it"
        )
    return UserApp(path, source, spec.held_out)


def app_digest(path: Path) -> str:
    """SHA-256 of an app module, hexadecimal; AppError when it cannot be read."""
    return digest_of(read_source(path))


def build_model(app: App, seed: int) -> nn.Module:
    """A fresh model whose weights depend on the seed only; global generators stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return app.model()


def bare_model(app: App, seed: int) -> nn.Module:
    """The same, but of models that are known to bear it only the shapes: they take no memory."""
    # What a user's model does when it is made may need values.
    if not isinstance(app, Classification):
        return build_model(app, seed)
    with torch.device("meta"):
        return app.model()

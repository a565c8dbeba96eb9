"""FedAvg on the device: train what came, send the difference."""

from __future__ import annotations

import math

from torch import Tensor, nn

from coppice.app import build_model
from coppice.domain import Metrics
from coppice.method import ClientHalf, Local, Task, Update
from coppice.methods.fedavg.settings import Settings
from coppice.tensors import Tensors, assign, buffers_of, parameters_of, subtract
from coppice.training import Sgd, evaluate, train


class Client(ClientHalf):
    """McMahan et al. 2017, algorithm 1, ClientUpdate."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._model: nn.Module | None = None

    def run(self, task: Task, local: Local) -> Update:
        """Train from the received parameters; the answer is the difference."""
        model = self._receive(task, local)
        settings = self._settings
        trained = train(
            model,
            local,
            Sgd(
                learning_rate=float(task.settings["learning_rate"]),
                steps=settings.local_steps,
                epochs=settings.local_epochs,
                batch_size=settings.batch_size,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                proximal=settings.proximal,
            ),
        )
        delta = subtract(parameters_of(model), task.payload["parameters"])
        # Copied: the module's own change with its next task.
        buffers = {name: buffer.clone() for name, buffer in buffers_of(model).items()}
        return Update(
            client_id=local.client_id,
            payload={"delta": delta, "buffers": buffers},
            num_examples=len(local.train),
            steps=trained.steps,
            metrics={"loss": trained.loss} if math.isfinite(trained.loss) else {},
        )

    def evaluate(self, task: Task, local: Local) -> Metrics:
        """The app's metrics of the received model on the held-out part."""
        return evaluate(self._receive(task, local), local.app, local.held_out)

    def model(self, task: Task, local: Local) -> Tensors:
        """The received parameters and buffers."""
        tensors: dict[str, Tensor] = {}
        for group in ("parameters", "buffers"):
            tensors |= task.payload.get(group, {})
        return tensors

    def _receive(self, task: Task, local: Local) -> nn.Module:
        # The module is built once a run; its values always come from the task, but for buffers
        # that are no part of its state: those are the server's own by way of the seed.
        if self._model is None:
            self._model = build_model(local.app, local.seed)
        assign(self._model, self.model(task, local))
        return self._model

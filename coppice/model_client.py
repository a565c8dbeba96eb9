"""The device's half of methods that send a model and get back what training made of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from coppice.app import build_model
from coppice.domain import Metrics
from coppice.local_training import LocalTraining
from coppice.method import ClientHalf, Local, Task, Update
from coppice.sparse import Item
from coppice.tensors import (
    Weights,
    assign,
    buffers_of,
    masks_of,
    parameters_of,
    subtract,
    weight_group,
)
from coppice.training import Trained, Watch, evaluate, train


class ModelClient(ClientHalf):
    """Trains the received parameters on the masks that they came with, and sends the difference."""

    def __init__(self, training: LocalTraining) -> None:
        self._training = training
        self._model: nn.Module | None = None

    def run(self, task: Task, local: Local) -> Update:
        """Train from the received parameters; the answer is the difference."""
        model, trained = self.train(task, local)
        return self.answer(task, local, model, trained)

    def evaluate(self, task: Task, local: Local) -> Metrics:
        """The app's metrics of the received model on the held-out part."""
        return evaluate(self.receive(task, local), local.app, local.held_out)

    def model(self, task: Task, local: Local) -> Weights:
        """The received parameters and buffers."""
        return weight_group(task.payload, "parameters") | weight_group(task.payload, "buffers")

    def receive(self, task: Task, local: Local) -> nn.Module:
        """The module with the task's values. It is one for all tasks: the next one changes it."""
        # Built once a run; its values always come from the task, but for buffers that are no part
        # of its state: those are the server's own by way of the seed.
        if self._model is None:
            self._model = build_model(local.app, local.seed)
        assign(self._model, self.model(task, local))
        return self._model

    def train(
        self,
        task: Task,
        local: Local,
        *,
        batches: Iterable[Tensor] | None = None,
        watch: Watch | None = None,
    ) -> tuple[nn.Module, Trained]:
        """Receive the task's model and train it; pruned weights stay exactly zero."""
        model = self.receive(task, local)
        trained = train(
            model,
            local,
            self._training.sgd(float(task.settings["learning_rate"])),
            masks=masks_of(weight_group(task.payload, "parameters")),
            batches=batches,
            watch=watch,
        )
        return model, trained

    def answer(
        self,
        task: Task,
        local: Local,
        model: nn.Module,
        trained: Trained,
        more: Mapping[str, Mapping[str, Item]] | None = None,
        metrics: Metrics | None = None,
    ) -> Update:
        """The update: what training changed, the buffers as they are, `more` groups and metrics."""
        delta = subtract(parameters_of(model), weight_group(task.payload, "parameters"))
        # Copied: the module's own change with its next task.
        buffers = {name: buffer.clone() for name, buffer in buffers_of(model).items()}
        loss = {"loss": trained.loss} if math.isfinite(trained.loss) else {}
        groups: dict[str, Mapping[str, Item]] = {"delta": delta, "buffers": buffers}
        return Update(
            client_id=local.client_id,
            payload=groups | dict(more or {}),
            num_examples=len(local.train),
            steps=trained.steps,
            metrics=loss | dict(metrics or {}),
        )

"""The device's half of methods that send a model and get back what training made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import repeat

import torch
from torch import Tensor, nn

from coppice.app import bare_model
from coppice.batch_parts import part_size
from coppice.device_cost import DeviceCost
from coppice.domain import Metrics, TaskKind
from coppice.kernels.placement import Placement
from coppice.kernels.stepping import Watch
from coppice.layer_fit import LayerFit
from coppice.local_training import LocalTraining
from coppice.masks import prunable_names
from coppice.method import ClientHalf, Local, Task, Update
from coppice.rehearsal import random_weights, time_layers
from coppice.sparse import Item
from coppice.tensors import Weights, buffers_of, masks_of, subtract, weight_group
from coppice.training import Trained, evaluate, train

#: Steps of a rehearsal are to take their time, not to train.
_REHEARSAL_RATE = 1e-9


class ModelClient(ClientHalf):
    """Trains the received parameters on the masks that they came with, and sends the difference."""

    def __init__(self, training: LocalTraining) -> None:
        self._training = training
        self._placement: Placement | None = None

    def run(self, task: Task, local: Local) -> Update:
        """Train from the received parameters; the answer is the difference."""
        _, trained = self.train(task, local)
        return self.answer(task, local, trained)

    def evaluate(self, task: Task, local: Local) -> Metrics:
        """The app's metrics of the received model on the held-out part."""
        batch_size = self.examples_at_once(local)
        return evaluate(self.receive(task, local), local.app, local.held_out, batch_size)

    def examples_at_once(self, local: Local) -> int:
        """As in training: more would take memory that a device may not have."""
        return part_size(self._training.batch_size, local.parts)

    def model(self, task: Task, local: Local) -> Weights:
        """The received parameters and buffers."""
        return weight_group(task.payload, "parameters") | weight_group(task.payload, "buffers")

    def prunable(self, model: nn.Module) -> list[str]:
        """Names of the weights that may be on masks."""
        return prunable_names(model)

    def rehearse(self, local: Local, density: float, steps: int) -> Update | None:
        """As in a round, on one batch again and again, by which hardly anything is learnt."""
        indices = torch.arange(self.examples_per_step(local))
        if not len(indices):
            return None
        model = bare_model(local.app, local.seed)
        weights = random_weights(model, self.prunable(model), density, local.generator)
        names = buffers_of(model).keys()
        payload: dict[str, dict[str, Item]] = {
            "parameters": {name: item for name, item in weights.items() if name not in names},
            "buffers": {name: weights[name] for name in names},
        }
        task = Task(TaskKind.TRAIN, 0, payload, {"learning_rate": _REHEARSAL_RATE})
        _, trained = self.train(task, local, batches=repeat(indices, steps))
        return self.answer(task, local, trained)

    def examples_per_step(self, local: Local) -> int:
        """A whole batch, or all that the device has."""
        return min(self._training.batch_size, len(local.train))

    def layer_costs(
        self, local: Local, clock: Callable[[], float]
    ) -> Iterator[tuple[str, LayerFit]]:
        """Of one batch, by the kernels or, without them, of no layer by itself."""
        indices = self._first_part(local)
        if not local.kernels or not len(indices):
            return
        placement = Placement(bare_model(local.app, local.seed))
        names = self.prunable(placement.model)
        batch = local.train.batch(indices)[0]
        for name, fit in time_layers(placement, names, batch, local.generator, clock):
            # A step goes through the layer once for each part.
            yield name, replace(fit, cost=fit.cost.times(local.parts))

    def _first_part(self, local: Local) -> Tensor:
        return torch.arange(part_size(self.examples_per_step(local), local.parts))

    def receive(self, task: Task, local: Local, *, whole: bool = False) -> nn.Module:
        """The module with the task's values. It is one for all tasks: the next one changes it.

        Units that do nothing under the task's masks are not in it, unless it is to be `whole`.
        """
        # Built once a run; its values always come from the task, but for buffers that are no part
        # of its state: those are the server's own by way of the seed.
        if self._placement is None:
            bare = bare_model(local.app, local.seed)
            self._placement = Placement(bare, adapts=local.kernels)
        indices = self._first_part(local)
        batch = local.train.batch(indices)[0] if len(indices) else None
        weights = self.model(task, local)
        dense = _dense_layers(weights, local.cost) if local.cost is not None else None
        self._placement.assign(weights, batch, whole=whole, dense=dense)
        return self._placement.model

    def train(
        self,
        task: Task,
        local: Local,
        *,
        batches: Iterable[Tensor] | None = None,
        watch: Watch | None = None,
    ) -> tuple[nn.Module, Trained]:
        """Receive the task's model and train it; pruned weights stay exactly zero."""
        # Gradients are watched of all units, and decay is of all weights.
        is_whole = watch is not None or self._training.weight_decay > 0
        model = self.receive(task, local, whole=is_whole)
        assert self._placement is not None
        sgd = self._training.sgd(float(task.settings["learning_rate"]))
        sgd = replace(sgd, parts=local.parts)
        if "steps" in task.settings:
            # Devices may do unlike numbers of them.
            sgd = replace(sgd, steps=int(task.settings["steps"]), epochs=None)
        trained = train(
            model,
            local,
            sgd,
            masks=self._placement.masks,
            batches=batches,
            watch=watch,
        )
        return model, trained

    def answer(
        self,
        task: Task,
        local: Local,
        trained: Trained,
        more: Mapping[str, Mapping[str, Item]] | None = None,
        metrics: Metrics | None = None,
    ) -> Update:
        """The update: what training changed, the buffers as they are, `more` groups and metrics."""
        assert self._placement is not None
        parameters = weight_group(task.payload, "parameters")
        delta = subtract(self._placement.weights(parameters), parameters)
        # Copied: the module's own change with its next task.
        now = self._placement.buffers(weight_group(task.payload, "buffers"))
        buffers = {name: buffer.clone() for name, buffer in now.items()}
        loss = {"loss": trained.loss} if math.isfinite(trained.loss) else {}
        groups: dict[str, Mapping[str, Item]] = {"delta": delta, "buffers": buffers}
        return Update(
            client_id=local.client_id,
            payload=groups | dict(more or {}),
            num_examples=len(local.train),
            steps=trained.steps,
            metrics=loss | dict(metrics or {}),
        )


def _dense_layers(weights: Weights, cost: DeviceCost) -> list[str]:
    """Those that are faster so by what the device knows of itself, as it has predicted."""
    ones = {name: mask.count for name, mask in masks_of(weights).items()}
    return cost.time.dense_layers({name: ones[name] for name in ones.keys() & cost.time.layers})

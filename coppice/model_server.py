"""What the server's halves of methods share that send a model and average what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from coppice.aggregation import Maximum, MeanMetrics, WeightedMean, split_floating
from coppice.domain import WORK_SECONDS, Metrics, TaskKind
from coppice.method import InitContext, Task, Update
from coppice.sparse import SparseTensor
from coppice.tensors import (
    Payload,
    Tensors,
    Weights,
    assign,
    buffers_of,
    dense_group,
    dense_tensors,
    parameters_of,
    spec_of,
    weight_group,
)


def first_model(context: InitContext) -> nn.Module:
    """The model that a run begins with: the seed's, or the warm start's."""
    model = context.make_model()
    if context.warm_start is not None:
        assign(model, context.warm_start)
    return model


def first_tensors(context: InitContext) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers that a run begins with."""
    model = first_model(context)
    return parameters_of(model), buffers_of(model)


def training_task(
    parameters: Weights,
    buffers: Tensors,
    round_number: int,
    settings: Mapping[str, Any],
    more: Payload | None = None,
) -> Task:
    """Train this model and answer with the difference; `more` is like what else is expected."""
    return Task(
        TaskKind.TRAIN,
        round_number,
        payload={"parameters": parameters, "buffers": buffers},
        settings=settings,
        expects=spec_of({"delta": parameters, "buffers": buffers} | dict(more or {})),
    )


class MeanUpdate:
    """Many answers to training tasks folded into one, weighted by the number of examples."""

    def __init__(self) -> None:
        self._deltas = WeightedMean()
        self._buffers = WeightedMean()
        self._integers = Maximum()
        self._metrics = MeanMetrics()

    def add(self, update: Update) -> None:
        """Fold one answer."""
        floating, rest = split_floating(dense_group(update.payload, "buffers"))
        self._deltas.add(weight_group(update.payload, "delta"), update.num_examples)
        self._buffers.add(floating, update.num_examples)
        self._integers.add(rest)
        # How long a device worked is not what it learnt; the update keeps it.
        learnt = {key: value for key, value in update.metrics.items() if key != WORK_SECONDS}
        self._metrics.add(learnt, update.num_examples)

    def delta(self) -> dict[str, Tensor | SparseTensor]:
        """The mean delta, once; empty when there was no update with any weight."""
        return self._deltas.value()

    def buffers(self, old: Tensors) -> dict[str, Tensor]:
        """The next buffers: floats their mean, integers their maximum."""
        return dict(old) | dense_tensors(self._buffers.value()) | self._integers.value()

    def metrics(self) -> Metrics:
        """The mean metrics."""
        return self._metrics.value()

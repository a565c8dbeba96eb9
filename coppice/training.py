"""The local loop of a device: SGD over its own examples, metered; and evaluation.

The SGD is a few lines of its own: constructing any optimiser of torch.optim imports torch._dynamo
and sympy, some 70 MiB of resident memory that a small device does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from coppice.aggregation import MeanMetrics
from coppice.app import App
from coppice.data import Examples
from coppice.domain import Metrics
from coppice.errors import DataError
from coppice.method import Local
from coppice.sparse import Mask

EVALUATION_BATCH_SIZE = 256

#: Sees the dense gradients, pruned weights' too, after each backward pass and before the step;
#: the flag says whether the step is the last.
Watch: TypeAlias = Callable[[nn.Module, bool], None]


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent as one client runs it in one round."""

    learning_rate: float
    #: Local steps; None means `epochs`.
    steps: int | None
    epochs: int | None
    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    #: Weight μ of FedProx's term μ/2·‖w - w_received‖² (Li et al. 2020, eq. 2).
    proximal: float = 0.0


@dataclass(frozen=True)
class Trained:
    """What a local training did."""

    steps: int
    #: Mean training loss over the steps; NaN when there were none.
    loss: float


def train(
    model: nn.Module,
    local: Local,
    sgd: Sgd,
    *,
    masks: Mapping[str, Mask] | None = None,
    batches: Iterable[Tensor] | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train the model in place on the local examples.

    Chance comes from `local.generator` only: the order of the examples, and what the model itself
    draws (dropout). Raises TaskAbandoned when the meter says so.

    Args:
        masks: By parameter name. What a mask leaves out must be zero, and stays exactly that.
        batches: Indices of the examples of each step, instead of those that `sgd` says.
        watch: Sees every step's gradients.
    """
    named = [item for item in model.named_parameters() if item[1].requires_grad]
    parameters = [parameter for _, parameter in named]
    kept = {
        name: mask.bits.numpy() for name, mask in (masks or {}).items() if mask.count < mask.size
    }
    received = [parameter.detach().clone() for parameter in parameters] if sgd.proximal else []
    velocity = [torch.zeros_like(parameter) for parameter in parameters] if sgd.momentum else []
    total = torch.zeros((), dtype=torch.float64)
    steps = 0
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_draw_seed(local.generator))
        if batches is None:
            batches = _batches(len(local.train), sgd, local.generator)
        for indices, following in pairwise(chain(batches, [None])):
            assert indices is not None
            inputs, targets = local.train.batch(indices)
            loss = local.app.loss(_outputs(model, inputs), targets)
            model.zero_grad(set_to_none=True)
            loss.backward()
            if watch is not None:
                watch(model, following is None)
            for name, parameter in named:
                if name in kept and parameter.grad is not None:
                    gradient = parameter.grad.numpy()
                    # A third of the time that torch takes with a bool tensor.
                    np.multiply(gradient, kept[name], out=gradient)
            _descend(parameters, received, velocity, sgd)
            total += loss.detach().reshape(())
            steps += 1
            local.meter.step_done()
    model.zero_grad(set_to_none=True)
    return Trained(steps, float(total) / steps if steps else float("nan"))


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    try:
        outputs: Tensor = model(inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            "batch norm cannot train on a batch of one example: give the device more data, or the "
            "run a larger method.batch_size or another norm"
        ) from None
    return outputs


@torch.no_grad()
def _descend(
    parameters: list[nn.Parameter], received: list[Tensor], velocity: list[Tensor], sgd: Sgd
) -> None:
    for index, parameter in enumerate(parameters):
        if parameter.grad is None:
            continue
        step = parameter.grad
        if sgd.weight_decay:
            step = step.add(parameter, alpha=sgd.weight_decay)
        if sgd.proximal:
            step = step.add(parameter - received[index], alpha=sgd.proximal)
        if sgd.momentum:
            step = velocity[index].mul_(sgd.momentum).add_(step)
        parameter.add_(step, alpha=-sgd.learning_rate)


@torch.no_grad()
def evaluate(model: nn.Module, app: App, examples: Examples) -> Metrics:
    """The app's metrics over all examples; empty when there are none."""
    mean = MeanMetrics()
    model.eval()
    for start in range(0, len(examples), EVALUATION_BATCH_SIZE):
        indices = torch.arange(start, min(start + EVALUATION_BATCH_SIZE, len(examples)))
        inputs, targets = examples.batch(indices)
        mean.add(app.metrics(model(inputs), targets), weight=len(indices))
    return mean.value()


def _batches(count: int, sgd: Sgd, generator: torch.Generator) -> Iterator[Tensor]:
    """Index batches: shuffled epochs one after the other, until the steps or epochs are done."""
    if count == 0:
        return
    done = 0
    epoch = 0
    while sgd.epochs is None or epoch < sgd.epochs:
        for batch in _epoch(count, sgd.batch_size, generator):
            if sgd.steps is not None and done >= sgd.steps:
                return
            yield batch
            done += 1
        epoch += 1


def _epoch(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    batches = list(torch.randperm(count, generator=generator).split(batch_size))
    # Batch norm cannot train on a single example: a lone last one joins the batch before it.
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))

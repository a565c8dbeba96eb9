"""The local loop of a device: SGD over its own examples, metered; and evaluation.

The SGD is a few lines of its own: constructing any optimiser of torch.optim imports torch._dynamo
and sympy, some 70 MiB of resident memory that a small device does not have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor, nn

from coppice.aggregation import MeanMetrics
from coppice.app import App
from coppice.batch_parts import most_parts
from coppice.data import Examples
from coppice.domain import Metrics
from coppice.errors import DataError
from coppice.kernels.layout import forget_scratch
from coppice.kernels.step import Step
from coppice.kernels.stepping import Stepping, Watch, stepping
from coppice.method import Local
from coppice.sparse import Mask, SparseTensor

EVALUATION_BATCH_SIZE = 256


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
    #: Parts of each batch, which go forward and back one after the other to hold less at a time; a
    #: step is still one of the whole batch, but for norms of batches, which see parts.
    parts: int = 1

    def split(self, indices: Tensor) -> Sequence[Tensor]:
        """The parts of a batch, as equal as can be; fewer of a small one (`most_parts`)."""
        return indices.tensor_split(min(self.parts, most_parts(len(indices))))


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
        watch: Sees gradients.
    """
    own_step = Step(sgd.learning_rate, sgd.momentum, sgd.weight_decay, sgd.proximal)
    model.train()
    with torch.random.fork_rng(devices=[]), stepping(model, own_step) as sparse:
        torch.manual_seed(_draw_seed(local.generator))
        if batches is None:
            batches = _batches(len(local.train), sgd, local.generator)
        descent = _Descent(model, masks or {}, sparse.names, sgd)
        total = torch.zeros((), dtype=torch.float64)
        steps = 0
        for indices, following in pairwise(chain(batches, [None])):
            assert indices is not None
            seen = watch if watch and (following is None or not watch.last_only) else None
            sparse.watch(seen)
            total += _go_back(model, local, sgd.split(indices), sparse)
            if seen is not None:
                descent.show(seen)
            descent.step()
            steps += 1
            local.meter.step_done()
    model.zero_grad(set_to_none=True)
    return Trained(steps, float(total) / steps if steps else float("nan"))


def _go_back(model: nn.Module, local: Local, parts: Sequence[Tensor], sparse: Stepping) -> Tensor:
    """Find the gradients of the mean loss over the examples of all parts; returns that loss."""
    count = sum(map(len, parts))
    total = torch.zeros((), dtype=torch.float64)
    for number, indices in enumerate(parts, 1):
        inputs, targets = local.train.batch(indices)
        loss = local.app.loss(_outputs(model, inputs), targets) * (len(indices) / count)
        if number == 1:
            model.zero_grad(set_to_none=True)
        with sparse.going_back(is_last=number == len(parts)):
            loss.backward()
        total += loss.detach().reshape(())
    return total


class _Descent:
    """The steps of the parameters that are dense in memory."""

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Mask], besides: Collection[str], sgd: Sgd
    ) -> None:
        self._sgd = sgd
        self._masks = masks
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in besides
        }
        self._kept = {
            name: mask.bits.numpy()
            for name, mask in masks.items()
            if mask.count < mask.size and name in self._parameters
        }
        detached = {name: tensor.detach() for name, tensor in self._parameters.items()}
        self._received = {name: tensor.clone() for name, tensor in detached.items() if sgd.proximal}
        self._velocity = {
            name: torch.zeros_like(tensor) for name, tensor in detached.items() if sgd.momentum
        }

    def show(self, watch: Watch) -> None:
        """Let who watches see the gradients."""
        for name, gradient in self._gradients():
            is_whole = watch.pruned_too or name not in self._masks
            kept = gradient if is_whole else SparseTensor.take(gradient, self._masks[name])
            watch.see(name, kept)

    @torch.no_grad()
    def step(self) -> None:
        """Descend; pruned weights have no gradient."""
        sgd = self._sgd
        for name, step in self._gradients():
            if name in self._kept:
                gradient = step.numpy()
                # A third of the time that torch takes with a bool tensor.
                np.multiply(gradient, self._kept[name], out=gradient)
            parameter = self._parameters[name]
            if sgd.weight_decay:
                step = step.add(parameter, alpha=sgd.weight_decay)
            if sgd.proximal:
                step = step.add(parameter - self._received[name], alpha=sgd.proximal)
            if sgd.momentum:
                step = self._velocity[name].mul_(sgd.momentum).add_(step)
            parameter.add_(step, alpha=-sgd.learning_rate)

    def _gradients(self) -> list[tuple[str, Tensor]]:
        return [
            (name, parameter.grad)
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        ]


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
def evaluate(
    model: nn.Module, app: App, examples: Examples, batch_size: int = EVALUATION_BATCH_SIZE
) -> Metrics:
    """The app's metrics over all examples, so many at a time; empty when there are none."""
    mean = MeanMetrics()
    model.eval()
    for start in range(0, len(examples), batch_size):
        indices = torch.arange(start, min(start + batch_size, len(examples)))
        inputs, targets = examples.batch(indices)
        mean.add(app.metrics(model(inputs), targets), weight=len(indices))
    forget_scratch()
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

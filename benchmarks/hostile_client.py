"""A client that is a real one in all but its updates, which it spoils as it is told.

`python -m benchmarks.hostile_client KIND join ADDRESS …`: after the kind, the command line is
`fedclient`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from coppice.domain import TaskKind
from coppice.method import Local, Task, Update
from coppice.sparse import SparseTensor
from coppice.tensors import Weights, weight_group
from edge_client.cli import main
from edge_client.ready import ReadyRun


def _every(
    change: Callable[[Tensor], Tensor],
) -> Callable[[Weights], dict[str, Tensor | SparseTensor]]:
    def changed(delta: Weights) -> dict[str, Tensor | SparseTensor]:
        return {
            name: SparseTensor(item.mask, change(item.values))
            if isinstance(item, SparseTensor)
            else change(item)
            for name, item in delta.items()
        }

    return changed


def _reshaped(delta: Weights) -> dict[str, Tensor | SparseTensor]:
    name = next(iter(delta))
    return {**delta, name: torch.zeros(3, 5)}


#: What becomes of the change that honest training gave.
KINDS: Mapping[str, Callable[[Weights], dict[str, Tensor | SparseTensor]]] = {
    "nan": _every(lambda values: torch.full_like(values, torch.nan)),
    "shape": _reshaped,
    "scaled": _every(lambda values: 1000 * values),
    "flipped": _every(lambda values: -values),
}


def spoiled(update: Update, kind: str) -> Update:
    """The update with another change in it."""
    delta = KINDS[kind](weight_group(update.payload, "delta"))
    return replace(update, payload={**update.payload, "delta": delta})


def spoil_answers(kind: str) -> None:
    """From now on this process spoils what it trains."""
    honest = ReadyRun.answer

    def answer(self: ReadyRun, task: Task, local: Local) -> Update:
        update = honest(self, task, local)
        return spoiled(update, kind) if task.kind is TaskKind.TRAIN else update

    patch.object(ReadyRun, "answer", answer).start()


if __name__ == "__main__":
    spoil_answers(sys.argv.pop(1))
    sys.exit(main())

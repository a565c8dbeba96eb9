"""What both ends of a run do with payloads, whether the wire is real or a simulation's.

Masks travel in a payload of their own, named by its digest like any other: a device that has it
does not fetch it again, and the payload with the values never repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from coppice.domain import WireSpec, derive_seed
from coppice.errors import InvalidPayload
from coppice.method import Private, Task
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Payload, weight_group
from coppice.wire.payload import decode, encode

#: Masks by fingerprint.
Known = Mapping[str, Mask]


def known_masks(masks: Payload) -> dict[str, Mask]:
    """Masks by fingerprint, and their complements: who holds the one holds the other."""
    known: dict[str, Mask] = {}
    for items in masks.values():
        for name, item in items.items():
            if not isinstance(item, Mask):
                raise InvalidPayload(f"{name} is not a mask")
            for mask in (item, item.complement()):
                known[mask.fingerprint] = mask
    return known


@dataclass(frozen=True)
class EncodedTask:
    """A task's payload as it travels."""

    payload: bytearray
    #: The masks that the payload's sparse tensors are on; None when it has none. Of equal masks
    #: this is one object.
    masks: bytearray | None
    #: What a device knows that holds these masks.
    known: Known


class TaskEncoder:
    """Encodes the payloads of a run's tasks; masks when they change."""

    def __init__(self, wire: WireSpec, seed: int) -> None:
        self._wire = wire
        self._seed = seed
        self._masks: dict[tuple[str, ...], tuple[bytearray | None, Known]] = {}

    def encode(self, tasks: Iterable[Task]) -> Iterator[EncodedTask]:
        """The tasks of one plan, in its order, each encoded when it is asked for.

        A payload object that the task before had as well is not encoded again.
        """
        used: dict[tuple[str, ...], tuple[bytearray | None, Known]] = {}
        before: Payload | None = None
        for task in tasks:
            if task.payload is not before:
                masks = _masks_in(task.payload)
                names = tuple(
                    part
                    for group, items in masks.items()
                    for name, mask in items.items()
                    for part in (group, name, mask.fingerprint)
                )
                used[names] = used.get(names) or self._masks.get(names) or self._encode_masks(masks)
                sent = self._encode(task, *used[names])
                before = task.payload
            yield sent
        # What no device of this round holds is not kept for the next.
        self._masks = used

    def _encode_masks(
        self, masks: Mapping[str, Mapping[str, Mask]]
    ) -> tuple[bytearray | None, Known]:
        if not masks:
            return None, {}
        return encode(masks, compress=self._wire.compress), known_masks(masks)

    def _encode(self, task: Task, masks: bytearray | None, known: Known) -> EncodedTask:
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self._seed, "down", task.round_number))
        payload = encode(
            task.payload,
            known=known,
            coding={"parameters": self._wire.down},
            generator=generator,
            compress=self._wire.compress,
        )
        return EncodedTask(payload, masks, known)


def _masks_in(payload: Payload) -> dict[str, dict[str, Mask]]:
    found = {
        group: {name: item.mask for name, item in items.items() if isinstance(item, SparseTensor)}
        for group, items in payload.items()
    }
    return {group: masks for group, masks in found.items() if masks}


@dataclass(frozen=True)
class Residual:
    """What rounding has kept back of a device's updates so far."""

    delta: Mapping[str, Tensor | SparseTensor]


def encode_update(
    payload: Payload, known: Known, wire: WireSpec, private: Private, generator: torch.Generator
) -> bytearray:
    """An update, for a server that holds the known masks.

    What the value type loses of the delta is added to the next one (error feedback, Seide et al.
    2014): it is staged as private state, since it counts only when the update does.
    """
    # Metrics of an evaluation have no delta, and nothing to do with what was kept back.
    if wire.up == "float32" or "delta" not in payload:
        return encode(payload, known=known, compress=wire.compress)
    delta = weight_group(payload, "delta")
    before = private.read(Residual)
    if before is not None:
        delta = {name: _plus(item, before.delta.get(name)) for name, item in delta.items()}
    try:
        data = encode(
            {**payload, "delta": delta},
            known=known,
            coding={"delta": wire.up},
            generator=generator,
            compress=wire.compress,
        )
    except InvalidPayload:
        # Training diverged here. What that is worth is the server's to say: it gets all of it.
        return encode(payload, known=known, compress=wire.compress)
    sent = weight_group(decode(data, known=known), "delta")
    private.stage(Residual({name: _minus(delta[name], sent[name]) for name in delta}))
    return data


def _plus(item: Tensor | SparseTensor, kept: Tensor | SparseTensor | None) -> Tensor | SparseTensor:
    if kept is None:
        return item
    if isinstance(item, SparseTensor):
        # What was kept back of a weight that is pruned by now goes with it.
        return SparseTensor(item.mask, item.values + _values_on(kept, item.mask))
    return item + (kept.dense() if isinstance(kept, SparseTensor) else kept)


def _values_on(item: Tensor | SparseTensor, mask: Mask) -> Tensor:
    if isinstance(item, SparseTensor):
        if item.mask == mask:
            return item.values
        item = item.dense()
    return SparseTensor.take(item, mask).values


def _minus(item: Tensor | SparseTensor, sent: Tensor | SparseTensor) -> Tensor | SparseTensor:
    if isinstance(item, SparseTensor) and isinstance(sent, SparseTensor):
        return SparseTensor(item.mask, item.values - sent.values)
    assert isinstance(item, Tensor)
    assert isinstance(sent, Tensor)
    return item - sent

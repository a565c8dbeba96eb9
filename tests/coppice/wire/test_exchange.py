"""What both ends do with payloads: masks apart from values, and rounding that is made good."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from coppice.domain import TaskKind, ValueType, WireSpec
from coppice.errors import InvalidPayload
from coppice.method import Task
from coppice.simulated_device import MemoryPrivate
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import Payload, dense_group
from coppice.wire.exchange import Residual, TaskEncoder, encode_update, known_masks
from coppice.wire.payload import decode, encode

HALF = Mask.of(torch.arange(300) % 2 == 0)
THIRD = Mask.of(torch.arange(300) % 3 == 0)
EXACT, INT8 = WireSpec(), WireSpec(down="int8", up="int8")


def sparse(mask: Mask = HALF, seed: int = 0) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    return SparseTensor(mask, torch.randn(mask.count, generator=generator))


def model(mask: Mask = HALF) -> Payload:
    return {"parameters": {"w": sparse(mask), "bias": torch.arange(3.0)}, "buffers": {}}


def task(payload: Payload, round_number: int = 1) -> Task:
    return Task(TaskKind.TRAIN, round_number, payload)


def test_values_and_masks_travel_apart() -> None:
    (sent,) = TaskEncoder(EXACT, 0).encode([task(model())])
    assert sent.masks is not None
    masks = decode(sent.masks)
    assert masks == {"parameters": {"w": HALF}}
    with pytest.raises(InvalidPayload, match="which is not here"):
        decode(sent.payload)
    item = decode(sent.payload, known=known_masks(masks))["parameters"]["w"]
    assert isinstance(item, SparseTensor)
    assert item.mask == HALF
    assert torch.equal(item.values, sparse().values)


def test_a_payload_without_sparse_tensors_has_no_masks() -> None:
    (sent,) = TaskEncoder(EXACT, 0).encode([task({"parameters": {"bias": torch.zeros(3)}})])
    assert sent.masks is None
    assert sent.known == {}


def test_one_payload_is_encoded_once_and_masks_until_they_change() -> None:
    encoder = TaskEncoder(EXACT, 0)
    shared = task(model())
    first, second, other = encoder.encode([shared, shared, task(model())])
    assert first is second
    assert other.payload == first.payload
    assert other.masks is first.masks
    (next_round,) = encoder.encode([task(model(), 2)])
    assert next_round.masks is first.masks
    (changed,) = encoder.encode([task(model(THIRD), 3)])
    assert changed.masks != first.masks
    (back,) = encoder.encode([task(model(), 4)])
    assert back.masks == first.masks
    assert back.masks is not first.masks


def test_payloads_are_encoded_one_at_a_time() -> None:
    """A round may have as many as it has devices, each as large as the model."""
    taken = []

    def tasks() -> Iterator[Task]:
        for number in range(3):
            taken.append(number)
            yield task(model())

    encoded = TaskEncoder(EXACT, 0).encode(tasks())
    first = weakref.ref(next(encoded))
    assert taken == [0]
    next(encoded)
    assert first() is None


def test_rounding_on_the_way_down_depends_on_seed_and_round_only() -> None:
    def sent(seed: int, round_number: int) -> bytearray:
        (encoded,) = TaskEncoder(INT8, seed).encode([task(model(), round_number)])
        return encoded.payload

    assert sent(1, 1) == sent(1, 1)
    assert len({bytes(sent(*key)) for key in ((1, 1), (1, 2), (2, 1))}) == 3


def test_only_parameters_and_deltas_are_rounded() -> None:
    payload: Payload = {
        group: {"x": torch.tensor([1.0, 0.3])} for group in ("parameters", "delta", "buffers")
    }
    (sent,) = TaskEncoder(INT8, 0).encode([task(payload)])
    down = decode(sent.payload)
    up = decode(encode_update(payload, {}, INT8, MemoryPrivate(), torch.Generator()))
    for received, rounded in ((down, "parameters"), (up, "delta")):
        for group in payload:
            same = torch.equal(dense_group(received, group)["x"], dense_group(payload, group)["x"])
            assert same == (group != rounded)


def test_a_device_that_holds_a_mask_holds_its_complement() -> None:
    pruned = SparseTensor(HALF.complement(), torch.ones(150))
    known = known_masks({"parameters": {"w": HALF}})
    data = encode({"importance": {"w": pruned}}, known=known)
    item = decode(data, known=known)["importance"]["w"]
    assert isinstance(item, SparseTensor)
    assert item.mask == HALF.complement()
    with pytest.raises(InvalidPayload, match="is not a mask"):
        known_masks({"parameters": {"w": torch.ones(2)}})


def deltas(update: bytearray, known: Mapping[str, Mask]) -> Item:
    return decode(update, known=known)["delta"]["w"]


class TestErrorFeedback:
    @pytest.mark.parametrize("up", ["int8", "float16", "bfloat16"])
    def test_what_rounding_loses_is_added_to_the_next_update(self, up: ValueType) -> None:
        wire = WireSpec(up=up)
        private, generator = MemoryPrivate(), torch.Generator().manual_seed(3)
        known = known_masks({"delta": {"w": HALF}})
        wanted, arrived = torch.zeros(150), torch.zeros(150)
        first_error = 0.0
        for number in range(40):
            item = sparse(seed=number)
            wanted += item.values
            sent = deltas(
                encode_update({"delta": {"w": item}}, known, wire, private, generator), known
            )
            private.commit()
            assert isinstance(sent, SparseTensor)
            arrived += sent.values
            first_error = first_error or float((arrived - wanted).abs().max())
        # The error of forty updates is not larger than that of one may be.
        assert 0 < float((arrived - wanted).abs().max()) < 2 * first_error + 1e-3

    def test_an_update_that_does_not_count_leaves_no_residual(self) -> None:
        private, generator = MemoryPrivate(), torch.Generator().manual_seed(3)
        known = known_masks({"delta": {"w": HALF}})
        encode_update({"delta": {"w": sparse()}}, known, INT8, private, generator)
        assert private.read(Residual) is None
        private.commit()
        assert private.read(Residual) is not None

    def test_it_follows_the_mask(self) -> None:
        private, generator = MemoryPrivate(), torch.Generator().manual_seed(3)
        known = known_masks({"a": {"w": HALF}, "b": {"w": THIRD}})
        encode_update({"delta": {"w": sparse()}}, known, INT8, private, generator)
        private.commit()
        kept = private.read(Residual).delta["w"].dense()
        zeros = SparseTensor(THIRD, torch.zeros(THIRD.count))
        sent = deltas(
            encode_update({"delta": {"w": zeros}}, known, INT8, private, generator), known
        )
        private.commit()
        assert isinstance(sent, SparseTensor)
        # What arrives now and what is kept back are what was kept back of weights in both masks.
        total = sent.dense() + private.read(Residual).delta["w"].dense()
        torch.testing.assert_close(total, kept * THIRD.bits)
        assert total.any()

    def test_dense_deltas_have_it_too(self) -> None:
        private, generator = MemoryPrivate(), torch.Generator().manual_seed(3)
        delta = {"w": torch.tensor([1.0, 0.3])}
        sent = deltas(encode_update({"delta": delta}, {}, INT8, private, generator), {})
        private.commit()
        residual = private.read(Residual).delta["w"]
        assert isinstance(sent, Tensor)
        torch.testing.assert_close(sent + residual, delta["w"])

    def test_an_evaluation_leaves_it_alone(self) -> None:
        private, generator = MemoryPrivate(), torch.Generator().manual_seed(3)
        known = known_masks({"delta": {"w": HALF}})
        encode_update({"delta": {"w": sparse()}}, known, INT8, private, generator)
        private.commit()
        before = private.read(Residual).delta["w"].values
        assert encode_update({}, known, INT8, private, generator) == encode({})
        private.commit()
        assert torch.equal(private.read(Residual).delta["w"].values, before)

    def test_values_that_travel_as_they_are_need_none(self) -> None:
        private = MemoryPrivate()
        payload: Payload = {"delta": {"w": torch.tensor([1.0, 0.3])}}
        assert encode_update(payload, {}, EXACT, private, torch.Generator()) == encode(payload)
        private.commit()
        assert private.read(Residual) is None

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
    def test_what_cannot_be_rounded_is_sent_as_it_is(self, value: float) -> None:
        private, generator = MemoryPrivate(), torch.Generator().manual_seed(3)
        payload: Payload = {"delta": {"w": torch.tensor([1.0, value])}}
        sent = encode_update(payload, {}, WireSpec(up="float16"), private, generator)
        assert sent == encode(payload)
        private.commit()
        assert private.read(Residual) is None

"""Payloads: fetched once, checked again before they are used again, never beyond the memory."""

from __future__ import annotations

import pytest
import torch

from coppice.domain import BlobRef
from coppice.errors import InvalidPayload, UnknownBlob
from coppice.sparse import SparseTensor
from coppice.tensors import Payload, dense_group, dense_tensors, masks_of, weight_group
from coppice.wire.exchange import known_masks
from edge_client.download import Downloads
from edge_client.limits import MemoryBudget
from edge_client.payloads import Payloads
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import FakeServer, masks_in, model_payload, pruned_payload


@pytest.fixture
def payloads(device: ThreadedDevice) -> Payloads:
    return Payloads(Downloads(device.link, device.folder.downloads))


def test_same_digest_is_fetched_once(server: FakeServer, payloads: Payloads) -> None:
    ref = server.add_blob(model_payload())
    first = dense_group(payloads.get(ref), "parameters")
    again = dense_group(payloads.get(ref), "parameters")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len(server.of("FetchBlob")) == 1


def test_other_digest_is_fetched(server: FakeServer, payloads: Payloads) -> None:
    one, two = (server.add_blob(model_payload(seed)) for seed in (1, 2))
    for ref in (one, two, one):
        payloads.get(ref)
    assert [request.digest for request in server.of("FetchBlob")] == [
        one.digest,
        two.digest,
        one.digest,
    ]


def test_payload_that_was_written_into_is_fetched_again(
    server: FakeServer, payloads: Payloads
) -> None:
    ref = server.add_blob(model_payload())
    for tensor in dense_group(payloads.get(ref), "parameters").values():
        tensor.zero_()
    fresh = dense_group(payloads.get(ref), "parameters")
    assert any(tensor.any() for tensor in fresh.values())
    assert len(server.of("FetchBlob")) == 2


def test_payload_beyond_the_memory_is_refused(
    server: FakeServer, payloads: Payloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = MemoryBudget(budget_bytes=600, bound_by="a test", resident_bytes=500)
    monkeypatch.setattr("edge_client.payloads.memory_budget", lambda: small)
    ref = server.add_blob(model_payload())
    with pytest.raises(InvalidPayload, match="more than the 100 B of memory"):
        payloads.get(ref)
    assert server.of("FetchBlob") == []


# ---- masks -------------------------------------------------------------------------------------


def fetched(server: FakeServer) -> list[str]:
    return [request.digest for request in server.of("FetchBlob")]


def offered(server: FakeServer, payload: Payload) -> tuple[BlobRef, BlobRef]:
    """The blobs of a payload and of its masks."""
    masks = masks_in(payload)
    return server.add_blob(payload, known_masks(masks)), server.add_blob(masks)


def test_masks_are_fetched_once_for_many_payloads(server: FakeServer, payloads: Payloads) -> None:
    (one, masks), (two, same) = (offered(server, pruned_payload(seed)) for seed in (1, 2))
    assert masks == same
    for seed, ref in ((1, one), (2, two), (1, one)):
        got = weight_group(payloads.get(ref, masks), "parameters")
        wanted = weight_group(pruned_payload(seed), "parameters")
        assert masks_of(got) == masks_of(wanted)
        assert all(
            torch.equal(item, dense_tensors(wanted)[name])
            for name, item in dense_tensors(got).items()
        )
    assert fetched(server) == [masks.digest, one.digest, two.digest, one.digest]


def test_masks_that_change_are_fetched_again(server: FakeServer, payloads: Payloads) -> None:
    half, third = (offered(server, pruned_payload(1, every)) for every in (2, 3))
    for ref, masks in (half, third, half):
        got = payloads.get(ref, masks)
        assert set(masks_in(got)["parameters"].values()) <= set(payloads.known.values())
    masks_fetched = [
        digest for digest in fetched(server) if digest in (half[1].digest, third[1].digest)
    ]
    assert masks_fetched == [half[1].digest, third[1].digest, half[1].digest]


def test_payload_without_masks_leaves_those_that_are_there(
    server: FakeServer, payloads: Payloads
) -> None:
    ref, masks = offered(server, pruned_payload())
    payloads.get(ref, masks)
    payloads.get(server.add_blob(model_payload()))
    payloads.get(ref, masks)
    assert fetched(server).count(masks.digest) == 1


def test_masks_outlive_payloads_that_are_written_into(
    server: FakeServer, payloads: Payloads
) -> None:
    ref, masks = offered(server, pruned_payload())
    for item in weight_group(payloads.get(ref, masks), "parameters").values():
        (item.values if isinstance(item, SparseTensor) else item).zero_()
    again = weight_group(payloads.get(ref, masks), "parameters")
    assert masks_of(again) == masks_in(pruned_payload())["parameters"]
    assert any(item.any() for item in dense_tensors(again).values())
    assert fetched(server).count(masks.digest) == 1


def test_masks_that_could_not_be_fetched_are_asked_for_again(
    server: FakeServer, payloads: Payloads
) -> None:
    half, third = (offered(server, pruned_payload(1, every)) for every in (2, 3))
    payloads.get(*half)
    server.errors["FetchBlob"] = [UnknownBlob("gone")]
    with pytest.raises(UnknownBlob):
        payloads.get(*third)
    # What is half new is nothing.
    assert payloads.known == {}
    assert payloads.get(*third).keys() == {"parameters"}


def test_payload_on_masks_that_were_not_offered_is_refused(
    server: FakeServer, payloads: Payloads
) -> None:
    half, third = (offered(server, pruned_payload(1, every)) for every in (2, 3))
    with pytest.raises(InvalidPayload, match="which is not here"):
        payloads.get(half[0])
    with pytest.raises(InvalidPayload, match="which is not here"):
        payloads.get(half[0], third[1])
    with pytest.raises(InvalidPayload, match="is not a mask"):
        payloads.get(half[0], server.add_blob(model_payload()))


def test_masks_beyond_the_memory_are_refused(
    server: FakeServer, payloads: Payloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, masks = offered(server, pruned_payload())
    small = MemoryBudget(masks.size_bytes - 1, bound_by="a test", resident_bytes=0)
    monkeypatch.setattr("edge_client.payloads.memory_budget", lambda: small)
    with pytest.raises(InvalidPayload, match="of memory that this device has left"):
        payloads.get(ref, masks)
    assert fetched(server) == []


def test_terms_are_kept_beside_the_payload(server: FakeServer, payloads: Payloads) -> None:
    model, terms, others = (server.add_blob(model_payload(seed)) for seed in (1, 2, 3))
    payloads.get(model)
    for tensor in dense_group(payloads.terms(terms), "parameters").values():
        tensor.zero_()
    # What a method has written into them is nothing to the next round.
    again = dense_group(payloads.terms(terms), "parameters")
    assert any(tensor.any() for tensor in again.values())
    payloads.get(model)
    payloads.terms(others)
    assert [request.digest for request in server.of("FetchBlob")] == [
        model.digest,
        terms.digest,
        others.digest,
    ]

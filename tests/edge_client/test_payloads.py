"""Payloads: fetched once, checked again before they are used again, never beyond the memory."""

from __future__ import annotations

import pytest
import torch

from coppice.domain import Capability
from coppice.errors import InvalidPayload
from edge_client.payloads import Payloads
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import FakeServer, model_payload


@pytest.fixture
def payloads(device: ThreadedDevice) -> Payloads:
    return Payloads(device.link)


def test_same_digest_is_fetched_once(server: FakeServer, payloads: Payloads) -> None:
    ref = server.add_blob(model_payload())
    first = payloads.get(ref)["parameters"]
    again = payloads.get(ref)["parameters"]
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
    for tensor in payloads.get(ref)["parameters"].values():
        tensor.zero_()
    fresh = payloads.get(ref)["parameters"]
    assert any(tensor.any() for tensor in fresh.values())
    assert len(server.of("FetchBlob")) == 2


def test_payload_beyond_the_memory_is_refused(
    server: FakeServer, payloads: Payloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Capability(memory_bytes=100, num_threads=1, machine="small")
    monkeypatch.setattr("edge_client.payloads.capability", lambda: small)
    ref = server.add_blob(model_payload())
    with pytest.raises(InvalidPayload, match="more than the 100 B of memory"):
        payloads.get(ref)
    assert server.of("FetchBlob") == []

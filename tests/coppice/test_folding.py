"""A round's updates judged, combined and folded: which are in the state, and which are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from coppice import tree
from coppice.domain import ClientId, MethodSpec
from coppice.folding import Folded, fold
from coppice.method import Update, server_half
from coppice.methods.fedavg.server import State
from coppice.protection import ProtectionSpec
from coppice.tensors import dense_group

HALF = server_half(MethodSpec(name="fedavg", settings={"local_steps": 1}))
STATE = State({"w": torch.zeros(4)}, {})


def updates(*sizes: float) -> dict[ClientId, Update]:
    """Of clients a, b, c …, with changes of these sizes."""
    generator = torch.Generator().manual_seed(1)
    return {
        ClientId(name): Update(
            ClientId(name),
            {"delta": {"w": size * torch.randn(4, generator=generator)}, "buffers": {}},
            num_examples=3 + number,
            steps=1,
        )
        for number, (name, size) in enumerate(zip("abcdefgh", sizes, strict=False))
    }


class Reader:
    """Reads updates, and notes whose were asked for."""

    def __init__(self, made: dict[ClientId, Update]) -> None:
        self._made = made
        self.read: list[list[ClientId]] = []

    def __call__(self, clients: Sequence[ClientId]) -> Iterator[Update]:
        self.read.append(list(clients))
        return (self._made[name] for name in clients)


def folded(
    made: dict[ClientId, Update], protection: ProtectionSpec, devices: int | None = None
) -> tuple[Folded, Reader]:
    reader = Reader(made)
    done = fold(HALF, protection, STATE, list(made), reader, 1, devices or len(made))
    return done, reader


def test_a_mean_is_the_methods_own_to_the_last_bit() -> None:
    made = updates(1, 1, 1, 1, 1)
    done, _ = folded(made, ProtectionSpec())
    state, metrics = HALF.aggregate(STATE, made.values(), 1)
    assert tree.save(done.state) == tree.save(state)
    assert (done.metrics, done.clients, done.refused) == (metrics, list("abcde"), {})


def test_what_is_refused_is_as_if_it_had_not_come() -> None:
    done, reader = folded(updates(1, 1000, 1, 1, 1), ProtectionSpec())
    made = updates(1, 1000, 1, 1, 1)
    rest = [update for name, update in made.items() if name != "b"]
    assert tree.save(done.state) == tree.save(HALF.aggregate(STATE, rest, 1)[0])
    assert (done.clients, list(done.refused)) == (list("acde"), ["b"])
    assert reader.read == [list("abcde"), list("acde")]


@pytest.mark.parametrize(
    ("devices", "firewall", "refused"), [(5, True, ["a"]), (4, True, []), (5, False, [])]
)
def test_who_is_judged(devices: int, firewall: bool, refused: list[str]) -> None:
    done, _ = folded(updates(1000, 1, 1), ProtectionSpec(firewall=firewall), devices)
    assert list(done.refused) == refused


def test_whom_krum_does_not_take_is_not_in_the_state() -> None:
    done, _ = folded(updates(1, 1, 1, 1, 1), ProtectionSpec(aggregate="krum"))
    assert (len(done.clients), done.refused) == (1, {})
    made = updates(1, 1, 1, 1, 1)[done.clients[0]]
    assert torch.equal(done.state.parameters["w"], dense_group(made.payload, "delta")["w"])


def test_a_round_without_updates_leaves_the_state_alone() -> None:
    for aggregate in ("mean", "median", "krum", "clipped"):
        done, _ = folded({}, ProtectionSpec(aggregate=aggregate))
        assert done.state is STATE

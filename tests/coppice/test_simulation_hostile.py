"""Hostile clients in one process: refused by name, left out, and without effect on the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from coppice import simulation, tree
from coppice.cohort import CohortSpec
from coppice.domain import AppSpec, ClientId, MethodSpec, RunSpec, StopSpec
from coppice.method import ClientHalf, Local, Task, Update, client_half
from coppice.protection import Aggregate, ProtectionSpec
from coppice.simulation import Simulation
from coppice.tensors import dense_group
from tests.coppice.toys import ToyApp, examples, with_buffers

HONEST = [ClientId(f"c{number}") for number in range(5)]

#: What a hostile client makes of its update, and by which rule it is refused.
SPOILS: Mapping[str, tuple[Callable[[Update], Update], str]] = {
    "nan": (lambda update: scaled(update, torch.nan), "structure"),
    "scaled": (lambda update: scaled(update, 1000.0), "size"),
    "shape": (lambda update: replace(update, payload={"delta": {}}), "structure"),
    "weight": (lambda update: replace(update, num_examples=10**9), "claims"),
    "steps": (lambda update: replace(scaled(update, 1000.0), steps=10**6), "claims"),
}


def scaled(update: Update, factor: float) -> Update:
    delta = {name: factor * item for name, item in dense_group(update.payload, "delta").items()}
    return replace(update, payload={**update.payload, "delta": delta})


def spec(rounds: int = 3, size: int = 8, **protection: object) -> RunSpec:
    return RunSpec(
        name="toy",
        seed=3,
        app=AppSpec(name="toy.py", digest="0" * 64),
        method=MethodSpec(name="fedavg", settings={"local_epochs": 1, "batch_size": 5}),
        cohort=CohortSpec(size=size),
        stop=StopSpec(rounds=rounds),
        protection=ProtectionSpec(**protection),  # type: ignore[arg-type]
    )


def federation(
    run: RunSpec, monkeypatch: pytest.MonkeyPatch, hostile: Mapping[str, str] | None = None
) -> Simulation:
    """Five honest clients, and hostile ones by the name of what they do."""
    kinds = hostile or {}

    class Spoiling:
        def __init__(self, half: ClientHalf) -> None:
            self._half = half

        def __getattr__(self, name: str) -> object:
            return getattr(self._half, name)

        def run(self, task: Task, local: Local) -> Update:
            update = self._half.run(task, local)
            kind = kinds.get(local.client_id)
            return update if kind is None else SPOILS[kind][0](update)

    monkeypatch.setattr(simulation, "client_half", lambda spec: Spoiling(client_half(spec)))
    names = [*HONEST, *map(ClientId, kinds)]
    clients = {name: examples(20 + number, seed=number) for number, name in enumerate(names)}
    return Simulation(run, ToyApp(with_buffers), clients)


@pytest.mark.parametrize("kind", SPOILS)
def test_each_is_named_with_its_rule_and_changes_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = federation(spec(size=5), monkeypatch).run()
    mixed = federation(spec(size=6), monkeypatch, {"h": kind}).run()
    for done in mixed.rounds:
        assert {name: item.rule for name, item in done.refused.items()} == {"h": SPOILS[kind][1]}
    assert tree.save(mixed.state) == tree.save(alone.state)


def test_three_of_eight_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = federation(spec(size=5), monkeypatch).run()
    hostile = {"h1": "nan", "h2": "shape", "h3": "scaled"}
    mixed = federation(spec(), monkeypatch, hostile).run()
    assert all(done.refused.keys() == hostile.keys() for done in mixed.rounds)
    assert tree.save(mixed.state) == tree.save(alone.state)


def test_a_client_is_left_out_after_its_strikes(monkeypatch: pytest.MonkeyPatch) -> None:
    run = federation(spec(rounds=4, size=6, strikes=2), monkeypatch, {"h": "scaled"}).run()
    assert [list(done.refused) for done in run.rounds] == [["h"], ["h"], [], []]


def test_a_round_that_most_cannot_do_leaves_the_model_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hostile = {f"h{number}": "nan" for number in range(6)}
    run = federation(spec(size=11, strikes=1), monkeypatch, hostile)
    before = tree.save(run.state)
    for done in run.run().rounds:
        assert done.refused.keys() == hostile.keys()
    assert tree.save(run.state) == before


def test_without_the_firewall_only_structure_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {"h1": "scaled", "h2": "weight", "h3": "nan"}
    run = federation(spec(firewall=False), monkeypatch, hostile)
    assert run.run_round(1).refused.keys() == {"h3"}


def test_the_firewall_changes_no_bit_of_an_honest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [
        tree.save(federation(spec(size=5, firewall=on), monkeypatch).run().state)
        for on in (True, False)
    ]
    assert states[0] == states[1]


@pytest.mark.parametrize("aggregate", ["median", "trimmed", "clipped", "krum", "multi-krum"])
def test_a_robust_rule_withstands_a_scaled_update(
    aggregate: Aggregate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far the model has moved is what it is with honest clients alone, but for a little."""

    def moved(hostile: Mapping[str, str], aggregate: Aggregate) -> float:
        protection = ProtectionSpec(firewall=False, aggregate=aggregate)
        cohort = CohortSpec(size=5 + len(hostile), quorum=5)
        run = replace(spec(), cohort=cohort, protection=protection)
        federated = federation(run, monkeypatch, hostile)
        first = dict(federated.state.parameters)
        last = federated.run().state.parameters
        return float(torch.cat([(last[name] - first[name]).reshape(-1) for name in first]).norm())

    honest = moved({}, "mean")
    assert moved({"h": "scaled"}, "mean") > 20 * honest
    assert 0 < moved({"h": "scaled"}, aggregate) < 3 * honest

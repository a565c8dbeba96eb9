"""Robust rules against their definitions written out, on updates of unlike masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean, median

import pytest
import torch

from coppice import robust
from coppice.domain import ClientId
from coppice.method import Update
from coppice.model_server import MeanUpdate
from coppice.protection import Aggregate, ProtectionSpec
from coppice.robust import combined
from coppice.sparse import Item, Mask, SparseTensor
from coppice.spool import Spool
from coppice.tensors import Payload, dense_tensors

SHAPE = (6, 5)


def updates(count: int, density: float = 0.6, seed: int = 0) -> list[Update]:
    """Sparse changes on unlike masks, dense ones, and buffers, with one client far off."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        scale = 1000.0 if number == 1 else 1.0
        mask = Mask.of(torch.rand(SHAPE, generator=generator) < density)
        delta: dict[str, Item] = {
            "w": SparseTensor.take(scale * torch.randn(SHAPE, generator=generator), mask),
            "b": scale * torch.randn(3, generator=generator),
        }
        buffers: dict[str, Item] = {
            "mean": scale * torch.randn(2, generator=generator),
            "n": torch.tensor(number),
        }
        payload: Payload = {
            "delta": delta,
            "buffers": buffers,
            "cost": {"x": torch.tensor(float(number))},
        }
        made.append(Update(ClientId(f"c{number}"), payload, num_examples=number + 1, steps=1))
    return made


def held(update: Update, group: str, name: str) -> list[float | None]:
    """A tensor's values, None where the update does not hold one."""
    item = update.payload[group][name]
    if isinstance(item, SparseTensor):
        flat = zip(item.mask.bits.reshape(-1), item.dense().reshape(-1), strict=True)
        return [float(value) if bit else None for bit, value in flat]
    assert isinstance(item, torch.Tensor)
    return [float(value) for value in item.reshape(-1)]


def columns(made: Sequence[Update], group: str, name: str) -> list[list[float]]:
    """The values of each coordinate, of who holds it."""
    rows = [held(update, group, name) for update in made]
    return [[x for x in column if x is not None] for column in zip(*rows, strict=True)]


def trimmed(values: Sequence[float], share: float) -> float:
    cut = 0
    while cut < share * len(values) - 1e-9:
        cut += 1
    cut = min(cut, (len(values) - 1) // 2)
    return mean(sorted(values)[cut : len(values) - cut])


def closest_to_others(made: Sequence[Update], hostile: int) -> list[int]:
    """Krum's order, from the definition: whole sums, on what both hold."""

    def distance(one: Update, two: Update) -> float:
        pairs = [
            (x, y)
            for name in ("w", "b")
            for x, y in zip(held(one, "delta", name), held(two, "delta", name), strict=True)
            if x is not None and y is not None
        ]
        return mean((x - y) ** 2 for x, y in pairs)

    between = {pair: distance(*(made[k] for k in pair)) for pair in combinations(range(8), 2)}
    scores = []
    for number in range(8):
        far = sorted(value for pair, value in between.items() if number in pair)
        scores.append(sum(far[: 8 - hostile - 2]))
    return sorted(range(8), key=scores.__getitem__)


def fold(made: Sequence[Update], protection: ProtectionSpec, unit: bool = False) -> MeanUpdate:
    """What a method that averages makes of it."""
    by_name = {update.client_id: update for update in made}

    def read(names: Sequence[ClientId]) -> Iterator[Update]:
        return (by_name[name] for name in names)

    _, found = combined(protection, list(by_name), read, lambda u: u.steps if unit else 1.0)
    folded = MeanUpdate()
    for update in found:
        folded.add(update)
    return folded


def check(folded: MeanUpdate, group: str, expected: dict[str, list[float]]) -> None:
    found = dense_tensors(folded.delta()) if group == "delta" else folded.buffers({})
    for name, values in expected.items():
        assert found[name].reshape(-1).tolist() == pytest.approx(values, rel=1e-6, abs=1e-7)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "Spool", lambda folder: Spool(folder, block_bytes=8 * 8 * 8))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_median_is_each_coordinates_own_over_its_holders(count: int) -> None:
    made = updates(count)
    folded = fold(made, ProtectionSpec(aggregate="median"))
    for group, names in (("delta", "wb"), ("buffers", ["mean"])):
        check(
            folded,
            group,
            {n: [median(c) if c else 0.0 for c in columns(made, group, n)] for n in names},
        )


@pytest.mark.parametrize("trim", [0.1, 0.2, 0.25, 0.49])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_trimmed_mean_leaves_out_either_end_of_each_coordinate(count: int, trim: float) -> None:
    made = updates(count)
    folded = fold(made, ProtectionSpec(aggregate="trimmed", trim=trim))
    expected = {
        n: [trimmed(c, trim) if c else 0.0 for c in columns(made, "delta", n)] for n in "wb"
    }
    check(folded, "delta", expected)


@pytest.mark.parametrize("hostile", [1, 2])
def test_krum_takes_the_update_with_the_nearest_neighbours(hostile: int) -> None:
    made = updates(8)
    best = made[closest_to_others(made, hostile)[0]]
    folded = fold(made, ProtectionSpec(aggregate="krum", hostile=hostile))
    check(folded, "delta", {n: [x or 0.0 for x in held(best, "delta", n)] for n in "wb"})


@pytest.mark.parametrize(("selected", "count"), [(None, 5), (1, 1), (3, 3), (50, 8)])
def test_multi_krum_is_the_plain_mean_of_the_best(selected: int | None, count: int) -> None:
    made = updates(8)
    best = [made[number] for number in sorted(closest_to_others(made, 1)[:count])]
    folded = fold(made, ProtectionSpec(aggregate="multi-krum", selected=selected))
    expected = {n: [mean(c) if c else 0.0 for c in columns(best, "delta", n)] for n in "wb"}
    check(folded, "delta", expected)


def test_krum_on_equal_masks_is_as_published() -> None:
    made = updates(8, density=1.0)
    flat = torch.stack([torch.tensor(held(u, "delta", "w") + held(u, "delta", "b")) for u in made])
    between = torch.cdist(flat.double(), flat.double()) ** 2
    scores = between.sort(dim=1).values[:, 1:6].sum(dim=1)
    folded = fold(made, ProtectionSpec(aggregate="krum"))
    best = made[int(scores.argmin())]
    check(folded, "delta", {"b": [x or 0.0 for x in held(best, "delta", "b")]})


@pytest.mark.parametrize("clip_norm", [None, 2.5])
def test_clipping_scales_what_is_longer_and_nothing_else(clip_norm: float | None) -> None:
    made = updates(5)
    lengths = {}
    for update in made:
        values = [x for n in "wb" for x in held(update, "delta", n) if x is not None]
        norm = sum(x * x for x in values) ** 0.5
        lengths[update.client_id] = norm if clip_norm else norm / len(values) ** 0.5
    bound = clip_norm or median(lengths.values())
    honest = MeanUpdate()
    for update in made:
        factor = min(1.0, bound / lengths[update.client_id])
        delta = update.payload["delta"]
        w = delta["w"]
        assert isinstance(w, SparseTensor)
        scaled = {"w": SparseTensor(w.mask, factor * w.values), "b": factor * delta["b"]}
        honest.add(replace(update, payload={**update.payload, "delta": scaled}))
    folded = fold(made, ProtectionSpec(aggregate="clipped", clip_norm=clip_norm))
    expected = {n: t.reshape(-1).tolist() for n, t in dense_tensors(honest.delta()).items()}
    check(folded, "delta", expected)
    check(folded, "buffers", {"mean": honest.buffers({})["mean"].tolist()})


def test_updates_are_compared_in_their_methods_units() -> None:
    steps = {"c0": 1, "c1": 2, "c2": 40}
    made = [
        Update(ClientId(name), {"delta": {"w": torch.tensor([x])}}, 1, steps=count)
        for (name, count), x in zip(steps.items(), (1.0, 4.0, 4.0), strict=True)
    ]
    by_name = {update.client_id: update for update in made}
    _, found = combined(
        ProtectionSpec(aggregate="median"),
        list(by_name),
        lambda names: (by_name[name] for name in names),
        lambda update: float(update.steps),
    )
    # The directions are 1, 2 and 0.1, and each goes as far as its steps do.
    assert [float(held(update, "delta", "w")[0] or 0) for update in found] == [1.0, 2.0, 40.0]


@pytest.mark.parametrize("aggregate", ["median", "trimmed", "clipped", "krum", "multi-krum"])
def test_one_that_is_scaled_moves_nothing_far(aggregate: Aggregate) -> None:
    made = updates(8, density=1.0)
    folded = fold(made, ProtectionSpec(aggregate=aggregate))
    assert all(tensor.abs().max() < 5 for tensor in dense_tensors(folded.delta()).values())


@pytest.mark.parametrize("aggregate", ["median", "trimmed", "clipped", "multi-krum"])
def test_all_else_that_updates_say_stays(aggregate: Aggregate) -> None:
    made = {update.client_id: update for update in updates(8)}
    kept, found = combined(
        ProtectionSpec(aggregate=aggregate),
        list(made),
        lambda names: (made[name] for name in names),
        lambda update: 1.0,
    )
    for name, update in zip(kept, found, strict=True):
        was = made[name]
        assert replace(update, payload={}) == replace(was, payload={})
        assert update.payload["cost"] == was.payload["cost"]
        assert update.payload["buffers"]["n"] is was.payload["buffers"]["n"]
        new, old = update.payload["delta"]["w"], was.payload["delta"]["w"]
        assert isinstance(new, SparseTensor)
        assert isinstance(old, SparseTensor)
        assert new.mask is old.mask


def test_a_mean_is_the_updates_themselves() -> None:
    made = updates(3)
    kept, found = combined(
        ProtectionSpec(),
        [update.client_id for update in made],
        lambda names: iter(made),
        lambda update: 1.0,
    )
    assert list(kept) == ["c0", "c1", "c2"]
    assert all(one is two for one, two in zip(found, made, strict=True))


def test_nothing_is_left_behind_on_the_disk(tmp_path: Path) -> None:
    made = {update.client_id: update for update in updates(5)}
    _, found = combined(
        ProtectionSpec(aggregate="median"),
        list(made),
        lambda names: (made[name] for name in names),
        lambda update: 1.0,
        tmp_path,
    )
    assert len(list(found)) == 5
    assert list(tmp_path.iterdir()) == []

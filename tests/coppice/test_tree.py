"""Trees: what is saved is loaded again, equal trees give equal bytes, and misfits are named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Le, Len, Lt
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coppice.domain import ClientId, TaskKind
from coppice.errors import InvalidPayload
from coppice.tree import from_plain, load, save, to_plain


class Colour(Enum):
    """Neither text nor number."""

    RED = "red"
    GREEN = 2


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Leaf:
    weight: Tensor
    scale: float = 1.0
    note: str | None = None


@dataclass(frozen=True)
class Tree:
    leaves: Mapping[ClientId, Leaf]
    pair: tuple[int, str]
    many: tuple[Tensor, ...] = ()
    names: Sequence[str] = ()
    kind: TaskKind = TaskKind.TRAIN
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    mode: Literal["fast", "slow"] = "fast"
    share: Annotated[float, Ge(0), Lt(1)] = 0.0
    count: Annotated[int, Gt(0), Le(9)] = 1
    sizes: Annotated[tuple[int, ...], Len(1, 3)] = (1,)
    done: bool = False
    maybe: Leaf | None = None
    either: int | str = 0
    free: Any = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def same(one: object, other: object) -> bool:
    """Equal to the last bit, types and order of keys included."""
    return save(one) == save(other)


FULL = Tree(
    leaves={
        ClientId("b"): Leaf(torch.arange(6.0).reshape(2, 3), 0.1, "ü\n\0"),
        ClientId("a"): Leaf(torch.tensor([True, False])),
    },
    pair=(-3, "x"),
    many=(torch.tensor(1.5, dtype=torch.bfloat16), torch.zeros(3, 0, 2), torch.tensor([2**62])),
    names=["p", "q"],
    kind=TaskKind.EVALUATE,
    colour=Colour.GREEN,
    mode="slow",
    share=0.25,
    count=9,
    sizes=(1, 2, 3),
    done=True,
    maybe=Leaf(torch.ones(1, dtype=torch.float16), note=""),
    either="text",
    free={"deep": [1, None, {"x": 2.5}]},
    metrics={"nan": math.nan, "inf": math.inf, "low": -math.inf, "zero": -0.0, "tiny": 5e-324},
)


# ---- there and back ----------------------------------------------------------------------------


def test_a_tree_of_everything_comes_back() -> None:
    back = load(Tree, save(FULL))
    assert same(back, FULL)
    assert list(back.leaves) == ["b", "a"]
    assert (type(back.pair), type(back.sizes), type(back.many)) == (tuple, tuple, tuple)
    assert (back.kind, back.colour, back.level) == (TaskKind.EVALUATE, Colour.GREEN, Level.LOW)
    assert (back.either, back.free) == (FULL.either, FULL.free)
    assert back.maybe is not None
    for one, other in zip(back.many, FULL.many, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)


def test_numbers_that_json_lacks_survive_to_the_bit() -> None:
    # A state must survive whatever a diverging model made of it; only the wire refuses these.
    back = load(Tree, save(FULL)).metrics
    assert math.isnan(back["nan"])
    assert (back["inf"], back["low"], back["tiny"]) == (math.inf, -math.inf, 5e-324)
    assert math.copysign(1, back["zero"]) == -1


@given(st.dictionaries(st.text(), st.floats() | st.integers(-(2**70), 2**70)))
def test_any_numbers_survive(numbers: dict[str, float]) -> None:
    kind: Any = Mapping[str, int | float]
    back = load(kind, save(numbers))
    assert [repr(value) for value in back.values()] == [repr(value) for value in numbers.values()]
    assert list(back) == list(numbers)


def test_tensors_come_back_whatever_their_layout() -> None:
    plain = torch.arange(24.0).reshape(2, 3, 2, 2)
    for tensor in (plain.permute(3, 1, 0, 2), plain[:, 1], plain[..., :1].expand(2, 3, 2, 5)):
        assert torch.equal(load(Tensor, save(tensor)), tensor)
    assert torch.equal(load(Tensor, save(torch.nn.Parameter(plain))), plain)


def test_shared_tensors_come_back_each_on_its_own() -> None:
    tied = torch.ones(2, 2)
    kind: Any = Mapping[str, Tensor]
    back = load(kind, save({"last": tied[1], "one": tied, "two": tied, "row": tied[0]}))
    back["one"].fill_(5.0)
    assert back["two"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert back["row"].tolist() == back["last"].tolist() == [1.0, 1.0]


def test_the_bytes_depend_on_nothing_but_the_tree() -> None:
    copy = load(Tree, save(FULL))
    assert save(copy) == save(FULL) == save(FULL)
    assert save({"a": torch.zeros(1), "b": 1}) != save({"b": 1, "a": torch.zeros(1)})
    assert save(torch.zeros(1)) != save(torch.zeros(1).neg())


def test_saving_keeps_nothing_of_the_tensors() -> None:
    tensor = torch.ones(2)
    data = save(tensor)
    tensor.zero_()
    assert load(Tensor, data).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "value", [{1, 2}, b"ab", bytearray(2), memoryview(b"ab"), object(), 1j, torch.float32, [b"x"]]
)
def test_what_a_tree_may_not_hold_is_not_saved(value: object) -> None:
    with pytest.raises(TypeError, match="a tree may not hold a "):
        save(value)


def test_keys_are_strings() -> None:
    with pytest.raises(TypeError, match="keys of a tree are strings"):
        save({1: 2})


def test_plain_values_hold_no_tensors() -> None:
    with pytest.raises(TypeError, match="may not hold tensors"):
        to_plain(Leaf(torch.zeros(1)))


# ---- misfits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": [1]}, r"^Tree\.pair has 1 items; 2 are needed$"),
        ({"pair": [1, "x", 2]}, r"^Tree\.pair has 3 items; 2 are needed$"),
        ({"pair": [1, 2]}, r"^Tree\.pair\[1\] is 2, not of type str$"),
        ({"pair": "ab"}, r"^Tree\.pair is not a list$"),
        ({"pair": None}, r"^Tree\.pair is not a list$"),
        ({"leaves": []}, r"^Tree\.leaves is not a mapping$"),
        ({"leaves": {"a": 1}}, r"^Tree\.leaves\.a is not a mapping$"),
        ({"leaves": {"a": {}}}, r"^Tree\.leaves\.a: .*missing .*'weight'"),
        ({"leaves": {"a": {"weight": 1}}}, r"^Tree\.leaves\.a\.weight is not a tensor$"),
        ({"maybe": {"weight": {"tensor": 1}}}, r"^Tree\.maybe\.weight is not a tensor$"),
        ({"maybe": {"weight": {"tensor": -1}}}, r"weight is not a tensor$"),
        ({"maybe": {"weight": {"tensor": False}}}, r"weight is not a tensor$"),
        ({"maybe": {"weight": {"tensor": "0"}}}, r"weight is not a tensor$"),
        ({"maybe": {"weight": {"tensor": 0}, "age": 1}}, r"^Tree\.maybe has no age$"),
        ({"kind": "dance"}, r"^Tree\.kind is 'dance'; allowed are 'train', 'evaluate', 'keep'$"),
        ({"colour": []}, r"^Tree\.colour is \[\]; allowed are 'red', 2$"),
        ({"mode": "warp"}, r"^Tree\.mode is 'warp'; allowed are \('fast', 'slow'\)$"),
        ({"mode": ["fast"]}, r"^Tree\.mode is \['fast'\]"),
        ({"share": 1}, r"^Tree\.share is 1\.0; allowed is less than 1$"),
        ({"share": -0.1}, r"^Tree\.share is -0\.1; allowed is at least 0$"),
        ({"share": math.nan}, r"^Tree\.share is nan; allowed is"),
        ({"share": "0"}, r"^Tree\.share is '0', not of type float$"),
        ({"share": True}, r"^Tree\.share is True, not of type float$"),
        ({"share": 10**400}, r"^Tree\.share is a number too large for a float$"),
        ({"count": 0}, r"^Tree\.count is 0; allowed is more than 0$"),
        ({"count": 10}, r"^Tree\.count is 10; allowed is at most 9$"),
        ({"count": 1.0}, r"^Tree\.count is 1\.0, not of type int$"),
        ({"count": True}, r"^Tree\.count is True, not of type int$"),
        ({"sizes": []}, r"^Tree\.sizes is \(\); allowed is 1 to 3 items$"),
        ({"sizes": [1, 2, 3, 4]}, r"1 to 3 items$"),
        ({"done": 1}, r"^Tree\.done is 1, not of type bool$"),
        ({"either": 1.5}, r"^Tree\.either is 1\.5, not of type str$"),
        ({"metrics": {"loss": None}}, r"^Tree\.metrics\.loss is None, not of type float$"),
        ({"extra": 1, "also": 2}, r"^Tree has no also, extra$"),
    ],
)
def test_a_misfit_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    fits: dict[str, Any] = {"leaves": {}, "pair": [1, "x"]}
    assert from_plain(Tree, fits).pair == (1, "x")
    with pytest.raises(InvalidPayload, match=message):
        from_plain(Tree, fits | change, [torch.zeros(1)])


@pytest.mark.parametrize("plain", [None, 1, "x", [], {}, {"leaves": {}}])
def test_what_is_no_tree_at_all_is_refused(plain: object) -> None:
    with pytest.raises(InvalidPayload, match=r"^Tree"):
        from_plain(Tree, plain)


def test_a_message_stays_short_whatever_is_wrong() -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    for wrong in ("x" * 10**6, [0] * 10**6, {str(i): i for i in range(10**4)}, deep):
        with pytest.raises(InvalidPayload) as caught:
            from_plain(Tree, {"leaves": {}, "pair": [wrong, "x"]})
        assert len(str(caught.value)) < 300


def test_a_type_that_checks_itself_is_heard() -> None:
    @dataclass(frozen=True)
    class Even:
        number: int

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError("numbers are even here")

    with pytest.raises(InvalidPayload, match=r"^Even: numbers are even here$"):
        from_plain(Even, json.loads('{"number": 3}'))

"""Messages from strangers: what is believed, and what is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coppice.domain import (
    AppSpec,
    BlobRef,
    DataSpec,
    MethodSpec,
    ModelSpec,
    TaskKind,
    Workload,
)
from coppice.errors import InvalidMessage
from coppice.wire import coordination_pb2 as pb
from coppice.wire.codec import (
    blob_from_message,
    blob_to_message,
    check_push_header,
    choice_from_message,
    labels_from_message,
    metrics_from_message,
    plain_from_json,
    task_from_offer,
    valid_digest,
    workload_from_json,
    workload_to_json,
)

DIGEST = "0123456789abcdef" * 4
COUNT_LIMIT = 2**53

WORKLOAD = Workload(
    name="digits",
    seed=2**63 - 1,
    model=ModelSpec(name="mlp", norm="group", hidden=(32, 16)),
    data=DataSpec(classes=("a", "ü"), input_shape=(1, 8, 8), scale=0.1, mean=(0.1,), std=(0.3,)),
    method=MethodSpec(name="fedavg", settings={"local_steps": 3, "learning_rate": 0.05}),
)
WITH_APP = Workload(
    name="own", app=AppSpec(name="my_app.py", digest=DIGEST), method=MethodSpec(name="fedavg")
)


# ---- labels, digests -------------------------------------------------------------


def test_labels_within_their_limits_are_taken() -> None:
    labels = {f"{i:063}": "ü" * 63 for i in range(32)}
    assert labels_from_message(labels) == labels
    assert labels_from_message({"room": ""}) == {"room": ""}


@pytest.mark.parametrize(
    "labels",
    [
        {str(i): "" for i in range(33)},
        {"": "x"},
        {"k" * 64: "x"},
        {"key": "v" * 64},
        {"a\n": "x"},
        {"<b>": "x"},
        {"room": "a\nb"},
        {"room": "\x1b[31m"},
    ],
)
def test_labels_outside_their_limits_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidMessage, match="label"):
        labels_from_message(labels)


def test_a_blob_reference_survives() -> None:
    ref = BlobRef(DIGEST, 12345)
    assert blob_from_message(blob_to_message(ref)) == ref


@pytest.mark.parametrize(
    "digest",
    ["", DIGEST[1:], DIGEST + "0", DIGEST.upper(), DIGEST[1:] + "g", DIGEST + "\n", "../" + DIGEST],
)
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises(InvalidMessage, match="64 lower-case hexadecimal digits"):
        valid_digest(digest)
    with pytest.raises(InvalidMessage):
        blob_from_message(pb.BlobRef(digest=digest))


def test_a_blob_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="size_bytes"):
        blob_from_message(pb.BlobRef(digest=DIGEST, size_bytes=COUNT_LIMIT))


# ---- pushes ------------------------------------------------------------------------------------


def header(**fields: Any) -> pb.PushHeader:
    return pb.PushHeader(**{"blob": pb.BlobRef(digest=DIGEST, size_bytes=8), **fields})


def test_a_push_within_its_limits_is_taken() -> None:
    metrics = {f"{i:063}": float(i) for i in range(64)}
    check_push_header(header(num_examples=COUNT_LIMIT - 1, steps=COUNT_LIMIT - 1, metrics=metrics))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_examples": COUNT_LIMIT}, "num_examples"),
        ({"num_examples": 2**64 - 1}, "num_examples"),
        ({"steps": COUNT_LIMIT}, "steps"),
        ({"metrics": {"loss": math.nan}}, "'loss' is nan"),
        ({"metrics": {"loss": math.inf}}, "'loss' is inf"),
        ({"metrics": {"loss": -math.inf}}, "'loss' is -inf"),
        ({"metrics": {"": 0.0}}, "metric ''"),
        ({"metrics": {"m" * 64: 0.0}}, "metric 'mmm"),
        ({"metrics": {"a\nb": 0.0}}, "not a valid name"),
        ({"metrics": {str(i): 0.0 for i in range(65)}}, "64 metrics"),
        ({"blob": None}, "digest"),
    ],
)
def test_a_push_outside_its_limits_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidMessage, match=named):
        check_push_header(header(**fields))


def test_metrics_are_taken_as_they_are() -> None:
    metrics = {"test/top 5": 0.5, "größe": -0.0}
    taken = metrics_from_message(metrics)
    assert taken == metrics
    assert math.copysign(1, taken["größe"]) == -1


# ---- JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        "null",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": [-1e400]}',
        '{"a": ' + "1" * 5000 + "}",
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a": 1} {"b": 2}',
    ],
)
def test_what_is_no_json_object_is_refused(text: str) -> None:
    for read in (plain_from_json, workload_from_json):
        with pytest.raises(InvalidMessage, match=r"not (a )?JSON"):
            read(text)


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plains = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), plains, max_size=4))
def test_plain_values_survive(plain: dict[str, Any]) -> None:
    assert plain_from_json(json.dumps(plain)) == plain


def test_a_choice_has_64_kib_at_most() -> None:
    fits = json.dumps({"k": "x" * (64 * 1024 - 9)})
    assert len(fits) == 64 * 1024
    assert choice_from_message(pb.Choice(values_json=fits)) == json.loads(fits)
    for long in (fits + " ", json.dumps({"k": "日" * 22_000}, ensure_ascii=False)):
        with pytest.raises(InvalidMessage, match="65536 bytes"):
            choice_from_message(pb.Choice(values_json=long))


@pytest.mark.parametrize("workload", [WORKLOAD, WITH_APP])
def test_a_workload_survives(workload: Workload) -> None:
    assert workload_from_json(workload_to_json(workload)) == workload


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("name",), "../x", "name is '../x'"),
        (("name",), 3, r"Workload\.name is 3, not of type str"),
        (("name",), ..., "missing .* 'name'"),
        (("seed",), -1, r"Workload\.seed is -1; allowed is at least 0"),
        (("seed",), 1.5, r"Workload\.seed is 1\.5, not of type int"),
        (("seed",), True, r"Workload\.seed is True, not of type int"),
        (("model",), None, "needs .model. and .data., or an app"),
        (("model", "norm"), "layer", "allowed are .*'group'"),
        (("model", "hidden"), [0], r"hidden\[0\] is 0; allowed is at least 1"),
        (("model", "wings"), 2, r"Workload\.model has no wings"),
        (("data", "classes"), ["a"], "classes .* 2 to 100000 items"),
        (("data", "classes"), ["a", "a"], "names a class twice"),
        (("data", "std"), [0.0], r"std\[0\] is 0\.0; allowed is more than 0"),
        (("data", "scale"), 10**400, r"Workload\.data\.scale is a number too large"),
        (("data", "mean"), [0.1, 0.2], "data.mean has 2 values"),
        (("cohort",), {}, "Workload has no cohort"),
        (("method",), "fedavg", r"Workload\.method is not a mapping"),
    ],
)
def test_a_workload_that_does_not_fit_is_refused_at_the_place(
    path: tuple[str, ...], value: Any, message: str
) -> None:
    plain = json.loads(workload_to_json(WORKLOAD))
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if value is ...:
        del inner[path[-1]]
    with pytest.raises(InvalidMessage, match=message):
        workload_from_json(json.dumps(plain))


def test_a_workload_that_cannot_be_said_in_json_is_refused_by_the_reader() -> None:
    spec = WORKLOAD.data
    assert spec is not None
    text = workload_to_json(replace(WORKLOAD, data=replace(spec, mean=(math.nan,))))
    with pytest.raises(InvalidMessage, match="NaN is not allowed"):
        workload_from_json(text)


# ---- tasks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(TaskKind))
def test_an_offer_becomes_a_task(kind: TaskKind) -> None:
    payload = {"parameters": {"w": torch.ones(2)}}
    offer = pb.TaskOffer(kind=kind, round_number=7, settings_json='{"learning_rate": 0.1}')
    task = task_from_offer(offer, payload)
    assert (task.kind, task.round_number, task.settings) == (kind, 7, {"learning_rate": 0.1})
    assert task.payload is payload
    assert task.expects == {}


def test_a_kind_of_task_that_this_version_does_not_know_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="'prune' are unknown to this version"):
        task_from_offer(pb.TaskOffer(kind="prune", settings_json="{}"), {})


def test_settings_that_are_no_json_are_refused() -> None:
    for text in ("", "[]", '{"learning_rate": NaN}'):
        with pytest.raises(InvalidMessage):
            task_from_offer(pb.TaskOffer(kind="train", settings_json=text), {})

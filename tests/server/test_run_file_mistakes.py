"""A run file with mistakes: one line for each, with the key, what is wrong and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from coppice.cohort import CohortSpec
from coppice.domain import DataSpec, EvaluationSpec, ModelSpec, StopSpec, WireSpec
from coppice.method import method_names
from coppice.methods.fedavg.settings import Settings
from coppice.protection import ProtectionSpec
from tests.server.run_file_samples import TEXT, WITHOUT_APP, changed, mistakes

SECTIONS: dict[str, Any] = {
    "model": ModelSpec,
    "data": DataSpec,
    "method": Settings,
    "cohort": CohortSpec,
    "stop": StopSpec,
    "evaluation": EvaluationSpec,
    "wire": WireSpec,
    "protection": ProtectionSpec,
}

METHODS = ", ".join(map(repr, method_names()))


class TestUnknownKeys:
    def test_top_level_lists_what_is_allowed(self) -> None:
        assert mistakes(changed("seed = 1", "sede = 1")) == [
            "sede: is not a key; allowed are name, seed, model, data, app, method, wire, cohort, "
            "stop, evaluation, protection, warm_start"
        ]

    @pytest.mark.parametrize("section", SECTIONS)
    def test_section_lists_what_is_allowed(self, section: str) -> None:
        text = changed("[stop]", "[evaluation]\n[wire]\n[protection]\n[stop]")
        text = changed(f"[{section}]\n", f"[{section}]\nnonsense = 1\n", text=text)
        allowed = ", ".join(field.name for field in fields(SECTIONS[section]))
        assert mistakes(text) == [f"{section}.nonsense: is not a key; allowed are {allowed}"]

    def test_unknown_section_lists_what_is_allowed(self) -> None:
        (line,) = mistakes(TEXT + "[privacy]\nepsilon = 1\n")
        assert line.startswith("privacy: is not a key; allowed are name, seed")


class TestJudgement:
    def test_target_needs_an_evaluation(self) -> None:
        assert mistakes(changed("rounds = 20", "rounds = 20\ntarget = 0.9")) == [
            "stop.target: needs evaluation.data or evaluation.on_clients = true"
        ]

    def test_metric_is_one_that_classification_has(self) -> None:
        text = TEXT + '[evaluation]\non_clients = true\nmetric = "acuracy"\n'
        assert mistakes(text) == ["evaluation.metric: is 'acuracy'; allowed are 'accuracy', 'loss'"]


class TestMissing:
    @pytest.mark.parametrize(
        ("text", "lines"),
        [
            ("", [f"{key}: is missing" for key in ("name", "method", "cohort", "stop")]),
            (changed('name = "digits"', ""), ["name: is missing"]),
            (changed("size = 3", ""), ["cohort.size: is missing"]),
            (changed("[cohort]\nsize = 3", ""), ["cohort: is missing"]),
            (changed("[stop]\nrounds = 20", ""), ["stop: is missing"]),
            (changed('name = "fedavg"', ""), [f"method.name: is missing; allowed are {METHODS}"]),
            (changed("input_shape = [1, 8, 8]", ""), ["data.input_shape: is missing"]),
            (changed('[model]\nname = "mlp"', ""), ["a run needs [model] and [data], or an app"]),
            (WITHOUT_APP, ["a run needs [model] and [data], or an app"]),
        ],
    )
    def test_key_is_named(self, text: str, lines: list[str]) -> None:
        assert mistakes(text) == lines


Change = tuple[str, ...]

WRONG: list[tuple[Change, str]] = [
    (("seed = 1", 'seed = "x"'), "seed: is 'x'; input should be a valid integer"),
    (("seed = 1", "seed = 1.0"), "seed: is 1.0; input should be a valid integer"),
    (("seed = 1", "seed = true"), "seed: is True; input should be a valid integer"),
    (("seed = 1", "seed = -1"), "seed: is -1; input should be greater than or equal to 0"),
    (
        ("seed = 1", "seed = 9223372036854775808"),
        "seed: is 9223372036854775808; input should be less than 9223372036854775808",
    ),
    (
        ('name = "digits"', 'name = "a b"'),
        "name is 'a b'; allowed are 1 to 63 letters, digits, '.', '_' and '-', "
        "the first a letter or digit",
    ),
    (
        ('name = "mlp"', 'name = "mlp"\nnorm = "layer"'),
        "model.norm: is 'layer'; input should be 'none', 'batch' or 'group'",
    ),
    (
        ('name = "mlp"', 'name = "mlp"\nhidden = [4, 0]'),
        "model.hidden.1: is 0; input should be greater than or equal to 1",
    ),
    (("size = 3", "size = 0"), "cohort.size: is 0; input should be greater than or equal to 1"),
    (
        ("size = 3", "size = 3\nquorum = 4"),
        "cohort.quorum is 4; allowed is at most cohort.size (3)",
    ),
    (
        ("size = 3", "size = 3\nlabels = { room = 7 }"),
        "cohort.labels.room: is 7; input should be a valid string",
    ),
    (
        ("size = 3", "size = 3\nlost_after_seconds = 9.5"),
        "cohort.lost_after_seconds: is 9.5; input should be greater than or equal to 10",
    ),
    (
        ("[cohort]\nsize = 3", "[[cohort]]\nsize = 3"),
        "cohort: is [{'size': 3}]; input should be an object",
    ),
    (
        ("input_shape = [1, 8, 8]", "input_shape = [3, 8, 8]\nmean = [0.1, 0.2]"),
        "data.mean has 2 values; "
        "allowed are 1, or one for each of the 3 channels of data.input_shape",
    ),
    (
        ("input_shape = [1, 8, 8]", "input_shape = [3, 8, 8]\nstd = [1.0, 1.0, 1.0, 1.0]"),
        "data.std has 4 values; "
        "allowed are 1, or one for each of the 3 channels of data.input_shape",
    ),
    (
        ("input_shape = [1, 8, 8]", "input_shape = [1, 8, 8]\nstd = [0.0]"),
        "data.std.0: is 0.0; input should be greater than 0",
    ),
    (('["a", "b"]', '["a", "a"]'), "data.classes names a class twice"),
    (('["a", "b"]', '"ab"'), "data.classes: is 'ab'; input should be a valid array"),
    (
        ("size = 3", 'size = 3\n[protection]\naggregate = "average"'),
        "protection.aggregate: is 'average'; input should be 'mean', 'median', 'trimmed', "
        "'clipped', 'krum' or 'multi-krum'",
    ),
    (
        ("size = 3", "size = 3\n[protection]\ntrim = 0.5"),
        "protection.trim: is 0.5; input should be less than 0.5",
    ),
    (
        ("size = 3", "size = 3\n[protection]\nclip_norm = 0"),
        "protection.clip_norm: is 0; input should be greater than 0",
    ),
    (
        ("size = 3", "size = 3\n[protection]\nstrikes = -1"),
        "protection.strikes: is -1; input should be greater than or equal to 0",
    ),
    (
        ("size = 3", 'size = 8\n[protection]\naggregate = "krum"'),
        "protection.hostile is 1: Krum needs 5 updates for that, and a round closes with 4; raise "
        "cohort.quorum",
    ),
    (('"fedavg"', '"fedvag"'), f"method.name: is 'fedvag'; allowed are {METHODS}"),
    (('"fedavg"', "['fedavg']"), f"method.name: is ['fedavg']; allowed are {METHODS}"),
    (("local_epochs = 1", ""), "method: give one of local_steps and local_epochs"),
    (
        ("local_epochs = 1", "local_epochs = 1\nlocal_steps = 1"),
        "method: give one of local_steps and local_epochs",
    ),
    (
        ("local_epochs = 1", "local_epochs = 0"),
        "method.local_epochs: is 0; input should be greater than or equal to 1",
    ),
    (
        ("local_epochs = 1", 'local_epochs = 1\nschedule = "linear"'),
        "method.schedule: is 'linear'; "
        "input should be 'constant', 'exponential', 'step' or 'cosine'",
    ),
    (
        ("[stop]", '[wire]\nup = "float64"\n[stop]'),
        "wire.up: is 'float64'; input should be 'float32', 'float16', 'bfloat16' or 'int8'",
    ),
    (
        ("[stop]", "[wire]\ncompress = 1.5\n[stop]"),
        "wire.compress: is 1.5; input should be a valid boolean",
    ),
    (
        (
            '"fedavg"\nlocal_epochs = 1',
            '"prunefl"\nmask_scope = "global"\nlocal_epochs = 1\nimportance = "every_round"\n'
            '[wire]\nup = "int8"',
        ),
        'method: importance = "every_round" reads gradients off the updates: set wire.up to '
        '"float32", or importance = "last_step"',
    ),
    (
        ('"fedavg"\nlocal_epochs = 1', '"prunefl"\nlocal_epochs = 1\nmax_density = 0'),
        "method.max_density: is 0; input should be greater than 0",
    ),
]


class TestWrong:
    @pytest.mark.parametrize(("change", "line"), WRONG, ids=[line for _, line in WRONG])
    def test_value_is_named_with_what_is_allowed(self, change: Change, line: str) -> None:
        assert mistakes(changed(*change)) == [line]

    @pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
    @pytest.mark.parametrize(
        ("key", "place"),
        [
            ("stop.target", "rounds = 20\ntarget ="),
            ("method.learning_rate", "local_epochs = 1\nlearning_rate ="),
            ("cohort.gather_seconds", "size = 3\ngather_seconds ="),
            ("data.scale", "input_shape = [1, 8, 8]\nscale ="),
        ],
    )
    def test_number_that_is_none_is_refused(self, key: str, place: str, value: str) -> None:
        (line,) = mistakes(changed(place.splitlines()[0], f"{place} {value}"))
        assert line == f"{key}: is {value}; input should be a finite number"

    @pytest.mark.parametrize("value", ["1979-05-27", "1979-05-27T07:32:00Z", "07:32:00"])
    @pytest.mark.parametrize("key", ["name", "seed", "stop.rounds", "data.classes.0"])
    def test_date_is_never_what_a_key_wants(self, key: str, value: str) -> None:
        before, after = {
            "name": ('name = "digits"', f"name = {value}"),
            "seed": ("seed = 1", f"seed = {value}"),
            "stop.rounds": ("rounds = 20", f"rounds = {value}"),
            "data.classes.0": ('["a", "b"]', f'[{value}, "a", "b"]'),
        }[key]
        (line,) = mistakes(changed(before, after))
        assert line.startswith(f"{key}: is {{'date or time': ")

    def test_each_mistake_has_its_line(self) -> None:
        text = changed(
            "seed = 1", 'seed = "x"\nwarm_start = "none"\nsede = 1', "size = 3", "size = 0",
            'name = "mlp"', 'name = "mlp"\nnorm = 3', "local_epochs = 1", "nonsense = 1",
        )  # fmt: skip
        lines = mistakes(text)
        keys = {line.split(":")[0] for line in lines}
        assert keys == {
            "seed",
            "warm_start",
            "sede",
            "cohort.size",
            "model.norm",
            "method.nonsense",
        }
        assert len(lines) == 6

    def test_long_value_is_cut(self) -> None:
        (line,) = mistakes(changed("seed = 1", f"seed = {[1] * 10_000}"))
        assert len(line) < 200


class TestSyntax:
    def test_mistake_tells_its_line(self) -> None:
        (line,) = mistakes('name = "x"\nseed = = 1\n')
        assert line.startswith("not valid TOML: ")
        assert "line 2" in line

    @pytest.mark.parametrize(
        "make",
        [
            lambda: "a = " + "1" * 5000,
            lambda: "a = " + "[" * 50_000 + "]" * 50_000,
            lambda: "a." * 2_000 + "a = 1",
            lambda: 'name = "x"\nname = "y"',
            lambda: "[a]\n[a]",
            lambda: "\0",
        ],
        ids=["digits", "lists", "tables", "key twice", "table twice", "no text"],
    )
    def test_file_that_cannot_be_one_is_one_line(self, make: Callable[[], str]) -> None:
        assert len(mistakes(make())) == 1

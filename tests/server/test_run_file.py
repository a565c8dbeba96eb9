"""A run file: what it may say, and the files that it names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from coppice.cohort import CohortSpec
from coppice.domain import DataSpec, EvaluationSpec, MethodSpec, ModelSpec, RunSpec, StopSpec
from server.run_commands import EXAMPLE
from server.run_file import RunFile, parse_run_file
from tests.server.run_file_samples import APP_TEXT, TEXT, changed, mistakes


class TestValid:
    def test_file_becomes_a_run(self) -> None:
        assert parse_run_file(TEXT, Path("/nowhere")) == RunFile(
            RunSpec(
                name="digits",
                seed=1,
                model=ModelSpec(name="mlp"),
                data=DataSpec(classes=("a", "b"), input_shape=(1, 8, 8)),
                method=MethodSpec(name="fedavg", settings={"local_epochs": 1}),
                cohort=CohortSpec(size=3),
                stop=StopSpec(rounds=20),
                evaluation=EvaluationSpec(),
            ),
            None,
            None,
        )

    def test_integers_may_stand_for_numbers(self) -> None:
        text = changed("local_epochs = 1", "local_epochs = 1\nlearning_rate = 1")
        text = changed("rounds = 20", "rounds = 20\ntarget = 1", text=text)
        text += "[evaluation]\non_clients = true\n"
        spec = parse_run_file(text, Path("/nowhere")).spec
        assert spec.stop.target == 1.0

    def test_example_of_the_help_is_valid(self, tmp_path: Path) -> None:
        text = EXAMPLE.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
        assert parse_run_file(text, tmp_path).spec.evaluation.data == str(tmp_path / "test.npz")


class TestPaths:
    def test_are_relative_to_the_folder_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "start.safetensors").write_bytes(b"x")
        text = changed(
            "seed = 1",
            'warm_start = "sub/start.safetensors"',
            "[stop]",
            '[evaluation]\ndata = "../test.npz"\n[stop]',
        )
        file = parse_run_file(text, tmp_path)
        assert file.warm_start_path == tmp_path / "sub" / "start.safetensors"
        assert file.spec.evaluation.data == str(tmp_path.parent / "test.npz")
        assert file.spec.warm_start is None

    def test_may_be_absolute(self, tmp_path: Path) -> None:
        (tmp_path / "start").write_bytes(b"x")
        text = changed(
            "seed = 1",
            f'warm_start = "{tmp_path}/start"',
            "[stop]",
            '[evaluation]\ndata = "/data/test"\n[stop]',
        )
        file = parse_run_file(text, Path("/nowhere"))
        assert file.warm_start_path == tmp_path / "start"
        assert file.spec.evaluation.data == "/data/test"

    def test_may_begin_at_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "start").write_bytes(b"x")
        text = changed("seed = 1", 'warm_start = "~/start"')
        assert parse_run_file(text, Path("/nowhere")).warm_start_path == tmp_path / "start"

    @pytest.mark.parametrize("value", ["none", ".", "", "~nobody-at-all/x"])
    @pytest.mark.parametrize("key", ["warm_start", "app"])
    def test_that_lead_nowhere_are_named(self, tmp_path: Path, key: str, value: str) -> None:
        text = changed("seed = 1", f'{key} = "{value}"')
        assert f"{key}: there is no file {tmp_path / value}" in mistakes(text, tmp_path)

    @pytest.mark.parametrize("key", ["warm_start", "app"])
    def test_that_are_no_text_are_named(self, key: str) -> None:
        text = changed("seed = 1", f"{key} = 5")
        assert f"{key}: is 5; allowed is the path of a file" in mistakes(text)


class TestApp:
    @pytest.fixture
    def app(self, tmp_path: Path) -> Path:
        path = tmp_path / "my_app.py"
        path.write_text("def model(): ...\n")
        return path

    def test_is_known_by_its_digest(self, app: Path) -> None:
        file = parse_run_file(APP_TEXT, app.parent)
        assert file.app_path == app
        assert file.spec.app is not None
        assert file.spec.app.name == "my_app.py"
        assert file.spec.app.digest == hashlib.sha256(app.read_bytes()).hexdigest()
        assert file.spec.app.held_out == 0.1

    def test_takes_the_held_out_share_from_data(self, app: Path) -> None:
        file = parse_run_file(APP_TEXT + "[data]\nheld_out = 0.5\n", app.parent)
        assert file.spec.app is not None
        assert file.spec.app.held_out == 0.5

    def test_wrong_held_out_share_has_the_key_that_the_file_has(self, app: Path) -> None:
        assert mistakes(APP_TEXT + "[data]\nheld_out = 1.0\n", app.parent) == [
            "data.held_out: is 1.0; input should be less than 1"
        ]

    def test_flag_says_where_it_is_when_the_file_does_not(self, app: Path) -> None:
        file = parse_run_file(APP_TEXT, Path("/nowhere"), app)
        assert file.app_path == app
        assert file.spec.app is not None
        assert file.spec.app.name == "my_app.py"

    def test_flag_without_app_in_the_file_is_a_mistake(self, app: Path) -> None:
        assert mistakes(TEXT, app.parent, app) == ["--app was given, but the run file names no app"]

    def test_flag_that_leads_nowhere_is_a_mistake(self, tmp_path: Path) -> None:
        (line,) = mistakes(APP_TEXT, tmp_path, tmp_path / "none.py")
        assert line.startswith(f"app: {tmp_path}/none.py: cannot read the app module")

    def test_missing_file_is_the_only_mistake(self, tmp_path: Path) -> None:
        text = APP_TEXT + "[data]\nheld_out = 0.5\n"
        assert mistakes(text, tmp_path) == [f"app: there is no file {tmp_path}/my_app.py"]

    @pytest.mark.parametrize(
        "section", ['[model]\nname = "mlp"\n', '[data]\nclasses = ["a", "b"]\ninput_shape = [1]\n']
    )
    def test_takes_no_model_and_no_data(self, app: Path, section: str) -> None:
        assert mistakes(APP_TEXT + section, app.parent) == [
            "a run with an app takes no [model] and no [data]: the app has both"
        ]

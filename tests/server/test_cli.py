"""The command line of fedserver: help, what it sends, what it prints, and how it ends."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coppice import __version__, errors
from coppice.errors import CoppiceError, RunFileError
from server import cli, run_commands
from server.cli import build_parser, main
from tests.server.command_samples import Api


def commands() -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    """Every command there is, with the words that lead to it."""

    def below(
        words: list[str], parser: argparse.ArgumentParser
    ) -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
        yield words, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, child in action.choices.items():
                    yield from below([*words, word], child)

    return below([], build_parser())


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()
    monkeypatch.setattr(run_commands, "ApiClient", made)
    return made


class TestHelp:
    @pytest.mark.parametrize(
        ("words", "parser"),
        list(commands()),
        ids=[" ".join(words) or "-" for words, _ in commands()],
    )
    def test_of_every_command_tells_every_option(
        self, words: list[str], parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        for action in parser._actions:
            assert all(option in text for option in action.option_strings)
            assert (
                action.help
                or isinstance(action, argparse._SubParsersAction)
                or not (action.option_strings)
            )

    def test_lists_every_exit_code(self) -> None:
        epilog = build_parser().epilog or ""
        kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
        codes = {kind.exit_code for kind in kinds if issubclass(kind, CoppiceError)}
        for code in codes | {0, 2, 130}:
            assert f"{code} " in epilog

    def test_version_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"coppice {__version__}\n"

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["run"],
            ["nonsense"],
            ["run", "show"],
            ["run", "show", "x"],
            ["run", "submit"],
            ["start", "--durable", "maybe"],
            ["start", "--nonsense"],
        ],
    )
    def test_wrong_usage_ends_with_2(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("usage: fedserver")


LEAVES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CoppiceError)
]


class TestExit:
    @pytest.mark.parametrize("kind", LEAVES)
    def test_error_is_told_line_by_line_and_gives_the_code(
        self, api: Api, capsys: pytest.CaptureFixture[str], kind: type[CoppiceError]
    ) -> None:
        api.answers["/runs"] = kind("one\ntwo")
        assert main(["run", "list"]) == kind.exit_code
        assert capsys.readouterr().err == "fedserver: one\nfedserver: two\n"

    def test_interrupt_ends_with_130(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(path: str) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(api, "get", interrupted)
        assert main(["run", "list"]) == 130

    def test_start_with_a_bad_value_names_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["start", "--listen", "nowhere"]) == 6
        error = capsys.readouterr().err
        assert error.startswith("fedserver: listen: is 'nowhere'; allowed is HOST:PORT")
        assert error.count("\n") == 1

    def test_no_server_ends_with_4(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # Port 0 never answers.
        assert main(["run", "list", "--server", "http://127.0.0.1:0"]) == 4
        assert "fedserver start" in capsys.readouterr().err

    def test_reader_that_goes_away_is_no_error(self) -> None:
        script = (
            "import sys, server.cli, server.run_commands as c\n"
            "c.ApiClient = lambda url: type('A', (), {'get': lambda s, p: ['x' * 100] * 9999})()\n"
            "sys.exit(server.cli.main(['run', 'list', '--json']))"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(cli.__file__).parents[1],
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(60) == 0

    def test_run_commands_do_without_the_heavy_libraries(self) -> None:
        heavy = "{'torch', 'grpc', 'uvicorn', 'fastapi', 'sqlalchemy', 'pydantic'}"
        code = (
            f"import sys, server.cli; server.cli.build_parser(); print({heavy} & set(sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=Path(cli.__file__).parents[1],
            timeout=60,
            check=True,
        )
        assert done.stdout == "set()\n"


class TestSubmit:
    def test_sends_the_text_and_where_it_was(
        self, api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "run.toml"
        file.write_text('name = "é"')
        api.answers["/runs"] = {"run_id": 7}
        assert main(["run", "submit", str(file)]) == 0
        assert api.posted == [("/runs", {"toml": 'name = "é"', "folder": str(tmp_path)})]
        assert capsys.readouterr().out == (
            "run 7 is queued; follow it: fedserver run log --follow 7\n"
        )

    def test_sends_absolute_paths(
        self, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "run.toml").write_text("")
        api.answers["/runs"] = {"run_id": 7}
        assert main(["run", "submit", "run.toml", "--app", "my_app.py"]) == 0
        assert api.posted[0][1] == {
            "toml": "",
            "folder": str(tmp_path),
            "app": str(tmp_path / "my_app.py"),
        }

    def test_prints_json_for_scripts(
        self, api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "run.toml").write_text("")
        api.answers["/runs"] = {"run_id": 7}
        main(["run", "submit", str(tmp_path / "run.toml"), "--json"])
        assert json.loads(capsys.readouterr().out) == {"run_id": 7}

    @pytest.mark.parametrize("content", [None, b"\xff\xfe"])
    def test_unreadable_file_is_named(
        self, api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
    ) -> None:
        file = tmp_path / "run.toml"
        if content is not None:
            file.write_bytes(content)
        assert main(["run", "submit", str(file)]) == RunFileError.exit_code
        assert capsys.readouterr().err.startswith(f"fedserver: cannot read {file}: ")
        assert api.posted == []

"""The documentation says what the code does: every option, key, default and exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import edge_client.cli
import server.cli
from coppice import domain, errors
from coppice.budget import RoundTime
from coppice.cohort import CohortSpec
from coppice.local_training import LocalTraining
from coppice.method import method_names, settings_type
from coppice.protection import ProtectionSpec
from server.config import ServerConfig
from server.limits import Limits
from server.run_file import parse_run_file

ROOT = Path(__file__).parents[1]


def sections(page: str) -> dict[str, dict[str, str]]:
    """The tables of a page: heading → first cell without its backquotes → second cell."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^#+ ", (ROOT / "docs" / page).read_text(), flags=re.M)[1:]:
        heading, _, text = part.partition("\n")
        rows = re.findall(r"^\| `(\S+?)(?: [^`]*)?` \| (.*?) \|", text, re.M)
        assert heading.strip("`") not in found
        found[heading.strip("`")] = dict(rows)
    return found


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Options and arguments of one command, by the names that its help shows."""
    left_out = (argparse._HelpAction, argparse._SubParsersAction)
    taken = [action for action in parser._actions if not isinstance(action, left_out)]
    return {(action.option_strings or [str(action.metavar)])[-1] for action in taken}


@pytest.mark.parametrize("program", [server.cli, edge_client.cli], ids=lambda item: item.__name__)
def test_every_option_of_every_command_is_documented(program: ModuleType) -> None:
    documented = sections("commands.md")
    commands = {parser.prog: options(parser) for parser in parsers(program.build_parser())}
    for command, taken in commands.items():
        # What all commands of a group share is documented once, for the group.
        above = {
            row for group in documented if command.startswith(group) for row in documented[group]
        }
        assert taken <= above, f"missing in docs/commands.md under {command}"
        below = {row for other in commands if other.startswith(command) for row in commands[other]}
        assert documented[command].keys() <= below, f"too much in docs/commands.md under {command}"


def shown_default(field: dataclasses.Field[Any]) -> str:
    """A field's default as docs/configuration.md writes it."""
    default: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        return "required"
    return "none" if default is None or dataclasses.is_dataclass(default) else json.dumps(default)


RUN_FILE = {
    "The run file": domain.RunSpec,
    "[model]": domain.ModelSpec,
    "[data]": domain.DataSpec,
    "[cohort]": CohortSpec,
    "[evaluation]": domain.EvaluationSpec,
    "[stop]": domain.StopSpec,
    "[protection]": ProtectionSpec,
    "[wire]": domain.WireSpec,
    "[method], training on the devices": LocalTraining,
    "[method.round_time]": RoundTime,
} | {f'[method] with name = "{name}"': settings_type(name) for name in method_names()}


SHARED = {field.name for field in dataclasses.fields(LocalTraining)}


@pytest.mark.parametrize("heading", RUN_FILE)
def test_every_key_of_a_run_file_is_documented_with_its_default(heading: str) -> None:
    kind = RUN_FILE[heading]
    fields = {field.name: shown_default(field) for field in dataclasses.fields(kind)}
    if issubclass(kind, LocalTraining) and kind is not LocalTraining:
        # What all methods have is documented once.
        fields = {key: fields[key] for key in fields if key not in SHARED}
    assert sections("configuration.md")[heading] == fields


def test_every_key_of_the_server_is_documented() -> None:
    keys = {field.name for field in dataclasses.fields(ServerConfig)}
    assert sections("configuration.md")["The server"].keys() == keys


def test_every_limit_of_the_server_is_documented_with_its_default() -> None:
    documented, flags = sections("configuration.md")["The server"], sections("commands.md")
    for item in dataclasses.fields(Limits):
        assert documented[item.name] == f"{item.default:g}"
        flag = f"--{item.name.replace('_', '-')}"
        text = (ROOT / "docs" / "commands.md").read_text()
        assert flag in flags["fedserver start"]
        assert re.search(rf"`{flag} [A-Z]+` \| .* default {item.default:g} \|", text)


def test_every_exit_code_is_documented() -> None:
    codes = {
        str(kind.exit_code)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.CoppiceError)
    }
    assert codes | {"0", "2", "130"} == sections("operations.md")["Exit codes"].keys()


def test_run_file_of_the_readme_is_valid() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    parse_run_file(text, ROOT)


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("proto/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]*)[^)]*\)", page.read_text()):
            if target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []

"""Limits are told like all that a server is told, and each value that cannot be is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from coppice.errors import RunFileError
from server.cli import build_parser
from server.config import resolve
from server.limits import Limits


def test_some_hundreds_of_devices_meet_none_by_default() -> None:
    config = resolve({}, {})
    assert {item.name: getattr(config, item.name) for item in fields(Limits)} == {
        item.name: item.default for item in fields(Limits)
    }
    # A device has a connection, and a poll, a heartbeat and a transfer on it.
    assert config.connections >= 1000
    assert config.calls >= 3 * 1000
    assert config.client_calls >= 3


def test_flag_wins_over_variable_and_that_over_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("calls = 30\nstall_seconds = 7\nconnections = 5\n")
    flags = {"config": str(file), "calls": "10"}
    config = resolve(flags, {"COPPICE_CALLS": "20", "COPPICE_STALL_SECONDS": "1.5"})
    assert (config.calls, config.stall_seconds, config.connections) == (10, 1.5, 5)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("calls", "0", "a whole number from 1 to 200000"),
        ("calls", "2.5", "a whole number"),
        ("client_calls", "1", "a whole number from 2 to 1000"),
        ("disk_reserve_mb", "-1", "a whole number from 0"),
        ("stall_seconds", "nan", "a number from 1.0"),
        ("stall_seconds", "inf", "a number from 1.0"),
        ("connections", "many", "a whole number from 1"),
    ],
)
def test_value_that_cannot_be_is_named(name: str, text: str, kind: str) -> None:
    with pytest.raises(RunFileError) as caught:
        resolve({name: text}, {})
    assert str(caught.value).startswith(f"{name}: is {text!r}; allowed is {kind}")


def test_truth_is_no_number(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("calls = true")
    with pytest.raises(RunFileError, match=r"calls is True; allowed is a number"):
        resolve({"config": str(file)}, {})


def test_every_limit_is_a_flag() -> None:
    words = [
        word
        for item in fields(Limits)
        for word in (f"--{item.name.replace('_', '-')}", str(item.metadata["bounds"][1]))
    ]
    config = resolve(vars(build_parser().parse_args(["start", *words])), {})
    for item in fields(Limits):
        assert getattr(config, item.name) == item.metadata["bounds"][1]

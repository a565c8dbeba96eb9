"""`fedserver access …` and `fedserver audit`: what they ask for and what they print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from server import run_commands
from server.cli import main
from server.printing import moment
from tests.server.command_samples import Api

MADE = {"name": "anna", "role": "viewer", "token": "coppice-api-x"}
ACCESS: dict[str, Any] = {
    "access_id": 1, "name": "anna", "role": "viewer", "created_at": 1e9, "expires_at": None,
    "revoked_at": None, "is_now": "valid",
}  # fmt: skip
LINE: dict[str, Any] = {
    "audit_id": 7, "at": 1e9, "who": "anna", "role": "operator", "address": "10.0.0.7",
    "action": "submit run", "detail": "digits", "outcome": "done",
}  # fmt: skip


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()
    monkeypatch.setattr(run_commands, "ApiClient", made)
    return made


@pytest.mark.parametrize(
    ("flags", "seconds"), [((), None), (("--expires", "12h"), 12 * 3600.0)], ids=["for ever", "12h"]
)
def test_created_token_is_shown(
    api: Api, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], seconds: float | None
) -> None:
    api.answers["/access"] = MADE
    command = ["access", "create", "anna", "--role", "viewer", *flags]
    assert main(command) == 0
    assert api.posted == [("/access", {"name": "anna", "role": "viewer", "valid_seconds": seconds})]
    assert "\n  coppice-api-x\n" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == MADE


@pytest.mark.parametrize(
    "words",
    [
        ("access", "create", "anna"),
        ("access", "create", "anna", "--role", "king"),
        ("access", "create", "anna", "--role", "viewer", "--expires", "soon"),
        ("audit", "--limit", "0"),
        ("audit", "--limit", "1001"),
    ],
)
def test_bad_wish_is_wrong_usage(api: Api, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(list(words))


@pytest.mark.parametrize(("expires", "shown"), [(None, ""), (2e9, moment(2e9))])
def test_tokens_are_a_line_each(
    api: Api, capsys: pytest.CaptureFixture[str], expires: float | None, shown: str
) -> None:
    api.answers["/access"] = [ACCESS | {"expires_at": expires}]
    assert main(["access", "list"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split("  ")[:4] == ["anna", "viewer", "valid", moment(1e9)]
    assert line.endswith(shown)


def test_revoked_token_is_named(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["access", "revoke", "anna"]) == 0
    assert api.posted == [("/access/anna/revoke", {})]
    assert "anna" in capsys.readouterr().out
    # What is no name never becomes a part of a path.
    assert main(["access", "revoke", "../runs/1"]) == 5
    assert len(api.posted) == 1


@pytest.mark.parametrize(
    ("flags", "query"),
    [
        ((), "after=0&limit=50&newest=true"),
        (("--after", "6", "--limit", "9"), "after=6&limit=9&newest=false"),
    ],
)
def test_audit_is_a_line_each(
    api: Api, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], query: str
) -> None:
    api.answers[f"/audit?{query}"] = [LINE]
    assert main(["audit", *flags]) == 0
    assert re.split(r"\s{2,}", capsys.readouterr().out.splitlines()[-1].strip()) == [
        "7", moment(1e9), "anna", "operator", "10.0.0.7", "submit run", "done", "digits",
    ]  # fmt: skip
    assert main(["audit", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [LINE]


def test_token_is_found_where_it_is_named(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers["/runs"] = []
    for name in ("by-flag", "by-variable", "operator.token"):
        (tmp_path / name).write_text(name)
    command = ["run", "list", "--data", str(tmp_path)]
    assert (main(command), api.token) == (0, "operator.token")
    monkeypatch.setenv("COPPICE_TOKEN_FILE", str(tmp_path / "by-variable"))
    assert (main(command), api.token) == (0, "by-variable")
    assert main([*command, "--token-file", str(tmp_path / "by-flag")]) == 0
    assert api.token == "by-flag"
    assert main([*command, "--token-file", str(tmp_path / "nowhere")]) == 5

"""`fedserver token …` and `fedserver client …`: what they ask for and what they print."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from server import run_commands
from server.cli import main
from server.printing import moment
from tests.server.command_samples import Api

MADE = {"token_id": 4, "token": "coppice1-x", "join": "fedclient join pi:7433 --token coppice1-x"}
TOKEN: dict[str, Any] = {
    "token_id": 4, "created_at": 1e9, "expires_at": 2e9, "uses": 3, "used": 1, "revoked_at": None,
    "is_now": "valid",
}  # fmt: skip
MEMBER: dict[str, Any] = {
    "fingerprint": "f" * 64, "name": "pi-1", "serial": "1a", "token_id": 4, "enrolled_at": 1e9,
    "expires_at": time.time() + 1e6, "revoked_at": None,
}  # fmt: skip


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()
    monkeypatch.setattr(run_commands, "ApiClient", made)
    return made


@pytest.mark.parametrize(
    ("flags", "body"),
    [
        ((), {"uses": 1, "valid_seconds": 86400.0}),
        (("--uses", "3", "--expires", "30m"), {"uses": 3, "valid_seconds": 1800.0}),
        (("--expires", "365d"), {"uses": 1, "valid_seconds": 365 * 86400.0}),
    ],
)
def test_created_token_is_shown_with_its_line(
    api: Api, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], body: dict[str, Any]
) -> None:
    api.answers["/tokens"] = MADE
    assert main(["token", "create", *flags]) == 0
    assert api.posted == [("/tokens", body)]
    assert "\n  fedclient join pi:7433 --token coppice1-x --data PATH\n" in capsys.readouterr().out
    assert main(["token", "create", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == MADE


@pytest.mark.parametrize(
    "flags",
    [
        *(("--uses", text) for text in ("0", "-1", "x", "10001")),
        *(("--expires", text) for text in ("0m", "1", "1w", "366d", "-1d", "")),
    ],
)
def test_bad_wish_is_wrong_usage(api: Api, flags: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["token", "create", *flags])


def test_tokens_are_a_line_each(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["/tokens"] = [TOKEN]
    assert main(["token", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split("  ")[-4:] == [
        "valid", "1 of 3", moment(1e9), moment(2e9),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "enrolled"),
        ({"expires_at": 1e9}, "expired"),
        ({"revoked_at": 1e9}, f"revoked {moment(1e9)}"),
    ],
)
def test_clients_are_a_line_each(
    api: Api, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], state: str
) -> None:
    api.answers["/members"] = [MEMBER | changes]
    assert main(["client", "list"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"pi-1    {state}")
    assert line.endswith("f" * 16)


def test_revoking_says_what_it_takes_along(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers |= {"/members/pi-1/revoke": MEMBER, "/tokens/4/revoke": None}
    assert main(["client", "revoke", "pi-1"]) == 0
    assert "pi-1 is cut off; token 4" in capsys.readouterr().out
    assert main(["token", "revoke", "4"]) == 0
    assert "token 4 lets nobody in" in capsys.readouterr().out
    assert [path for path, _ in api.posted] == ["/members/pi-1/revoke", "/tokens/4/revoke"]


def test_what_cannot_be_a_name_is_not_asked_for(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["client", "revoke", "../runs"]) == 5
    assert "is no device's name" in capsys.readouterr().err

"""`fedclient doctor` says what this device may use, for people and for programs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_client import doctor as page
from edge_client.doctor import doctor
from edge_client.limits import MemoryBudget
from edge_client.membership import write_membership
from edge_client.processor import Heat, ProcessorShare
from edge_client.state_folder import StateFolder
from tests.edge_client.test_membership import MEMBERSHIP

BUDGET = MemoryBudget(600_000_000, "memory.max of /box", 80_000_000)
SHARE = ProcessorShare(0.4, "cpu.max of /box")
NOWHERE = StateFolder(Path("/no/such/folder"))
WARM = Heat(61.4, (), ())


def findings(
    capsys: pytest.CaptureFixture[str], folder: StateFolder = NOWHERE
) -> dict[str, dict[str, Any]]:
    """What the doctor prints as JSON, by what it is about."""
    doctor(True, folder)
    return {item["what"]: item for item in json.loads(capsys.readouterr().out)}


def device(
    monkeypatch: pytest.MonkeyPatch,
    budget: MemoryBudget = BUDGET,
    share: ProcessorShare = SHARE,
    warmth: Heat = WARM,
) -> None:
    """The doctor looks at this device."""
    monkeypatch.setattr(page, "memory_budget", lambda: budget)
    monkeypatch.setattr(page, "processor_share", lambda: share)
    monkeypatch.setattr(page, "heat", lambda: warmth)


def test_limits_are_said_with_what_binds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device(monkeypatch)
    doctor(False, NOWHERE)
    text = capsys.readouterr().out
    assert "memory   600.0 MB to use, by memory.max of /box; 80.0 MB in use\n" in text
    assert "cores    0.4 to use, by cpu.max of /box; 1 thread for training\n" in text
    assert "heat     61 °C\n" in text


def test_programs_get_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device(monkeypatch, share=ProcessorShare(2.5, "affinity"))
    found = findings(capsys)
    assert found["memory"]["values"] == {
        "budget_bytes": 600_000_000,
        "bound_by": "memory.max of /box",
        "resident_bytes": 80_000_000,
    }
    assert found["cores"]["values"] == {"cores": 2.5, "bound_by": "affinity", "num_threads": 2}
    assert found["heat"]["values"] == {
        "temperature_celsius": 61.4,
        "throttled": [],
        "throttled_since_boot": [],
    }
    assert all(found[what]["is_well"] for what in ("memory", "cores", "heat"))


def test_processor_that_is_held_back_is_not_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device(monkeypatch, warmth=Heat(None, ("throttled",), ("throttled", "under-voltage")))
    heat = findings(capsys)["heat"]
    assert heat["text"] == (
        "the processor is held back: throttled; "
        "since this machine was started there was: under-voltage"
    )
    assert not heat["is_well"]


def test_machine_that_tells_no_temperature_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device(monkeypatch, warmth=Heat(None, (), ()))
    heat = findings(capsys)["heat"]
    assert (heat["is_well"], heat["text"]) == (True, "this machine does not tell its temperature")


def test_device_without_room_is_not_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device(monkeypatch, budget=MemoryBudget(80, "free memory", 80))
    assert not findings(capsys)["memory"]["is_well"]


def test_identity_is_said_with_the_day_until_when_it_is_certified(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert findings(capsys)["identity"]["is_well"]
    folder.key.touch()
    ahead = replace(MEMBERSHIP, expires_at=time.time() + 1000)
    write_membership(folder, ahead)
    found = findings(capsys, folder)["identity"]
    assert found["is_well"]
    assert "kitchen, by a certificate that is valid until" in found["text"]
    assert found["values"] == {"name": "kitchen", "certificate_until": ahead.expires_at}
    write_membership(folder, replace(ahead, expires_at=time.time() - 1))
    found = findings(capsys, folder)["identity"]
    assert not found["is_well"]
    assert "its certificate expired" in found["text"]
    folder.membership.write_text("{}")
    found = findings(capsys, folder)["identity"]
    assert (found["is_well"], "is damaged" in found["text"]) == (False, True)

"""`fedclient doctor` says what this device may use, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge_client import doctor as page
from edge_client.doctor import doctor
from edge_client.limits import MemoryBudget
from edge_client.processor import Heat, ProcessorShare

BUDGET = MemoryBudget(600_000_000, "memory.max of /box", 80_000_000)
SHARE = ProcessorShare(0.4, "cpu.max of /box")
WARM = Heat(61.4, (), ())


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """What the doctor prints as JSON, by what it is about."""
    doctor(as_json=True)
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
    doctor(as_json=False)
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

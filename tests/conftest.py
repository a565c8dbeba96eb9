"""What all tests share: repeatable property tests, and a record of what goes to the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import settings

# A loaded machine is slow, not wrong: no deadline. In CI the same examples every time.
settings.register_profile("coppice", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("coppice")


@pytest.fixture
def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made durable or renamed from here on, in order: "file", "folder", "rename"."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def recorded_replace(path: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    return calls

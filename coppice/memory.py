"""Memory of a process: given back when it is not needed any more, and how much it was at most."""

from __future__ import annotations

import ctypes
from pathlib import Path

#: What the kernel takes for "forget the peak".
_FORGET_PEAK = "5"


def give_back() -> None:
    """Let the C library return what has been freed; it keeps it otherwise, for the next time."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        # Only glibc has it, which Raspberry Pi OS has.
        return
    trim(0)


def forget_peak(pid: int | str = "self") -> None:
    """Let the peak of a process be what it holds now. OSError where the kernel does not let us."""
    Path(f"/proc/{pid}/clear_refs").write_text(_FORGET_PEAK)


def peak_resident_bytes(pid: int | str = "self") -> int:
    """The most resident memory of a process since then, or ever."""
    return _status_bytes(pid, "VmHWM")


def resident_bytes() -> int:
    """The resident memory of this process now."""
    return _status_bytes("self", "VmRSS")


def _status_bytes(pid: int | str, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the kernel does not tell {field}")

"""Memory that a process does not need any more, back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Let the C library return what has been freed; it keeps it otherwise, for the next time."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        # Only glibc has it, which Raspberry Pi OS has.
        return
    trim(0)

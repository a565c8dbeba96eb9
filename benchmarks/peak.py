"""Peaks of resident memory, as the kernel keeps them."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from coppice.memory import forget_peak, give_back, peak_resident_bytes


def peak_bytes(operation: Callable[[], object]) -> int:
    """Bytes by which this process grows at most, the result included."""
    # What was freed before goes back to the system: used again, it would not be seen.
    give_back()
    before = psutil.Process().memory_info().rss
    forget_peak()
    operation()
    return max(0, peak_resident_bytes() - before)

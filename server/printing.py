"""Times and sizes for people in a terminal."""

from __future__ import annotations

import time


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a whole number: 26.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(count, 1) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def moment(at: float | None) -> str:
    """A time of the epoch in this machine's time zone."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def clock(at: float) -> str:
    """The same without the day, for what is near."""
    return time.strftime("%H:%M:%S", time.localtime(at))

"""The lines that a person reads while the client runs."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

_BOLD, _YELLOW, _RESET = "\x1b[1m", "\x1b[33m", "\x1b[0m"
_TAG_WIDTH = 8


class Console:
    """Writes lines, with a little colour on a terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out if out is not None else sys.stdout
        self._colours = self._out.isatty() and not os.environ.get("NO_COLOR")

    def say(self, tag: str, text: str) -> None:
        """A line of what goes well, under a short tag."""
        self._line(_BOLD, tag, text)

    def warn(self, tag: str, text: str) -> None:
        """A line of what does not."""
        self._line(_YELLOW, tag, text)

    def _line(self, colour: str, tag: str, text: str) -> None:
        shown = f"{tag:<{_TAG_WIDTH}}"
        if self._colours:
            shown = f"{colour}{shown}{_RESET}"
        print(f"{shown} {text}", file=self._out, flush=True)


def day_text(at: float) -> str:
    """A time of the epoch in this device's time zone, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def size_text(size_bytes: int) -> str:
    """A size for people: 812 B, 1.3 MB."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    if size_bytes < 999_950:
        return f"{size_bytes / 1e3:.1f} kB"
    if size_bytes < 999_950_000:
        return f"{size_bytes / 1e6:.1f} MB"
    return f"{size_bytes / 1e9:.1f} GB"


def duration_text(seconds: float) -> str:
    """A length of time for people: 42 s, 5 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"

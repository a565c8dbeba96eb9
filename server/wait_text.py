"""What a run waits for, as the API tells it, for people in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.printing import clock


def wait_text(wait: Mapping[str, Any]) -> str:
    """What a run waits for and what comes then, in one line or two; empty where it does not."""
    if not wait["text"]:
        return ""
    until = "" if wait["until"] is None else f", until {clock(wait['until'])}"
    then = f"\n{wait['then']}" if wait["then"] else ""
    return f"waiting for {wait['text']}{until}{then}"

"""Wakes every waiting coroutine at once, without a lock and without missing a ring."""

from __future__ import annotations

import asyncio


class Bell:
    """Take `next_ring` before looking at the state, wait for it after: no ring is missed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def next_ring(self) -> asyncio.Event:
        """Set by the next ring."""
        return self._event

    def ring(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = asyncio.Event()

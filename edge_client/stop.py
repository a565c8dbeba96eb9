"""The request to end, by SIGTERM or SIGINT: waits and calls end at once, work at its next step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The process was asked to end."""


class Cancellable(Protocol):
    """A call that another thread can end."""

    def cancel(self) -> object:
        """End the call."""


class Stop:
    """Whether the process was asked to end, and by which signal."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._asked = threading.Event()
        self._pending: Cancellable | None = None

    @property
    def requested(self) -> bool:
        """Whether the process was asked to end."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """0 after SIGTERM, which is an order; 130 after SIGINT, as shells expect it."""
        return 128 + signal.SIGINT if self._signal == signal.SIGINT else 0

    def request(self, number: int = signal.SIGTERM) -> None:
        """Ask the process to end. Takes locks, so it must not be called by a signal handler."""
        self._signal = number
        self._asked.set()
        pending = self._pending
        if pending is not None:
            pending.cancel()

    def check(self) -> None:
        """Raise Stopped when the process was asked to end."""
        if self.requested:
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Wait so long, or raise Stopped as soon as the process is asked to end."""
        self._asked.wait(seconds)
        self.check()

    @contextmanager
    def cancels(self, call: Cancellable) -> Iterator[None]:
        """A request to end cancels this call of the main thread."""
        self._pending = call
        # The request may have come just before the call was known here.
        if self.requested:
            call.cancel()
        try:
            yield
        finally:
            self._pending = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask the process to end; a second one ends it at once."""
        read_end, write_end = os.pipe()

        def handle(number: int, frame: FrameType | None) -> None:
            if self.requested:
                os._exit(128 + number)
            self._signal = number
            # A handler runs between two instructions of the main thread, which may hold any lock:
            # what takes locks is done by a thread that waits at the other end of a pipe.
            os.write(write_end, b"s")

        def watch() -> None:
            if os.read(read_end, 1) and self._signal is not None:
                self.request(self._signal)
            os.close(read_end)

        before = {number: signal.signal(number, handle) for number in _SIGNALS}
        watcher = threading.Thread(target=watch, name="signals", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(write_end)
            watcher.join()

"""A program of this project as a process: what it prints, how it ends, and waiting for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[1]

#: Nothing takes so long, even on a busy machine; a test that waits for longer has failed.
PATIENCE_SECONDS = 90.0
_GLANCE_SECONDS = 0.02
_TAIL_LINES = 40


class Program:
    """A process in a session of its own, with a file of what it prints."""

    def __init__(self, log: Path, module: str, *arguments: object, **variables: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *module.split(), *map(str, arguments)],
                cwd=ROOT,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        """What it has written to its terminal, so far."""
        return self.log.read_text()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def send(self, number: int) -> None:
        """A signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """The exit code, once it has ended by itself."""
        return self.process.wait(seconds)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, for it and all that it started in its session."""
        if self.is_running:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """End it, and show the last of what it printed: a test that failed needs it."""
        self.kill()
        print(f"---- {self.log.name}\n{self.tail}")

    @property
    def tail(self) -> str:
        """The last of what it printed."""
        return "\n".join(self.printed.splitlines()[-_TAIL_LINES:])


@dataclass(frozen=True)
class Outcome:
    """What came of a program."""

    code: int
    out: str
    err: str


def call(module: str, *arguments: object, **variables: str) -> Outcome:
    """Run a program to its end."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def environment(**variables: str) -> dict[str, str]:
    """What a program of these tests may depend on, and nothing of the caller's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | variables


def until(glance: Callable[[], T | None], what: str, program: Program | None = None) -> T:
    """What `glance` gives, once it gives something: for what no event tells."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if found := glance():
            return found
        if program is not None and not program.is_running:
            break
        time.sleep(_GLANCE_SECONDS)
    raise AssertionError(f"not so: {what}" + (f"\n{program.printed}" if program else ""))

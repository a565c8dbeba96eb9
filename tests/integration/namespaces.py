"""Two hosts on one machine: network namespaces that a cable joins, and what runs in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.program import PATIENCE_SECONDS, ROOT, Outcome, environment, until


def trouble() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip"
    name = f"coppice-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode == 0:
        _ip("netns", "del", name)
    return tried.stderr.strip()


@dataclass(frozen=True)
class NamedHost:
    """A namespace."""

    name: str
    address: str
    #: Its end of the cable.
    interface: str

    def call(self, *command: object, **variables: str) -> Outcome:
        """Run `python …` there to its end."""
        done = subprocess.run(
            self._command(*command),
            cwd=ROOT,
            env=environment(**variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def running(self, log: Path, *command: object, **variables: str) -> Iterator[Callable[[], str]]:
        """`python …` runs there meanwhile, and is asked to end after that.

        Gives what reads what it has printed so far, as long as it runs.
        """
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(*command),
                cwd=ROOT,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

            def printed() -> str:
                assert process.poll() is None, log.read_text()
                return log.read_text()

            try:
                yield printed
            finally:
                process.terminate()
                try:
                    process.wait(PATIENCE_SECONDS)
                finally:
                    process.kill()

    @contextmanager
    def captured(self, folder: Path, interface: str | None = None) -> Iterator[Path]:
        """Every frame that comes or goes meanwhile is in this file."""
        path, log = folder / "frames", folder / "capture.log"
        program = ROOT / "tests" / "integration" / "capture.py"
        with self.running(log, program, interface or self.interface, path) as printed:
            until(lambda: "ready" in printed(), "frames are captured")
            yield path

    def _command(self, *command: object) -> list[str]:
        return ["ip", "netns", "exec", self.name, sys.executable, *map(str, command)]


@contextmanager
def two_hosts() -> Iterator[tuple[NamedHost, NamedHost]]:
    """Two of them, which see each other and nobody else."""
    mark = os.getpid()
    hosts = [
        NamedHost(f"coppice-{letter}-{mark}", f"10.77.0.{number}", f"cop{letter}{mark}")
        for number, letter in enumerate("ab", 1)
    ]
    with ExitStack() as made:
        for host in hosts:
            _ip("netns", "add", host.name)
            made.callback(_ip, "netns", "del", host.name)
        first, second = hosts
        one = (first.interface, "netns", first.name)
        other = ("name", second.interface, "netns", second.name)
        _ip("link", "add", *one, "type", "veth", "peer", *other)
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", host.name, "link", "set", interface, "up")
        yield first, second


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

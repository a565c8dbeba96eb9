"""A machine's control groups: made of plain files, and the real ones of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.cgroups import groups

ROOT = Path(__file__).parents[2]

#: How every line of mountinfo begins; then root and mount point.
_NUMBERS = "31 23 0:28"


class FakeKernel:
    """The files in which a kernel tells a process about its control groups."""

    def __init__(self, path: Path) -> None:
        self.proc = path / "proc"
        self.top = path / "sys"
        self.proc.mkdir()
        (self.proc / "mountinfo").write_text("22 27 0:21 / /proc rw,relatime - proc proc rw\n")

    def mount(self, kind: str, options: str, place: str = "", root: str = "/") -> Path:
        """A hierarchy is mounted at `place`; its top, as the process sees it."""
        folder = self.top / place
        folder.mkdir(parents=True, exist_ok=True)
        with (self.proc / "mountinfo").open("a") as file:
            # Optional fields come before the dash, in any number.
            file.write(
                f"{_NUMBERS} {root} {folder} rw shared:4 master:1 - {kind} {kind} {options}\n"
            )
        return folder

    def member(self, *lines: str) -> None:
        """The process is in these groups."""
        (self.proc / "cgroup").write_text("".join(f"{line}\n" for line in lines))


def put(folder: Path, **files: object) -> None:
    """Files of a control group; the first `_` of a name is its point, `_` in the rest stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, dict):
            content = "\n".join(f"{key} {value}" for key, value in content.items())
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


class RealGroup:
    """A new control group of version 1 below the one that this process is in."""

    def __init__(self, controller: str, parent: Path | None = None, **files: object) -> None:
        own = groups(controller)
        if parent is None and (not own or own[0].version != 1):
            pytest.skip(f"this process is in no control group of version 1 for {controller!r}")
        self.folder = (parent or own[0].folder) / f"coppice-test-{os.getpid()}"
        try:
            self.folder.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        put(self.folder, **files)

    def start(self, code: str) -> subprocess.Popen[str]:
        """Run Python code as a process of the group, all of whose memory is the group's."""
        enter = 'echo $$ > "$0" && exec "$@"'
        return subprocess.Popen(
            ["sh", "-c", enter, self.folder / "cgroup.procs", sys.executable, "-c", code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str) -> list[str]:
        """The lines that the code prints as a process of the group; its end must be a good one."""
        with self.start(code) as process:
            printed, _ = process.communicate()
        assert process.returncode == 0
        return printed.splitlines()

    def remove(self) -> None:
        """Nothing runs in it any more."""
        self.folder.rmdir()

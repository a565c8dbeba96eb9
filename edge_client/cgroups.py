"""The control groups that this process is in, of version 1 and 2, and what their files say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: What the kernel tells a process about itself.
PROC = Path("/proc/self")

_NAME_LENGTH = 120


@dataclass(frozen=True)
class Group:
    """A control group, for one controller."""

    folder: Path
    #: Its path in the hierarchy, as far as this process can see it.
    name: str
    #: Of control groups: 1 or 2.
    version: int

    @property
    def shown_name(self) -> str:
        """The name for people: its end, if it is long, without what cannot be shown."""
        name = self.name if len(self.name) <= _NAME_LENGTH else f"…{self.name[-_NAME_LENGTH:]}"
        return "".join(letter if letter.isprintable() else "?" for letter in name)

    def number(self, file: str) -> int | None:
        """What a file holds; None when it holds anything else, "max" say, or is not there."""
        return read_number(self.folder / file)

    def table(self, file: str) -> dict[str, int]:
        """What a file of names and numbers holds, a pair a line; empty when it is not there."""
        pairs = (line.split() for line in read_lines(self.folder / file))
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def groups(controller: str, proc: Path = PROC) -> list[Group]:
    """The groups whose `controller` governs this process: its own first, then those around it.

    Where that controller is mounted is read, not assumed. A container sees as the top what is
    mounted for it, and nothing around that. Empty without control groups.
    """
    mounts = list(_mounts(proc))
    found: list[Group] = []
    for line in read_lines(proc / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/"):
            continue
        # Some machines have both: some controllers in version 1, the others in version 2.
        if number == "0":
            tops = [mount for mount in mounts if mount.kind == "cgroup2"]
            found += _way_up(tops, path, 2)
        elif controller in controllers.split(","):
            tops = [item for item in mounts if item.kind == "cgroup" and controller in item.options]
            found += _way_up(tops, path, 1)
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a small file of the kernel; none when it cannot be read, or has vanished."""
    try:
        # As file names are decoded: groups may have names in any bytes.
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def read_number(path: Path) -> int | None:
    """The whole number that a small file of the kernel holds; None when it does not."""
    lines = read_lines(path)
    try:
        return int(lines[0])
    except (IndexError, ValueError):
        return None


@dataclass(frozen=True)
class _Mount:
    #: File system type.
    kind: str
    #: Group that is seen at `folder`.
    root: PurePosixPath
    folder: Path
    options: tuple[str, ...]


def _mounts(proc: Path) -> Iterator[_Mount]:
    """The mounted hierarchies; the format is in proc_pid_mountinfo(5)."""
    for line in read_lines(proc / "mountinfo"):
        place, _, what = line.partition(" - ")
        fields, kinds = place.split(), what.split()
        if len(fields) > 4 and kinds and kinds[0] in ("cgroup", "cgroup2"):
            root, folder = (_unescaped(field) for field in fields[3:5])
            options = tuple(kinds[-1].split(","))
            yield _Mount(kinds[0], PurePosixPath(root), Path(folder), options)


def _unescaped(field: str) -> str:
    """Spaces and such are written as a backslash and three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _way_up(mounts: list[_Mount], path: str, version: int) -> list[Group]:
    """The group at `path` and those around it, up to what is mounted."""
    if not mounts:
        return []
    for mount in mounts:
        try:
            below = PurePosixPath(path).relative_to(mount.root)
        except ValueError:
            continue
        # A group outside of the process's namespace is named by "..", which no folder is.
        if ".." not in below.parts:
            return [
                Group(mount.folder / step, str(mount.root / step), version)
                for step in (below, *below.parents)
            ]
    # Named as it is outside, seen as it is inside: what is mounted is the group itself.
    return [Group(mounts[0].folder, path, version)]

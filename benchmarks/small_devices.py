"""Devices with little memory and little of a processor: processes in control groups of their own.

Control groups need root. Of version 1 the group of this process is their parent, of version 2 the
top one, where processes may be beside groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edge_client.cgroups import Group, groups

_PERIOD_US = 100_000
_MB = 2**20
#: The kernel takes its time to let go of a process, and of memory that is to be less.
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Size:
    """What a device has."""

    memory_mb: int
    #: Of one core.
    share: float

    def __str__(self) -> str:
        return f"{self.memory_mb} MB, {self.share:.0%} of a core"


@dataclass(frozen=True)
class Told:
    """What the kernel says of a device, since it was made."""

    #: Processes that were killed for want of memory.
    killed: int
    peak_bytes: int
    #: Periods that were throttled, of all.
    throttled: int
    periods: int


class SmallDevice:
    """A place for the processes of one device."""

    def __init__(self, name: str) -> None:
        """Without limits yet; SystemExit where control groups cannot be made."""
        self._memory = _parent("memory").folder / f"coppice-{name}"
        self._processor = _parent("cpu").folder / f"coppice-{name}"
        self._version = _parent("memory").version
        try:
            for folder in {self._memory, self._processor}:
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise SystemExit(f"cannot make a control group ({error}): this needs root") from None

    def command(self, *arguments: str) -> tuple[str, ...]:
        """The command line that runs these arguments in here."""
        files = [f"{folder}/cgroup.procs" for folder in {self._memory, self._processor}]
        enter = " && ".join(f"echo $$ > {file}" for file in files)
        return ("sh", "-c", f'{enter} && exec "$@"', "sh", *arguments)

    def limit(self, size: Size) -> None:
        """Give it as much; what it holds beyond that the kernel takes back, if it can."""
        self.limit_memory(size.memory_mb)
        self.limit_processor(size.share)

    def limit_memory(self, memory_mb: int | None) -> None:
        """None lifts the limit. OSError when more is in use than can be taken back."""
        if self._version == 2:
            text = "max" if memory_mb is None else str(memory_mb * _MB)
            (self._memory / "memory.max").write_text(text)
            (self._memory / "memory.swap.max").write_text("0")
            return
        text = "-1" if memory_mb is None else str(memory_mb * _MB)
        _patiently(lambda: (self._memory / "memory.limit_in_bytes").write_text(text))

    def limit_processor(self, share: float | None) -> None:
        """None lifts the limit."""
        quota = -1 if share is None else round(share * _PERIOD_US)
        if self._version == 2:
            text = f"{'max' if quota < 0 else quota} {_PERIOD_US}"
            (self._processor / "cpu.max").write_text(text)
            return
        (self._processor / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (self._processor / "cpu.cfs_quota_us").write_text(str(quota))

    def told(self) -> Told:
        """What has become of it."""
        memory, processor = self._group(self._memory), self._group(self._processor)
        files = ("memory.oom_control", "memory.max_usage_in_bytes")
        if self._version == 2:
            files = ("memory.events", "memory.peak")
        times = processor.table("cpu.stat")
        return Told(
            killed=memory.table(files[0]).get("oom_kill", 0),
            peak_bytes=memory.number(files[1]) or 0,
            throttled=times.get("nr_throttled", 0),
            periods=times.get("nr_periods", 0),
        )

    def remove(self) -> None:
        """Once its processes have ended."""
        for folder in {self._memory, self._processor}:
            _patiently(folder.rmdir)

    def _group(self, folder: Path) -> Group:
        return Group(folder, folder.name, self._version)


@contextmanager
def small_devices(sizes: dict[str, Size]) -> Iterator[dict[str, SmallDevice]]:
    """Devices by name, as long as the block lasts; whatever runs in them has to end before."""
    devices = {name: SmallDevice(name) for name in sizes}
    try:
        for name, size in sizes.items():
            devices[name].limit(size)
        yield devices
    finally:
        for device in devices.values():
            device.remove()


def _parent(controller: str) -> Group:
    found = groups(controller)
    if not found:
        raise SystemExit(f"this machine has no control groups for {controller}")
    # In version 2 only the top may have both processes and groups with limits.
    parent = found[-1] if found[0].version == 2 else found[0]
    if parent.version == 2:
        with suppress(OSError):
            (parent.folder / "cgroup.subtree_control").write_text("+memory +cpu")
    return parent


def _patiently(act: Callable[[], object]) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            act()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)

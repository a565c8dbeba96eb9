"""How much memory this process may hold, and what says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_client.cgroups import PROC, Group, groups

#: Kept free, whichever is more: for what is not in the resident memory of a process (page tables,
#: buffers of sockets, the kernel's records) and for what others take before the next look.
MARGIN = 0.05
MARGIN_BYTES = 32 * 2**20


@dataclass(frozen=True)
class MemoryBudget:
    """What this process may grow to. Swap is never counted: a device that swaps has stopped."""

    #: Resident memory that the process may reach, what it holds already included.
    budget_bytes: int
    #: Which limit that is, for people: "memory.max of /system.slice/coppice.service".
    bound_by: str
    #: Resident memory of the process now.
    resident_bytes: int

    @property
    def room_bytes(self) -> int:
        """What it may take on top of what it holds."""
        return max(0, self.budget_bytes - self.resident_bytes)


def memory_budget(proc: Path = PROC) -> MemoryBudget:
    """The smallest limit on this process's memory, less a margin, as it is now.

    The limits are the machine's free memory and those of the process's control groups.
    """
    own = psutil.Process().memory_info()
    # The kernel calls what is mapped from files, as code is, available: it is in there already.
    free_bytes = psutil.virtual_memory().available + own.rss - own.shared
    bounds = [(free_bytes, "free memory")]
    for group in groups("memory", proc):
        bounds += _bounds(group, own.rss)
    most_bytes, bound_by = min(bounds)
    margin_bytes = max(MARGIN_BYTES, int(MARGIN * most_bytes))
    return MemoryBudget(max(0, most_bytes - margin_bytes), bound_by, own.rss)


def _bounds(group: Group, resident_bytes: int) -> Iterator[tuple[int, str]]:
    """What the limits of a group let a process of it grow to, which holds so much now."""
    if group.version == 2:
        files, usage, prefix = ["memory.max", "memory.high"], "memory.current", ""
    else:
        files, usage, prefix = ["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_"
    used_bytes = (group.number(usage) or 0) - _reclaimable_bytes(group, prefix)
    for file in files:
        limit_bytes = group.number(file)
        # Where there is no limit, version 2 says "max", version 1 a number beyond any memory.
        if limit_bytes is not None:
            # Never beyond the limit itself: code that another group has loaded, and so pays for,
            # is resident here too, and can become this group's any time.
            room_bytes = min(limit_bytes, limit_bytes - used_bytes + resident_bytes)
            yield room_bytes, f"{file} of {group.shown_name}"


def _reclaimable_bytes(group: Group, prefix: str) -> int:
    """Page cache of a group that the kernel gives up for a program that wants memory.

    That is what lies on the list of inactive file pages, but for the code and data that programs
    have mapped. Those lie there too until memory gets scarce, and are resident: 200 MB with torch,
    which would count twice. How much of them is on which list is not told, so what is counted is no
    more than the inactive pages and no more than the pages that nobody has mapped.
    """
    has = group.table("memory.stat")
    mapped = "mapped_file" if group.version == 1 else "file_mapped"
    inactive, active, mapped_bytes = (
        has.get(prefix + name, 0) for name in ("inactive_file", "active_file", mapped)
    )
    return min(inactive, max(0, inactive + active - mapped_bytes))

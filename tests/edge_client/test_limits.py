"""The memory that a process may hold: by its groups, their parents, and what is free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edge_client.limits import MARGIN_BYTES, MemoryBudget, memory_budget
from tests.edge_client.kernel import FakeKernel, RealGroup, put

MIB = 2**20
NO_LIMIT_V1 = 2**63 - 4096

Budget = Callable[[], MemoryBudget]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """A process that holds 100 MiB, 30 of them mapped from files, with 4 GiB free beside it."""
    own = SimpleNamespace(rss=100 * MIB, shared=30 * MIB)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: own)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4096 * MIB))
    return FakeKernel(tmp_path)


@pytest.fixture
def unified(kernel: FakeKernel) -> Path:
    """The top of version 2, which has no limit, and a process in /box/inner."""
    kernel.member("0::/box/inner")
    return kernel.mount("cgroup2", "rw")


def bound(kernel: FakeKernel) -> tuple[float, str]:
    """The bound before the margin, in MiB, and its name."""
    found = memory_budget(kernel.proc)
    assert found.resident_bytes == 100 * MIB
    before = found.budget_bytes / 0.95 / MIB
    if before * 0.05 < 32:
        before = found.budget_bytes / MIB + 32
    return round(before, 3), found.bound_by


def inactive(size: float, active: float = 0, mapped: float = 0) -> dict[str, int]:
    """Lines of memory.stat, in MiB."""
    return {
        "anon": 1,
        "inactive_file": int(size * MIB),
        "active_file": int(active * MIB),
        "file_mapped": int(mapped * MIB),
    }


def test_free_memory_bounds_a_process_without_groups(kernel: FakeKernel) -> None:
    # What is mapped from files the kernel calls available already.
    assert bound(kernel) == (4096 + 70, "free memory")


def test_margin_is_a_share_and_at_least_a_fixed_size(kernel: FakeKernel, unified: Path) -> None:
    put(unified / "box", memory_max=1000 * MIB, memory_current=100 * MIB)
    assert memory_budget(kernel.proc).budget_bytes == 950 * MIB
    put(unified / "box", memory_max=200 * MIB)
    assert memory_budget(kernel.proc).budget_bytes == 200 * MIB - MARGIN_BYTES


def test_limit_counts_less_what_others_use(kernel: FakeKernel, unified: Path) -> None:
    put(unified / "box/inner", memory_max=1000 * MIB, memory_current=400 * MIB)
    assert bound(kernel) == (1000 - 400 + 100, "memory.max of /box/inner")


def test_parent_binds_with_its_own_limit_and_use(kernel: FakeKernel, unified: Path) -> None:
    put(unified / "box", memory_max=800 * MIB, memory_current=500 * MIB)
    put(unified / "box/inner", memory_max=600 * MIB, memory_current=100 * MIB)
    assert bound(kernel) == (800 - 500 + 100, "memory.max of /box")
    put(unified / "box", memory_current=100 * MIB)
    assert bound(kernel) == (600, "memory.max of /box/inner")


def test_page_cache_that_nobody_has_mapped_is_free(kernel: FakeKernel, unified: Path) -> None:
    box = unified / "box"
    put(box, memory_max=500 * MIB, memory_current=400 * MIB, memory_stat=inactive(300))
    assert bound(kernel) == (500 - 100 + 100, "memory.max of /box")
    put(box, memory_current=450 * MIB, memory_stat=inactive(250))
    assert bound(kernel)[0] == 500 - 200 + 100


def test_active_page_cache_is_not_free(kernel: FakeKernel, unified: Path) -> None:
    stat = inactive(50, active=200)
    put(unified / "box", memory_max=500 * MIB, memory_current=400 * MIB, memory_stat=stat)
    assert bound(kernel)[0] == 500 - 350 + 100


@pytest.mark.parametrize(
    ("stat", "free"),
    [
        (inactive(150, mapped=150), 0),
        (inactive(250, mapped=150), 100),
        (inactive(100, active=150, mapped=150), 100),
        (inactive(0, active=150, mapped=150), 0),
        (inactive(20, mapped=150), 0),
    ],
    ids=["only code", "code and data", "code in use", "no data", "shared memory is mapped too"],
)
def test_code_that_is_resident_counts_once(
    kernel: FakeKernel, unified: Path, stat: dict[str, int], free: int
) -> None:
    put(unified / "box", memory_max=600 * MIB, memory_current=500 * MIB, memory_stat=stat)
    assert bound(kernel)[0] == 600 - 500 + free + 100


def test_code_that_another_group_has_loaded_never_lifts_the_limit(
    kernel: FakeKernel, unified: Path
) -> None:
    put(unified / "box", memory_max=500 * MIB, memory_current=20 * MIB)
    assert bound(kernel) == (500, "memory.max of /box")


def test_high_binds_where_it_is_lower(kernel: FakeKernel, unified: Path) -> None:
    box = unified / "box"
    put(box, memory_max=900 * MIB, memory_high=700 * MIB, memory_current=100 * MIB)
    assert bound(kernel) == (700, "memory.high of /box")
    put(box, memory_high=950 * MIB)
    assert bound(kernel) == (900, "memory.max of /box")
    put(box, memory_max="max", memory_high="max")
    assert bound(kernel)[1] == "free memory"


@pytest.mark.parametrize("content", ["max", "", "a lot", "-"])
def test_what_is_no_number_is_no_limit(kernel: FakeKernel, unified: Path, content: str) -> None:
    put(unified / "box/inner", memory_max=content, memory_current="?", memory_stat="?")
    assert bound(kernel) == (4096 + 70, "free memory")


def test_limit_holds_although_its_use_has_vanished(kernel: FakeKernel, unified: Path) -> None:
    put(unified / "box", memory_max=500 * MIB)
    assert bound(kernel) == (500, "memory.max of /box")


def test_budget_is_never_negative(kernel: FakeKernel, unified: Path) -> None:
    put(unified / "box", memory_max=150 * MIB, memory_current=900 * MIB)
    found = memory_budget(kernel.proc)
    assert found.budget_bytes == 0
    assert found.room_bytes == 0


def test_room_is_what_the_process_does_not_hold_yet(kernel: FakeKernel, unified: Path) -> None:
    put(unified / "box", memory_max=1000 * MIB, memory_current=100 * MIB)
    assert memory_budget(kernel.proc).room_bytes == 850 * MIB


# ---- version 1 ---------------------------------------------------------------------------------


@pytest.fixture
def memory(kernel: FakeKernel) -> Path:
    """The top of version 1's hierarchy for memory, without a limit; a process in /box/inner."""
    kernel.member("9:memory:/box/inner", "0::/")
    kernel.mount("cgroup2", "rw", "unified")
    top = kernel.mount("cgroup", "rw,memory", "memory")
    put(top, memory_limit_in_bytes=NO_LIMIT_V1, memory_usage_in_bytes=9000 * MIB)
    put(top / "box/inner", memory_limit_in_bytes=NO_LIMIT_V1, memory_usage_in_bytes=100 * MIB)
    return top


def test_version_1_writes_a_huge_number_for_no_limit(kernel: FakeKernel, memory: Path) -> None:
    assert bound(kernel) == (4096 + 70, "free memory")


def test_version_1_counts_what_is_in_the_groups_within(kernel: FakeKernel, memory: Path) -> None:
    stat = {
        "inactive_file": 1,
        "active_file": 1,
        "mapped_file": 1,
        "total_inactive_file": 250 * MIB,
        "total_active_file": 50 * MIB,
        "total_mapped_file": 150 * MIB,
    }
    files = {"memory_limit_in_bytes": 800 * MIB, "memory_usage_in_bytes": 500 * MIB}
    put(memory / "box", memory_stat=stat, **files)
    assert bound(kernel) == (800 - 500 + 150 + 100, "memory.limit_in_bytes of /box")


def test_swap_is_never_counted(kernel: FakeKernel, memory: Path) -> None:
    put(memory / "box", memory_limit_in_bytes=500 * MIB, memory_usage_in_bytes=100 * MIB)
    before = bound(kernel)
    for name, size in (("limit", 300), ("usage", 299)):
        (memory / f"box/memory.memsw.{name}_in_bytes").write_text(f"{size * MIB}\n")
    assert bound(kernel) == before == (500, "memory.limit_in_bytes of /box")


# ---- this machine ------------------------------------------------------------------------------

LIMIT = 400 * MIB
TELL = """
from edge_client.limits import memory_budget
def tell():
    budget = memory_budget()
    print(budget.budget_bytes, budget.resident_bytes, budget.bound_by, flush=True)
"""
HOLD = """
held = bytearray(b"x" * (150 << 20))
print("held", flush=True)
input()
"""
#: Writes a file, has the kernel forget it, and reads it once.
READ = """
import os
with open({path!r}, "w+b") as file:
    file.write(b"x" * {size})
    file.flush()
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    tell()
    file.seek(0)
    while file.read(1 << 20):
        pass
tell()
print(open({usage!r}).read())
"""
#: Writes a file, has the kernel forget it, and maps it, as programs map their code.
MAP = """
import mmap, os
with open({path!r}, "w+b") as file:
    file.write(b"x" * {size})
    file.flush()
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    tell()
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    for place in range(0, {size}, mmap.PAGESIZE):
        mapped[place]
tell()
"""


@pytest.fixture
def limited() -> Iterator[RealGroup]:
    group = RealGroup("memory", memory_limit_in_bytes=LIMIT)
    yield group
    group.remove()


def told(line: str) -> tuple[int, int, str]:
    budget, resident, bound_by = line.split(maxsplit=2)
    return int(budget), int(resident), bound_by


def test_real_limit_is_found(limited: RealGroup) -> None:
    budget, resident, bound_by = told(limited.run(f"{TELL}tell()")[0])
    assert bound_by.startswith("memory.limit_in_bytes of ")
    assert bound_by.endswith(limited.folder.name)
    assert 5 * MIB < resident < 100 * MIB
    assert LIMIT - 50 * MIB < budget <= LIMIT - MARGIN_BYTES


def test_real_limit_of_a_parent_is_found(limited: RealGroup) -> None:
    inner = RealGroup("memory", parent=limited.folder)
    try:
        budget, _, bound_by = told(inner.run(f"{TELL}tell()")[0])
    finally:
        inner.remove()
    assert bound_by.endswith(limited.folder.name)
    assert not bound_by.endswith(f"{limited.folder.name}/{inner.folder.name}")
    assert budget <= LIMIT - MARGIN_BYTES


def test_real_page_cache_does_not_count(limited: RealGroup, tmp_path: Path) -> None:
    usage = str(limited.folder / "memory.usage_in_bytes")
    code = READ.format(path=str(tmp_path / "big"), size=150 * MIB, usage=usage)
    before, after, used = limited.run(TELL + code)[:3]
    assert int(used) > 150 * MIB, "the file is in the group's page cache"
    assert told(after)[0] > told(before)[0] - 8 * MIB


def test_real_neighbour_in_the_group_counts(limited: RealGroup) -> None:
    alone = told(limited.run(f"{TELL}tell()")[0])[0]
    with limited.start(HOLD) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "held\n"
        beside = told(limited.run(f"{TELL}tell()")[0])[0]
        neighbour.communicate("\n")
    assert 140 * MIB < alone - beside < 180 * MIB


def test_real_code_that_is_resident_counts_once(limited: RealGroup, tmp_path: Path) -> None:
    with limited.start(HOLD) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "held\n"
        path = str(tmp_path / "code")
        before, after = limited.run(TELL + MAP.format(path=path, size=100 * MIB))
        neighbour.communicate("\n")
    assert told(after)[1] > told(before)[1] + 95 * MIB
    assert abs(told(after)[0] - told(before)[0]) < 8 * MIB


def test_real_process_that_fills_its_budget_is_not_killed(limited: RealGroup) -> None:
    with limited.start(HOLD) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "held\n"
        fill = "room = memory_budget().room_bytes; held = b'x' * room; print(room)"
        room = limited.run(TELL + fill)
        neighbour.communicate("\n")
    assert int(room[0]) > 150 * MIB


def test_real_memory_that_is_held_leaves_the_budget_as_it_is(limited: RealGroup) -> None:
    before, after = limited.run(f'{TELL}tell(); held = bytearray(b"x" * (150 << 20)); tell()')
    assert told(after)[1] > told(before)[1] + 140 * MIB
    assert abs(told(after)[0] - told(before)[0]) < 8 * MIB

"""One server per store: who holds the lease, who may take it over, and what the loser may do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from coppice.errors import StoreLeased
from server.lease import LEASE_SECONDS, LeaseOwner
from server.store import Store
from tests.server.store_samples import EVENT, NOON, SPEC

TAKE = """
import sys, threading
from server.lease import LeaseOwner
from server.store import Store
Store(sys.argv[1]).take_lease(LeaseOwner.this_process(), float(sys.argv[2]))
print("taken", flush=True)
threading.Event().wait(60)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/coppice.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with contextlib.closing(Store(url)) as made:
        made.migrate()
        yield made


@pytest.fixture
def second(store: Store, url: str) -> Iterator[Store]:
    with contextlib.closing(Store(url)) as made:
        yield made


@pytest.fixture
def other_server(store: Store, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that took the lease at noon and does nothing since."""
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, url, str(NOON)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == b"taken\n"
        yield process
        process.kill()


def living_elsewhere() -> LeaseOwner:
    """An owner of whom nothing can be known from here."""
    return replace(LeaseOwner.this_process(), host="other", process_table="another boot")


def test_a_second_server_is_told_who_has_the_store(
    store: Store, other_server: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(StoreLeased, match=rf"another server \(pid {other_server.pid} on host"):
        store.take_lease(LeaseOwner.this_process(), NOON + 1)


def test_a_killed_server_leaves_the_store_free_at_once(
    store: Store, other_server: subprocess.Popen[bytes]
) -> None:
    other_server.send_signal(signal.SIGKILL)
    other_server.wait(timeout=30)
    store.take_lease(LeaseOwner.this_process(), NOON + 1)
    store.append([EVENT], NOON + 1)


def test_a_killed_server_whose_parent_has_not_noticed_is_dead_too(
    store: Store, other_server: subprocess.Popen[bytes]
) -> None:
    other_server.send_signal(signal.SIGKILL)
    # Waits for the death and leaves the zombie.
    os.waitid(os.P_PID, other_server.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(other_server.pid).status() == psutil.STATUS_ZOMBIE
    store.take_lease(LeaseOwner.this_process(), NOON + 1)


def test_a_process_that_got_the_id_of_a_dead_one_is_not_taken_for_it(
    store: Store, second: Store
) -> None:
    myself = LeaseOwner.this_process()
    before = replace(myself, process_started_at=myself.process_started_at - 60)
    store.take_lease(before, NOON)
    second.take_lease(LeaseOwner.this_process(), NOON + 1)


def test_a_changed_clock_does_not_make_a_process_another(
    store: Store, second: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.take_lease(LeaseOwner.this_process(), NOON)
    boot, created = psutil.boot_time(), psutil.Process.create_time
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: created(process) + 3600)
    with pytest.raises(StoreLeased):
        second.take_lease(LeaseOwner.this_process(), NOON + 1)


def test_a_server_on_another_machine_keeps_its_lease_until_it_runs_out(
    store: Store, second: Store
) -> None:
    # No process here has this id; that says nothing about the other machine.
    away = replace(living_elsewhere(), pid=2**22 + 1)
    store.take_lease(away, NOON)
    with pytest.raises(StoreLeased, match="on host other"):
        second.take_lease(LeaseOwner.this_process(), NOON + LEASE_SECONDS)
    second.take_lease(LeaseOwner.this_process(), NOON + LEASE_SECONDS + 0.1)


def test_a_renewed_lease_does_not_run_out(store: Store, second: Store) -> None:
    away = living_elsewhere()
    store.take_lease(away, NOON)
    store.renew_lease(away, NOON + 10)
    with pytest.raises(StoreLeased):
        second.take_lease(LeaseOwner.this_process(), NOON + LEASE_SECONDS + 5)


def test_a_lease_from_the_future_is_out_of_date(store: Store, second: Store) -> None:
    store.take_lease(living_elsewhere(), NOON)
    second.take_lease(LeaseOwner.this_process(), NOON - 3600)


def test_a_lease_that_was_given_back_is_free(store: Store, second: Store) -> None:
    owner = LeaseOwner.this_process()
    store.take_lease(owner, NOON)
    store.release_lease(owner)
    second.take_lease(LeaseOwner.this_process(), NOON)


def test_only_its_holder_can_give_a_lease_back(store: Store, second: Store) -> None:
    store.take_lease(LeaseOwner.this_process(), NOON)
    second.release_lease(LeaseOwner.this_process())
    with pytest.raises(StoreLeased):
        second.take_lease(LeaseOwner.this_process(), NOON + 1)


def test_a_server_may_take_its_own_lease_again(store: Store) -> None:
    owner = LeaseOwner.this_process()
    store.take_lease(owner, NOON)
    store.take_lease(owner, NOON + 1)


def test_who_lost_the_lease_cannot_renew_it_or_write(store: Store, second: Store) -> None:
    suspended = living_elsewhere()
    store.take_lease(suspended, NOON)
    run_id = store.submit_run(SPEC, NOON)
    second.take_lease(LeaseOwner.this_process(), NOON + 60)
    with pytest.raises(StoreLeased, match="took this store over"):
        store.renew_lease(suspended, NOON + 60)
    with pytest.raises(StoreLeased, match="took this store over"):
        store.submit_run(SPEC, NOON + 60)
    with pytest.raises(StoreLeased, match="took this store over"):
        store.append([EVENT], NOON + 60)
    assert [run.run_id for run in second.runs()] == [run_id]
    assert second.events(None) == []
    second.append([EVENT], NOON + 60)


def test_who_lost_the_lease_to_a_server_that_ended_cannot_write_either(
    store: Store, second: Store
) -> None:
    store.take_lease(living_elsewhere(), NOON)
    taker = LeaseOwner.this_process()
    second.take_lease(taker, NOON + 60)
    second.release_lease(taker)
    with pytest.raises(StoreLeased, match="one that ended since"):
        store.append([EVENT], NOON + 60)


def test_of_many_who_take_a_lease_at_once_one_gets_it(store: Store, url: str) -> None:
    outcomes: list[str] = []
    together = threading.Barrier(4)

    def take() -> None:
        with contextlib.closing(Store(url)) as mine:
            together.wait(timeout=30)
            try:
                mine.take_lease(LeaseOwner.this_process(), NOON)
                outcomes.append("taken")
            except StoreLeased:
                outcomes.append("leased")

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(outcomes) == ["leased", "leased", "leased", "taken"]

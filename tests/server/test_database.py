"""The database file: durable when it says so, and clear about what is wrong with it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coppice.errors import (
    DiskFull,
    StoreUnusable,
)
from server import database
from server.records import (
    NewEvent,
)
from server.store import Store
from tests.server.store_samples import (
    NOON,
    SPEC,
    blob,
    mounted,
    plan,
    start,
)


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(f"sqlite:///{tmp_path}/coppice.db")) as made:
        made.migrate()
        yield made


class TestTheFile:
    def test_commits_are_synchronous_and_readers_do_not_block(self, file_store: Store) -> None:
        for transaction in (file_store._database.read, file_store._database.write):
            with transaction() as connection:
                found = [
                    connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                    for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
                ]
            assert found == ["wal", 2, 1, database.BUSY_TIMEOUT_SECONDS * 1000]

    def test_a_store_that_need_not_be_durable_does_not_wait_for_the_disk(
        self, tmp_path: Path
    ) -> None:
        store = Store(f"sqlite:///{tmp_path}/coppice.db", durable=False)
        with contextlib.closing(store), store._database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 0

    def test_a_failed_change_changes_nothing(self, file_store: Store) -> None:
        run_id = start(file_store)
        task = plan(file_store, run_id, "pi-1")[0]
        too_big = [NewEvent("kind", "text", run_id=2**70)]
        with pytest.raises(OverflowError):
            file_store.store_update(task.task_id, blob("u"), 1, 1, {}, NOON, too_big)
        assert file_store.update(task.task_id) is None

    def test_readers_see_the_last_commit_while_a_writer_writes(self, file_store: Store) -> None:
        run_id = start(file_store)
        found: list[object] = []
        with file_store._write() as connection:
            connection.exec_driver_sql("UPDATE runs SET reason = 'not committed'")
            reader = threading.Thread(target=lambda: found.append(file_store.run(run_id).reason))
            reader.start()
            reader.join(timeout=30)
        assert found == [""]
        assert file_store.run(run_id).reason == "not committed"

    def test_a_writer_has_the_file_from_its_beginning(
        self, file_store: Store, tmp_path: Path
    ) -> None:
        path = tmp_path / "coppice.db"
        with (
            contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other,
            file_store._database.write(),
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")

    def test_what_was_committed_survives_sigkill(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/coppice.db"
        script = f"""
import sys, threading
from tests.server.store_samples import NOON, blob, plan, start
from server.store import Store
store = Store({url!r})
store.migrate()
run_id = start(store)
tasks = plan(store, run_id, "pi-1", "pi-2")
store.store_update(tasks[0].task_id, blob("u"), 10, 5, {{"loss": 1.5}}, NOON)
with store._write() as connection:
    connection.exec_driver_sql("UPDATE updates SET counted = 1")
    print("stored", flush=True)
    threading.Event().wait(60)
"""
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"stored\n"
            process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL

        with contextlib.closing(Store(url)) as store:
            store.migrate()
            run = store.open_run()
            assert run is not None
            assert [task.client_id for task in store.open_tasks(run.run_id)] == ["pi-1", "pi-2"]
            (update,) = store.updates(run.run_id, 1)
            assert (update.metrics, update.counted) == ({"loss": 1.5}, False)
            with contextlib.closing(sqlite3.connect(tmp_path / "coppice.db")) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def repeat(times: int, operation: Callable[[], None]) -> None:
    for _ in range(times):
        operation()


class TestBadStores:
    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with (
            contextlib.closing(Store(f"sqlite:///{tmp_path}/no/coppice.db")) as store,
            pytest.raises(StoreUnusable, match="there is no folder"),
        ):
            store.migrate()

    def test_a_folder_that_is_not_writable_is_named(self, tmp_path: Path) -> None:
        with (
            mounted(tmp_path, "ro"),
            contextlib.closing(Store(f"sqlite:///{tmp_path}/coppice.db")) as store,
            pytest.raises(StoreUnusable, match=f"{tmp_path} is not writable"),
        ):
            store.migrate()

    def test_a_file_that_is_no_database_is_refused_and_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "coppice.db"
        path.write_bytes(b"a diary\n" * 1000)
        with (
            contextlib.closing(Store(f"sqlite:///{path}")) as store,
            pytest.raises(StoreUnusable, match="is not a database"),
        ):
            store.migrate()
        assert path.read_bytes() == b"a diary\n" * 1000

    def test_a_damaged_database_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "coppice.db"
        with contextlib.closing(Store(f"sqlite:///{path}")) as store:
            store.migrate()
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        path.write_bytes(data)
        with (
            contextlib.closing(Store(f"sqlite:///{path}")) as store,
            pytest.raises(StoreUnusable, match="is damaged"),
        ):
            store.runs()

    def test_a_damaged_page_that_nobody_reads_is_found_at_the_start(self, tmp_path: Path) -> None:
        path = tmp_path / "coppice.db"
        with contextlib.closing(Store(f"sqlite:///{path}")) as store:
            store.migrate()
        with path.open("r+b") as file:
            file.seek(-4096, os.SEEK_END)
            file.write(b"\xff" * 4096)
        with (
            contextlib.closing(Store(f"sqlite:///{path}")) as store,
            pytest.raises(StoreUnusable, match="is damaged"),
        ):
            store.migrate()

    def test_another_program_that_reads_takes_nothing_away(self, tmp_path: Path) -> None:
        path = tmp_path / "coppice.db"
        with contextlib.closing(Store(f"sqlite:///{path}")) as store:
            store.migrate()
            store.migrate()
            run_id = store.submit_run(SPEC, NOON)
            # It would clear the log away that it takes for its own, if it were the last one.
            read = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT 1 FROM runs')"
            subprocess.run([sys.executable, "-c", read, path], check=True, timeout=60)
            assert path.with_name("coppice.db-wal").exists()
            assert store.run(run_id).spec == SPEC

    def test_a_database_that_another_program_locks_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.01)
        path = tmp_path / "coppice.db"
        with contextlib.closing(Store(f"sqlite:///{path}")) as store:
            store.migrate()
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreUnusable, match="in use by another program"):
                    store.submit_run(SPEC, NOON)
                other.execute("ROLLBACK")
            store.submit_run(SPEC, NOON)

    def test_a_database_that_may_not_grow_is_a_full_disk(self, tmp_path: Path) -> None:
        with contextlib.closing(Store(f"sqlite:///{tmp_path}/coppice.db")) as store:
            store.migrate()
            with store._database.read() as connection:
                connection.exec_driver_sql("PRAGMA max_page_count = 1")
            lines = [NewEvent("kind", "x" * 10_000)] * 10
            with pytest.raises(DiskFull, match="no space is left on the disk of"):
                store.append(lines, NOON)
            assert store.events(None) == []

    def test_a_full_disk_loses_nothing(self, tmp_path: Path) -> None:
        with (
            mounted(tmp_path, "size=1m"),
            contextlib.closing(Store(f"sqlite:///{tmp_path}/coppice.db")) as store,
        ):
            store.migrate()
            run_id = store.submit_run(SPEC, NOON)
            line = NewEvent("kind", "x" * 10_000)
            with pytest.raises(DiskFull, match=str(tmp_path)):
                repeat(1000, lambda: store.append([line], NOON))
            assert store.run(run_id).spec == SPEC
            assert len(store.events(None)) > 10

    def test_a_url_that_means_nothing_is_refused(self) -> None:
        for url in ("coppice.db", "nosuch://host/db", "sqlite+nosuch:///x.db"):
            with pytest.raises(StoreUnusable, match="URL"):
                Store(url)

    def test_a_value_of_another_version_is_named(self, file_store: Store) -> None:
        run_id = file_store.submit_run(SPEC, NOON)
        with file_store._database.write() as connection:
            connection.exec_driver_sql("UPDATE runs SET spec = '{\"unknown\": 1}'")
        with pytest.raises(StoreUnusable, match="cannot read: RunSpec has no unknown"):
            file_store.run(run_id)

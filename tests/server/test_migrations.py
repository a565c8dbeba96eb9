"""Migrations end in the tables that the code uses, whole or not at all, and only in a store."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from coppice.errors import StoreUnusable
from server import database
from server.records import EvaluationRecord
from server.store import Store
from server.tables import metadata
from tests.server.store_samples import NOON, SPEC, blob


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coppice.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(f"sqlite:///{path}")) as made:
        yield made


def names(path: Path) -> set[str]:
    """Tables of a database."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {name for (name,) in rows}


def test_migrations_from_nothing_give_the_tables_of_the_code(store: Store, path: Path) -> None:
    store.migrate()
    with store._database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    assert names(path) == {*metadata.tables, "alembic_version"}


def test_migrations_give_the_keys_and_checks_of_the_code(store: Store, tmp_path: Path) -> None:
    # Alembic compares neither.
    def found(each: Store) -> dict[str, object]:
        with each._database.read() as connection:
            inspector = inspect(connection)
            return {
                table: (inspector.get_pk_constraint(table), inspector.get_check_constraints(table))
                for table in metadata.tables
            }

    store.migrate()
    with contextlib.closing(Store(f"sqlite:///{tmp_path}/made.db")) as made:
        with made._database.write() as connection:
            metadata.create_all(connection)
        assert found(store) == found(made)


def test_the_program_may_be_in_a_folder_of_any_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A per cent sign means something in Alembic's configuration.
    moved = shutil.copytree(database._MIGRATIONS, tmp_path / "100% mine")
    monkeypatch.setattr(database, "_MIGRATIONS", moved)
    store.migrate()
    assert store.runs() == []


def test_migrating_again_changes_nothing(store: Store, path: Path) -> None:
    store.migrate()
    run_id = store.submit_run(SPEC, NOON)
    store.close()
    before = path.read_bytes()
    store.migrate()
    store.close()
    assert path.read_bytes() == before
    assert store.run(run_id).spec == SPEC


def test_what_the_first_version_stored_is_kept(
    store: Store, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = shutil.copytree(database._MIGRATIONS, tmp_path / "early")
    for file in (early / "versions").glob("*.py"):
        if file.name[:4] > "0001":
            file.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(database, "_MIGRATIONS", early)
        store.migrate()
    run_id = store.submit_run(SPEC, NOON)
    store.start_run(run_id, blob("0"), NOON)
    store.open_round(run_id, 1, NOON)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO payload_specs VALUES ('s', '{}')")
        for task_id, client in ((1, "pi-1"), (2, "pi-2")):
            connection.execute(
                "INSERT INTO tasks (task_id, run_id, round_number, kind, client_id, position, "
                "payload_digest, payload_size_bytes, settings, spec_digest, base_digest, "
                "deadline_at, closed) "
                "VALUES (?, ?, 1, 'train', ?, 0, 'p', 9, '{}', 's', 'b', ?, 0)",
                (task_id, run_id, client, NOON + 60),
            )
        connection.execute(
            "INSERT INTO updates (task_id, digest, size_bytes, num_examples, steps, metrics, "
            "received_at, counted) VALUES (1, 'u', 3, 10, 5, '{}', ?, 0)",
            (NOON + 50,),
        )
        connection.execute(
            "INSERT INTO evaluations VALUES (?, 1, 'server', '{\"loss\":0.5}', ?)", (run_id, NOON)
        )
    store.migrate()
    tasks = store.tasks(run_id, 1)
    assert [(task.client_id, task.masks, task.deadline_at) for task in tasks] == [
        ("pi-1", None, NOON + 60),
        ("pi-2", None, NOON + 60),
    ]
    update = store.update(1)
    assert update is not None
    # What nobody knows any more: it counts as no time.
    assert (update.masks, update.offered_at) == (None, NOON + 60)
    assert store.evaluations(run_id) == [EvaluationRecord(run_id, 1, "server", {"loss": 0.5}, {})]
    # And the old round goes on.
    store.store_update(2, blob("c"), 1, 1, {}, NOON + 55)
    assert len(store.updates(run_id, 1)) == 2


def test_a_database_of_a_newer_version_is_refused_and_stays(store: Store, path: Path) -> None:
    store.migrate()
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match=r"newer version of Coppice \(revision 9999\)"):
        store.migrate()
    store.close()
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_stays(store: Store, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(StoreUnusable, match="tables of another program"):
        store.migrate()
    assert names(path) == {"recipes"}


def test_a_migration_that_fails_leaves_nothing_behind(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreUnusable("the power went")

    with monkeypatch.context() as patched:
        patched.setattr(op, "create_index", fail)
        with pytest.raises(StoreUnusable, match="the power went"):
            store.migrate()
    assert names(path) == set()
    store.migrate()
    assert store.runs() == []

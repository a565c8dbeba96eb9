"""The database behind a URL: two kinds of transaction, and what can go wrong with it, in words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, StaticPool, create_engine, event, inspect, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
)

from coppice.errors import CoppiceError, DiskFull, StoreUnusable

#: How long a transaction waits for another program that is writing to the same SQLite file.
BUSY_TIMEOUT_SECONDS = 5.0

_MIGRATIONS = Path(__file__).parent / "migrations"
_WRITES = {"coppice_writes": True}


class Database:
    """The database behind a URL. Any thread may read; writing is for one thread at a time."""

    def __init__(self, url: str, *, durable: bool = True) -> None:
        """Nothing is opened yet.

        Args:
            url: As SQLAlchemy takes it, such as `sqlite:////var/lib/coppice/coppice.db`.
            durable: Whether a committed transaction is on the disk (SQLite only).
        """
        try:
            self._url = make_url(url)
            is_sqlite = self._url.get_backend_name() == "sqlite"
            in_memory = is_sqlite and self._url.database in (None, "", ":memory:")
            options: dict[str, Any] = {}
            if is_sqlite:
                options["connect_args"] = {
                    "timeout": BUSY_TIMEOUT_SECONDS,
                    "check_same_thread": False,
                }
            if in_memory:
                options["poolclass"] = StaticPool
            self._engine = create_engine(self._url, **options)
            self._writing = self._engine.execution_options(**_WRITES)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise StoreUnusable(f"the store's URL cannot be used: {error}") from None
        # A database in memory has one connection, which threads have to take in turns.
        self._turn = threading.RLock() if in_memory else contextlib.nullcontext()
        if is_sqlite:
            self._set_up_sqlite(durable)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the database and changes nothing."""
        with self._turn, self._errors(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end of the block, and not at all on an error."""
        with self._turn, self._errors(), self._writing.begin() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the tables to this version's state, in one transaction.

        StoreUnusable when the database is damaged, of a newer version or of another program.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        known = {item.revision for item in ScriptDirectory.from_config(config).walk_revisions()}
        self._make_file()
        self._check()
        with self.write() as connection:
            found = set(MigrationContext.configure(connection).get_current_heads())
            if found - known:
                raise StoreUnusable(
                    f"{self._name} was written by a newer version of Coppice (revision "
                    f"{', '.join(sorted(found - known))}); update Coppice or use another store"
                )
            if not found and inspect(connection).get_table_names():
                raise StoreUnusable(
                    f"{self._name} holds the tables of another program; use another store"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _check(self) -> None:
        """StoreUnusable when an SQLite file is damaged: read whole, so once at a start."""
        if self._url.get_backend_name() != "sqlite":
            return
        with self.read() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if found != "ok":
            raise StoreUnusable(
                f"{self._name} is damaged; put back a copy of it or use another store"
            )

    def _make_file(self) -> None:
        """Have a SQLite file that only its user may read; its journals take after it."""
        if self._url.get_backend_name() != "sqlite" or self._url.database in (None, "", ":memory:"):
            return
        path = str(self._url.database)
        # What cannot be made here is explained where it is opened; another's file is another's.
        with contextlib.suppress(OSError):
            try:
                # Only where there is none: closing a file drops this process's locks on it, by
                # which SQLite keeps other programs from taking the write-ahead log away.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                os.chmod(path, 0o600)

    def _set_up_sqlite(self, durable: bool) -> None:
        def configure(connection: sqlite3.Connection, _: object) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
            connection.execute("PRAGMA foreign_keys=ON")

        def begin(connection: Connection) -> None:
            # A writer that begins as a reader can find itself unable to go on; IMMEDIATE waits.
            # Without an explicit beginning the driver would begin by itself, as a reader.
            writes = connection.get_execution_options().get("coppice_writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        event.listen(self._engine, "connect", configure)
        event.listen(self._engine, "begin", begin)

    @property
    def _name(self) -> str:
        if self._url.get_backend_name() == "sqlite":
            return str(self._url.database or ":memory:")
        return self._url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, ProgrammingError):
            # The caller's mistake and not the database's state: nothing a user could mend.
            raise
        except (DBAPIError, sqlite3.Error) as error:
            raise self._explained(error) from None

    def _explained(self, error: DBAPIError | sqlite3.Error) -> CoppiceError:
        cause = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", None)
        if code is None:
            return StoreUnusable(
                f"the database {self._name} failed: {str(cause).splitlines()[0]}; "
                "see that it runs and lets this user in"
            )
        folder = Path(self._name).absolute().parent
        # The low byte is the kind of an error, the others say more about it.
        match code & 0xFF:
            case sqlite3.SQLITE_FULL:
                return DiskFull(
                    f"no space is left on the disk of {folder}; free some and start again"
                )
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                text = "is in use by another program; end that program or use another store"
            case sqlite3.SQLITE_NOTADB:
                text = "is not a database; use another store or move the file away"
            case sqlite3.SQLITE_CORRUPT:
                text = "is damaged; put back a copy of it or use another store"
            case sqlite3.SQLITE_CANTOPEN if not folder.is_dir():
                text = f"cannot be made: there is no folder {folder}; make it or use another store"
            case sqlite3.SQLITE_CANTOPEN if not os.access(folder, os.W_OK):
                text = f"cannot be made: {folder} is not writable; change that or its owner"
            case sqlite3.SQLITE_READONLY:
                text = "is not writable; change that, the folder's mode or their owner"
            case _:
                text = f"cannot be used: {cause}; check the file, its disk and its owner"
        return StoreUnusable(f"{self._name} {text}")

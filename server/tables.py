"""The tables of the store; times are seconds since the epoch, digests hexadecimal SHA-256."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

from coppice.domain import Capability, RoundReport, RunSpec
from coppice.errors import InvalidPayload, StoreUnusable
from coppice.tensors import TensorSpec
from coppice.tree import from_plain, to_plain


def plain_text(value: object) -> str:
    """A tree without tensors as JSON; equal trees in equal order give equal texts."""
    return json.dumps(to_plain(value), separators=(",", ":"))


# All tasks of a round share one spec of hundreds of tensors: reading it anew for each would cost
# more than all else that the store does.
@lru_cache(maxsize=64)
def _read(kind: Any, text: str) -> Any:
    try:
        return from_plain(kind, json.loads(text))
    except (InvalidPayload, ValueError) as error:
        raise StoreUnusable(
            f"the database holds a value that this version of Coppice cannot read: {error}"
        ) from None


class Plain(TypeDecorator[Any]):
    """A tree without tensors as JSON text, read back as `kind`; equal texts may give one object."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        """The text of a tree."""
        return plain_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """The tree of a text; None where an outer join found no row."""
        return None if value is None else _read(self.kind, value)


DIGEST = String(64)
NAME = String(63)
WORD = String(16)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

#: One training under one specification. `round_number` is the last round that is over, and
#: `state_*` the state after it.
runs = Table(
    "runs",
    metadata,
    Column("run_id", Integer, primary_key=True),
    Column("spec", Plain(RunSpec), nullable=False),
    Column("state", WORD, nullable=False),
    Column("reason", Text, nullable=False),
    Column("submitted_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("round_number", Integer, nullable=False),
    Column("state_digest", DIGEST),
    Column("state_size_bytes", BigInteger),
    Column("best_round", Integer),
    Column("best_value", Double),
    Column("best_digest", DIGEST),
    Column("best_size_bytes", BigInteger),
)

#: `state_*` is the state after the round, the old one where the round failed.
rounds = Table(
    "rounds",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("round_number", Integer, primary_key=True, autoincrement=False),
    Column("state", WORD, nullable=False),
    Column("opened_at", Double, nullable=False),
    Column("closed_at", Double),
    Column("num_updates", Integer, nullable=False),
    Column("bytes_down", BigInteger, nullable=False),
    Column("bytes_up", BigInteger, nullable=False),
    Column("metrics", Plain(Mapping[str, float]), nullable=False),
    Column("state_digest", DIGEST),
    Column("state_size_bytes", BigInteger),
)

#: What updates must be. All tasks of a round share one, often all of a run, so it is kept once.
payload_specs = Table(
    "payload_specs",
    metadata,
    Column("spec_digest", DIGEST, primary_key=True),
    Column("spec", Plain(Mapping[str, Mapping[str, TensorSpec]]), nullable=False),
)

#: What each client of a round was asked to do. `base_digest` is the state it was planned from.
tasks = Table(
    "tasks",
    metadata,
    Column("task_id", Integer, primary_key=True),
    Column("run_id", Integer, nullable=False),
    Column("round_number", Integer, nullable=False),
    Column("kind", WORD, nullable=False),
    Column("client_id", NAME, nullable=False),
    Column("position", Integer, nullable=False),
    Column("payload_digest", DIGEST, nullable=False),
    Column("payload_size_bytes", BigInteger, nullable=False),
    Column("masks_digest", DIGEST),
    Column("masks_size_bytes", BigInteger),
    Column("settings", Plain(Mapping[str, Any]), nullable=False),
    Column("spec_digest", ForeignKey("payload_specs.spec_digest"), nullable=False),
    Column("base_digest", DIGEST, nullable=False),
    Column("offered_at", Double, nullable=False),
    Column("deadline_at", Double, nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("most_examples", BigInteger),
    Column("most_steps", BigInteger),
    ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.round_number"]),
    UniqueConstraint("run_id", "round_number", "kind", "client_id"),
    Index(None, "closed", "run_id"),
)

#: At most one for each task, and so for each task and base version, as a task has one base: what
#: the client answered, and whether a committed state has it.
updates = Table(
    "updates",
    metadata,
    Column("task_id", ForeignKey("tasks.task_id"), primary_key=True, autoincrement=False),
    Column("digest", DIGEST, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("num_examples", BigInteger, nullable=False),
    Column("steps", BigInteger, nullable=False),
    Column("metrics", Plain(Mapping[str, float]), nullable=False),
    Column("received_at", Double, nullable=False),
    Column("counted", Boolean, nullable=False),
)

#: Updates that were refused, at most one for each task, with the figures behind it. Those that
#: were refused when they came have no row in `updates`.
quarantine = Table(
    "quarantine",
    metadata,
    Column("refusal_id", Integer, primary_key=True),
    Column("task_id", ForeignKey("tasks.task_id"), nullable=False, unique=True),
    Column("run_id", Integer, nullable=False),
    Column("round_number", Integer, nullable=False),
    Column("client_id", NAME, nullable=False),
    Column("rule", WORD, nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", Plain(Mapping[str, float]), nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("refused_at", Double, nullable=False),
    ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.round_number"]),
    Index(None, "run_id", "client_id"),
)

#: What rounds took on devices, as these measured it; at most one for each update to train.
reports = Table(
    "reports",
    metadata,
    Column("report_id", Integer, primary_key=True),
    Column("run_id", Integer, nullable=False),
    Column("round_number", Integer, nullable=False),
    Column("client_id", NAME, nullable=False),
    Column("report", Plain(RoundReport), nullable=False),
    Column("received_at", Double, nullable=False),
    ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.round_number"]),
    UniqueConstraint("run_id", "round_number", "client_id"),
    Index(None, "run_id", "report_id"),
    Index(None, "client_id", "report_id"),
)

#: `place` is "server" or "clients".
evaluations = Table(
    "evaluations",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("round_number", Integer, primary_key=True, autoincrement=False),
    Column("place", WORD, primary_key=True),
    Column("metrics", Plain(Mapping[str, float]), nullable=False),
    Column("others", Plain(Mapping[str, Mapping[str, float]]), nullable=False),
    Column("evaluated_at", Double, nullable=False),
)

#: Every device that ever joined. A name belongs to the `device_id` that joined with it first.
clients = Table(
    "clients",
    metadata,
    Column("client_id", NAME, primary_key=True),
    Column("device_id", Text, nullable=False),
    Column("labels", Plain(Mapping[str, str]), nullable=False),
    Column("capability", Plain(Capability), nullable=False),
    Column("app_digest", Text, nullable=False),
    Column("software", Text, nullable=False),
    Column("joined_at", Double, nullable=False),
    Column("left_at", Double),
    Column("left_reason", Text, nullable=False),
    Column("refusals", BigInteger, nullable=False),
)

#: What lets devices in. Only who was given a token knows its secret.
tokens = Table(
    "tokens",
    metadata,
    Column("token_id", Integer, primary_key=True),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("used", Integer, nullable=False),
    Column("revoked_at", Double),
)

#: Every key that was ever let in. Of one name, at most one is not revoked.
members = Table(
    "members",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("name", NAME, nullable=False),
    Column("serial", String(40), nullable=False),
    Column("token_id", ForeignKey("tokens.token_id"), nullable=False),
    Column("enrolled_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("revoked_at", Double),
    Index(None, "name"),
)

#: What lets people and programs use the page and the API. Of one name, at most one is not revoked.
access_tokens = Table(
    "access_tokens",
    metadata,
    Column("access_id", Integer, primary_key=True),
    Column("name", NAME, nullable=False),
    Column("role", WORD, nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)

#: Who did what. Rows are only ever added: on SQLite the migration has seen to that.
audit = Table(
    "audit",
    metadata,
    Column("audit_id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("who", NAME, nullable=False),
    Column("role", WORD, nullable=False),
    Column("address", Text, nullable=False),
    Column("action", String(63), nullable=False),
    Column("detail", Text, nullable=False),
    Column("outcome", WORD, nullable=False),
)

#: The log, for people and the dashboard.
events = Table(
    "events",
    metadata,
    Column("event_id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("kind", String(63), nullable=False),
    Column("text", Text, nullable=False),
    Column("run_id", Integer),
    Column("round_number", Integer),
    Column("client_id", NAME),
    Index(None, "run_id", "event_id"),
)

#: The one server that may write: see `server.lease`.
lease = Table(
    "lease",
    metadata,
    Column("lease_id", Integer, primary_key=True, autoincrement=False),
    Column("token", String(32), nullable=False),
    Column("host", Text, nullable=False),
    Column("process_table", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("process_started_at", Double, nullable=False),
    Column("renewed_at", Double, nullable=False),
    CheckConstraint("lease_id = 1", name="one_row"),
)

"""Tokens of people and programs in the store, and the audit log beside everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import IntegrityError

from coppice.errors import NameTaken, UnknownToken
from server import store_access, tables
from server.access_records import Actor, Role
from server.store import Store
from tests.server.store_samples import EVENT, KINDS_OF_STORE, NOON, SPEC, fresh_store

ANNA = Actor("anna", Role.OPERATOR, "10.0.0.7")


@pytest.fixture(params=KINDS_OF_STORE)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_store(request.param, tmp_path) as made:
        yield made


def test_token_is_kept_as_its_hash_with_its_role(store: Store) -> None:
    made = store.add_access("anna", Role.VIEWER, "hash", NOON + 60, NOON, events=[EVENT])
    assert store.access() == [(made, "hash")]
    assert (made.role, made.state(NOON + 59), made.state(NOON + 60)) == (
        Role.VIEWER, "valid", "expired",
    )  # fmt: skip
    assert [event.kind for event in store.events(None)] == [EVENT.kind]


def test_name_is_one_tokens_until_that_is_revoked(store: Store) -> None:
    store.add_access("anna", Role.VIEWER, "one", None, NOON)
    with pytest.raises(NameTaken, match="fedserver access revoke anna"):
        store.add_access("anna", Role.OPERATOR, "two", None, NOON)
    store.revoke_access("anna", NOON + 1, [EVENT])
    store.add_access("anna", Role.OPERATOR, "two", None, NOON + 2)
    store.add_access("anna", Role.OPERATOR, "three", None, NOON + 3, replaces=True)
    assert [(key, record.revoked_at) for record, key in store.access()] == [
        ("one", NOON + 1), ("two", NOON + 3), ("three", None),
    ]  # fmt: skip


def test_what_is_not_there_cannot_be_revoked(store: Store) -> None:
    with pytest.raises(UnknownToken):
        store.revoke_access("anna", NOON, [EVENT, ANNA.did("revoke access")])
    assert (store.events(None), store.audit()) == ([], [])


def test_number_of_tokens_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_access, "MOST_TOKENS", 2)
    for name in ("a", "b"):
        store.add_access(name, Role.VIEWER, name, None, NOON)
    with pytest.raises(NameTaken, match="revoke one"):
        store.add_access("c", Role.VIEWER, "c", None, NOON)
    store.revoke_access("a", NOON)
    store.add_access("c", Role.VIEWER, "c", None, NOON)


def test_what_was_done_is_noted_with_it_or_not_at_all(store: Store) -> None:
    store.submit_run(SPEC, NOON, [EVENT, ANNA.did("submit run", "digits")])
    with pytest.raises(UnknownToken):
        store.revoke_token(9, NOON, [ANNA.did("revoke token", "9")])
    (line,) = store.audit()
    assert (line.at, line.who, line.role, line.address, line.action, line.detail, line.outcome) == (
        NOON, "anna", "operator", "10.0.0.7", "submit run", "digits", "done",
    )  # fmt: skip
    assert len(store.events(None)) == 1


def test_log_is_read_by_pages(store: Store) -> None:
    store.append([ANNA.did("log in", str(number)) for number in range(5)], NOON)
    assert [line.detail for line in store.audit(after=1, limit=2)] == ["1", "2"]
    assert [line.detail for line in store.audit(limit=2, newest=True)] == ["3", "4"]


def test_what_callers_say_is_bounded_and_cannot_steer_a_terminal() -> None:
    entry = ANNA.was_refused("GET /\x1b[2J" + "x" * 99, "é\r\n" + "x" * 9999)
    assert entry.action.startswith("GET /?[2Jx")
    assert entry.detail.startswith("é??x")
    assert (len(entry.action), len(entry.detail)) == (63, 500)


@pytest.mark.parametrize("change", [update(tables.audit).values(who="x"), delete(tables.audit)])
def test_log_cannot_be_changed(store: Store, change: object) -> None:
    store.append([ANNA.did("log in")], NOON)
    before = store.audit()
    with pytest.raises(IntegrityError, match="append-only"), store._write() as connection:
        connection.execute(change)  # type: ignore[call-overload]
    assert store.audit() == before

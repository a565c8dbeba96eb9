"""Tokens and members in the store: who gets in, how often, and who no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import ClientId
from coppice.errors import (
    CertificateExpired,
    CoppiceError,
    MemberRevoked,
    NameTaken,
    NotEnrolled,
    TokenRefused,
    UnknownMember,
    UnknownToken,
)
from server.member_records import Admission
from server.store import Store
from tests.server.store_samples import EVENT, KINDS_OF_STORE, NOON, fresh_store, new_client

HOUR = 3600.0
ASKED = Admission("f" * 64, "pi-1", "hash", "1a", NOON + HOUR, NOON - HOUR)
BY_KEY = replace(ASKED, name="", secret_hash=None, serial="2b", expires_at=NOON + 2 * HOUR)


@pytest.fixture(params=KINDS_OF_STORE)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_store(request.param, tmp_path) as made:
        made.add_token("hash", NOON + 60, 2, NOON)
        yield made


def states(store: Store, now: float = NOON) -> list[tuple[str, int]]:
    return [(token.state(now), token.used) for token in store.tokens()]


def refused(store: Store, asked: Admission, error: type[CoppiceError], says: str) -> None:
    """It is, and nothing has changed."""
    before = store.members(), store.tokens(), store.events(None)
    with pytest.raises(error, match=says):
        store.admit(asked, NOON, [EVENT])
    assert (store.members(), store.tokens(), store.events(None)) == before


def test_token_lets_in_as_many_devices_as_it_may(store: Store) -> None:
    member = store.admit(ASKED, NOON, [EVENT])
    assert store.members() == [member]
    assert (member.name, member.enrolled_at, member.expires_at, member.revoked_at) == (
        "pi-1", NOON, NOON + HOUR, None,
    )  # fmt: skip
    assert states(store) == [("valid", 1)]
    store.admit(replace(ASKED, fingerprint="a", name="pi-2"), NOON)
    assert states(store) == [("used", 2)]
    third = replace(ASKED, fingerprint="b", name="pi-3")
    refused(store, third, TokenRefused, "used as often as it may be")


def test_device_that_asks_again_uses_no_token_up(store: Store) -> None:
    store.admit(ASKED, NOON)
    # Its first answer was lost on the way.
    again = store.admit(replace(ASKED, serial="3c"), NOON + 1)
    assert (again.serial, again.enrolled_at) == ("3c", NOON)
    assert states(store) == [("valid", 1)]


@pytest.mark.parametrize(
    ("change", "now", "says"),
    [
        ({"secret_hash": "other"}, NOON, "does not know the token"),
        ({}, NOON + 60, "this token has expired"),
    ],
)
def test_token_that_is_not_valid_lets_nobody_in(
    store: Store, change: dict[str, Any], now: float, says: str
) -> None:
    with pytest.raises(TokenRefused, match=says):
        store.admit(replace(ASKED, **change), now)
    assert store.members() == []


def test_revoked_token_lets_nobody_in(store: Store) -> None:
    store.revoke_token(1, NOON, [EVENT])
    assert states(store) == [("revoked", 0)]
    refused(store, ASKED, TokenRefused, "was revoked")
    for number in (1, 9):
        with pytest.raises(UnknownToken, match=f"no token {number}"):
            store.revoke_token(number, NOON)


def test_key_renews_without_a_token(store: Store) -> None:
    refused(store, BY_KEY, NotEnrolled, "does not know the device's key")
    store.admit(ASKED, NOON)
    renewed = store.admit(BY_KEY, NOON)
    assert (renewed.name, renewed.serial, renewed.expires_at) == ("pi-1", "2b", NOON + 2 * HOUR)
    assert store.members() == [renewed]


def test_key_that_was_away_for_too_long_needs_a_token_and_keeps_its_name(store: Store) -> None:
    store.admit(ASKED, NOON)
    late = replace(BY_KEY, expired_after=NOON + HOUR + 1)
    refused(store, late, CertificateExpired, "too long ago to be renewed without a token")
    back = store.admit(replace(late, name="pi-1", secret_hash="hash"), NOON)
    assert (back.name, back.expires_at) == ("pi-1", NOON + 2 * HOUR)
    assert states(store) == [("used", 2)]


def test_name_belongs_to_a_key(store: Store) -> None:
    store.admit(ASKED, NOON)
    refused(store, replace(ASKED, fingerprint="a"), NameTaken, "fedserver client revoke pi-1")
    refused(store, replace(ASKED, name="pi-2"), NameTaken, "enrolled as 'pi-1'")


def test_revoked_key_stays_out_and_leaves_its_name(store: Store) -> None:
    store.admit(ASKED, NOON)
    gone = store.revoke_member("pi-1", NOON + 1, [EVENT])
    assert (gone.revoked_at, store.members()) == (NOON + 1, [gone])
    # Whoever revokes a device does not mean its token to let it in again.
    assert states(store) == [("revoked", 1)]
    for asked in (ASKED, BY_KEY):
        refused(store, asked, MemberRevoked, "pi-1 was revoked")
    with pytest.raises(UnknownMember, match="no device is enrolled as 'pi-1'"):
        store.revoke_member("pi-1", NOON)
    store.add_token("second", NOON + 60, 1, NOON)
    new = store.admit(replace(ASKED, fingerprint="a", secret_hash="second"), NOON + 2)
    assert [member.name for member in store.members()] == ["pi-1", "pi-1"]
    assert store.revoke_member("pi-1", NOON + 3).fingerprint == new.fingerprint


def test_name_that_a_device_had_before_is_the_enrolled_one_s(store: Store) -> None:
    store.join_client(new_client(), NOON)
    member = store.admit(ASKED, NOON)
    known = store.client(ClientId("pi-1"))
    assert known is not None
    assert known.device_id == member.device_id
    store.join_client(new_client(device_id=member.device_id), NOON)

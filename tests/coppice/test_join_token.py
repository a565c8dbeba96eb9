"""A token says all that a device needs, and what is not one is told so."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppice.errors import TokenRefused
from coppice.join_token import (
    FINGERPRINT_BYTES,
    PREFIX,
    SECRET_BYTES,
    JoinToken,
    fingerprint_of,
    new_secret,
    parse_token,
)

TOKEN = JoinToken(bytes(range(15)), bytes(range(16)), 7434)
TEXT = "coppice1-aaaqeayeaudaocajbifqydioaaaqeayeaudaocajbifqydiob4oqvd7o"


@given(
    st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
    st.binary(min_size=FINGERPRINT_BYTES, max_size=FINGERPRINT_BYTES),
    st.integers(0, 65535),
)
def test_what_is_written_is_read(secret: bytes, fingerprint: bytes, port: int) -> None:
    token = JoinToken(secret, fingerprint, port)
    assert parse_token(str(token)) == token
    assert len(str(token)) == len(PREFIX) + 56


def test_its_form_is_as_it_was() -> None:
    # Tokens outlive the version that made them.
    assert str(TOKEN) == TEXT
    assert parse_token(TEXT) == TOKEN


def test_capitals_and_spaces_around_it_do_no_harm() -> None:
    assert parse_token(f"  {str(TOKEN).upper()}\n") == TOKEN


@pytest.mark.parametrize("place", [9, 20, 40, 63, 64])
def test_slip_of_the_pen_is_found(place: int) -> None:
    text = str(TOKEN)
    wrong = "b" if text[place] == "a" else "a"
    with pytest.raises(TokenRefused, match="not complete or has a slip"):
        parse_token(text[:place] + wrong + text[place + 1 :])


@pytest.mark.parametrize(
    "text", [str(TOKEN)[:-1], str(TOKEN) + "a", PREFIX, f"{PREFIX}ä1", PREFIX + "a" * 9999]
)
def test_what_is_too_short_or_long_is_told(text: str) -> None:
    with pytest.raises(TokenRefused, match="not complete or has a slip"):
        parse_token(text)


@pytest.mark.parametrize("text", ["", "hunter2", "coppice2-aaaa"])
def test_something_else_is_told(text: str) -> None:
    with pytest.raises(TokenRefused, match="a token begins with coppice1-"):
        parse_token(text)


def test_secret_is_in_no_representation() -> None:
    assert "secret" not in repr(TOKEN)


def test_secrets_differ() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert {len(new_secret())} == {SECRET_BYTES}


def test_fingerprint_is_the_beginning_of_the_digest() -> None:
    assert fingerprint_of(b"x") == hashlib.sha256(b"x").digest()[:FINGERPRINT_BYTES]

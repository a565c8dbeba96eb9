"""What a device keeps of its enrolment: whole, for itself only, and read without cryptography."""

from __future__ import annotations

import json
import stat
import time
from dataclasses import replace

import pytest

from coppice.domain import ClientId
from coppice.errors import StoreUnusable
from coppice.join_token import fingerprint_of
from edge_client.membership import Membership, read_membership, write_membership
from edge_client.state_folder import StateFolder

# Any bytes will do for what is only kept.
PEM = "-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n"
MEMBERSHIP = Membership(ClientId("kitchen"), 7434, PEM, PEM, 2e9)


def test_what_is_written_is_read(folder: StateFolder) -> None:
    assert read_membership(folder) is None
    folder.key.touch()
    write_membership(folder, MEMBERSHIP)
    assert read_membership(folder) == MEMBERSHIP
    assert stat.S_IMODE(folder.membership.stat().st_mode) == 0o600
    assert MEMBERSHIP.fingerprint == fingerprint_of(b"a")


def test_renewed_has_another_certificate_for_another_time(folder: StateFolder) -> None:
    renewed = MEMBERSHIP.renewed(b"b", 100.0)
    assert renewed.certificate == PEM.replace("YQ==", "Yg==")
    assert renewed.seconds_left() == pytest.approx(100.0, abs=10.0)
    assert replace(renewed, certificate=PEM, expires_at=2e9) == MEMBERSHIP
    assert replace(renewed, expires_at=time.time() - 5).seconds_left() < 0


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", json.dumps({"name": "../x", "enrolment_port": 1}).encode()],
)
def test_damaged_file_says_what_to_do(folder: StateFolder, content: bytes) -> None:
    folder.key.touch()
    folder.membership.write_bytes(content)
    with pytest.raises(StoreUnusable, match="join with a token again"):
        read_membership(folder)


def test_without_its_key_it_is_worth_nothing(folder: StateFolder) -> None:
    write_membership(folder, MEMBERSHIP)
    with pytest.raises(StoreUnusable, match=r"device\.key beside it is missing"):
        read_membership(folder)

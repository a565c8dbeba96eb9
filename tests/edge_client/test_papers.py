"""When a device asks for a certificate, and when it makes do with the one that it has."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from coppice.domain import ClientId
from coppice.errors import (
    CertificateExpired,
    CoppiceError,
    HandshakeRefused,
    MemberRevoked,
    NameTaken,
    NotEnrolled,
    ServerBusy,
    ServerUnreachable,
)
from coppice.join_token import JoinToken, new_secret
from edge_client import enrolment
from edge_client.membership import Membership, write_membership
from edge_client.papers import Papers, papers_of
from edge_client.state_folder import StateFolder
from tests.edge_client.test_membership import MEMBERSHIP

NAME = ClientId("shed")
HERE = JoinToken(new_secret(), MEMBERSHIP.fingerprint, 7434)
ELSEWHERE = replace(HERE, fingerprint=bytes(16))
VALID = replace(MEMBERSHIP, expires_at=time.time() + 1e6)
EXPIRED = replace(MEMBERSHIP, expires_at=time.time() - 1e6)


class Calls:
    """The port that lets devices in."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.error: CoppiceError | None = None

    def enrol(self, folder: Any, host: str, token: JoinToken, name: ClientId) -> Membership:
        return self._answer("enrol")

    def renew_late(self, folder: Any, host: str, membership: Membership) -> Membership:
        return self._answer("renew")

    def _answer(self, call: str) -> Membership:
        self.made.append(call)
        if self.error is not None:
            raise self.error
        return VALID


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    monkeypatch.setattr(enrolment, "enrol", made.enrol)
    monkeypatch.setattr(enrolment, "renew_late", made.renew_late)
    return made


@pytest.mark.parametrize(
    ("kept", "token", "made"),
    [
        (None, HERE, ["enrol"]),
        (VALID, None, []),
        # The line of the first time does no harm, and uses up no token.
        (VALID, HERE, []),
        (VALID, ELSEWHERE, ["enrol"]),
        (EXPIRED, None, ["renew"]),
        (EXPIRED, HERE, ["enrol"]),
    ],
)
def test_asks_only_where_it_must(
    folder: StateFolder,
    calls: Calls,
    kept: Membership | None,
    token: JoinToken | None,
    made: list[str],
) -> None:
    if kept is not None:
        folder.key.touch()
        write_membership(folder, kept)
    papers, is_new = papers_of(folder, "host", token, NAME, None)
    assert calls.made == made
    assert is_new == (made == ["enrol"])
    assert papers.membership == VALID


def test_without_token_and_certificate_there_is_none(folder: StateFolder, calls: Calls) -> None:
    with pytest.raises(NotEnrolled, match="fedserver token create"):
        papers_of(folder, "host", None, NAME, None)
    assert calls.made == []


def test_enrolled_device_takes_no_other_name(folder: StateFolder, calls: Calls) -> None:
    folder.key.touch()
    write_membership(folder, VALID)
    papers_of(folder, "host", None, NAME, "kitchen")
    with pytest.raises(NameTaken, match="enrolled as 'kitchen'"):
        papers_of(folder, "host", None, NAME, "shed")


def test_clock_may_be_wrong_where_the_port_cannot_be_reached(
    folder: StateFolder, calls: Calls
) -> None:
    folder.key.touch()
    write_membership(folder, EXPIRED)
    calls.error = ServerUnreachable()
    papers, _ = papers_of(folder, "host", None, NAME, None)
    assert papers.membership == EXPIRED


class TestMend:
    @pytest.fixture
    def papers(self, folder: StateFolder, calls: Calls) -> Papers:
        self.now = 0.0
        return Papers(folder, "host", EXPIRED, clock=lambda: self.now)

    def test_expired_certificate_is_renewed(self, papers: Papers, calls: Calls) -> None:
        assert papers.mend(CertificateExpired())
        assert papers.membership == VALID

    @pytest.mark.parametrize("error", [ServerUnreachable(), ServerBusy()])
    def test_other_failures_are_not_the_certificate_s(
        self, papers: Papers, calls: Calls, error: CoppiceError
    ) -> None:
        assert not papers.mend(error)
        assert calls.made == []

    def test_server_that_closes_at_once_is_asked_now_and_then(
        self, papers: Papers, calls: Calls
    ) -> None:
        for self.now in (0.0, 1.0, 59.0, 61.0, 62.0):
            papers.mend(HandshakeRefused())
        assert len(calls.made) == 2

    def test_port_that_is_not_there_changes_nothing(self, papers: Papers, calls: Calls) -> None:
        calls.error = ServerUnreachable()
        assert not papers.mend(HandshakeRefused())
        assert papers.membership == EXPIRED

    def test_refusal_is_final(self, papers: Papers, calls: Calls) -> None:
        calls.error = MemberRevoked()
        with pytest.raises(MemberRevoked):
            papers.mend(HandshakeRefused())

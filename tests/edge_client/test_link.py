"""The lasting link: first contact, waits, joining again, goodbye. No clock and no network."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from coppice.errors import (
    CoppiceError,
    DataError,
    HandshakeRefused,
    NameTaken,
    NotJoined,
    RoundClosed,
    ServerBusy,
    ServerUnreachable,
)
from coppice.wire import coordination_pb2 as pb
from edge_client.backoff import Backoff
from edge_client.connection import Connection
from edge_client.console import Console
from edge_client.journal import Journal
from edge_client.link import FIRST_CONTACT_SECONDS, Link
from edge_client.status import Status, StatusFile, read_status
from edge_client.stop import Stop, Stopped
from tests.edge_client.test_backoff import Ceilings

GONE = ServerUnreachable("no Coppice server can be reached at host:1")


class ScriptedConnection(Connection):
    """Joins and polls with the outcomes that a test lists; then all goes well."""

    def __init__(self) -> None:
        super().__init__("host:1", "kitchen")
        self.joins: list[CoppiceError | None] = []
        self.polls: list[CoppiceError | None] = []
        self.events: list[str] = []
        self.leave_fails = False

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        self._happen("join", self.joins)
        return pb.JoinReply(server_name="pi-lab", heartbeat_seconds=60.0)

    def poll(self, request: pb.PollRequest) -> pb.PollReply:
        self._happen("poll", self.polls)
        return pb.PollReply(wait=pb.Wait())

    def leave(self, reason: str = "") -> None:
        self.events.append(f"leave {reason}".strip())
        if self.leave_fails:
            raise GONE

    def close(self) -> None:
        self.events.append("close")

    def _happen(self, event: str, outcomes: list[CoppiceError | None]) -> None:
        self.events.append(event)
        if outcomes and (outcome := outcomes.pop(0)) is not None:
            raise outcome


class FakeTime(Stop):
    """Waiting moves the clock and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waits: list[float] = []
        self.ends_after: int | None = None

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        if self.ends_after is not None and len(self.waits) >= self.ends_after:
            self.request()
        self.check()

    def clock(self) -> float:
        return self.now


class Setup:
    def __init__(self, path: Path) -> None:
        self.connection = ScriptedConnection()
        self.time = FakeTime()
        self.out = io.StringIO()
        self.path = path
        status = StatusFile(path, Status(pid=1, server="host:1", name="kitchen"), self.time.clock)
        self.link = Link(
            self.connection,
            pb.JoinRequest(),
            self.time,
            Journal(Console(self.out), status),
            Backoff(Ceilings()),
            clock=self.time.clock,
        )

    @property
    def phase(self) -> str:
        status = read_status(self.path)
        assert status is not None
        return status.phase


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path / "status.json")
    yield made
    made.link.goodbye()


def test_first_contact_is_tried_for_so_long_and_no_longer(setup: Setup) -> None:
    setup.connection.joins = [GONE] * 100
    with pytest.raises(ServerUnreachable, match="host:1"):
        setup.link.meet(30.0)
    assert setup.time.waits == [1, 2, 4, 8, 15]
    assert setup.out.getvalue().count("waiting") == 1
    assert "host:1; trying for 30 s" in setup.out.getvalue()


def test_one_attempt_is_made_without_waiting(setup: Setup) -> None:
    setup.connection.joins = [GONE] * 2
    with pytest.raises(ServerUnreachable):
        setup.link.meet(0.0)
    assert setup.connection.events == ["join"]


def test_first_contact_that_comes_late_counts(setup: Setup) -> None:
    setup.connection.joins = [GONE, GONE]
    setup.link.meet(30.0)
    assert setup.out.getvalue().endswith("joined   pi-lab at host:1\n")


def test_refused_join_is_not_tried_again(setup: Setup) -> None:
    setup.connection.joins = [NameTaken("taken")]
    with pytest.raises(NameTaken):
        setup.link.meet(30.0)
    assert setup.connection.events == ["join"]


def test_device_that_was_let_in_tries_for_ever(setup: Setup) -> None:
    setup.connection.joins = [GONE] * 2000
    setup.link.meet(math.inf)
    assert len(setup.time.waits) == 2000
    lines = setup.out.getvalue().splitlines()
    assert lines[0].endswith("host:1; trying until it works")
    assert len(lines) < 20


def test_what_somebody_has_to_put_right_is_said_soon(setup: Setup) -> None:
    setup.connection.joins = [HandshakeRefused("wrong port?")] * 100
    with pytest.raises(HandshakeRefused):
        setup.link.meet(math.inf)
    assert sum(setup.time.waits) == FIRST_CONTACT_SECONDS


def test_what_looks_wrong_for_a_moment_does_not_end_a_long_wait(setup: Setup) -> None:
    away: list[CoppiceError | None] = [GONE] * 20
    wrong: list[CoppiceError | None] = [HandshakeRefused("about to start?")]
    setup.connection.joins = away + wrong + away + wrong
    setup.link.meet(math.inf)
    assert setup.connection.joins == []


def test_lost_connection_is_tried_for_ever(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [GONE] * 50
    setup.link.poll(pb.PollRequest())
    assert setup.time.waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert len(setup.time.waits) == 50


def test_outage_is_told_ever_more_rarely(setup: Setup) -> None:
    setup.link.meet(0.0)
    # Two days.
    setup.connection.polls = [GONE] * 2880
    setup.link.poll(pb.PollRequest())
    lost, *still, back = setup.out.getvalue().splitlines()[1:]
    assert lost.startswith("lost ")
    assert "for 1 min by now, next attempt in 60 s" in still[0]
    assert 8 < len(still) < 20
    assert {line.split()[0] for line in still} == {"waiting"}
    assert back == "back     connected to host:1 again after 47 h 55 min"


def test_short_outage_is_told_twice(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [GONE] * 3
    setup.link.poll(pb.PollRequest())
    lines = setup.out.getvalue().splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["lost", "back"]
    assert lines[1].endswith("again after 7 s")


def test_phase_says_reconnecting_and_then_what_it_was(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [GONE]
    phases: list[str] = []
    wait = setup.time.wait

    def wait_and_look(seconds: float) -> None:
        phases.append(setup.phase)
        wait(seconds)

    monkeypatch.setattr(setup.time, "wait", wait_and_look)
    before = setup.phase
    setup.link.poll(pb.PollRequest())
    assert phases == ["reconnecting"]
    assert setup.phase == before


def test_waits_start_again_after_a_success(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [GONE, GONE, GONE, None, GONE]
    setup.link.poll(pb.PollRequest())
    setup.link.poll(pb.PollRequest())
    assert setup.time.waits == [1, 2, 4, 1]


def test_every_attempt_has_a_new_connection(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [GONE]
    setup.link.poll(pb.PollRequest())
    assert setup.connection.events == ["join", "poll", "close", "poll"]


def test_forgotten_device_joins_again(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [NotJoined()]
    setup.link.poll(pb.PollRequest())
    assert setup.connection.events == ["join", "poll", "close", "join", "poll"]
    assert "lost" not in setup.out.getvalue()


def test_joining_again_survives_a_lost_connection(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [NotJoined()]
    setup.connection.joins = [GONE]
    setup.link.poll(pb.PollRequest())
    assert [event for event in setup.connection.events if event != "close"] == [
        "join",
        "poll",
        "join",
        "join",
        "poll",
    ]


def test_server_that_never_knows_the_device_is_not_hammered(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [NotJoined()] * 6
    setup.link.poll(pb.PollRequest())
    assert setup.time.waits == [1, 2, 4, 8, 16, 32]


def test_fatal_errors_come_through(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [RoundClosed("closed")]
    with pytest.raises(RoundClosed):
        setup.link.poll(pb.PollRequest())
    assert setup.time.waits == []


def test_request_to_end_ends_the_waiting(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [GONE] * 50
    setup.time.ends_after = 3
    with pytest.raises(Stopped):
        setup.link.poll(pb.PollRequest())
    assert len(setup.time.waits) == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "leave"),
        (Stopped(), "leave"),
        (DataError("labels are out of range"), "leave labels are out of range"),
        (ValueError("row 17: John Smith"), "leave ValueError"),
    ],
)
def test_goodbye_says_why_but_quotes_no_data(
    setup: Setup, error: Exception | None, said: str
) -> None:
    setup.link.meet(0.0)
    setup.link.goodbye(error)
    setup.link.goodbye()
    assert setup.connection.events == ["join", said, "close", "close"]
    assert setup.phase == "left"


def test_no_goodbye_without_a_welcome(setup: Setup) -> None:
    setup.link.goodbye()
    assert setup.connection.events == ["close"]


def test_server_that_is_gone_gets_no_goodbye(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.leave_fails = True
    with setup.link:
        pass
    assert "could not be told" in setup.out.getvalue()
    assert setup.phase == "left"


# ---- a busy server -------------------------------------------------------------------------------


def test_device_comes_back_when_the_busy_server_says_and_tells_so(setup: Setup) -> None:
    setup.link.meet(0.0)
    setup.connection.polls = [ServerBusy("4000 calls go on", 12.5), ServerBusy("still", 7.0)]
    setup.link.poll(pb.PollRequest())
    assert setup.time.waits == [12.5, 7.0]
    # The connection is good: to open another one would cost a busy server more.
    assert "close" not in setup.connection.events
    assert "4000 calls go on; the next attempt is in 12 s" in setup.out.getvalue()
    assert "still" not in setup.out.getvalue()
    assert "lost" not in setup.out.getvalue()


def test_server_that_stays_busy_is_told_ever_more_rarely(setup: Setup) -> None:
    setup.link.meet(0.0)
    # Two days.
    setup.connection.polls = [ServerBusy("its disk is full", 60.0)] * 2880
    setup.link.poll(pb.PollRequest())
    busy, *still = setup.out.getvalue().splitlines()[1:]
    assert busy == "busy     its disk is full; the next attempt is in 60 s"
    assert 8 < len(still) < 20


def test_first_contact_waits_for_a_busy_server_too(setup: Setup) -> None:
    setup.connection.joins = [ServerBusy("too many", 9.0)]
    setup.link.meet(60.0)
    assert setup.time.waits == [9.0]
    assert setup.connection.events == ["join", "join"]
    assert "busy     too many; the next attempt is in 9 s" in setup.out.getvalue()

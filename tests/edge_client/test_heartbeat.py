"""The heartbeat: what it carries, what it learns, and that nothing ends it but the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from coppice.errors import NotJoined, ServerBusy, ServerUnreachable, TaskAbandoned
from coppice.wire import coordination_pb2 as pb
from edge_client.connection import Connection
from edge_client.heartbeat import LONGEST_SECONDS, SHORTEST_SECONDS, Heartbeat
from edge_client.meter import Meter
from edge_client.stop import Stopped
from tests.edge_client.fake_server import PATIENCE_SECONDS
from tests.edge_client.test_meter import ignore


class Listener(Connection):
    """Takes heartbeats, as the server would."""

    def __init__(self) -> None:
        super().__init__("host:1", "kitchen")
        self.wanted = True
        self.failures: list[Exception] = []
        self.beats: list[pb.HeartbeatRequest] = []
        self._changed = threading.Condition()

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatReply | None:
        with self._changed:
            self.beats.append(request)
            self._changed.notify_all()
        if self.failures:
            raise self.failures.pop(0)
        return pb.HeartbeatReply(wanted=self.wanted)

    def wait_for(self, more: int) -> pb.HeartbeatRequest:
        with self._changed:
            count = len(self.beats) + more
            assert self._changed.wait_for(lambda: len(self.beats) >= count, PATIENCE_SECONDS)
            return self.beats[-1]


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def heartbeat(listener: Listener) -> Iterator[Heartbeat]:
    beating = Heartbeat(listener)
    beating.start(0.0)
    yield beating
    beating.end()
    beating.join()


def test_idle_device_is_alive(heartbeat: Heartbeat, listener: Listener) -> None:
    beat = listener.wait_for(2)
    assert beat.task_id == 0
    assert beat.resident_bytes > 2**20


def test_beats_carry_the_task_and_its_progress(heartbeat: Heartbeat, listener: Listener) -> None:
    meter = Meter(ignore)
    meter.step_done()
    meter.step_done()
    with heartbeat.working_on(42, meter):
        beat = listener.wait_for(2)
        assert (beat.task_id, beat.steps_done) == (42, 2)
        assert beat.resident_bytes > 2**20
    assert listener.wait_for(2).task_id == 0


def test_task_that_is_not_wanted_ends_at_its_next_step(
    heartbeat: Heartbeat, listener: Listener
) -> None:
    meter = Meter(ignore)
    with heartbeat.working_on(42, meter):
        listener.wanted = False
        listener.wait_for(2)
        with pytest.raises(TaskAbandoned):
            meter.step_done()


def test_unwanted_idleness_ends_no_task(heartbeat: Heartbeat, listener: Listener) -> None:
    listener.wanted = False
    listener.wait_for(2)
    listener.wanted = True
    meter = Meter(ignore)
    with heartbeat.working_on(42, meter):
        listener.wait_for(2)
        meter.step_done()


def test_failures_do_not_end_it(heartbeat: Heartbeat, listener: Listener) -> None:
    listener.failures = [ServerUnreachable(), NotJoined(), Stopped()]
    listener.wait_for(5)
    assert listener.failures == []


def test_it_ends_when_told(listener: Listener) -> None:
    beating = Heartbeat(listener)
    beating.start(0.0)
    listener.wait_for(1)
    beating.end()
    beating.join()
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("asked", "taken"), [(0.0, SHORTEST_SECONDS), (5.0, 5.0), (1e9, LONGEST_SECONDS)]
)
def test_interval_of_the_server_is_bounded(asked: float, taken: float) -> None:
    beating = Heartbeat(Listener())
    beating.end()
    beating.start(asked)
    assert beating.interval_seconds == taken
    beating.join()


def test_it_watches_over_the_transfer_that_is_under_way(
    heartbeat: Heartbeat, listener: Listener
) -> None:
    checked = threading.Event()
    listener.progress.check = checked.set  # type: ignore[method-assign]
    assert checked.wait(PATIENCE_SECONDS)


def test_beats_tell_how_much_is_fetched(heartbeat: Heartbeat, listener: Listener) -> None:
    assert not listener.wait_for(1).HasField("fetched")
    listener.progress.has_fetched(0.25)
    assert listener.wait_for(2).fetched == 0.25


@pytest.mark.parametrize(("asked", "pause"), [(5.0, 5.0), (0.0, 1.0), (600.0, 8.0)])
def test_busy_server_hears_nothing_for_as_long_as_it_asks(
    listener: Listener, asked: float, pause: float
) -> None:
    beating = Heartbeat(listener)
    beating.interval_seconds = 1.0
    listener.failures.append(ServerBusy("busy", asked))
    beating._beat()
    assert beating.pause_seconds == pause
    beating._beat()
    assert beating.pause_seconds == 1.0

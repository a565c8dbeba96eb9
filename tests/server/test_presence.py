"""Signs of life, by a clock that the test moves."""

from __future__ import annotations

import contextlib

import pytest

from coppice.domain import Capability, ClientId
from server.presence import SUSPECT_SECONDS, Presence
from server.records import LiveClient

PI = ClientId("pi")
LOST_AFTER_SECONDS = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def presence(clock: Clock) -> Presence:
    return Presence(clock)


def live(presence: Presence) -> LiveClient:
    return presence.snapshot(LOST_AFTER_SECONDS)[PI]


@pytest.mark.parametrize(
    ("seconds", "word"),
    [
        (0.0, "idle"),
        (SUSPECT_SECONDS - 0.25, "idle"),
        (SUSPECT_SECONDS, "suspect"),
        (LOST_AFTER_SECONDS - 0.25, "suspect"),
        (LOST_AFTER_SECONDS, "lost"),
    ],
)
def test_silence_has_a_name(presence: Presence, clock: Clock, seconds: float, word: str) -> None:
    presence.saw(PI)
    clock.now += seconds
    assert live(presence).presence == word
    assert live(presence).seconds_silent == presence.silent_for(PI) == seconds


@pytest.mark.parametrize("sign", ["saw", "working", "fetching", "uploading", "offered"])
def test_each_sign_of_life_ends_the_silence(presence: Presence, clock: Clock, sign: str) -> None:
    presence.saw(PI)
    clock.now += 500
    assert live(presence).presence == "lost"
    if sign == "saw":
        presence.saw(PI)
        assert live(presence).presence == "idle"
    elif sign in ("fetching", "uploading"):
        presence.fetching(PI) if sign == "fetching" else presence.uploading(PI, 0.5)
        assert live(presence).presence == "idle"
    else:
        presence.working(PI, 4) if sign == "working" else presence.offered(PI, 4)
        assert live(presence).presence == "working"
    assert presence.silent_for(PI) == 0.0


def test_heartbeat_tells_how_far_the_work_is(presence: Presence) -> None:
    presence.working(PI, 4, steps_done=17, resident_bytes=2**20)
    assert live(presence) == LiveClient(PI, "working", 0.0, 4, 17, 2**20, "at work")


def test_bytes_are_a_sign_of_life_and_leave_the_work_as_it_is(
    presence: Presence, clock: Clock
) -> None:
    presence.working(PI, 4, 17)
    clock.now += 30
    presence.saw(PI)
    assert live(presence) == LiveClient(PI, "working", 0.0, 4, 17, 0, "at work")


def test_pending_poll_is_life_however_long_it_is_held(presence: Presence, clock: Clock) -> None:
    with presence.polling(PI):
        clock.now += 5000
        assert live(presence).presence == "idle"
        assert presence.silent_for(PI) == 0.0
    assert live(presence).presence == "idle"
    clock.now += SUSPECT_SECONDS
    assert live(presence).presence == "suspect"


def test_poll_that_breaks_off_starts_the_silence(presence: Presence, clock: Clock) -> None:
    with contextlib.suppress(ConnectionError), presence.polling(PI):
        clock.now += 5000
        raise ConnectionError
    clock.now += SUSPECT_SECONDS
    assert live(presence).presence == "suspect"


def test_older_poll_that_ends_does_not_end_the_newer_one(presence: Presence, clock: Clock) -> None:
    older, newer = presence.polling(PI), presence.polling(PI)
    older.__enter__()
    newer.__enter__()
    older.__exit__(None, None, None)
    clock.now += 5000
    assert live(presence).presence == "idle"
    newer.__exit__(None, None, None)
    clock.now += LOST_AFTER_SECONDS
    assert live(presence).presence == "lost"


def test_poll_means_that_the_work_is_done(presence: Presence) -> None:
    presence.working(PI, 4)
    with presence.polling(PI):
        assert live(presence).presence == "idle"
        assert live(presence).task_id is None


def test_heartbeat_without_a_task_is_not_work(presence: Presence) -> None:
    presence.working(PI, None)
    assert live(presence).presence == "idle"


def test_goodbye_is_not_silence(presence: Presence, clock: Clock) -> None:
    presence.saw(PI)
    presence.left(PI)
    assert live(presence).presence == "left"
    clock.now += 5000
    assert live(presence).presence == "left"
    presence.saw(PI)
    assert live(presence).presence == "idle"


def test_goodbye_of_a_stranger_is_noted(presence: Presence) -> None:
    presence.left(PI)
    assert live(presence).presence == "left"


def test_client_that_never_gave_a_sign_is_silent_for_ever(presence: Presence) -> None:
    assert presence.silent_for(PI) == float("inf")
    assert presence.snapshot(LOST_AFTER_SECONDS) == {}


def test_each_client_has_its_own_silence(presence: Presence, clock: Clock) -> None:
    presence.saw(PI)
    clock.now += SUSPECT_SECONDS
    presence.saw(ClientId("other"))
    found = presence.snapshot(LOST_AFTER_SECONDS)
    assert {name: client.presence for name, client in found.items()} == {
        "pi": "suspect",
        "other": "idle",
    }


def test_what_a_client_has_is_what_it_told_last(presence: Presence) -> None:
    assert presence.capability(PI) is None
    presence.saw(PI)
    assert presence.capability(PI) is None
    for memory_bytes in (1000, 900):
        capability = Capability(memory_bytes, 1, "aarch64")
        presence.told(PI, capability)
        presence.left(PI)
        assert presence.capability(PI) == capability


def test_to_tell_is_a_sign_of_life(presence: Presence, clock: Clock) -> None:
    presence.saw(PI)
    clock.now += 500
    presence.told(PI, Capability(1000, 1, "aarch64"))
    assert live(presence).presence == "idle"


def test_what_a_client_does_is_told_from_its_bytes_and_steps(presence: Presence) -> None:
    def doing() -> tuple[str, float | None]:
        return live(presence).activity, live(presence).share

    presence.offered(PI, 4)
    assert doing() == ("fetching", None)
    presence.fetching(PI)
    assert doing() == ("fetching", None), "what has left the server has not arrived"
    presence.working(PI, 4, fetched=0.25)
    assert doing() == ("fetching", 0.25)
    presence.fetching(PI)
    assert doing() == ("fetching", 0.25)
    presence.working(PI, 4)
    assert doing() == ("at work", None)
    presence.uploading(PI, 0.5)
    presence.working(PI, 4, 17)
    assert doing() == ("uploading", 0.5)
    with presence.polling(PI):
        assert doing() == ("", None)


def test_a_task_that_needs_no_bytes_is_worked_on_with_the_first_heartbeat(
    presence: Presence,
) -> None:
    presence.offered(PI, 4)
    presence.working(PI, 4)
    assert live(presence).activity == "at work"


def test_a_task_from_before_the_start_is_not_heard_of_until_there_is_a_sign(
    presence: Presence,
) -> None:
    presence.expected(PI, 4)
    assert live(presence).activity == "unheard"
    presence.working(PI, 4, 2)
    assert live(presence).activity == "at work"

"""Sessions are known by their cookies alone, bounded in number and in life."""

from __future__ import annotations

from server import sessions as sessions_module
from server.sessions import LIFE_SECONDS, Sessions


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_session_is_found_by_its_cookie_until_it_is_closed() -> None:
    sessions = Sessions(Clock())
    one, other = sessions.open(1), sessions.open(2)
    assert [session and session.access_id for session in map(sessions.find, (one, other))] == [1, 2]
    sessions.close(one)
    assert sessions.find(one) is None
    assert sessions.find(other) is not None


def test_what_is_no_cookie_is_nobodys() -> None:
    sessions = Sessions(Clock())
    cookie = sessions.open(1)
    for wrong in ("", cookie[:-1], cookie + "x", "x" * 10_000):
        assert sessions.find(wrong) is None
        sessions.close(wrong)
    assert sessions.find(cookie) is not None


def test_session_ends_by_itself() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    cookie = sessions.open(1)
    clock.now += LIFE_SECONDS - 1
    assert sessions.find(cookie) is not None
    clock.now += 1
    assert sessions.find(cookie) is None


def test_of_too_many_the_oldest_ends_but_those_that_are_over_go_first() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    over = sessions.open(1)
    clock.now += LIFE_SECONDS
    cookies = [sessions.open(1) for _ in range(sessions_module.MOST_SESSIONS)]
    assert sessions.find(over) is None
    assert all(map(sessions.find, cookies))
    newest = sessions.open(1)
    assert sessions.find(cookies[0]) is None
    assert all(map(sessions.find, [*cookies[1:], newest]))


def test_no_cookie_is_kept() -> None:
    sessions = Sessions(Clock())
    cookie = sessions.open(1)
    assert cookie not in repr(vars(sessions))

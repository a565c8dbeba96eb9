"""A transfer is over when nothing moves, however long it takes while something does."""

from __future__ import annotations

from edge_client.progress import STALLED_SECONDS, Progress


class Call:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Watched:
    def __init__(self) -> None:
        self.now = 50.0
        self.progress = Progress(lambda: self.now)
        self.call = Call()


def test_as_long_as_bytes_move_it_may_take_any_time() -> None:
    watched = Watched()
    with watched.progress.of(watched.call):
        for _ in range(100):
            watched.now += STALLED_SECONDS
            watched.progress.check()
            watched.progress.moved()
    assert not watched.call.is_cancelled
    assert not watched.progress.has_stalled


def test_when_nothing_moves_it_is_cancelled() -> None:
    watched = Watched()
    with watched.progress.of(watched.call):
        watched.progress.moved()
        watched.now += STALLED_SECONDS + 0.5
        watched.progress.check()
        assert watched.call.is_cancelled
        assert watched.progress.has_stalled


def test_what_is_fetched_is_told_while_it_is() -> None:
    watched = Watched()
    assert watched.progress.fetched is None
    with watched.progress.of(watched.call):
        watched.progress.has_fetched(0.25)
        assert watched.progress.fetched == 0.25
    assert watched.progress.fetched is None


def test_a_new_transfer_begins_anew() -> None:
    watched = Watched()
    with watched.progress.of(watched.call):
        watched.now += STALLED_SECONDS + 1
        watched.progress.check()
    call = Call()
    with watched.progress.of(call):
        watched.progress.check()
        assert not watched.progress.has_stalled
    watched.now += STALLED_SECONDS + 1
    watched.progress.check()
    assert not call.is_cancelled, "it was over before"

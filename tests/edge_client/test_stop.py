"""The request to end: it wakes waits, cancels calls, and is remembered."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from edge_client.stop import Stop, Stopped
from tests.edge_client.fake_server import PATIENCE_SECONDS


class Call:
    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


def test_wait_ends_when_asked_to() -> None:
    stop = Stop()
    threading.Timer(0.01, stop.request).start()
    with pytest.raises(Stopped):
        stop.wait(PATIENCE_SECONDS)


def test_wait_without_a_request_just_ends() -> None:
    Stop().wait(0.0)


def test_request_cancels_the_pending_call() -> None:
    stop, call = Stop(), Call()
    with stop.cancels(call):
        stop.request()
        assert call.cancelled.is_set()


def test_request_before_the_call_cancels_it_too() -> None:
    stop, call = Stop(), Call()
    stop.request()
    with stop.cancels(call):
        assert call.cancelled.is_set()


def test_call_that_is_over_is_not_cancelled() -> None:
    stop, call = Stop(), Call()
    with stop.cancels(call):
        pass
    stop.request()
    assert not call.cancelled.is_set()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_asks_to_end_and_cancels_from_another_thread(
    number: signal.Signals, exit_code: int
) -> None:
    stop, call = Stop(), Call()
    before = signal.getsignal(number)
    with stop.on_signals(), stop.cancels(call):
        os.kill(os.getpid(), number)
        assert call.cancelled.wait(PATIENCE_SECONDS)
    assert stop.requested
    assert stop.exit_code == exit_code
    assert signal.getsignal(number) is before
    with pytest.raises(Stopped):
        stop.check()

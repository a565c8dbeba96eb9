"""The proxy breaks links exactly where it is told to, and passes on everything else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from benchmarks.faulty_link import Fault, FaultyLink, Kind, Way, random_cuts

PATIENCE_SECONDS = 30.0


class Echo:
    """Sends back what comes; counts it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(end,), daemon=True).start()

    def _answer(self, end: socket.socket) -> None:
        with end:
            try:
                while data := end.recv(1000):
                    end.sendall(data)
            except OSError:
                pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def call(link: FaultyLink, data: bytes) -> bytes:
    """What comes back before the connection ends, or all of it."""
    host, _, port = link.address.rpartition(":")
    received = b""
    # A link that is cut at once may be gone before it is open on this side.
    with suppress(OSError), socket.create_connection((host, int(port)), PATIENCE_SECONDS) as end:
        end.sendall(data)
        while len(received) < len(data) and (piece := end.recv(1000)):
            received += piece
    return received


def test_all_is_passed_on(echo: Echo) -> None:
    with FaultyLink(echo.address) as link:
        assert call(link, bytes(100_000)) == bytes(100_000)
        assert link.passed_bytes == {Way.UP: 100_000, Way.DOWN: 100_000}


@pytest.mark.parametrize("way", list(Way))
def test_cut_comes_at_its_byte_and_the_next_connection_is_whole(echo: Echo, way: Way) -> None:
    with FaultyLink(echo.address, [Fault(way, 1234), Fault(way, 10)]) as link:
        assert len(call(link, bytes(5000))) <= 1234
        assert link.passed_bytes[way] == 1234
        assert len(call(link, bytes(5000))) <= 10
        assert link.passed_bytes[way] == 1244
        assert call(link, b"hello") == b"hello"
        assert len(link.happened) == 2


def test_hold_lasts_until_it_is_released(echo: Echo) -> None:
    with FaultyLink(echo.address, [Fault(Way.UP, 3, Kind.HOLD)]) as link:
        host, _, port = link.address.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as end:
            end.sendall(b"hello")
            assert link.wait_for(1, PATIENCE_SECONDS)
            assert link.passed_bytes[Way.UP] == 3
            link.release()
            received = b""
            while len(received) < 5:
                received += end.recv(5)
            assert received == b"hello"


def test_link_to_nothing_ends_at_once() -> None:
    with FaultyLink("127.0.0.1:1") as link:
        assert call(link, b"hello") == b""


def test_same_seed_gives_the_same_faults() -> None:
    assert random_cuts(1, 5, 1000) == random_cuts(1, 5, 1000) != random_cuts(2, 5, 1000)
    assert all(0 <= fault.after_bytes < 1000 for fault in random_cuts(1, 50, 1000))


def test_a_slow_link_takes_its_time_each_way(echo: Echo) -> None:
    with FaultyLink(echo.address, bytes_per_second=40_000) as link:
        began = time.monotonic()
        assert call(link, bytes(10_000)) == bytes(10_000)
        assert time.monotonic() - began >= 10_000 / 40_000
        assert link.passed_bytes == {Way.UP: 10_000, Way.DOWN: 10_000}


def test_a_slow_link_can_be_closed_at_once(echo: Echo) -> None:
    with FaultyLink(echo.address, bytes_per_second=0.001) as link:
        host, _, port = link.address.rpartition(":")
        end = socket.create_connection((host, int(port)), PATIENCE_SECONDS)
        end.sendall(b"x")
    end.close()

"""A link that is slow or breaks when it is told to: a TCP proxy on loopback, exact to the byte."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

_PIECE_BYTES = 16 * 2**10
#: What a slow link carries at once takes so long …
_SLOW_PIECE_SECONDS = 0.05
#: … and hardly more is on its way: the sender waits for it.
_SLOW_BUFFER_BYTES = 8 * 2**10
_CONNECT_SECONDS = 10.0
_END_SECONDS = 10.0
#: A socket that is closed with this sends a reset, as a router does that lost the connection.
_AT_ONCE = struct.pack("ii", 1, 0)


class Way(StrEnum):
    """Where bytes go."""

    #: From the device to the server.
    UP = "up"
    DOWN = "down"


class Kind(StrEnum):
    """What a fault does."""

    #: Every connection is reset; new ones are taken.
    CUT = "cut"
    #: Nothing goes either way any more until `release`.
    HOLD = "hold"


@dataclass(frozen=True)
class Fault:
    """Happens when so many bytes went one way since the fault before, or since it was added."""

    way: Way
    after_bytes: int
    kind: Kind = Kind.CUT


def random_cuts(seed: int, count: int, within_bytes: int) -> list[Fault]:
    """Cuts at random bytes, in either direction; the same for the same seed."""
    chance = random.Random(seed)
    return [Fault(chance.choice(list(Way)), chance.randrange(within_bytes)) for _ in range(count)]


class FaultyLink:
    """Passes on what comes, from `address` to the target, with the faults in their order."""

    def __init__(
        self, target: str, faults: Iterable[Fault] = (), bytes_per_second: float | None = None
    ) -> None:
        """`target` is HOST:PORT; `bytes_per_second` is what all connections share each way."""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._changed = threading.Condition()
        self._faults = deque(faults)
        #: Bytes each way since the last fault.
        self._since = dict.fromkeys(Way, 0)
        self._is_held = self._is_closed = False
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        #: Bytes that went each way, and faults that have happened.
        self.passed_bytes = dict.fromkeys(Way, 0)
        self.happened: list[Fault] = []
        self._rate = bytes_per_second
        #: Until when each way is busy.
        self._busy = dict.fromkeys(Way, 0.0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._slow_down(self._listener)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, *faults: Fault) -> None:
        """More faults, after those that are still to come."""
        with self._changed:
            if not self._faults:
                self._since = dict.fromkeys(Way, 0)
            self._faults.extend(faults)

    def clear(self) -> None:
        """Forget the faults that are still to come, and end a hold."""
        with self._changed:
            self._faults.clear()
        self.release()

    def wait_for(self, count: int, seconds: float) -> bool:
        """Whether so many faults have happened, waiting so long for them."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.happened) >= count, seconds)

    def release(self) -> None:
        """End a hold."""
        with self._changed:
            self._is_held = False
            self._changed.notify_all()

    def close(self) -> None:
        """End it all."""
        with self._changed:
            self._is_closed = True
            self._is_held = False
            self._changed.notify_all()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._reset()
        for thread in self._threads:
            thread.join(_END_SECONDS)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = self._connected()
            except OSError:
                # There is no server at present, so there is none here.
                _close_at_once(device)
                continue
            server.settimeout(None)
            with self._changed:
                self._open |= {device, server}
                if self._is_closed:
                    break
            self._start(self._pump, device, server, Way.UP)
            self._start(self._pump, server, device, Way.DOWN)
        self._reset()

    def _connected(self) -> socket.socket:
        server = socket.socket()
        try:
            self._slow_down(server)
            server.settimeout(_CONNECT_SECONDS)
            server.connect(self._target)
        except OSError:
            server.close()
            raise
        return server

    def _slow_down(self, end: socket.socket) -> None:
        # Before it is connected: the window that the other side learns of follows from this.
        if self._rate is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)

    def _pump(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        try:
            most = _PIECE_BYTES
            if self._rate is not None:
                most = max(1, min(most, int(self._rate * _SLOW_PIECE_SECONDS)))
            while data := source.recv(most):
                self._carry(way, len(data))
                while data:
                    room, fault = self._room(way, len(data))
                    sink.sendall(data[:room])
                    data = data[room:]
                    if fault is Kind.CUT:
                        self._reset()
                        return
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _carry(self, way: Way, size_bytes: int) -> None:
        """Take as long as the link does for so many bytes."""
        if self._rate is None:
            return
        with self._changed:
            end = max(self._busy[way], time.monotonic()) + size_bytes / self._rate
            self._busy[way] = end
            self._changed.wait_for(lambda: self._is_closed, end - time.monotonic())

    def _room(self, way: Way, size_bytes: int) -> tuple[int, Kind | None]:
        """How many bytes go before the next fault, and what that does if it comes then."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_held)
            fault = self._faults[0] if self._faults else None
            is_near = (
                fault is not None
                and fault.way is way
                and self._since[way] + size_bytes > fault.after_bytes
            )
            room = size_bytes
            if fault is not None and is_near:
                room = max(0, fault.after_bytes - self._since[way])
            self._since[way] += room
            self.passed_bytes[way] += room
            if fault is None or not is_near:
                return room, None
            self._faults.popleft()
            self._since = dict.fromkeys(Way, 0)
            self._is_held = fault.kind is Kind.HOLD
            self.happened.append(fault)
            self._changed.notify_all()
            return room, fault.kind

    def _reset(self) -> None:
        with self._changed:
            ends, self._open = self._open, set()
        for end in ends:
            _close_at_once(end)


def _close_at_once(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    # Wakes a thread that uses it; closing alone does not.
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()

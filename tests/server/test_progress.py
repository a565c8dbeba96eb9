"""Calls end: transfers when nothing moves, or next to nothing, and the others by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from coppice.errors import ServerBusy, TransferBroken
from server import progress
from server.progress import SLOWEST_BYTES_PER_SECOND, in_time, pieces, sent

STALL_SECONDS = 100.0


class Loop(asyncio.SelectorEventLoop):
    """Waits for nothing: its clock goes to where the next thing is to happen."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead

    def _run_once(self) -> None:
        timers: Any = self._scheduled  # type: ignore[attr-defined]
        coming = [timer.when() for timer in timers if not timer.cancelled()]
        if not self._ready and coming:  # type: ignore[attr-defined]
            self.ahead += max(0.0, min(coming) - self.time())
        super()._run_once()  # type: ignore[misc]


def play(scene: Callable[[], Any]) -> Any:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(scene())


async def stream(*parts: tuple[float, int]) -> AsyncIterator[bytes]:
    """Messages of so many bytes, each after so many seconds."""
    for seconds, size in parts:
        await asyncio.sleep(seconds)
        yield bytes(size)


async def taken(*parts: tuple[float, int]) -> int:
    return sum([len(piece) async for piece in pieces(stream(*parts), STALL_SECONDS)])


def test_slow_link_that_goes_on_is_not_ended() -> None:
    # An hour for half a megabyte.
    assert play(lambda: taken(*[(90.0, 12_500)] * 40)) == 500_000


def test_stream_of_which_nothing_comes_is_ended() -> None:
    with pytest.raises(TransferBroken, match="nothing came for 100 s"):
        play(lambda: taken((1.0, 10**6), (101.0, 1)))


def test_stream_that_drips_is_ended() -> None:
    drips = [(STALL_SECONDS / 2, 1)] * 1000
    with pytest.raises(TransferBroken):
        play(lambda: taken(*drips))
    size = int(SLOWEST_BYTES_PER_SECOND * STALL_SECONDS / 2)
    assert play(lambda: taken(*[(STALL_SECONDS / 2, size)] * 1000)) == 1000 * size


def test_reader_that_does_not_read_is_sent_no_more() -> None:
    closed = []

    class Message:
        def ByteSize(self) -> int:  # noqa: N802
            return 10**6

    async def messages() -> Any:
        try:
            for _ in range(10):
                yield Message()
        finally:
            closed.append(True)

    waits = iter([1.0, 1.0, 101.0])

    async def send(message: Any) -> None:
        await asyncio.sleep(next(waits))

    with pytest.raises(TransferBroken, match="nothing was read"):
        play(lambda: sent(messages(), send, STALL_SECONDS))
    assert closed


def test_call_that_takes_too_long_is_a_busy_server() -> None:
    with pytest.raises(ServerBusy) as caught:
        play(lambda: in_time(asyncio.sleep(61.0), progress.CALL_SECONDS))
    assert caught.value.retry_seconds > 0
    assert play(lambda: in_time(asyncio.sleep(59.0, "done"), progress.CALL_SECONDS)) == "done"

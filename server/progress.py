"""Bounds of the time that calls take: of transfers by what they move, of others by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from coppice.errors import ServerBusy, TransferBroken

T = TypeVar("T")

#: No call that is answered at once takes so long, unless the server is in trouble.
CALL_SECONDS = 60.0
_RETRY_SECONDS = 10.0
#: A poll is held for 20 s by itself.
POLL_SECONDS = 20.0 + CALL_SECONDS
#: Slower than this on average, from the first stall on, is no transfer.
SLOWEST_BYTES_PER_SECOND = 64.0


class Progress:
    """Of one transfer: each piece within `stall_seconds`, and all of them in a useful time."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._bytes = 0

    async def of(self, moving: Awaitable[T], what: str) -> T:
        """The next piece; TransferBroken where it takes too long."""
        now = self._clock()
        all_of_them = self._began + self._stall_seconds + self._bytes / SLOWEST_BYTES_PER_SECOND
        try:
            async with asyncio.timeout_at(min(now + self._stall_seconds, all_of_them)):
                return await moving
        except TimeoutError:
            raise TransferBroken(
                f"{what} for {self._clock() - now:.0f} s: the transfer was ended; what has come of "
                "it is kept"
            ) from None

    def moved(self, size_bytes: int) -> None:
        """So many bytes more."""
        self._bytes += size_bytes


async def pieces(requests: AsyncIterator[bytes], stall_seconds: float) -> AsyncIterator[bytes]:
    """The messages of a stream, for as long as they come."""
    progress = Progress(stall_seconds)
    while True:
        message = await progress.of(anext(requests, None), "nothing came")
        if message is None:
            return
        progress.moved(len(message))
        yield message


async def in_time(work: Awaitable[T], seconds: float) -> T:
    """What a call gives; ServerBusy where that takes too long."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise ServerBusy("the server is too busy to answer this in time", _RETRY_SECONDS) from None


async def sent(
    messages: AsyncGenerator[Any, None],
    send: Callable[[Any], Awaitable[None]],
    stall_seconds: float,
) -> None:
    """Send a stream for as long as its reader reads."""
    progress = Progress(stall_seconds)
    async with aclosing(messages):
        async for message in messages:
            await progress.of(send(message), "nothing was read")
            progress.moved(message.ByteSize())

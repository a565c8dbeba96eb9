"""The threads of the server, by what they are for; the event loop itself only passes things on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """One thread computes, one writes to the store, two move bytes between sockets and files."""

    def __init__(self) -> None:
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._store = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._transfer = ThreadPoolExecutor(2, thread_name_prefix="transfer")

    async def compute(self, work: Callable[[], T]) -> T:
        """Encode, decode, fold: one thing at a time, so one update is in memory at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._compute, work)

    async def store(self, work: Callable[[], T]) -> T:
        """Everything that the store is asked on the path of a round, in the order asked."""
        return await asyncio.get_running_loop().run_in_executor(self._store, work)

    async def transfer(self, work: Callable[[], T]) -> T:
        """Read and write pieces of blobs."""
        return await asyncio.get_running_loop().run_in_executor(self._transfer, work)

    def close(self) -> None:
        """Wait for what is under way and end the threads."""
        for executor in (self._transfer, self._compute, self._store):
            executor.shutdown(wait=True, cancel_futures=True)

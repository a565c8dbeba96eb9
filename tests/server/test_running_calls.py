"""Calls of a client that is cut off end with the reason; all others go on."""

from __future__ import annotations

import asyncio

import pytest

from coppice.domain import ClientId
from coppice.errors import MemberRevoked
from server.running_calls import RunningCalls

A, B = ClientId("a"), ClientId("b")


def test_only_calls_of_the_client_that_is_cut_off_end() -> None:
    async def scene() -> None:
        calls, gate = RunningCalls(), asyncio.Event()

        async def call(client_id: ClientId) -> str:
            with calls.of(client_id):
                await gate.wait()
            return "done"

        running = [asyncio.create_task(call(name)) for name in (A, A, B)]
        await asyncio.sleep(0)
        calls.cut(A)
        for task in running[:2]:
            with pytest.raises(MemberRevoked, match="a was revoked"):
                await task
        gate.set()
        assert await running[2] == "done"
        assert (calls._tasks, calls._cut) == ({}, set())

    asyncio.run(scene())


def test_call_that_breaks_off_by_itself_is_not_called_revoked() -> None:
    async def scene() -> None:
        calls = RunningCalls()

        async def call() -> None:
            with calls.of(A):
                await asyncio.Event().wait()

        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())

"""The dashboard's app with a login, and tokens of both roles, for the tests of who may do what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from server.access import Access
from server.access_records import Role
from server.dashboard.api import make_app
from server.sessions import Sessions
from tests.server.dashboard.stage import PATIENCE_SECONDS, Stage

URL = "http://127.0.0.1:7480"
OWN_PAGE = {"origin": URL}


class Doors:
    """A stage whose app asks who one is."""

    def __init__(self, stage: Stage, clock: Callable[[], float]) -> None:
        self.stage = stage
        self.store = stage.store
        self.access = Access(stage.resources, Sessions(clock))
        self.app = make_app(stage.coordinator, stage.resources, self._submit, None, self.access)
        self.viewer = self.operator = ""

    async def open(self) -> None:
        self.viewer = await self.access.create("vera", Role.VIEWER)
        self.operator = await self.access.create("otto", Role.OPERATOR)

    async def _submit(self, *arguments: object) -> int:
        return 7

    def caller(self, token: str | None = None, address: str = "10.0.0.7") -> httpx.AsyncClient:
        """A program that shows a token, or nothing."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(self.app, client=(address, 50_000))
        return httpx.AsyncClient(transport=transport, base_url=URL, headers=headers)

    def noted(self) -> list[tuple[str, str, str]]:
        """Who, what and how it ended, of all that was noted of people."""
        lines = self.store.audit()
        return [(line.who, line.action, line.outcome) for line in lines if line.who != "fedserver"]


def play(
    folder: Path, scene: Callable[[Doors], Awaitable[None]], clock: Callable[[], float] = lambda: 0
) -> None:
    """Run a scene with the coordinator at work."""

    async def performance() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS), Stage(folder).playing() as stage:
            doors = Doors(stage, clock)
            await doors.open()
            await scene(doors)

    asyncio.run(performance())

"""Refusals are noted, but no flood of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from server.access_records import Actor
from server.audit import Audit
from tests.server.host import make_resources

FLOOD = 200


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_flood_of_refusals_is_counted_and_not_listed(tmp_path: Path) -> None:
    resources, clock = make_resources(tmp_path), Clock()
    audit = Audit(resources, clock)

    async def scene() -> None:
        for _ in range(FLOOD):
            await audit.refused(Actor("", "", "10.0.0.7"), "log in", "no such token" * 100)
        clock.now += 121
        await audit.refused(Actor("", "", "10.0.0.7"), "log in", "no such token")

    try:
        asyncio.run(scene())
        lines = resources.store.audit()
        assert len(lines) == 11
        assert {(line.address, line.action, line.outcome) for line in lines} == {
            ("10.0.0.7", "log in", "refused")
        }
        assert lines[-1].detail == "no such token (and 190 others that are not listed)"
    finally:
        resources.threads.close()
        resources.store.close()

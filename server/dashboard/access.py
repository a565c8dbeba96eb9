"""The part of the HTTP API about itself: who may use it, and who did what."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from coppice.errors import NoAuthority
from server.access import Access
from server.access_records import AccessRecord, AuditRecord, Role
from server.dashboard.gate import By
from server.members import DAY_SECONDS
from server.resources import Resources

_LONGEST_DAYS = 3650.0
_MAX_KEY = 2**31 - 1
_PAGE = 1000

After = Annotated[int, Query(ge=0, le=_MAX_KEY)]
Limit = Annotated[int, Query(ge=1, le=_PAGE)]
Name = Annotated[str, InPath(max_length=63)]


class NewAccess(BaseModel):
    """A token that is wanted."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=63)]
    role: Role
    #: Without it, the token does not expire.
    valid_seconds: Annotated[float, Field(gt=0, le=_LONGEST_DAYS * DAY_SECONDS)] | None = None


class MadeAccess(BaseModel):
    """A token; this is the only time that it is told."""

    name: str
    role: Role
    token: str


@dataclass(frozen=True)
class ShownAccess(AccessRecord):
    """A token, and whether it is still good for anything."""

    #: "valid", "expired" or "revoked".
    is_now: str


def access_routes(access: Access | None, resources: Resources) -> APIRouter:
    """All for operators. Those about tokens raise NoAuthority where nobody needs one."""
    routes, store = APIRouter(), resources.store

    def known() -> Access:
        if access is None:
            raise NoAuthority
        return access

    @routes.get("/access")
    async def all_access() -> list[ShownAccess]:
        """All tokens without their secrets, oldest first."""
        now = time.time()
        return [ShownAccess(**vars(item), is_now=item.state(now)) for item in known().all()]

    @routes.post("/access", status_code=201)
    async def create(new: NewAccess, by: By) -> MadeAccess:
        """Make a token."""
        seconds = math.inf if new.valid_seconds is None else new.valid_seconds
        token = await known().create(new.name, new.role, seconds, by)
        return MadeAccess(name=new.name, role=new.role, token=token)

    @routes.post("/access/{name}/revoke")
    async def revoke(name: Name, by: By) -> None:
        """It is good for nothing any more, nor are sessions that were begun with it."""
        await known().revoke(name, by)

    @routes.get("/audit")
    def audit(after: After = 0, limit: Limit = _PAGE, newest: bool = False) -> list[AuditRecord]:
        """Who did what, after line `after`: the first lines, or the newest."""
        return store.audit(after, limit, newest=newest)

    return routes

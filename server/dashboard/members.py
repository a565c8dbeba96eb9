"""The part of the HTTP API that lets devices in and out: tokens and members."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from coppice.errors import NoAuthority
from coppice.join_token import JoinToken
from server.config import Address
from server.dashboard.gate import By
from server.member_records import MemberRecord, TokenRecord
from server.members import DAY_SECONDS, Members

_MOST_USES = 10_000
_LONGEST_DAYS = 365.0

TokenId = Annotated[int, InPath(ge=1, le=2**31 - 1)]
Name = Annotated[str, InPath(max_length=63)]


@dataclass(frozen=True)
class Enrolments:
    """What these routes need."""

    members: Members
    #: Where devices find the server.
    address: Address


class NewToken(BaseModel):
    """A token that is wanted."""

    model_config = ConfigDict(extra="forbid")

    #: How many devices it lets in.
    uses: Annotated[int, Field(ge=1, le=_MOST_USES)] = 1
    valid_seconds: Annotated[float, Field(gt=0, le=_LONGEST_DAYS * DAY_SECONDS)] = DAY_SECONDS


class MadeToken(BaseModel):
    """A token; this is the only time that it is told."""

    token_id: int
    token: str
    #: The command for a device, but for its data.
    join: str


@dataclass(frozen=True)
class ShownToken(TokenRecord):
    """A token, and whether it still lets anybody in."""

    #: "valid", "used", "expired" or "revoked"; but for the first, it does not.
    is_now: str


def member_routes(enrolments: Enrolments | None) -> APIRouter:
    """Every route raises NoAuthority where there is nothing to enrol at."""
    routes = APIRouter()

    def members() -> Members:
        if enrolments is None:
            raise NoAuthority
        return enrolments.members

    @routes.get("/tokens")
    async def tokens() -> list[ShownToken]:
        """All tokens without their secrets, oldest first."""
        now = time.time()
        told = await members().tokens()
        return [ShownToken(**vars(token), is_now=token.state(now)) for token in told]

    @routes.post("/tokens", status_code=201)
    async def create_token(new: NewToken, by: By) -> MadeToken:
        """Make a token."""
        token_id, token = await members().create_token(new.uses, new.valid_seconds, by)
        assert enrolments is not None, "members() has looked"
        line = join_line(enrolments.address, token)
        return MadeToken(token_id=token_id, token=str(token), join=line)

    @routes.post("/tokens/{token_id}/revoke")
    async def revoke_token(token_id: TokenId, by: By) -> None:
        """It lets nobody in any more."""
        await members().revoke_token(token_id, by)

    @routes.get("/members")
    async def all_members() -> list[MemberRecord]:
        """All devices that were ever let in."""
        return await members().all()

    @routes.post("/members/{name}/revoke")
    async def revoke_member(name: Name, by: By) -> MemberRecord:
        """Cut a device off."""
        return await members().revoke(name, by)

    return routes


def join_line(address: Address, token: JoinToken) -> str:
    """What to type on a device, but for its data."""
    return f"fedclient join {address} --token {token}"

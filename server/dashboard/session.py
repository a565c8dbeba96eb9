"""The page's login: a token is shown once, and a cookie stands for it from then on."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from coppice.errors import NotLoggedIn
from server.access import Access
from server.access_records import Actor, Role
from server.audit import Audit
from server.dashboard.gate import address_of, cookie_name, cookie_of, grant_of
from server.resources import Resources
from server.sessions import LIFE_SECONDS


class Login(BaseModel):
    """Somebody wants to log in."""

    model_config = ConfigDict(extra="forbid")

    token: Annotated[str, Field(max_length=200)]


class Session(BaseModel):
    """Who the caller is."""

    #: Whether this server asks who one is at all; it does not with --insecure.
    has_login: bool
    #: Name of the token; empty for somebody who has not logged in.
    who: str
    role: Role | None


def session_routes(access: Access | None, resources: Resources, audit: Audit) -> APIRouter:
    """Nobody needs to be known for these."""
    routes = APIRouter()

    @routes.get("/api/session")
    async def session(request: Request) -> Session:
        """Who the caller is."""
        grant = grant_of(request)
        if grant is None:
            return Session(has_login=True, who="", role=None)
        return Session(has_login=access is not None, who=grant.actor.name, role=grant.role)

    @routes.post("/login")
    async def log_in(login: Login, request: Request, response: Response) -> Session:
        """Begin a session."""
        address = address_of(request.scope)
        if access is None:
            return Session(has_login=False, who="", role=Role.OPERATOR)
        try:
            grant = access.log_in(login.token, address)
        except NotLoggedIn as error:
            await audit.refused(Actor("", "", address), "log in", str(error))
            raise
        assert grant.cookie is not None, "a login makes one"
        entry = grant.actor.did("log in")
        await resources.write(resources.store.append, events=[entry])
        _set_cookie(response, request, grant.cookie, int(LIFE_SECONDS))
        return Session(has_login=True, who=grant.actor.name, role=grant.role)

    @routes.post("/logout")
    async def log_out(request: Request, response: Response) -> None:
        """End the session, if there is one."""
        cookie = cookie_of(request.headers, request.scope)
        if access is not None and cookie is not None:
            access.log_out(cookie)
        _set_cookie(response, request, "", 0)

    return routes


def _set_cookie(response: Response, request: Request, value: str, seconds: int) -> None:
    response.set_cookie(
        cookie_name(request.scope),
        value,
        max_age=seconds,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )

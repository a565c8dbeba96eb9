"""Lets in who may: by a token or by a session's cookie; what is not said to be open is closed."""

from __future__ import annotations

import math
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

from coppice.errors import CoppiceError, NotAllowed, NotLoggedIn, ServerBusy
from server.access import Access, Grant
from server.access_records import Actor, Role
from server.attempts import LOGIN, Attempts
from server.audit import Audit
from server.dashboard.problems import problem

#: What may be asked by anybody: who one is, and to become somebody.
_OPEN = {("GET", "/api/session"), ("POST", "/login"), ("POST", "/logout")}
#: What viewers may not read.
_FOR_OPERATORS = ("/api/audit", "/api/access")
_READING = ("GET", "HEAD")
_STATE = "grant"


class Gate:
    """Around the app, inside the guard: finds out who calls, and whether they may."""

    def __init__(self, app: ASGIApp, access: Access | None, audit: Audit) -> None:
        """Without `access` anybody is an operator: the server runs with --insecure."""
        self._app = app
        self._access = access
        self._audit = audit
        self._attempts = Attempts(pace=LOGIN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the app answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})[_STATE] = await self._admit(scope)
        except CoppiceError as error:
            # The class alone would be "busy" for a server, and is "too many" for the caller.
            status = 429 if isinstance(error, ServerBusy) else None
            answer = problem(error, status)
            if isinstance(error, NotLoggedIn):
                answer.headers["WWW-Authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> Grant | None:
        """Who calls; raises for a call that they may not make."""
        method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
        address = address_of(scope)
        if self._access is None:
            return Grant(Actor("anybody", Role.OPERATOR, address), Role.OPERATOR, lambda: True)
        is_open = (method, path) in _OPEN or (method in _READING and not _is_api(path))
        if path == "/login":
            self._attempts.count(address)
        try:
            grant = self._known(self._access, headers, scope, address)
        except NotLoggedIn as error:
            if is_open:
                return None
            if "authorization" in headers:
                self._attempts.count(address)
                await self._audit.refused(Actor("", "", address), "log in", str(error))
            raise
        if is_open:
            return grant
        wanted = Role.VIEWER
        if method not in _READING or path.startswith(_FOR_OPERATORS):
            wanted = Role.OPERATOR
        if not grant.role.includes(wanted):
            reason = f"{grant.actor.name} is a {grant.role}: only an operator may do this"
            await self._audit.refused(grant.actor, f"{method} {path}", reason)
            raise NotAllowed(reason)
        if method not in _READING and grant.cookie is not None and not _is_own_page(headers, scope):
            raise NotAllowed("only this server's own page may change anything by its session")
        return grant

    def _known(self, access: Access, headers: Headers, scope: Scope, address: str) -> Grant:
        if (shown := headers.get("authorization")) is not None:
            kind, _, token = shown.partition(" ")
            if kind.lower() != "bearer":
                raise NotLoggedIn("the Authorization has to be: Bearer TOKEN")
            return access.by_token(token, address)
        cookie = cookie_of(headers, scope)
        if cookie is None:
            raise NotLoggedIn
        return access.by_cookie(cookie, address)


def grant_of(request: Request) -> Grant | None:
    """Who calls, where that is known."""
    grant: Grant | None = request.scope["state"][_STATE]
    return grant


def _required(request: Request) -> Grant:
    grant = grant_of(request)
    assert grant is not None, "the gate lets nobody else come here"
    return grant


def _actor(request: Request) -> Actor:
    return _required(request).actor


#: Parameters of routes: who calls, and for how long they may.
Caller = Annotated[Grant, Depends(_required)]
By = Annotated[Actor, Depends(_actor)]


def cookie_name(scope: Scope) -> str:
    """Name of the session's cookie. Servers on other ports of the host get it too: it is ours."""
    return f"coppice-session-{(scope.get('server') or ('', 0))[1]}"


def cookie_of(headers: Headers, scope: Scope) -> str | None:
    """What the session's cookie says."""
    return cookie_parser(headers.get("cookie", "")).get(cookie_name(scope))


def address_of(scope: Scope) -> str:
    """Where a call comes from."""
    return str((scope.get("client") or ("", math.nan))[0])


def _is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")


def _is_own_page(headers: Headers, scope: Scope) -> bool:
    """Whether the browser says that it was this page, from this address, that made it call."""
    # A browser tells this of servers whose address it can be sure of: by HTTPS, or on loopback.
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] == "same-origin"
    origin = urlsplit(headers.get("origin", ""))
    return (origin.scheme, origin.netloc) == (scope["scheme"], headers.get("host"))

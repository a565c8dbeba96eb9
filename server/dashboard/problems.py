"""What the API answers when something is wrong: one table of statuses, one shape of body."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from coppice.errors import (
    AppError,
    AppMismatch,
    CoppiceError,
    DataError,
    DiskFull,
    InvalidMessage,
    NameTaken,
    NoAuthority,
    NotAllowed,
    NotLoggedIn,
    Retryable,
    RoundClosed,
    RunFileError,
    ServerBusy,
    StoreUnusable,
    UnknownBlob,
    UnknownMember,
    UnknownRun,
    UnknownTask,
    UnknownToken,
)

#: HTTP status of an error, by its class or the nearest class above it; others are our own fault.
STATUS: Mapping[type[Exception], int] = {
    RunFileError: 422,
    DataError: 422,
    AppError: 422,
    AppMismatch: 422,
    InvalidMessage: 422,
    NotLoggedIn: 401,
    NotAllowed: 403,
    UnknownRun: 404,
    UnknownTask: 404,
    UnknownBlob: 404,
    UnknownMember: 404,
    UnknownToken: 404,
    NoAuthority: 409,
    NameTaken: 409,
    RoundClosed: 409,
    StoreUnusable: 503,
    DiskFull: 503,
    Retryable: 503,
}


class Problem(BaseModel):
    """What went wrong."""

    #: Name of a class in `coppice.errors`.
    error: str
    #: What is wrong and what to do about it, for people.
    message: str


def status_of(error: CoppiceError) -> int:
    """The HTTP status that says best what kind of error this is."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def problem(error: CoppiceError, status: int | None = None) -> JSONResponse:
    """The answer that an error becomes."""
    body = Problem(error=type(error).__name__, message=str(error))
    headers = {}
    if isinstance(error, ServerBusy) and error.retry_seconds > 0:
        headers["Retry-After"] = str(math.ceil(error.retry_seconds))
    return JSONResponse(body.model_dump(), status or status_of(error), headers)


def explain_errors(app: FastAPI) -> None:
    """Have every error of the app answered as a `Problem`."""

    @app.exception_handler(CoppiceError)
    def coppice_error(request: Request, error: CoppiceError) -> JSONResponse:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        mistakes = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        return problem(InvalidMessage("; ".join(mistakes)))

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {error.detail}"
        return problem(InvalidMessage(text), error.status_code)

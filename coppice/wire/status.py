"""Errors ↔ gRPC status: one table, read in both directions. Imports no torch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import grpc

from coppice import errors
from coppice.errors import CoppiceError, ServerBusy

#: Trailing metadata that names the class of the error.
ERROR_KEY = "coppice-error"

#: Trailing metadata of a busy server: after how many milliseconds to come back.
RETRY_KEY = "coppice-retry-ms"
#: No device waits longer than this because a server says so.
LONGEST_RETRY_SECONDS = 600.0

#: Metadata that names the caller of a server without certificates.
CLIENT_KEY = "coppice-client"

STATUS: Mapping[type[CoppiceError], grpc.StatusCode] = {
    errors.ServerUnreachable: grpc.StatusCode.UNAVAILABLE,
    errors.HandshakeRefused: grpc.StatusCode.UNAVAILABLE,
    errors.ServerBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TransferBroken: grpc.StatusCode.DATA_LOSS,
    errors.DataError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnreadableData: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RunFileError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.AppError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AppMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProtocolMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NameTaken: grpc.StatusCode.ALREADY_EXISTS,
    errors.NotJoined: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotEnrolled: grpc.StatusCode.UNAUTHENTICATED,
    errors.TokenRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.AuthorityMismatch: grpc.StatusCode.UNAUTHENTICATED,
    errors.CertificateExpired: grpc.StatusCode.UNAUTHENTICATED,
    errors.MemberRevoked: grpc.StatusCode.PERMISSION_DENIED,
    errors.NoAuthority: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotLoggedIn: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnknownMember: grpc.StatusCode.NOT_FOUND,
    errors.UnknownToken: grpc.StatusCode.NOT_FOUND,
    errors.UnknownBlob: grpc.StatusCode.NOT_FOUND,
    errors.UnknownRun: grpc.StatusCode.NOT_FOUND,
    errors.UnknownTask: grpc.StatusCode.NOT_FOUND,
    errors.RoundClosed: grpc.StatusCode.ABORTED,
    errors.InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UpdateRefused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidPayload: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TaskAbandoned: grpc.StatusCode.CANCELLED,
    errors.DiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreUnusable: grpc.StatusCode.INTERNAL,
    errors.StoreLeased: grpc.StatusCode.INTERNAL,
    errors.AddressInUse: grpc.StatusCode.INTERNAL,
    errors.AlreadyRunning: grpc.StatusCode.INTERNAL,
    errors.NotRunning: grpc.StatusCode.INTERNAL,
}

_BY_NAME = {kind.__name__: kind for kind in STATUS}

#: gRPC drops a call whose metadata are too large; in them a byte of details may take three.
_MAX_DETAILS_BYTES = 2000

#: What gRPC says itself when more calls go on than it takes.
_TOO_MANY_CALLS = "concurrent rpc limit"

#: What a status means when it comes from gRPC itself, not from a Coppice server.
_WITHOUT_NAME: Mapping[grpc.StatusCode, type[CoppiceError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.ServerUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.ServerUnreachable,
    grpc.StatusCode.CANCELLED: errors.ServerUnreachable,
    grpc.StatusCode.UNKNOWN: errors.ServerBusy,
    grpc.StatusCode.INTERNAL: errors.ServerBusy,
    grpc.StatusCode.DATA_LOSS: errors.TransferBroken,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.InvalidMessage,
    grpc.StatusCode.UNIMPLEMENTED: errors.ProtocolMismatch,
}


def status_of(error: CoppiceError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """What a call that raised `error` ends with: code, details, trailing metadata.

    When to come back is drawn for each caller anew, so that a fleet does not come at once.
    """
    kind = type(error)
    details = str(error).encode(errors="replace")[:_MAX_DETAILS_BYTES].decode(errors="ignore")
    metadata: tuple[tuple[str, str], ...] = ((ERROR_KEY, kind.__name__),)
    if isinstance(error, ServerBusy) and error.retry_seconds > 0:
        metadata += ((RETRY_KEY, str(int(1000 * error.retry_seconds * random.uniform(1, 2)))),)
    return STATUS[kind], details, metadata


def error_from(error: grpc.RpcError) -> CoppiceError:
    """The error that the other side raised, or what gRPC's own failure means to a caller."""
    if not isinstance(error, grpc.Call):
        return errors.ServerUnreachable(str(error))
    details = error.details() or ""
    told = dict(_pairs(error.trailing_metadata()))
    kind = _BY_NAME.get(told.get(ERROR_KEY, ""))
    if kind is ServerBusy:
        return ServerBusy(details, _seconds(told.get(RETRY_KEY, "")))
    if kind is not None:
        return kind(details)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_MANY_CALLS in details.lower():
        return ServerBusy(details)
    kind = _WITHOUT_NAME.get(error.code(), errors.ServerBusy)
    return kind(details or str(error.code()))


def _seconds(text: str) -> float:
    """What a server says of when to come back, if that is a number of milliseconds."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        return 0.0
    return min(int(text) / 1000, LONGEST_RETRY_SECONDS)


def _pairs(metadata: object) -> Iterator[tuple[str, str]]:
    for item in metadata if isinstance(metadata, tuple | list) else ():
        key, value = item
        if isinstance(value, str):
            yield key, value

"""Every error that Coppice raises on purpose, and what the process that meets it exits with.

CoppiceError
├── Retryable                 the same call may succeed later
│   ├── ServerUnreachable
│   │   └── HandshakeRefused
│   ├── ServerBusy
│   └── TransferBroken
└── Fatal                     the same call will fail again; something has to change
    ├── DataError
    │   └── UnreadableData
    ├── RunFileError
    ├── AppError
    ├── AppMismatch
    ├── ProtocolMismatch
    ├── NameTaken
    ├── NotJoined
    ├── NotEnrolled
    ├── TokenRefused
    ├── AuthorityMismatch
    ├── CertificateExpired
    ├── MemberRevoked
    ├── NoAuthority
    ├── NotLoggedIn
    ├── NotAllowed
    ├── UnknownMember
    ├── UnknownToken
    ├── UnknownBlob
    ├── UnknownRun
    ├── UnknownTask
    ├── RoundClosed
    ├── InvalidMessage
    ├── UpdateRefused
    ├── InvalidPayload
    ├── TaskAbandoned
    ├── DiskFull
    ├── StoreUnusable
    │   └── StoreLeased
    ├── AddressInUse
    ├── AlreadyRunning
    └── NotRunning

A message says in one line what is wrong and what to do about it; no user sees a traceback.
"""

from __future__ import annotations


class CoppiceError(Exception):
    """Root of the tree; the docstring of a leaf is its default message."""

    #: What the process exits with when nothing handles the error (docs/operations.md lists them).
    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class Retryable(CoppiceError):
    """Something outside failed for now."""


class ServerUnreachable(Retryable):
    """The server cannot be reached."""

    exit_code = 4


class HandshakeRefused(ServerUnreachable):
    """The server closed the connection before it began."""


class ServerBusy(Retryable):
    """The server is busy; try again later."""

    exit_code = 4

    def __init__(self, message: str = "", retry_seconds: float = 0.0) -> None:
        super().__init__(message)
        #: When the server wants to hear of it again; 0 where it did not say.
        self.retry_seconds = retry_seconds


class TransferBroken(Retryable):
    """A transfer ended before it was whole, or arrived damaged."""

    exit_code = 4


class Fatal(CoppiceError):
    """Trying again will not help."""


class DataError(Fatal):
    """The data does not fit the run."""

    exit_code = 3


class UnreadableData(DataError):
    """The data cannot be read."""


class RunFileError(Fatal):
    """The run file is not valid."""

    exit_code = 6


class AppError(Fatal):
    """The app module cannot be used."""

    exit_code = 6


class AppMismatch(Fatal):
    """The device and the run do not use the same app module."""

    exit_code = 5


class ProtocolMismatch(Fatal):
    """The device and the server speak different versions of the protocol."""

    exit_code = 5


class NameTaken(Fatal):
    """Another device has this name."""

    exit_code = 5


class NotJoined(Fatal):
    """The server does not know this client; join first."""

    exit_code = 5


class NotEnrolled(Fatal):
    """The device is not enrolled at the server."""

    exit_code = 5


class TokenRefused(Fatal):
    """The server does not take this token."""

    exit_code = 5


class AuthorityMismatch(Fatal):
    """The server has another certificate authority than the token says."""

    exit_code = 5


class CertificateExpired(Fatal):
    """The device's certificate has expired."""

    exit_code = 5


class MemberRevoked(Fatal):
    """The device was revoked."""

    exit_code = 5


class NoAuthority(Fatal):
    """The server runs with --insecure: it has no tokens, certificates or members."""

    exit_code = 5


class NotLoggedIn(Fatal):
    """The server wants a token here: log in, or name one with --token-file."""

    exit_code = 5


class NotAllowed(Fatal):
    """Only an operator may do this."""

    exit_code = 5


class UnknownMember(Fatal):
    """No device of this name is enrolled."""

    exit_code = 5


class UnknownToken(Fatal):
    """There is no such token."""

    exit_code = 5


class UnknownBlob(Fatal):
    """The server does not hold this blob."""

    exit_code = 5


class UnknownRun(Fatal):
    """There is no such run."""

    exit_code = 5


class UnknownTask(Fatal):
    """The server never gave this task to this client."""

    exit_code = 5


class RoundClosed(Fatal):
    """The round of this task is over; the update does not count."""

    exit_code = 5


class InvalidMessage(Fatal):
    """The message is malformed or outside its limits."""

    exit_code = 5


class UpdateRefused(Fatal):
    """The update does not fit its task."""

    exit_code = 5


class InvalidPayload(Fatal):
    """The bytes are not a valid payload."""

    exit_code = 5


class TaskAbandoned(Fatal):
    """The task was given up before it was done."""


class DiskFull(Fatal):
    """No space is left on the disk."""

    exit_code = 7


class StoreUnusable(Fatal):
    """The store cannot be opened."""

    exit_code = 7


class StoreLeased(StoreUnusable):
    """Another server is using this store."""


class AddressInUse(Fatal):
    """The address is in use."""

    exit_code = 7


class AlreadyRunning(Fatal):
    """A client of this name is running on this device already."""

    exit_code = 7


class NotRunning(Fatal):
    """No such process is running."""

    exit_code = 7

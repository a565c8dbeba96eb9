"""Who calls: known by its certificate, and with `--insecure` by what it says. No message tells."""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from coppice.domain import ClientId, valid_name
from coppice.errors import NoAuthority, NotEnrolled, NotJoined
from coppice.wire import coordination_pb2 as pb
from coppice.wire.status import CLIENT_KEY
from server.handlers import Context
from server.members import Issued, Members

#: As gRPC writes the other end of a connection: ipv4:10.0.0.7:51234, ipv6:%5B::1%5D:51234.
_PEER = re.compile(r"ipv[46]:\[?(.+?)\]?:[0-9]+")


@dataclass(frozen=True)
class Caller:
    """The device at the other end."""

    client_id: ClientId
    #: Tells two devices of one name apart; empty where only the device can say.
    device_id: str = ""
    #: When it should renew its certificate, in seconds since the epoch.
    renew_at: float = math.inf
    #: Where it calls from, for the audit log.
    address: str = ""


class Callers(Protocol):
    """How a device is known."""

    def identify(self, context: Context) -> Caller:
        """Who makes this call; raises when that is nobody who may."""

    def running(self, caller: Caller) -> AbstractContextManager[None]:
        """The current task is a call of this device, until it ends or the device is revoked."""

    async def renewed(self, signing_request: bytes, caller: Caller) -> Issued:
        """A new certificate for the device."""


class Certified:
    """By the certificates of their devices."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def identify(self, context: Context) -> Caller:
        """Whose certificate TLS has checked."""
        (pem,) = context.auth_context().get("x509_pem_cert", (b"",))
        if not pem:
            raise NotEnrolled("the call came without a certificate")
        member, renew_at = self._members.of_certificate(pem)
        return Caller(member.name, member.device_id, renew_at, address_of(context.peer()))

    def running(self, caller: Caller) -> AbstractContextManager[None]:
        """Until the device is revoked."""
        return self._members.calls.of(caller.client_id)

    async def renewed(self, signing_request: bytes, caller: Caller) -> Issued:
        """For the same key."""
        return await self._members.renew(signing_request, caller.client_id)


class Named:
    """By what they say, which on loopback has to do."""

    def identify(self, context: Context) -> Caller:
        """The name in the call's metadata."""
        for key, value in context.invocation_metadata() or ():
            if key == CLIENT_KEY and isinstance(value, str) and valid_name(value):
                return Caller(ClientId(value))
        raise NotJoined(f"the call has no valid {CLIENT_KEY!r} in its metadata")

    def running(self, caller: Caller) -> AbstractContextManager[None]:
        """Until it ends by itself."""
        return nullcontext()

    async def renewed(self, signing_request: bytes, caller: Caller) -> Issued:
        """There is nothing to renew."""
        raise NoAuthority


def address_of(peer: str) -> str:
    """The address in gRPC's name of the other end; empty when there is none."""
    found = _PEER.fullmatch(unquote(peer))
    return found[1] if found else ""


def certificate(issued: Issued) -> pb.Certificate:
    """What a device is sent."""
    return pb.Certificate(
        certificate=issued.certificate, name=issued.name, valid_seconds=issued.valid_seconds
    )

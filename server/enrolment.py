"""The gRPC service for strangers: it lets devices in by tokens, and back in by their keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from coppice.domain import PROTOCOL_VERSION
from coppice.errors import CoppiceError, DiskFull, ProtocolMismatch, ServerBusy, StoreUnusable
from coppice.wire import coordination_pb2 as pb
from server.access_records import Actor
from server.attempts import Attempts
from server.audit import Audit
from server.callers import certificate
from server.coordinator import Coordinator
from server.handlers import Context, Service
from server.members import Members

#: What gRPC lets through; no message of this service is longer than the half.
TRANSPORT_ENROLMENT_BYTES = 16 * 2**10

#: As gRPC writes the other end of a connection: ipv4:10.0.0.7:51234, ipv6:%5B::1%5D:51234.
_PEER = re.compile(r"ipv[46]:\[?(.+?)\]?:[0-9]+")


class EnrolmentService(Service):
    """`Enrolment` of proto/coppice/wire/coordination.proto."""

    name = "Enrolment"
    longest_message_bytes = TRANSPORT_ENROLMENT_BYTES // 2

    def __init__(
        self,
        members: Members,
        coordinator: Coordinator,
        audit: Audit,
        attempts: Attempts | None = None,
    ) -> None:
        self._members = members
        self._coordinator = coordinator
        self._audit = audit
        self._attempts = attempts if attempts is not None else Attempts()

    async def Authority(self, request: pb.AuthorityRequest, address: str) -> pb.AuthorityReply:
        return pb.AuthorityReply(certificate=self._members.authority.der)

    async def Enrol(self, request: pb.EnrolRequest, address: str) -> pb.Certificate:
        if request.protocol_version != PROTOCOL_VERSION:
            raise ProtocolMismatch(
                f"this server speaks protocol {PROTOCOL_VERSION}, the device "
                f"{request.protocol_version}: install the same version of coppice on both"
            )
        issued = await self._members.enrol(
            request.signing_request, request.secret, request.name, address
        )
        return certificate(issued)

    async def Renew(self, request: pb.RenewRequest, address: str) -> pb.Certificate:
        return certificate(await self._members.renew(request.signing_request))

    @contextmanager
    def called(self, context: Context) -> Iterator[str]:
        """The address that calls, unless it does so too often."""
        address = address_of(context.peer())
        self._attempts.count(address)
        yield address

    async def refused(self, error: CoppiceError, context: Context) -> CoppiceError:
        """Count it; of strangers each kind is logged once."""
        try:
            if isinstance(error, DiskFull | StoreUnusable):
                raise error
            await self._coordinator.refused(None, error)
            caller = Actor("", "device", address_of(context.peer()))
            await self._audit.refused(caller, "enrol", str(error))
        except (DiskFull, StoreUnusable) as failure:
            self._coordinator.give_up(failure)
            return ServerBusy("the server cannot store anything at present")
        return error


def address_of(peer: str) -> str:
    """The address in gRPC's name of the other end; empty when there is none."""
    found = _PEER.fullmatch(unquote(peer))
    return found[1] if found else ""

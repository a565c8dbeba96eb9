"""The gRPC service for strangers: it lets devices in by tokens, and back in by their keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from coppice.domain import PROTOCOL_VERSION
from coppice.errors import CoppiceError, DiskFull, ProtocolMismatch, ServerBusy, StoreUnusable
from coppice.wire import coordination_pb2 as pb
from server.access_records import Actor
from server.attempts import Attempts
from server.audit import Audit
from server.callers import address_of, certificate
from server.coordinator import Coordinator
from server.handlers import Context, Service
from server.members import Members
from server.places import Places

#: What gRPC lets through; no message of this service is longer than the half.
TRANSPORT_ENROLMENT_BYTES = 16 * 2**10

#: Calls that go on at the same time, and of those the ones of an address.
MOST_STRANGERS = 100
_MOST_OF_ONE = 50
#: A server that stops is started again by somebody.
_RETRY_SECONDS = 30.0


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
        self._places = Places(MOST_STRANGERS, _MOST_OF_ONE)

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
        with self._places.taken(address):
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
            return ServerBusy("the server cannot store anything at present", _RETRY_SECONDS)
        return error

"""The gRPC service of devices: every handler decodes, calls, encodes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

from coppice.domain import PROTOCOL_VERSION, ClientId
from coppice.errors import (
    CoppiceError,
    DiskFull,
    InvalidMessage,
    ProtocolMismatch,
    ServerBusy,
    StoreUnusable,
)
from coppice.tree import to_plain
from coppice.wire import coordination_pb2 as pb
from coppice.wire.bounds import valid_count
from coppice.wire.capability import capability_from_message
from coppice.wire.chunk_size import ChunkSize
from coppice.wire.chunks import FIRST_CHUNK_BYTES, MAX_MESSAGE_BYTES
from coppice.wire.codec import (
    blob_to_message,
    choice_from_message,
    labels_from_message,
    valid_digest,
    valid_run_key,
    workload_to_json,
)
from coppice.wire.report import report_from_message
from server.access_records import Actor
from server.answers import Answer, CheckIn, EndedRun, OpenRun, OpenTerms
from server.attempts import RENEWAL, Attempts
from server.audit import Audit
from server.blobs import Blobs
from server.callers import Caller, Callers, certificate
from server.coordinator import Coordinator
from server.handlers import Context, Service
from server.limits import Limits
from server.places import Places
from server.presence import HEARTBEAT_SECONDS
from server.progress import POLL_SECONDS
from server.receipt_key import ReceiptKey
from server.records import ClientRecord, NewTask, Stored, TaskRecord
from server.threads import Threads
from server.told import refusals_to_messages

#: What gRPC lets through; between this and MAX_MESSAGE_BYTES a message is refused by name.
TRANSPORT_MESSAGE_BYTES = 4 * MAX_MESSAGE_BYTES

_MAX_TEXT_LENGTH = 500
#: A server that stops is started again by somebody.
_RETRY_SECONDS = 5.0


class CoordinationService(Service):
    """`Coordination` of proto/coppice/wire/coordination.proto."""

    name = "Coordination"
    patience: ClassVar[Mapping[str, float]] = {"PollTask": POLL_SECONDS}

    def __init__(
        self,
        coordinator: Coordinator,
        callers: Callers,
        blobs: Blobs,
        threads: Threads,
        server_name: str,
        receipt_key: ReceiptKey,
        audit: Audit,
        limits: Limits | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._callers = callers
        self._blobs = blobs
        self._threads = threads
        self._server_name = server_name
        self._receipt_key = receipt_key
        self._audit = audit
        limits = limits if limits is not None else Limits()
        self.stall_seconds = limits.stall_seconds
        self._places = Places(limits.calls, limits.client_calls)
        self._renewals = Attempts(pace=RENEWAL, whose="device")

    async def Join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply:
        if request.protocol_version != PROTOCOL_VERSION:
            raise ProtocolMismatch(
                f"this server speaks protocol {PROTOCOL_VERSION}, the device "
                f"{request.protocol_version}: install the same version of coppice on both"
            )
        await self._coordinator.join(_client_record(request, caller))
        return pb.JoinReply(
            server_name=self._server_name,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            receipt_key=self._receipt_key.public,
        )

    async def PollTask(self, request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        check_in = _check_in(request, caller.client_id)
        reply = _poll_reply(await self._coordinator.poll(check_in))
        reply.refusals.extend(refusals_to_messages(await self._coordinator.untold(check_in)))
        reply.renew = time.time() > caller.renew_at
        return reply

    async def FetchBlob(self, request: pb.FetchRequest, caller: Caller) -> AsyncIterator[pb.Chunk]:
        client_id = caller.client_id
        self._coordinator.may_fetch(client_id, valid_digest(request.digest))
        chunk = ChunkSize(request.chunk_bytes or FIRST_CHUNK_BYTES)
        with await self._threads.transfer(partial(self._blobs.open, request.digest)) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            if request.offset > size_bytes:
                raise InvalidMessage(f"offset is {request.offset}; the blob has {size_bytes} bytes")
            file.seek(request.offset)
            start = request.offset
            while start < size_bytes:
                data = await self._threads.transfer(partial(file.read, chunk.size_bytes))
                began = time.monotonic()
                # gRPC takes it when it has room for it.
                yield pb.Chunk(data=data)
                chunk.sent(len(data), time.monotonic() - began, start - request.offset)
                start += len(data)
                self._coordinator.sent(client_id, len(data))

    async def PushUpdate(self, requests: AsyncIterator[pb.PushChunk], caller: Caller) -> pb.Receipt:
        first = await anext(requests, pb.PushChunk())
        if first.WhichOneof("part") != "header":
            raise InvalidMessage("the first message of a push is its header")
        stored = await self._coordinator.push(caller.client_id, first.header, _data(requests))
        return self._receipt_key.receipt(stored)

    async def PushStatus(self, request: pb.PushStatusRequest, caller: Caller) -> pb.PushStatusReply:
        known = await self._coordinator.push_status(caller.client_id, request)
        if isinstance(known, Stored):
            return pb.PushStatusReply(receipt=self._receipt_key.receipt(known))
        return pb.PushStatusReply(offset=known)

    async def Heartbeat(self, request: pb.HeartbeatRequest, caller: Caller) -> pb.HeartbeatReply:
        fetched = request.fetched if request.HasField("fetched") else None
        if fetched is not None and not 0 <= fetched <= 1:
            raise InvalidMessage("fetched is a share, from 0 to 1")
        wanted = self._coordinator.heartbeat(
            caller.client_id, request.task_id, request.steps_done, request.resident_bytes, fetched
        )
        return pb.HeartbeatReply(wanted=wanted)

    async def Leave(self, request: pb.LeaveRequest, caller: Caller) -> pb.LeaveReply:
        await self._coordinator.leave(caller.client_id, request.reason[:_MAX_TEXT_LENGTH])
        return pb.LeaveReply()

    async def Renew(self, request: pb.RenewRequest, caller: Caller) -> pb.Certificate:
        try:
            self._renewals.count(caller.client_id)
            return certificate(await self._callers.renewed(request.signing_request, caller))
        except CoppiceError as error:
            device = Actor(caller.client_id, "device", caller.address)
            await self._audit.refused(device, "renew", str(error))
            raise

    @contextmanager
    def called(self, context: Context) -> Iterator[Caller]:
        """The device that calls."""
        caller = self._callers.identify(context)
        with self._places.taken(caller.client_id), self._callers.running(caller):
            yield caller

    async def refused(self, error: CoppiceError, context: Context) -> CoppiceError:
        """Count it, and log it if it is new."""
        try:
            client_id = self._callers.identify(context).client_id
        except CoppiceError:
            client_id = None
        try:
            if isinstance(error, DiskFull | StoreUnusable):
                raise error
            await self._coordinator.refused(client_id, error)
        except (DiskFull, StoreUnusable) as failure:
            # Not the device's fault: the server stops, and the device waits for its return.
            self._coordinator.give_up(failure)
            return ServerBusy("the server cannot store anything at present", _RETRY_SECONDS)
        return error


async def _data(requests: AsyncIterator[pb.PushChunk]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "data":
            raise InvalidMessage("after the header of a push only data may follow")
        yield request.data


def _client_record(request: pb.JoinRequest, caller: Caller) -> ClientRecord:
    if not 8 <= len(request.device_id) <= 64:
        raise InvalidMessage("device_id has 8 to 64 characters")
    return ClientRecord(
        client_id=caller.client_id,
        device_id=caller.device_id or request.device_id,
        labels=labels_from_message(request.labels),
        capability=capability_from_message(request.capability),
        app_digest=valid_digest(request.app_digest) if request.app_digest else "",
        software=request.software[:_MAX_TEXT_LENGTH],
        joined_at=time.time(),
        left_at=None,
        left_reason="",
        refusals=0,
    )


def _check_in(request: pb.PollRequest, client_id: ClientId) -> CheckIn:
    choice = report = None
    if request.HasField("choice"):
        choice = (request.choice.round_number, choice_from_message(request.choice))
    if request.HasField("report"):
        if not request.run_key:
            raise InvalidMessage("a report is of a round of the run that run_key names")
        report = report_from_message(request.report)
    return CheckIn(
        client_id,
        valid_run_key(request.run_key) if request.run_key else "",
        valid_count("num_examples", request.num_examples),
        capability_from_message(request.capability),
        request.app_digest,
        choice,
        report,
        request.declined_task_id,
        valid_count("refusal_seen", request.refusal_seen),
    )


def _poll_reply(answer: Answer) -> pb.PollReply:
    match answer:
        case OpenRun(record):
            offer = pb.RunOffer(
                run_id=record.run_id,
                run_key=record.key,
                workload_json=workload_to_json(record.spec.workload),
            )
            return pb.PollReply(run=offer)
        case OpenTerms(round_number, ref):
            payload = blob_to_message(ref)
            return pb.PollReply(terms=pb.TermsOffer(round_number=round_number, payload=payload))
        case TaskRecord():
            seconds = max(answer.deadline_at - time.time(), 0.0)
            task = _task_offer(answer, answer.run_id, answer.round_number)
            task.task_id, task.deadline_seconds = answer.task_id, seconds
            return pb.PollReply(task=task)
        case EndedRun(record, keep):
            over = pb.RunOver(run_id=record.run_id, state=record.state, reason=record.reason)
            if keep is not None:
                round_number = record.best_round or record.round_number
                over.keep.CopyFrom(_task_offer(keep, record.run_id, round_number))
            return pb.PollReply(over=over)
    return pb.PollReply(wait=pb.Wait(retry_seconds=0.0))


def _task_offer(task: NewTask | TaskRecord, run_id: int, round_number: int) -> pb.TaskOffer:
    return pb.TaskOffer(
        masks=None if task.masks is None else blob_to_message(task.masks),
        run_id=run_id,
        kind=task.kind,
        round_number=round_number,
        payload=blob_to_message(task.payload),
        settings_json=json.dumps(to_plain(task.settings)),
    )

"""The calls of a device to its server: deadlines, identity, errors rebuilt, bytes counted.

Imports no torch, so that a light process can speak the protocol too.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import grpc

from coppice.domain import SERVER_TLS_NAME, BlobRef
from coppice.errors import (
    CoppiceError,
    HandshakeRefused,
    ProtocolMismatch,
    ServerUnreachable,
    TransferBroken,
)
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunk_size import ChunkSize
from coppice.wire.chunks import MAX_MESSAGE_BYTES, STREAM_OPTIONS, Assembler, blob_ref
from coppice.wire.coordination_pb2_grpc import CoordinationStub
from coppice.wire.status import CLIENT_KEY, error_from
from edge_client.progress import STALLED_SECONDS, Progress
from edge_client.stop import Stop

CALL_SECONDS = 10.0
#: The server holds a poll for 20 s at most; the rest is for a slow link.
POLL_SECONDS = 35.0
LEAVE_SECONDS = 3.0
#: A heartbeat is not waited for longer: its answer queues behind what is being fetched, and the
#: next one is a sign of life too.
BEAT_SECONDS = 5.0
#: A transfer may take this long, and a second more for each so many bytes, as long as bytes move.
TRANSFER_SECONDS = 300.0
SLOWEST_BYTES_PER_SECOND = 512
MAX_REASON_LENGTH = 500

OPTIONS = (
    *STREAM_OPTIONS,
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    # Without it a new channel would inherit the old one's wait before it connects again.
    ("grpc.use_local_subchannel_pool", 1),
    # The server is near the device: a proxy that the environment names is not for it.
    ("grpc.enable_http_proxy", 0),
    # Where there are certificates: see what it says of its name.
    ("grpc.ssl_target_name_override", SERVER_TLS_NAME),
)

#: What gRPC says when it cannot reach a server, and what that means.
_REASONS = (
    ("wrong_version", "it speaks no TLS: does it run with --insecure, or is the port another's?"),
    ("verify_failed", "its certificate is not by this device's server; was that set up anew?"),
    ("bad_signature", "its certificate is not by this device's server; was that set up anew?"),
    ("http1.x", "it speaks HTTP, not gRPC: is this the dashboard's port?"),
    ("http2", "what listens there is not a Coppice server: is this the dashboard's port?"),
    ("http/2", "what listens there is not a Coppice server: is this the dashboard's port?"),
    ("refused", "the connection was refused: is `fedserver start` running there?"),
    ("resolv", "the host name is not known: is it spelt right?"),
    ("lookup", "the host name is not known: is it spelt right?"),
    ("unreachable", "the network has no way there: is this device connected?"),
    ("deadline", "there is no answer: is the address right, and does a firewall let it through?"),
    ("timed out", "there is no answer: is the address right, and does a firewall let it through?"),
)

#: What it says when the server does not like this device's certificate, or the port is another's.
_CLOSED_AT_ONCE = "failed to connect"


class Answer(Protocol):
    """What travels beside an update's bytes; a `coppice.method.Update` is one."""

    @property
    def num_examples(self) -> int: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def metrics(self) -> Mapping[str, float]: ...  # noqa: D102


class Connection:
    """One device's calls to one server. The heartbeat may come from a second thread."""

    def __init__(
        self,
        address: str,
        client_id: str,
        stop: Stop | None = None,
        credentials: Callable[[], grpc.ChannelCredentials] | None = None,
    ) -> None:
        """One for `address` (HOST:PORT); a request to `stop` cancels the call that is going on.

        Args:
            credentials: What the next channel is opened with; None for a server without TLS,
                which is told `client_id` instead.
        """
        self.address = address
        self.bytes_down = 0
        self.bytes_up = 0
        self._credentials = credentials
        self._metadata = ((CLIENT_KEY, client_id),) if credentials is None else ()
        self._stop = stop if stop is not None else Stop()
        self._down, self._up = ChunkSize(), ChunkSize()
        #: Of the transfer that is under way.
        self.progress = Progress()
        # A call is never started on a channel that another thread is closing.
        self._opening = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stub: Any = None

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """The first call, and again whenever the server does not know this device."""
        reply: pb.JoinReply = self._finished(self._start("Join", request, CALL_SECONDS))
        return reply

    def poll(self, request: pb.PollRequest) -> pb.PollReply:
        """Wait for work; the server answers within 20 s."""
        reply: pb.PollReply = self._finished(self._start("PollTask", request, POLL_SECONDS))
        return reply

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatReply | None:
        """A sign of life; None while there is no connection, and it opens none."""
        with self._opening:
            if self._stub is None:
                return None
            call = self._stub.Heartbeat.future(
                request, timeout=BEAT_SECONDS, metadata=self._metadata
            )
        with self._errors_rebuilt():
            reply: pb.HeartbeatReply = call.result()
        return reply

    def renew(self, request: pb.RenewRequest) -> pb.Certificate:
        """A new certificate for this device's key."""
        reply: pb.Certificate = self._finished(self._start("Renew", request, CALL_SECONDS))
        return reply

    def leave(self, reason: str = "") -> None:
        """The goodbye; it is made even though the process was asked to end."""
        request = pb.LeaveRequest(reason=reason[:MAX_REASON_LENGTH])
        call = self._start("Leave", request, LEAVE_SECONDS)
        with self._errors_rebuilt():
            call.result()

    def fetch(self, ref: BlobRef) -> bytearray:
        """The blob, its digest checked; one that arrives damaged is fetched once more."""
        for is_last in (False, True):
            assembler = Assembler(ref)
            try:
                self.fetch_rest(assembler)
                return assembler.finish()
            except TransferBroken:
                if is_last:
                    raise
        raise AssertionError

    def fetch_rest(self, assembler: Assembler) -> None:
        """What is missing of a blob; what comes before a failure stays in the assembler."""
        ref, offset = assembler.ref, assembler.received_bytes
        request = pb.FetchRequest(
            digest=ref.digest, offset=offset, chunk_bytes=self._down.size_bytes
        )
        started = time.monotonic()
        seconds = transfer_seconds(ref.size_bytes - offset)
        call = self._start("FetchBlob", request, seconds, streams=True)
        try:
            with self._transferring(call, self._down):
                for chunk in call:
                    assembler.add(chunk.data)
                    self.bytes_down += len(chunk.data)
                    self.progress.has_fetched(assembler.received_bytes / max(ref.size_bytes, 1))
        finally:
            call.cancel()
        self._down.took(ref.size_bytes - offset, time.monotonic() - started)

    def push_status(self, task_id: int, ref: BlobRef) -> pb.PushStatusReply:
        """How much of an answer the server has, or its receipt."""
        blob = pb.BlobRef(digest=ref.digest, size_bytes=ref.size_bytes)
        request = pb.PushStatusRequest(task_id=task_id, blob=blob)
        reply: pb.PushStatusReply = self._finished(self._start("PushStatus", request, CALL_SECONDS))
        return reply

    def push(
        self,
        task_id: int,
        answer: Answer,
        data: bytearray,
        ref: BlobRef | None = None,
        offset: int = 0,
    ) -> pb.Receipt:
        """Send the answer to a task and its encoded payload; the receipt means stored.

        Args:
            ref: Of `data`, where that is known.
            offset: What the server says that it has of it.
        """
        ref = blob_ref(data) if ref is None else ref
        header = pb.PushHeader(
            task_id=task_id,
            blob=pb.BlobRef(digest=ref.digest, size_bytes=ref.size_bytes),
            offset=offset,
            num_examples=answer.num_examples,
            steps=answer.steps,
            # A diverged model has metrics that are not finite; those may not travel.
            metrics={
                name: float(value) for name, value in answer.metrics.items() if math.isfinite(value)
            },
        )
        parts = self._parts(header, data)
        call = self._start("PushUpdate", parts, transfer_seconds(len(data) - offset))
        with self._transferring(call, self._up):
            receipt: pb.Receipt = call.result()
        return receipt

    def close(self) -> None:
        """Cut the connection; the next call opens a new one."""
        with self._opening:
            if self._channel is not None:
                self._channel.close()
            self._channel = self._stub = None

    def _parts(self, header: pb.PushHeader, data: bytearray) -> Iterator[pb.PushChunk]:
        yield pb.PushChunk(header=header)
        view = memoryview(data)
        start = header.offset
        while start < len(view):
            part = bytes(view[start : start + self._up.size_bytes])
            began = time.monotonic()
            # gRPC asks for the next part when it has room for it.
            yield pb.PushChunk(data=part)
            self._up.sent(len(part), time.monotonic() - began, start - header.offset)
            self.progress.moved()
            self.bytes_up += len(part)
            start += len(part)

    def _start(self, method: str, request: Any, seconds: float, streams: bool = False) -> Any:
        with self._opening:
            if self._channel is None:
                self._channel = self._opened()
                self._stub = CoordinationStub(self._channel)
            call = getattr(self._stub, method)
            begin = call if streams else call.future
            return begin(request, timeout=seconds, metadata=self._metadata)

    def _opened(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.address, options=OPTIONS)
        return grpc.secure_channel(self.address, self._credentials(), options=OPTIONS)

    @contextmanager
    def _transferring(self, call: Any, chunk: ChunkSize) -> Iterator[None]:
        try:
            with self._stop.cancels(call), self.progress.of(call), self._errors_rebuilt():
                yield
        except ServerUnreachable as error:
            chunk.broke_off()
            if self.progress.has_stalled:
                raise ServerUnreachable(
                    f"nothing has moved on the connection to {self.address} for "
                    f"{STALLED_SECONDS:.0f} s"
                ) from error
            raise

    def _finished(self, call: Any) -> Any:
        with self._stop.cancels(call), self._errors_rebuilt():
            return call.result()

    @contextmanager
    def _errors_rebuilt(self) -> Iterator[None]:
        try:
            yield
        except grpc.FutureCancelledError:
            self._stop.check()
            raise ServerUnreachable(f"the connection to {self.address} was closed") from None
        except grpc.RpcError as error:
            self._stop.check()
            raise explained(error_from(error), self.address) from None


def explained(error: CoppiceError, address: str) -> CoppiceError:
    """gRPC's own failures, with the address and what to check."""
    text = str(error).lower()
    if type(error) not in (ServerUnreachable, ProtocolMismatch):
        return error
    for sign, reason in _REASONS:
        if sign in text:
            return ServerUnreachable(f"no Coppice server can be reached at {address}; {reason}")
    if isinstance(error, ProtocolMismatch):
        return error
    if _CLOSED_AT_ONCE in text:
        return HandshakeRefused(
            f"the server at {address} closes the connection at once: is this the right port, does "
            "it run with --insecure or without as this client does, was it set up anew, or has it "
            "more connections than it takes (--connections)?"
        )
    return ServerUnreachable(f"no Coppice server can be reached at {address}: {error}")


def transfer_seconds(size_bytes: int) -> float:
    """The deadline of a transfer: a bound that no usable link comes near.

    One in which nothing moves ends long before (`edge_client.progress`).
    """
    return TRANSFER_SECONDS + size_bytes / SLOWEST_BYTES_PER_SECOND

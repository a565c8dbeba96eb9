"""A device that a test drives call by call, so that it can say anything at all to a server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import torch
from google.protobuf.message import Message

from coppice.domain import PROTOCOL_VERSION
from coppice.tensors import Payload, dense_group
from coppice.wire import coordination_pb2 as pb
from coppice.wire import payload as wire
from coppice.wire.chunks import MAX_CHUNK_BYTES, blob_ref
from coppice.wire.status import CLIENT_KEY, ERROR_KEY

_SERVICE = "/coppice.wire.Coordination"
_CALL_SECONDS = 30.0
_UNLIMITED = (
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Refused(Exception):
    """What a call was answered instead of a reply."""

    def __init__(self, error: Any) -> None:
        super().__init__(f"{error.code()}: {error.details()}")
        self.code = error.code()
        #: Name of the class in coppice.errors; None when gRPC itself refused.
        self.error = dict(error.trailing_metadata() or ()).get(ERROR_KEY)
        self.details = str(error.details())


class Caller:
    """One connection. Requests are messages, or bytes that are sent as they are."""

    def __init__(self, address: str, name: str | None) -> None:
        """`name` is the identity that goes with each call."""
        self._channel = grpc.insecure_channel(address, options=_UNLIMITED)
        self._metadata = () if name is None else ((CLIENT_KEY, name),)

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Message | bytes) -> bytes:
        """The bytes of the reply."""
        make = self._channel.unary_unary(f"{_SERVICE}/{method}", None, None)
        return bytes(self._done(make, _bytes(request)))

    def push(self, *requests: Message | bytes) -> pb.Receipt:
        make = self._channel.stream_unary(f"{_SERVICE}/PushUpdate", None, None)
        return pb.Receipt.FromString(self._done(make, map(_bytes, requests)))

    def fetch(self, digest: str, offset: int = 0, chunk_bytes: int = 0) -> bytearray:
        make = self._channel.unary_stream(f"{_SERVICE}/FetchBlob", None, None)
        request = pb.FetchRequest(digest=digest, offset=offset, chunk_bytes=chunk_bytes)
        stream = self._done(make, _bytes(request))
        try:
            return bytearray().join(pb.Chunk.FromString(chunk).data for chunk in stream)
        except grpc.RpcError as error:
            raise Refused(error) from None

    def _done(self, make: Any, request: bytes | Iterable[bytes]) -> Any:
        try:
            return make(request, timeout=_CALL_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            raise Refused(error) from None

    # ---- a device that keeps to the rules -------------------------------------------------------

    def join(self, device_id: str = "0" * 32) -> None:
        self.call("Join", pb.JoinRequest(protocol_version=PROTOCOL_VERSION, device_id=device_id))

    def take_task(self) -> pb.TaskOffer:
        """Poll until there is a task."""
        run_key = ""
        while True:
            request = pb.PollRequest(run_key=run_key, num_examples=1)
            reply = pb.PollReply.FromString(self.call("PollTask", request))
            if reply.HasField("task"):
                return reply.task
            if reply.HasField("run"):
                run_key = reply.run.run_key


def push_parts(task_id: int, data: bytes | bytearray, **header: Any) -> list[pb.PushChunk]:
    """The messages of a push; `header` changes fields of the first."""
    ref = blob_ref(data)
    blob = pb.BlobRef(digest=ref.digest, size_bytes=ref.size_bytes)
    fields: dict[str, Any] = {"task_id": task_id, "blob": blob, "num_examples": 1, **header}
    starts = range(0, len(data), MAX_CHUNK_BYTES)
    return [
        pb.PushChunk(header=pb.PushHeader(**fields)),
        *(pb.PushChunk(data=bytes(data[start : start + MAX_CHUNK_BYTES])) for start in starts),
    ]


def idle_update(task: Payload) -> Payload:
    """FedAvg's answer of a device that trained nothing."""
    parameters = dense_group(task, "parameters")
    delta = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    return {"delta": delta, "buffers": task["buffers"]} if "buffers" in task else {"delta": delta}


def decode(data: bytearray) -> Payload:
    return wire.decode(data)


def _bytes(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()

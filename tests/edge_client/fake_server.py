"""A server on loopback that does what a test tells it, and remembers what it was asked."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coppice.app import build_model, make_app
from coppice.domain import (
    AppSpec,
    BlobRef,
    DataSpec,
    MethodSpec,
    ModelSpec,
    Workload,
)
from coppice.errors import CoppiceError, ServerUnreachable, TransferBroken
from coppice.masks import masked, prunable_names
from coppice.sparse import Mask
from coppice.tensors import Payload, masks_of, parameters_of, weight_group
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import blob_ref
from coppice.wire.codec import blob_to_message, workload_to_json
from coppice.wire.coordination_pb2_grpc import (
    CoordinationServicer,
    add_CoordinationServicer_to_server,
)
from coppice.wire.exchange import Known
from coppice.wire.payload import encode
from coppice.wire.receipt import signed_text
from coppice.wire.status import CLIENT_KEY, status_of

#: A test that waits longer than this has failed.
PATIENCE_SECONDS = 60.0

WORKLOAD = Workload(
    name="tiny",
    seed=7,
    model=ModelSpec(name="mlp", hidden=(3,)),
    data=DataSpec(classes=("left", "right"), input_shape=(4,), held_out=0.25),
    method=MethodSpec(name="fedavg", settings={"local_steps": 2, "batch_size": 4}),
)


def app_workload(source: bytes, held_out: float = 0.25) -> Workload:
    """A run of an app module."""
    return Workload(
        name="own",
        app=AppSpec(name="own_app.py", digest=blob_ref(source).digest, held_out=held_out),
        method=MethodSpec(name="fedavg", settings={"local_steps": 2, "batch_size": 4}),
    )


def model_payload(seed: int = 0) -> Payload:
    """A model of WORKLOAD, as FedAvg sends it."""
    return {"parameters": parameters_of(build_model(make_app(WORKLOAD), seed)), "buffers": {}}


def pruned_payload(seed: int = 0, every: int = 2) -> Payload:
    """The same with one weight of every so many kept."""
    model = build_model(make_app(WORKLOAD), seed)
    parameters = parameters_of(model)
    masks = {}
    for name in prunable_names(model):
        places = torch.arange(parameters[name].numel()).reshape(parameters[name].shape)
        masks[name] = Mask.of(places % every == 0)
    return {"parameters": masked(parameters, masks), "buffers": {}}


def masks_in(payload: Payload) -> dict[str, dict[str, Mask]]:
    """The masks of a payload, as they travel."""
    return {"parameters": masks_of(weight_group(payload, "parameters"))}


@dataclass
class Call:
    """One call as it arrived."""

    method: str
    client_id: str
    request: Any


@dataclass
class Gate:
    """Holds calls until it is opened or they are cancelled; says when one has come."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    #: Whether a call waited here for longer than anything may take.
    expired: bool = False


def run_key(run_id: int) -> str:
    return f"{run_id}-0123456789abcdef"


class FakeServer(CoordinationServicer):
    """Answers polls from a queue, serves blobs, and takes every update."""

    def __init__(self, port: int = 0) -> None:
        self.calls: list[Call] = []
        self.pushed: list[tuple[pb.PushHeader, bytes]] = []
        #: What the next calls of a method fail with.
        self.errors: dict[str, list[CoppiceError]] = defaultdict(list)
        #: Methods whose calls wait.
        self.gates: dict[str, Gate] = {}
        #: How many more times a blob arrives damaged.
        self.damage: dict[str, int] = defaultdict(int)
        #: After how many more of its bytes the next calls of a method break off.
        self.cuts: dict[str, list[int]] = defaultdict(list)
        #: What has come of each task's update so far.
        self.partial: dict[int, bytes] = {}
        #: Whether the next receipt gets lost on its way.
        self.loses_receipt = False
        self.key = Ed25519PrivateKey.generate()
        self.wanted = True
        self.heartbeat_seconds = 0.05
        self._run_key = run_key(1)
        self._receipts: dict[int, pb.Receipt] = {}
        self._blobs: dict[str, bytearray] = {}
        self._replies: queue.Queue[pb.PollReply] = queue.Queue()
        self._changed = threading.Condition()
        self._server = grpc.server(
            ThreadPoolExecutor(16),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10),
            ],
        )
        add_CoordinationServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End at once, as if the process were killed."""
        self._server.stop(grace=None).wait()

    # ---- what a test prepares ----

    def add_blob(self, payload: Payload, known: Known | None = None) -> BlobRef:
        """`known` are masks that the device has by then."""
        data = encode(payload, known=known or {})
        ref = blob_ref(data)
        self._blobs[ref.digest] = data
        return ref

    def reply(self, **reply: Any) -> None:
        """Answer the next poll with this."""
        self._replies.put(pb.PollReply(**reply))

    def offer_run(self, workload: Workload = WORKLOAD, run_id: int = 1) -> None:
        self._run_key = run_key(run_id)
        offer = pb.RunOffer(
            run_id=run_id, run_key=self._run_key, workload_json=workload_to_json(workload)
        )
        self.reply(run=offer)

    def task(self, ref: BlobRef, **changes: Any) -> pb.TaskOffer:
        values: dict[str, Any] = {
            "task_id": 11,
            "run_id": 1,
            "kind": "train",
            "round_number": 1,
            "payload": blob_to_message(ref),
            "settings_json": '{"learning_rate": 0.1}',
            "deadline_seconds": 60.0,
        }
        return pb.TaskOffer(**(values | changes))

    def offer_task(self, ref: BlobRef, **changes: Any) -> None:
        self.reply(task=self.task(ref, **changes))

    def end_run(
        self,
        keep: BlobRef | None = None,
        state: str = "finished",
        reason: str = "",
        masks: BlobRef | None = None,
    ) -> None:
        over = pb.RunOver(run_id=1, state=state, reason=reason)
        if keep is not None:
            on = None if masks is None else blob_to_message(masks)
            over.keep.CopyFrom(self.task(keep, kind="keep", round_number=9, masks=on))
        self.reply(over=over)

    def gate(self, method: str) -> Gate:
        """Hold the calls of a method from now on."""
        return self.gates.setdefault(method, Gate())

    # ---- what a test looks at ----

    def of(self, method: str) -> list[Any]:
        """The requests of a method so far."""
        with self._changed:
            return [call.request for call in self.calls if call.method == method]

    def wait_for(self, method: str, count: int = 1) -> Any:
        """The request of a method that makes it `count`."""
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: sum(call.method == method for call in self.calls) >= count, PATIENCE_SECONDS
            )
        assert arrived, f"{method} was called {len(self.of(method))} times, not {count}"
        return self.of(method)[count - 1]

    # ---- the calls ----

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:  # noqa: N802
        self._arrived("Join", request, context)
        key = self.key.public_key().public_bytes_raw()
        return pb.JoinReply(
            server_name="fake", heartbeat_seconds=self.heartbeat_seconds, receipt_key=key
        )

    def PollTask(self, request: pb.PollRequest, context: grpc.ServicerContext) -> pb.PollReply:  # noqa: N802
        self._arrived("PollTask", request, context)
        ended = threading.Event()
        if not context.add_callback(ended.set):
            ended.set()  # the call was over before this thread began: nobody calls back
        while not ended.is_set():
            try:
                reply = self._replies.get(timeout=0.05)
            except queue.Empty:
                continue
            if not ended.is_set():
                return reply
            self._replies.put(reply)
        return pb.PollReply(wait=pb.Wait())

    def FetchBlob(  # noqa: N802
        self, request: pb.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Chunk]:
        self._arrived("FetchBlob", request, context)
        data = bytearray(self._blobs[request.digest])
        if self.damage[request.digest] > 0:
            self.damage[request.digest] -= 1
            data[-1] ^= 1
        cut = self.cuts["FetchBlob"].pop(0) if self.cuts["FetchBlob"] else None
        end = len(data) if cut is None else request.offset + cut
        for start in range(request.offset, end, request.chunk_bytes):
            yield pb.Chunk(data=bytes(data[start : min(start + request.chunk_bytes, end)]))
        if cut is not None:
            self._fail(ServerUnreachable("cut"), context)

    def PushUpdate(  # noqa: N802
        self, parts: Iterator[pb.PushChunk], context: grpc.ServicerContext
    ) -> pb.Receipt:
        header = next(parts).header
        self._arrived("PushUpdate", header, context)
        data = self.partial.pop(header.task_id, b"")[: header.offset]
        assert len(data) == header.offset, "not what the server has"
        cut = self.cuts["PushUpdate"].pop(0) if self.cuts["PushUpdate"] else None
        for part in parts:
            data += part.data
            if cut is not None and len(data) - header.offset >= cut:
                self.partial[header.task_id] = data[: header.offset + cut]
                self._fail(ServerUnreachable("cut"), context)
        if blob_ref(data) != BlobRef(header.blob.digest, header.blob.size_bytes):
            self._fail(TransferBroken("damaged"), context)
        self.pushed.append((header, data))
        receipt = self._receipt(header, str(dict(context.invocation_metadata())[CLIENT_KEY]))
        if self.loses_receipt:
            self.loses_receipt = False
            self._fail(ServerUnreachable("lost"), context)
        return receipt

    def PushStatus(  # noqa: N802
        self, request: pb.PushStatusRequest, context: grpc.ServicerContext
    ) -> pb.PushStatusReply:
        self._arrived("PushStatus", request, context)
        if request.task_id in self._receipts:
            return pb.PushStatusReply(receipt=self._receipts[request.task_id])
        return pb.PushStatusReply(offset=len(self.partial.get(request.task_id, b"")))

    def _receipt(self, header: pb.PushHeader, client: str) -> pb.Receipt:
        receipt = pb.Receipt(
            task_id=header.task_id,
            digest=header.blob.digest,
            client=client,
            run_key=self._run_key,
            base="b" * 64,
            stored_at=1_800_000_000,
        )
        receipt.signature = self.key.sign(signed_text(receipt))
        return self._receipts.setdefault(header.task_id, receipt)

    def Heartbeat(  # noqa: N802
        self, request: pb.HeartbeatRequest, context: grpc.ServicerContext
    ) -> pb.HeartbeatReply:
        self._arrived("Heartbeat", request, context)
        return pb.HeartbeatReply(wanted=self.wanted)

    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext) -> pb.LeaveReply:  # noqa: N802
        self._arrived("Leave", request, context)
        return pb.LeaveReply()

    def _arrived(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        caller = str(dict(context.invocation_metadata())[CLIENT_KEY])
        with self._changed:
            self.calls.append(Call(method, caller, request))
            self._changed.notify_all()
        gate = self.gates.get(method)
        if gate is not None:
            gate.reached.set()
            context.add_callback(gate.opened.set)
            gate.expired = gate.expired or not gate.opened.wait(PATIENCE_SECONDS)
        if self.errors[method]:
            self._fail(self.errors[method].pop(0), context)

    def _fail(self, error: CoppiceError, context: grpc.ServicerContext) -> NoReturn:
        code, details, metadata = status_of(error)
        context.set_trailing_metadata(metadata)
        context.abort(code, details)
        raise AssertionError

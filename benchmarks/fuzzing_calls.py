"""Hostile calls to both gRPC services of a real server, by its devices and by strangers."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from benchmarks.fuzzing_bytes import EXTREMES, TEXTS, changed_bytes, changed_message, wire_bytes
from benchmarks.fuzzing_payloads import payload_maker
from benchmarks.fuzzing_tally import Tally
from coppice.domain import PROTOCOL_VERSION, SERVER_TLS_NAME
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import MAX_CHUNK_BYTES, blob_ref
from coppice.wire.status import CLIENT_KEY, ERROR_KEY

#: How a server may refuse; whatever else it says of itself is a finding.
REFUSALS = frozenset(
    {
        "AppMismatch", "CertificateExpired", "InvalidMessage", "MemberRevoked", "NameTaken",
        "NotEnrolled", "NotJoined", "ProtocolMismatch", "RoundClosed", "ServerBusy",
        "TokenRefused", "TransferBroken", "UnknownBlob", "UnknownTask", "UpdateRefused",
    }
)  # fmt: skip
#: What gRPC itself may say of a message or metadata that are too large, and of no such method.
TRANSPORT = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED})
#: No call but a poll may take so long.
CALL_SECONDS = 15.0
#: After so long, a poll is held: that is an answer too.
POLL_SECONDS = 0.3
#: How long a stream that says nothing is left open.
SILENT_SECONDS = 0.1
_OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_TLS_NAME),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 2**20),
    ("grpc.enable_retries", 0),
)
_ODD_METHODS = ("Coordination/Nope", "Nothing/Join", "Coordination/", "Coordination/Join/Join")


class Calls:
    """Calls by one channel, each judged by how it ends."""

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials, service: str, tally: Tally
    ) -> None:
        self.tally = tally
        self._service = service
        self._channel = grpc.secure_channel(address, credentials, options=_OPTIONS)
        descriptor = pb.DESCRIPTOR.services_by_name[service]
        self.methods = {method.name: method for method in descriptor.methods}

    def close(self) -> None:
        """Ends what still goes on."""
        self._channel.close()

    def call(
        self, method: str, request: Any, metadata: Any = (), seconds: float = CALL_SECONDS
    ) -> list[bytes]:
        """The messages of the reply; raises RpcError."""
        known = self.methods.get(method)
        path = f"/coppice.wire.{self._service}/{method}" if known else f"/coppice.wire.{method}"
        options: dict[str, Any] = {"timeout": seconds, "metadata": metadata}
        if known is not None and known.client_streaming:
            make: Any = self._channel.stream_unary(path, None, None)
            return [make(request, **options)]
        if known is not None and known.server_streaming:
            stream: Any = self._channel.unary_stream(path, None, None)
            return [*stream(request, **options)]
        make = self._channel.unary_unary(path, None, None)
        return [make(request, **options)]

    def tried(
        self, method: str, request: Any, metadata: Any = (), seconds: float = CALL_SECONDS
    ) -> str:
        """Make a call and judge its end. Returns the refusal's name, empty for none."""
        case = f"{method} {request[:100].hex() if isinstance(request, bytes) else request}"
        try:
            for data in self.call(method, request, metadata, seconds):
                getattr(pb, self.methods[method].output_type.name).FromString(data)
            self.tally.accept()
        except grpc.RpcError as error:
            return self._judge(case, error, is_short=seconds < CALL_SECONDS)
        except (DecodeError, KeyError) as error:
            self.tally.crash(case, f"{type(error).__name__}: {error}")
        return ""

    def _judge(self, case: str, error: Any, is_short: bool) -> str:
        code, details = error.code(), str(error.details())
        name = str(dict(error.trailing_metadata() or ()).get(ERROR_KEY, ""))
        if name in REFUSALS:
            self.tally.refuse(name)
        elif name == "" and code in TRANSPORT:
            self.tally.refuse(code.name)
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED and is_short:
            self.tally.refuse("ended by the caller")
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.tally.hang(case, f"no answer within {CALL_SECONDS:.0f} s")
        else:
            self.tally.crash(case, f"{code.name} {name}: {details[:200]}")
        return name


class HostileDevice:
    """A device that was let in, knows how to behave, and mostly does not."""

    def __init__(self, calls: Calls, chance: random.Random) -> None:
        self._calls = calls
        self._chance = chance
        self._payload = payload_maker()
        self._task: pb.TaskOffer | None = None
        self._run_key = ""
        #: An update that would be taken, once one was computed.
        self._update = b""
        self._over = threading.Event()
        self._make_update: Callable[[bytes], bytes] = lambda data: data

    def fuzz(self, cases: int, make_update: Callable[[bytes], bytes]) -> None:
        """So many calls; `make_update` gives the answer to a task's payload."""
        self._make_update = make_update
        tally = self._calls.tally
        while tally.cases < cases:
            if self._task is None and self._chance.random() < 0.2:
                self._behave()
            name = self._one()
            if name in ("NotJoined", "RoundClosed", "UnknownTask", "UpdateRefused"):
                self._task = None
        self._over.set()

    def leave(self) -> None:
        """Goodbye."""
        self._calls.tried("Leave", b"")

    def _behave(self) -> None:
        """Join, get ready and take a task, if there is one at once."""
        join = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, device_id="0" * 32)
        try:
            self._calls.call("Join", join.SerializeToString())
            for _ in range(3):
                request = pb.PollRequest(run_key=self._run_key, num_examples=1)
                (data,) = self._calls.call("PollTask", request.SerializeToString(), seconds=1.0)
                reply = pb.PollReply.FromString(data)
                if reply.HasField("run"):
                    self._run_key = reply.run.run_key
                if reply.HasField("task"):
                    fetch = pb.FetchRequest(digest=reply.task.payload.digest).SerializeToString()
                    chunks = map(pb.Chunk.FromString, self._calls.call("FetchBlob", fetch))
                    payload = b"".join(chunk.data for chunk in chunks)
                    self._update = self._make_update(payload)
                    self._task = reply.task
                    return
        except grpc.RpcError:
            # Judged where the same happens to a case.
            pass

    # ---- one case ------------------------------------------------------------------------------

    def _one(self) -> str:
        chance, calls = self._chance, self._calls
        if chance.random() < 0.02:
            return calls.tried(chance.choice(_ODD_METHODS), b"")
        method = chance.choice((*calls.methods, "PushUpdate", "PushUpdate", "PushUpdate"))
        metadata = self._metadata() if chance.random() < 0.05 else ()
        if method == "PushUpdate":
            return self._push(metadata)
        templates = self._templates()
        seconds = POLL_SECONDS if method == "PollTask" else CALL_SECONDS
        request = wire_bytes(chance, templates[method], templates)
        return calls.tried(method, request, metadata, seconds)

    def _metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        chance = self._chance
        texts = [text for text in TEXTS if text.isascii() and text.isprintable()]
        kind = chance.randrange(4)
        if kind == 0:
            return ((CLIENT_KEY, chance.choice(texts)),)
        if kind == 1:
            return (("x-odd-bin", chance.randbytes(chance.choice((0, 100, 5000, 20_000)))),)
        if kind == 2:
            return tuple((f"x-{number}", "a" * 50) for number in range(chance.choice((5, 50, 300))))
        return ((ERROR_KEY, "StoreUnusable"), ("grpc-timeout-x", "1S"))

    def _templates(self) -> dict[str, Message]:
        task = self._task or pb.TaskOffer(task_id=1)
        ref = blob_ref(self._update)
        blob = pb.BlobRef(digest=ref.digest, size_bytes=ref.size_bytes)
        capability = pb.Capability(
            memory_bytes=2**30, num_threads=1, machine="pi", cores=1.0, throttled=["hot"]
        )
        forecast = pb.Forecast(download_seconds=1, compute_seconds=1, upload_seconds=1, why="pace")
        report = pb.RoundReport(
            round_number=max(task.round_number, 1), steps=1, density=1, bound_by="x",
            forecast=forecast,
        )  # fmt: skip
        return {
            "Join": pb.JoinRequest(
                protocol_version=PROTOCOL_VERSION, device_id="0" * 32, labels={"room": "kitchen"},
                capability=capability, software="fuzz",
            ),
            "PollTask": pb.PollRequest(
                run_key=self._run_key, num_examples=1, capability=capability, report=report,
                choice=pb.Choice(round_number=1, values_json='{"steps": 1}'), refusal_seen=1,
                declined_task_id=task.task_id if self._chance.random() < 0.1 else 0,
            ),
            "FetchBlob": pb.FetchRequest(digest=task.payload.digest or "0" * 64, chunk_bytes=65536),
            "PushStatus": pb.PushStatusRequest(task_id=task.task_id, blob=blob),
            "PushUpdate": pb.PushChunk(header=self._header(self._update)),
            "Heartbeat": pb.HeartbeatRequest(task_id=task.task_id, steps_done=1, resident_bytes=1),
            "Leave": pb.LeaveRequest(reason="tired"),
            "Renew": pb.RenewRequest(signing_request=b"0"),
        }  # fmt: skip

    # ---- pushes --------------------------------------------------------------------------------

    def _header(self, data: bytes) -> pb.PushHeader:
        ref = blob_ref(data)
        return pb.PushHeader(
            task_id=self._task.task_id if self._task is not None else 1,
            blob=pb.BlobRef(digest=ref.digest, size_bytes=ref.size_bytes),
            num_examples=1,
            steps=1,
            metrics={"loss": 0.5},
        )

    def _push(self, metadata: Any) -> str:
        chance, data = self._chance, self._update
        header, kind = self._header(data), chance.randrange(10)
        if kind == 0:
            silent = self._silent([_first(header), *_rest(data)[:1]])
            return self._calls.tried("PushUpdate", silent, metadata, SILENT_SECONDS)
        if kind == 1:
            return self._calls.tried("PushUpdate", self._endless(header), metadata)
        if kind in (2, 3, 4):
            # Bytes that are what they say they are, and yet no update.
            data = self._payload(chance) if kind == 2 else changed_bytes(chance, data, data)
            parts = [_first(self._header(data)), *_rest(data)]
        elif kind == 5:
            header.offset = chance.choice((1, len(data), len(data) // 2, *EXTREMES[:-1])) % 2**64
            parts = [_first(header), *_rest(data)]
        elif kind == 6:
            changed = changed_message(chance, header)
            parts = [pb.PushChunk(header=changed).SerializeToString(), *_rest(data)]
        else:
            parts = self._disordered([_first(header), *_rest(data)])
        return self._calls.tried("PushUpdate", iter(parts), metadata)

    def _disordered(self, parts: list[bytes]) -> list[bytes]:
        chance = self._chance
        for _ in range(chance.choice((1, 2))):
            place = chance.randrange(len(parts)) if parts else 0
            kind = chance.randrange(9)
            if kind == 0 and parts:
                del parts[place]
            elif kind == 1 and parts:
                parts.insert(place, parts[place])
            elif kind == 2:
                chance.shuffle(parts)
            elif kind == 3:
                parts.append(parts[0] if parts else b"")
            elif kind == 4:
                parts.insert(place, pb.PushChunk(data=b"").SerializeToString())
            elif kind == 5:
                too_long = MAX_CHUNK_BYTES + chance.choice((1, 2 * 2**20, 9 * 2**20))
                parts.insert(place + 1, pb.PushChunk(data=bytes(too_long)).SerializeToString())
            elif kind == 6:
                parts.insert(place, chance.randbytes(chance.choice((0, 1, 50))))
            elif kind == 7 and parts:
                parts[place] = changed_bytes(chance, parts[place], parts[0])
            else:
                parts = parts[: place + 1]
        return parts

    def _endless(self, header: pb.PushHeader) -> Iterator[bytes]:
        yield _first(header)
        chunk = pb.PushChunk(data=bytes(1024)).SerializeToString()
        while not self._over.is_set():
            yield chunk

    def _silent(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        yield from parts
        self._over.wait(2 * SILENT_SECONDS)


def _first(header: pb.PushHeader) -> bytes:
    return pb.PushChunk(header=header).SerializeToString()


def _rest(data: bytes) -> list[bytes]:
    size = max(1, len(data) // 3)
    return [
        pb.PushChunk(data=data[start : start + size]).SerializeToString()
        for start in range(0, len(data), size)
    ]


def fuzz_enrolment(
    calls: Calls, chance: random.Random, cases: int, secret: bytes, requests: list[bytes]
) -> None:
    """What a stranger may say, with a token's secret and without."""
    while calls.tally.cases < cases:
        request = chance.choice(requests)
        if chance.random() < 0.5:
            request = changed_bytes(chance, request, chance.choice(requests))
        templates: dict[str, Message] = {
            "Authority": pb.AuthorityRequest(),
            "Enrol": pb.EnrolRequest(
                protocol_version=PROTOCOL_VERSION,
                signing_request=request,
                secret=secret if chance.random() < 0.5 else chance.randbytes(15),
                name=chance.choice((f"fuzz-{chance.randrange(50)}", *TEXTS)),
            ),
            "Renew": pb.RenewRequest(signing_request=request),
        }
        method = chance.choice(("Authority", "Enrol", "Enrol", "Renew", "Nope"))
        template = templates.get(method, templates["Authority"])
        data = template.SerializeToString()
        if chance.random() < 0.6:
            data = wire_bytes(chance, template, templates)
        calls.tried(method if method in templates else "Enrolment/Nope", data)

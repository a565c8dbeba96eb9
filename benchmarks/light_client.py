"""A client that takes part in every round and trains nothing: fetch, check, push, poll.

A process of its own that imports no torch, so that fifty of them fit on one machine:
`python -m benchmarks.light_client ADDRESS NAME UPDATE_FILE APP_DIGEST [TOKEN]`. With
`heartbeats` in place of the file it only sends heartbeats, and prints how long each took, in
seconds. With a token it enrols and speaks TLS.
"""

from __future__ import annotations

import mmap
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from coppice.domain import PROTOCOL_VERSION, BlobRef, ClientId
from coppice.errors import CoppiceError
from coppice.join_token import parse_token
from coppice.wire import coordination_pb2 as pb
from edge_client.connection import Connection
from edge_client.papers import papers_of
from edge_client.state_folder import StateFolder

_HEARTBEAT_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class _Nothing:
    """An answer of one example and no steps."""

    num_examples: int = 1
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Take part until the run is over."""
    address, name, update, app_digest, *token = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        credentials = _credentials(address, ClientId(name), token[0], folder) if token else None
    connection = Connection(address, name, credentials=credentials)
    connection.join(
        pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION, device_id=f"light-{name}", app_digest=app_digest
        )
    )
    if update == "heartbeats":
        _send_heartbeats(connection)
    else:
        _take_part(connection, update, app_digest)


def _credentials(
    address: str, name: ClientId, token: str, folder: str
) -> Callable[[], grpc.ChannelCredentials]:
    """What a device gets for its token; nothing of it is kept."""
    host = address.rpartition(":")[0]
    papers, _ = papers_of(StateFolder(Path(folder)), host, parse_token(token), name, name)
    made = papers.credentials()
    return lambda: made


def _take_part(connection: Connection, update: str, app_digest: str) -> None:
    with (
        Path(update).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as data,
    ):
        answer: Any = data
        run_key = ""
        while True:
            poll = pb.PollRequest(run_key=run_key, num_examples=1, app_digest=app_digest)
            reply = connection.poll(poll)
            match reply.WhichOneof("reply"):
                case "run":
                    run_key = reply.run.run_key
                case "task":
                    payload = reply.task.payload
                    connection.fetch(BlobRef(payload.digest, payload.size_bytes))
                    # No two updates are equal, so that the server has to keep each of them; the
                    # very last bytes may be padding, which has to stay zero.
                    data[-12:-8] = struct.pack("<f", reply.task.task_id)
                    connection.push(reply.task.task_id, _Nothing(), answer)
                case "over":
                    return


def _send_heartbeats(connection: Connection) -> None:
    while True:
        began = time.perf_counter()
        try:
            connection.heartbeat(pb.HeartbeatRequest())
        except CoppiceError:
            return
        print(f"{time.perf_counter() - began:.6f}", flush=True)
        time.sleep(_HEARTBEAT_PAUSE_SECONDS)


if __name__ == "__main__":
    main()

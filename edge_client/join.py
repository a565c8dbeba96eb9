"""`fedclient join`: builds the objects of one device and lets it live."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from argparse import Namespace
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from coppice import __version__
from coppice.app_module import digest_of, read_source
from coppice.domain import PROTOCOL_VERSION
from coppice.errors import NotEnrolled, Retryable, UnreadableData
from coppice.wire import coordination_pb2 as pb
from coppice.wire.capability import capability_to_message
from edge_client.backoff import LONGEST_SECONDS, Backoff
from edge_client.connection import Connection
from edge_client.console import Console
from edge_client.journal import Journal
from edge_client.link import FIRST_CONTACT_SECONDS, Link
from edge_client.meter import capability
from edge_client.papers import Papers, papers_of
from edge_client.state_folder import Identity, StateFolder
from edge_client.status import Status, StatusFile
from edge_client.stop import Stop, Stopped

_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\]):[0-9]+")


def join(arguments: Namespace, folder: StateFolder) -> int:
    """Join the server and work for it until the end. Returns the exit code."""
    if not arguments.data.exists():
        raise UnreadableData(
            f"{arguments.data} does not exist; give the path of this device's data with --data"
        )
    if arguments.insecure and not _LOOPBACK.fullmatch(arguments.server):
        raise NotEnrolled(
            f"--insecure is for a server on this machine, not for {arguments.server}: leave it "
            "out, and give the --token that `fedserver token create` prints there"
        )
    app_digest = digest_of(read_source(arguments.app)) if arguments.app else ""
    stop = Stop()
    folder.make()
    with folder.locked(), stop.on_signals():
        try:
            return _live(arguments, folder, app_digest, stop)
        except Stopped:
            return stop.exit_code


def _live(arguments: Namespace, folder: StateFolder, app_digest: str, stop: Stop) -> int:
    identity = folder.identity(arguments.name)
    console = Console()
    console.say("device", f"{identity.name}, state in {folder.path}")
    now = Status(pid=os.getpid(), server=arguments.server, name=identity.name)
    journal = Journal(console, StatusFile(folder.status, now))
    papers = None if arguments.insecure else _papers(arguments, folder, identity, stop, journal)
    if papers is not None:
        identity = replace(identity, name=papers.membership.name)
    credentials = None if papers is None else papers.credentials
    connection = Connection(arguments.server, identity.name, stop, credentials)
    request = _join_request(identity, arguments, app_digest)
    with Link(connection, request, stop, journal, papers=papers) as link:
        link.meet(_patience(arguments))
        reply = _first_work(link, stop, journal, arguments, app_digest)
        if reply.HasField("run"):
            journal.enter("preparing")
        # Threads that wait for each other sleep. By default they spin, which takes several times as
        # long as soon as anything else wants a core. Read when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Only now: importing torch takes a small device many seconds and most of the memory that it
        # has for this; a wrong address and a server without a run take neither.
        from edge_client.loop import Device, Plan

        plan = Plan(
            client_id=identity.name,
            data=arguments.data,
            app=arguments.app,
            app_digest=app_digest,
            num_threads=arguments.threads,
            kernels=not arguments.no_kernels,
            outbox=arguments.outbox,
            once=arguments.once,
        )
        # That took its time, in which someone may have asked the device to leave.
        stop.check()
        with Device(plan, link, folder, stop, journal) as device:
            return device.live(reply)


def _patience(arguments: Namespace) -> float:
    """How long to try for the first contact; infinite where the device was let in before."""
    if arguments.wait is not None:
        return float(arguments.wait)
    return FIRST_CONTACT_SECONDS if arguments.token or arguments.insecure else math.inf


def _papers(
    arguments: Namespace, folder: StateFolder, identity: Identity, stop: Stop, journal: Journal
) -> Papers:
    """What this device shows the server: kept from before, or got by its token."""
    wait_seconds = _patience(arguments)
    deadline = time.monotonic() + wait_seconds
    backoff, told = Backoff(), False
    host = arguments.server.rpartition(":")[0]
    while True:
        try:
            papers, is_new = papers_of(folder, host, arguments.token, identity.name, arguments.name)
        except Retryable as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            if not told:
                journal.waiting(error, wait_seconds)
                told = True
            stop.wait(min(backoff.next_seconds(error), left))
        else:
            journal.enrolled(papers.membership.name, papers.membership.expires_at, is_new=is_new)
            return papers


def _first_work(
    link: Link, stop: Stop, journal: Journal, arguments: Namespace, app_digest: str
) -> pb.PollReply:
    """What the server says when it has something to do for the first time."""
    journal.enter("waiting")
    while True:
        request = pb.PollRequest(
            capability=capability_to_message(capability(arguments.threads)), app_digest=app_digest
        )
        reply = link.poll(request)
        if reply.WhichOneof("reply") not in ("wait", None):
            return reply
        stop.wait(min(reply.wait.retry_seconds, LONGEST_SECONDS))


def _join_request(identity: Identity, arguments: Namespace, app_digest: str) -> pb.JoinRequest:
    return pb.JoinRequest(
        protocol_version=PROTOCOL_VERSION,
        device_id=identity.device_id,
        labels=dict(arguments.label),
        capability=capability_to_message(capability(arguments.threads)),
        app_digest=app_digest,
        software=_software(),
    )


def _software() -> str:
    # torch's version is read off the installation, because importing it takes so long.
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "of unknown version"
    return f"coppice {__version__}, python {platform.python_version()}, torch {torch}"

"""Builds every object of the server, starts them in one event loop, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn

from coppice.errors import DiskFull, StoreUnusable
from coppice.files import write_file
from server.access import Access
from server.addresses import names_of_host, reachable
from server.announcer import Announcer
from server.attempts import Attempts, enrolment_pace
from server.audit import Audit
from server.authority import open_authority
from server.blobs import Blobs
from server.callers import Certified, Named
from server.config import (
    AUTHORITY_FILE,
    AUTHORITY_FOLDER,
    TOKEN_FILE,
    WHERE_FILE,
    Address,
    ServerConfig,
)
from server.coordinator import Coordinator
from server.dashboard.api import make_app
from server.dashboard.connections import LONGEST_HEAD_BYTES, PageServer, bounded
from server.dashboard.members import Enrolments, join_line
from server.enrolment import EnrolmentService
from server.evaluation import Evaluator
from server.lease import LeaseOwner
from server.listeners import in_use, listen_for_devices, listen_for_strangers
from server.members import DAY_SECONDS, Members
from server.presence import Presence
from server.receipt_key import open_receipt_key
from server.resources import Resources
from server.service import CoordinationService
from server.soundness import check_blobs
from server.space import Space
from server.store import Store
from server.submission import submit
from server.threads import Threads
from server.uploads import Uploads

_LEASE_RENEWAL_SECONDS = 5.0
_GOODBYE_SECONDS = 1.0


class Server:
    """startup, serve, shutdown."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._owner = LeaseOwner.this_process()
        self._stop = asyncio.Event()
        self._interrupted = False
        self._servers: list[Any] = []

    async def run(self) -> None:
        """From start to stop; raises what made it stop, if that was not SIGTERM."""
        await self._startup()
        try:
            await self._serve()
        finally:
            await self._shutdown()
        if self._interrupted:
            raise KeyboardInterrupt

    async def _startup(self) -> None:
        config = self._config
        # Folding is bound by memory, not by arithmetic: more threads only wait for each other.
        torch.set_num_threads(1)
        _allow_files()
        for name in ("", "blobs", "apps", "models"):
            _make_folder(config.data / name)
        store = Store(config.database, durable=config.durable)
        try:
            await self._open(store)
        except BaseException:
            with contextlib.suppress(StoreUnusable, DiskFull):
                store.release_lease(self._owner)
            # So that no log is left beside the database, which would not fit a copy put back.
            store.close()
            raise

    async def _open(self, store: Store) -> None:
        config = self._config
        store.migrate()
        store.take_lease(self._owner, time.time())
        blobs = Blobs(config.data / "blobs", durable=config.durable)
        check_blobs(store, blobs, time.time(), lambda: store.renew_lease(self._owner, time.time()))
        self._resources = Resources(
            store=store,
            blobs=blobs,
            uploads=Uploads(blobs, space=Space(blobs.folder, config)),
            threads=Threads(),
            presence=Presence(),
            announcer=Announcer(),
            evaluator=Evaluator(),
            models_folder=config.data / "models",
            apps_folder=config.data / "apps",
        )
        self._coordinator = Coordinator(self._resources)
        self._audit = Audit(self._resources)
        await self._open_ports()

    async def _open_ports(self) -> None:
        config, resources = self._config, self._resources
        self._socket = _bind(config.dashboard)
        self._members = None if config.insecure else await self._open_enrolment()
        callers = Named() if self._members is None else Certified(self._members)
        service = CoordinationService(
            self._coordinator,
            callers,
            resources.blobs,
            resources.threads,
            config.name,
            open_receipt_key(config.data),
            self._audit,
            config,
        )
        self._access = None if self._members is None else await self._open_access()
        authority = self._members.authority if self._members is not None else None
        server, self.address = listen_for_devices(config.listen, service, authority, config)
        self._servers.append(server)
        self.dashboard = Address(config.dashboard.host, self._socket.getsockname()[1])
        submit_run = partial(submit, resources, self._coordinator)
        enrolments = None if self._members is None else Enrolments(self._members, self.join_address)
        app = make_app(
            self._coordinator, resources, submit_run, enrolments, self._access, self._audit
        )
        # Its key and its certificate are in one file.
        certificate = str(config.data / AUTHORITY_FOLDER / "server.pem")
        self._web = PageServer(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
                http=bounded(config.dashboard_connections),
                ws="none",
                h11_max_incomplete_event_size=LONGEST_HEAD_BYTES,
                # Who is near could say with these that it is anybody.
                proxy_headers=False,
                ssl_certfile=certificate if config.dashboard_tls else None,
            )
        )

    async def _open_enrolment(self) -> Members:
        """Certificates, who has them, and the port at which devices get them."""
        config = self._config
        authority = open_authority(
            config.data / AUTHORITY_FOLDER, config.name, [config.name, *names_of_host()]
        )
        members = Members(
            self._resources,
            self._coordinator,
            authority,
            certificate_seconds=config.certificate_days * DAY_SECONDS,
            grace_seconds=config.grace_days * DAY_SECONDS,
        )
        await members.load()
        attempts = Attempts(pace=enrolment_pace(config.enrolment_calls))
        service = EnrolmentService(members, self._coordinator, self._audit, attempts)
        server, self.enrolment = listen_for_strangers(config.enrolment, service, authority, config)
        self._servers.append(server)
        members.port = self.enrolment.port
        return members

    async def _open_access(self) -> Access:
        """Who may use the page and the API: the first time, the user who starts the server."""
        access = Access(self._resources)
        await access.load()
        self._new_token = await access.keep_local(self._config.data / TOKEN_FILE)
        return access

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        for server in self._servers:
            await server.start()
        await self._tell_where()
        self._tasks = [
            asyncio.create_task(self._coordinator.run(), name="coordinator"),
            asyncio.create_task(self._renew_lease(), name="lease"),
            asyncio.create_task(self._web.serve([self._socket]), name="dashboard"),
            asyncio.create_task(self._print_events(), name="events"),
            asyncio.create_task(self._stop.wait(), name="stop"),
        ]
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _shutdown(self) -> None:
        resources = self._resources
        resources.announcer.close()
        self._web.should_exit = True
        await asyncio.gather(*(server.stop(_GOODBYE_SECONDS) for server in self._servers))
        for task in getattr(self, "_tasks", []):
            if task.get_name() != "dashboard":
                task.cancel()
        await asyncio.gather(*getattr(self, "_tasks", []), return_exceptions=True)
        await resources.evaluator.close()
        resources.threads.close()
        resources.uploads.close()
        with contextlib.suppress(StoreUnusable, DiskFull):
            resources.store.release_lease(self._owner)
        resources.store.close()
        (self._config.data / WHERE_FILE).unlink(missing_ok=True)

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            os._exit(128 + number)
        self._interrupted = number == signal.SIGINT
        self._stop.set()

    async def _renew_lease(self) -> None:
        store = self._resources.store
        while True:
            await asyncio.sleep(_LEASE_RENEWAL_SECONDS)
            await self._resources.threads.store(lambda: store.renew_lease(self._owner, time.time()))

    async def _print_events(self) -> None:
        with self._resources.announcer.listening() as events:
            async for event in events:
                print(f"{time.strftime('%H:%M:%S')} {event.text}", flush=True)
        await self._stop.wait()

    async def _tell_where(self) -> None:
        where = {
            "pid": os.getpid(),
            "grpc": str(self.address),
            "enrolment": None if self._members is None else str(self.enrolment),
            "join": str(self.join_address),
            "dashboard": self.dashboard_url,
        }
        remedy = "choose another folder with --data"
        write_file(
            self._config.data / WHERE_FILE, json.dumps(where).encode(), remedy=remedy, durable=False
        )
        print(f"fedserver {self._config.name} is up")
        await self._tell_devices()
        print(f"  dashboard: {self.dashboard_url}")
        self._tell_people()
        print(f"  data:      {self._config.data}", flush=True)

    def _tell_people(self) -> None:
        if self._access is None:
            print("             no login: whoever is on this machine may do everything there")
        elif self._new_token is not None:
            print(f"             log in with {self._new_token}")
            print(f"             shown this once; it is in {self._config.data / TOKEN_FILE}")
        if self._config.dashboard_tls:
            print(f"             browsers know it by {self._config.data / AUTHORITY_FILE}")

    async def _tell_devices(self) -> None:
        if self._members is None:
            print(f"  devices:   fedclient join {self.address} --insecure --data PATH")
            print("  insecure:  no TLS; whoever is on this machine may say that it is any device")
            return
        if await self._members.tokens():
            print(f"  devices:   fedclient join {self.join_address} --data PATH")
            print("             a new one needs a token: fedserver token create")
            return
        _, token = await self._members.create_token(uses=1, valid_seconds=DAY_SECONDS)
        line = join_line(self.join_address, token)
        print(f"  devices:   {line} --data PATH")
        print("             lets one device in, within a day; for others: fedserver token create")

    @property
    def join_address(self) -> Address:
        """Where devices of other machines find the server."""
        return Address(reachable(self.address.host), self.address.port)

    @property
    def dashboard_url(self) -> str:
        """Where the page is."""
        if self._config.dashboard_tls:
            return f"https://{Address(reachable(self.dashboard.host), self.dashboard.port)}"
        return f"http://{self.dashboard}"


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # asyncio only switches Nagle's delay off where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        # Who reads the address may call at once, before the web server has taken over.
        listener.listen()
    except OSError:
        listener.close()
        raise in_use(address, "dashboard") from None
    return listener


def _allow_files() -> None:
    """As many files and connections as this process may have; the usual 1024 are few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnusable(
            f"cannot make the folder {path}: {error.strerror}; choose another one with --data"
        ) from None

"""The folder in which a device keeps what outlives its process: identity, lock, status, model."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coppice.domain import ClientId, valid_name
from coppice.errors import AlreadyRunning, StoreUnusable
from coppice.files import reporting, write_file

_HOST_NAME_LENGTH = 58
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_SECONDS = 0.05

#: What a user can do when a file in the folder cannot be written.
REMEDY = "give --state a folder that this user may write"


@dataclass(frozen=True)
class Identity:
    """Who this device is to a server."""

    name: ClientId
    #: Random, made once: tells two devices of one name apart.
    device_id: str


def default_folder(name: str | None) -> Path:
    """Where the state of a client of this name is kept unless told otherwise."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "coppice" / (name or "default")


def default_name(host: str, device_id: str) -> ClientId:
    """The host's name and four digits of the device: all Raspberry Pis are called 'raspberrypi'."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", host).strip("._-")[:_HOST_NAME_LENGTH]
    return ClientId(f"{cleaned or 'device'}-{device_id[:4]}")


class StateFolder:
    """One client's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.status = self.path / "status.json"
        self.model = self.path / "model.safetensors"
        self.private = self.path / "private"
        self.outbox = self.path / "outbox"
        self.downloads = self.path / "downloads"
        self.receipts = self.path / "receipts.jsonl"
        self.costs = self.path / "costs.json"
        self.refusals = self.path / "refusals.json"
        self.traceback = self.path / "traceback.txt"
        self.key = self.path / "device.key"
        self.membership = self.path / "membership.json"
        self._identity = self.path / "device.json"
        self._lock = self.path / "lock"

    def make(self) -> None:
        """Make the folder, for this user only: a personal model may be kept in it."""
        with reporting(self.path, REMEDY):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def identity(self, name: str | None = None) -> Identity:
        """Who this device is: as it was, but for a new name; made on the first call."""
        stored = self._read_identity()
        device_id = stored.device_id if stored else secrets.token_hex(16)
        if name is not None:
            chosen = ClientId(name)
        else:
            chosen = stored.name if stored else default_name(socket.gethostname(), device_id)
        identity = Identity(chosen, device_id)
        if identity != stored:
            plain = {"device_id": identity.device_id, "name": identity.name}
            write_file(self._identity, json.dumps(plain).encode(), remedy=REMEDY)
        return identity

    def _read_identity(self) -> Identity | None:
        try:
            plain = json.loads(self._identity.read_bytes())
            name, device_id = plain["name"], plain["device_id"]
            if valid_name(name) and re.fullmatch(r"[0-9a-f]{32}", device_id):
                return Identity(ClientId(name), device_id)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnusable(f"{self._identity} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            pass
        raise StoreUnusable(
            f"{self._identity} is damaged; delete it, and the device gets a new identity"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one process that uses the folder; AlreadyRunning when there is another."""
        with reporting(self._lock, REMEDY):
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take(descriptor)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        # More than one attempt: `running_pid` in another process holds the lock for an instant.
        for attempt in range(_LOCK_ATTEMPTS):
            if attempt:
                time.sleep(_LOCK_PAUSE_SECONDS)
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        pid = os.pread(descriptor, 20, 0).decode() or "unknown"
        raise AlreadyRunning(
            f"a client with the state folder {self.path} is running already (pid {pid}); "
            "stop it with `fedclient leave`, or give this one another --name or --state"
        )

    def running_pid(self) -> int | None:
        """The process that uses the folder; None when there is none."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnusable(f"{self._lock} cannot be read: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 20, 0)
            return int(text) if text.isdigit() else None
        else:
            return None
        finally:
            os.close(descriptor)

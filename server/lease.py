"""Who may write to a store: one server at a time, by a lease that a dead process does not hold."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

#: A lease that nobody renewed for so long is free.
LEASE_SECONDS = 15.0

# A process id that was used again belongs to a process that started later than this.
_SAME_START_SECONDS = 2.0


@dataclass(frozen=True)
class LeaseOwner:
    """A server process, named so that another process can tell whether it still lives."""

    #: For people.
    host: str
    #: The process table in which `pid` means something: one boot of one machine, and the PID
    #: namespace. A host name does not say that: two devices, or two containers, may share one.
    process_table: str
    pid: int
    #: Seconds from the machine's boot: setting the clock does not move it.
    process_started_at: float
    #: 32 random hexadecimal digits.
    token: str

    @classmethod
    def this_process(cls) -> LeaseOwner:
        """The calling process, with a new token."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            process_table=_process_table(),
            pid=pid,
            process_started_at=_started_at(psutil.Process(pid)),
            token=secrets.token_hex(16),
        )

    def is_surely_dead(self) -> bool:
        """Whether the process is gone for certain; False where that cannot be told from here."""
        if self.process_table != _process_table():
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            return abs(_started_at(process) - self.process_started_at) > _SAME_START_SECONDS
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True)
class Lease:
    """The right of one server to write, as the store holds it."""

    owner: LeaseOwner
    #: Seconds since the epoch, by the owner's clock.
    renewed_at: float

    def is_free_for(self, owner: LeaseOwner, now: float) -> bool:
        """Whether `owner` may take it: it is its own, out of date, or a dead process's.

        A lease from the future is out of date too: a device without a clock may start in the past.
        """
        return (
            self.owner.token == owner.token
            or abs(now - self.renewed_at) > LEASE_SECONDS
            or self.owner.is_surely_dead()
        )


def _started_at(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


def _process_table() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return socket.gethostname()
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"

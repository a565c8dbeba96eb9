"""The addresses of this machine: what the certificate is for, and which one devices are told."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import psutil

_ANYWHERE = ("0.0.0.0", "::")
#: Nobody's address (RFC 5737), and no packet is sent: the system only says how it would.
_SOMEWHERE = ("192.0.2.1", 9)


def names_of_host() -> list[str]:
    """All names and addresses under which this machine may be known."""
    host = socket.gethostname()
    return sorted({"localhost", host, f"{host}.local", *_addresses()})


def reachable(host: str) -> str:
    """An address that other machines can call where the server listens on `host`."""
    if host not in _ANYWHERE:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_SOMEWHERE)
            return str(probe.getsockname()[0])
        except OSError:
            pass
    others = [item for item in _addresses() if not item.startswith("127.") and ":" not in item]
    return min(others, default="127.0.0.1")


def _addresses() -> Iterator[str]:
    for interface in psutil.net_if_addrs().values():
        for item in interface:
            # Link-local ones have their interface's name behind a percent sign.
            if item.family in (socket.AF_INET, socket.AF_INET6) and "%" not in item.address:
                yield item.address

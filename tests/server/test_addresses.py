"""Which address devices are told."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from server import addresses
from server.addresses import names_of_host, reachable


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.7", "pi-lab", "::1"])
def test_address_that_is_one_is_told_as_it_is(host: str) -> None:
    assert reachable(host) == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_anywhere_becomes_an_address_of_this_machine(host: str) -> None:
    assert reachable(host) in names_of_host()


def no_route(self: socket.socket, address: object) -> None:
    raise OSError("Network is unreachable")


def test_without_a_route_another_address_than_loopback_is_preferred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket.socket, "connect", no_route)

    def found() -> Iterator[str]:
        yield from ("127.0.0.1", "fe80::1", "10.77.0.1")

    monkeypatch.setattr(addresses, "_addresses", found)
    assert reachable("0.0.0.0") == "10.77.0.1"
    monkeypatch.setattr(addresses, "_addresses", lambda: iter(["127.0.0.1"]))
    assert reachable("0.0.0.0") == "127.0.0.1"


def test_names_of_the_host_are_its_names_and_addresses() -> None:
    names = names_of_host()
    assert {"localhost", "127.0.0.1", socket.gethostname()} <= set(names)
    assert not [name for name in names if "%" in name]

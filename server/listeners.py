"""The gRPC ports: one for devices that were let in, one for those that want to be."""

from __future__ import annotations

from typing import Any

import grpc

from coppice.errors import AddressInUse
from coppice.wire.chunks import STREAM_OPTIONS
from server.authority import Authority
from server.config import Address
from server.enrolment import TRANSPORT_ENROLMENT_BYTES, EnrolmentService
from server.service import TRANSPORT_MESSAGE_BYTES, CoordinationService

_OPTIONS = (
    *STREAM_OPTIONS,
    # Two servers on one port would share its clients; the second one has to fail instead.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Who connects and says nothing is not waited for.
    ("grpc.server_handshake_timeout_ms", 20_000),
)

#: A stranger stays for one or two calls.
_STRANGERS = (
    ("grpc.max_connection_idle_ms", 20_000),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
)
_MOST_STRANGERS = 100


def listen_for_devices(
    address: Address, service: CoordinationService, authority: Authority | None
) -> tuple[Any, Address]:
    """The server on `address`, not started yet, and where it listens.

    Without an authority anybody may say anything. AddressInUse when that port cannot be had.
    """
    options = (*_OPTIONS, ("grpc.max_receive_message_length", TRANSPORT_MESSAGE_BYTES))
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((service.handlers(),))
    return server, _open(server, address, authority, "listen", knows=True)


def listen_for_strangers(
    address: Address, service: EnrolmentService, authority: Authority
) -> tuple[Any, Address]:
    """The same for devices without a certificate."""
    options = (
        *_OPTIONS,
        *_STRANGERS,
        ("grpc.max_receive_message_length", TRANSPORT_ENROLMENT_BYTES),
    )
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MOST_STRANGERS)
    server.add_generic_rpc_handlers((service.handlers(),))
    return server, _open(server, address, authority, "enrolment", knows=False)


def in_use(address: Address, flag: str) -> AddressInUse:
    """Why a port cannot be had."""
    return AddressInUse(
        f"cannot listen on {address}: it is in use or not an address of this machine; "
        f"choose another one with --{flag} HOST:PORT"
    )


def _open(
    server: Any, address: Address, authority: Authority | None, flag: str, *, knows: bool
) -> Address:
    """`knows` is whether only devices with a certificate may call."""
    try:
        if authority is None:
            return Address(address.host, server.add_insecure_port(str(address)))
        credentials = grpc.ssl_server_credentials(
            [(authority.server_key, authority.server_certificate)],
            root_certificates=authority.pem if knows else None,
            require_client_auth=knows,
        )
        return Address(address.host, server.add_secure_port(str(address), credentials))
    except RuntimeError:
        raise in_use(address, flag) from None

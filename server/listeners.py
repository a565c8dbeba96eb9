"""The gRPC ports: one for devices that were let in, one for those that want to be."""

from __future__ import annotations

from typing import Any

import grpc

from coppice.errors import AddressInUse
from coppice.wire.chunks import STREAM_OPTIONS
from server.authority import Authority
from server.config import Address
from server.enrolment import MOST_STRANGERS, TRANSPORT_ENROLMENT_BYTES, EnrolmentService
from server.limits import Limits
from server.service import TRANSPORT_MESSAGE_BYTES, CoordinationService

_OPTIONS = (
    *STREAM_OPTIONS,
    # Two servers on one port would share its clients; the second one has to fail instead.
    ("grpc.so_reuseport", 0),
    # Devices ping every 20 s; who does so all the time is sent away. What a bad link has held back
    # may come at once.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 4),
    # Who connects and says nothing is not waited for.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A device has a poll, a heartbeat and a transfer; more wait on its side.
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_metadata_size", 8 * 2**10),
    ("grpc.absolute_max_metadata_size", 16 * 2**10),
)

#: Without a call for so long, a connection is closed; a device opens another one.
_DEVICES = (("grpc.max_connection_idle_ms", 300_000),)
#: Calls beyond their limit that get a sentence as an answer; still more get one of gRPC's.
_ANSWERED_CALLS = 1000

#: A stranger stays for one or two calls.
_STRANGERS = (
    ("grpc.max_connection_idle_ms", 20_000),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
)
#: Some are still on their way to a refusal.
_MOST_STRANGERS = 2 * MOST_STRANGERS


def listen_for_devices(
    address: Address,
    service: CoordinationService,
    authority: Authority | None,
    limits: Limits | None = None,
) -> tuple[Any, Address]:
    """The server on `address`, not started yet, and where it listens.

    Without an authority anybody may say anything. AddressInUse when that port cannot be had.
    """
    limits = limits if limits is not None else Limits()
    options = (
        *_OPTIONS,
        *_DEVICES,
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_receive_message_length", TRANSPORT_MESSAGE_BYTES),
    )
    most = limits.calls + _ANSWERED_CALLS
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=most)
    server.add_generic_rpc_handlers((service.handlers(),))
    return server, _open(server, address, authority, "listen", knows=True)


def listen_for_strangers(
    address: Address,
    service: EnrolmentService,
    authority: Authority,
    limits: Limits | None = None,
) -> tuple[Any, Address]:
    """The same for devices without a certificate."""
    limits = limits if limits is not None else Limits()
    options = (
        *_OPTIONS,
        *_STRANGERS,
        ("grpc.max_allowed_incoming_connections", limits.connections),
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

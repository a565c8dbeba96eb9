"""What a device says of itself ↔ message; not in the codec, which would bring torch with it."""

from __future__ import annotations

from coppice.domain import Capability
from coppice.errors import InvalidMessage
from coppice.wire import coordination_pb2 as pb
from coppice.wire.bounds import MAX_BOUND_BY_LENGTH, MAX_LABEL_LENGTH, is_text, valid_count

MAX_CORES = 2**16
MAX_THROTTLED = 16
MAX_CELSIUS = 1000.0


def capability_to_message(capability: Capability) -> pb.Capability:
    """What a device measured, to send."""
    return pb.Capability(
        memory_bytes=capability.memory_bytes,
        num_threads=capability.num_threads,
        machine=capability.machine,
        memory_bound_by=capability.memory_bound_by,
        cores=capability.cores,
        temperature_celsius=capability.temperature_celsius,
        throttled=capability.throttled,
    )


def capability_from_message(message: pb.Capability) -> Capability:
    """What a device says that it measured."""
    if not is_text(message.machine):
        raise InvalidMessage(
            f"capability.machine is not {MAX_LABEL_LENGTH} printable characters or fewer"
        )
    if not is_text(message.memory_bound_by, MAX_BOUND_BY_LENGTH):
        raise InvalidMessage(
            f"capability.memory_bound_by is not {MAX_BOUND_BY_LENGTH} printable characters or fewer"
        )
    # Written so that NaN is refused too.
    if not 0 <= message.cores <= MAX_CORES:
        raise InvalidMessage(f"capability.cores is {message.cores}; allowed is 0 to {MAX_CORES}")
    has_temperature = message.HasField("temperature_celsius")
    if has_temperature and not abs(message.temperature_celsius) <= MAX_CELSIUS:
        raise InvalidMessage(
            f"capability.temperature_celsius is {message.temperature_celsius}; "
            f"allowed is {-MAX_CELSIUS:.0f} to {MAX_CELSIUS:.0f}"
        )
    if len(message.throttled) > MAX_THROTTLED or not all(map(is_text, message.throttled)):
        raise InvalidMessage(
            f"capability.throttled is not {MAX_THROTTLED} texts or fewer, each of at most "
            f"{MAX_LABEL_LENGTH} printable characters"
        )
    return Capability(
        memory_bytes=valid_count("capability.memory_bytes", message.memory_bytes),
        num_threads=max(1, message.num_threads),
        machine=message.machine,
        memory_bound_by=message.memory_bound_by,
        cores=message.cores,
        temperature_celsius=message.temperature_celsius if has_temperature else None,
        throttled=tuple(message.throttled),
    )

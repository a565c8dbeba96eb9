"""What a value of a message may be at most; needs no tensors, so devices know it before torch."""

from __future__ import annotations

from coppice.errors import InvalidMessage

MAX_LABEL_LENGTH = 63
MAX_BOUND_BY_LENGTH = 255
MAX_COUNT = 2**53


def is_text(text: str, longest: int = MAX_LABEL_LENGTH) -> bool:
    """Whether a text may stand in an operator's terminal and log: short and printable."""
    return len(text) <= longest and text.isprintable()


def valid_count(name: str, value: int) -> int:
    """The number itself; InvalidMessage when JSON could not say it exactly."""
    if value >= MAX_COUNT:
        raise InvalidMessage(f"{name} is {value}; allowed is less than 2^53")
    return value

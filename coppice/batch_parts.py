"""Batches in parts: one goes forward and back after the other, which holds less at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coppice.section import Section

#: Batch norm cannot train on a single example.
_LEAST_EXAMPLES = 2


def most_parts(examples: int) -> int:
    """The most parts of a batch, a power of two: each has at least 2 examples, or there is one."""
    return 1 << max(0, (examples // _LEAST_EXAMPLES).bit_length() - 1)


def part_size(examples: int, parts: int) -> int:
    """Examples of the largest of so many parts, which are as equal as can be."""
    return -(-examples // parts)


@dataclass(frozen=True, kw_only=True)
class BatchMemory(Section):
    """What the peak of a step owes to its batch."""

    #: Of a whole batch.
    examples: int = 1
    #: In which peaks were measured. What fewer parts would take is not known.
    parts: int = 1
    #: At the peak, of each example of a part.
    bytes_per_example: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.parts <= self.examples:
            raise ValueError(f"a batch of {self.examples} examples in {self.parts} parts")
        if not 0 <= self.bytes_per_example < float("inf"):
            raise ValueError(f"an example takes {self.bytes_per_example} bytes")

    @property
    def more_parts(self) -> Iterator[int]:
        """Numbers of parts that the batch can be split into, ascending, the measured one first."""
        parts, most = self.parts, most_parts(self.examples)
        yield parts
        while 2 * parts <= most:
            parts *= 2
            yield parts

    def saved_bytes(self, parts: int) -> float:
        """At the peak, by that many parts instead of those that were measured; never below 0."""
        fewer = part_size(self.examples, self.parts) - part_size(self.examples, parts)
        return max(0, fewer) * self.bytes_per_example

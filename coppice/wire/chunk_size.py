"""How many bytes to put into a chunk, learned from how long chunks take on the link."""

from __future__ import annotations

import math

from coppice.wire.chunks import FIRST_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES

#: What a chunk should take: short enough to show that bytes arrive, long enough to be worth it.
CHUNK_SECONDS = 0.25
#: So many bytes of a transfer the sender's own buffers take at once, whatever the link does: how
#: long chunks took tells nothing before.
UNSEEN_BYTES = 128 * 2**10


class ChunkSize:
    """Grows on a link that is fast, shrinks on one that is slow or breaks."""

    def __init__(self, size_bytes: int = FIRST_CHUNK_BYTES) -> None:
        self.size_bytes = min(max(size_bytes, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)

    def took(self, size_bytes: int, seconds: float) -> None:
        """So many bytes took so long: aim at CHUNK_SECONDS, at most doubling or halving."""
        fitting = size_bytes * CHUNK_SECONDS / seconds if seconds > 0 else math.inf
        bounded = min(max(fitting, self.size_bytes / 2), self.size_bytes * 2)
        self.size_bytes = int(min(max(bounded, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES))

    def sent(self, size_bytes: int, seconds: float, before_bytes: int) -> None:
        """A sender got rid of a chunk; so many bytes of the same transfer went before it."""
        if before_bytes >= UNSEEN_BYTES:
            self.took(size_bytes, seconds)

    def broke_off(self) -> None:
        """A transfer broke off."""
        self.size_bytes = max(self.size_bytes // 2, MIN_CHUNK_BYTES)

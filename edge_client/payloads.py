"""The payloads that the server offers, fetched once and decoded."""

from __future__ import annotations

from coppice.domain import BlobRef
from coppice.errors import InvalidPayload
from coppice.tensors import Payload
from coppice.wire.chunks import blob_ref
from coppice.wire.payload import decode
from edge_client.console import size_text
from edge_client.link import Link
from edge_client.meter import capability


class Payloads:
    """Fetches payloads and keeps the last: a model that is trained is often evaluated next."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._last: bytearray | None = None
        self._ref: BlobRef | None = None

    def get(self, ref: BlobRef) -> Payload:
        """The payload; its tensors share memory with what is kept here."""
        # The digest is checked again: a method may have written into the tensors it was given.
        if self._last is None or self._ref != ref or blob_ref(self._last) != ref:
            free_bytes = capability().memory_bytes
            if ref.size_bytes > free_bytes:
                raise InvalidPayload(
                    f"the server offers {size_text(ref.size_bytes)}, more than the "
                    f"{size_text(free_bytes)} of memory that this device has left"
                )
            self._last = None
            self._last = self._link.fetch(ref)
            self._ref = ref
        return decode(self._last)

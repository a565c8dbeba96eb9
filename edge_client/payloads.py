"""The payloads that the server offers, fetched once and decoded."""

from __future__ import annotations

from coppice.domain import BlobRef
from coppice.errors import InvalidPayload
from coppice.tensors import Payload
from coppice.wire.chunks import blob_ref
from coppice.wire.exchange import Known, known_masks
from coppice.wire.payload import decode
from edge_client.console import size_text
from edge_client.download import Downloads
from edge_client.limits import memory_budget


class Payloads:
    """Fetches payloads and keeps the last: a model that is trained is often evaluated next.

    Masks and terms are kept for longer: most rounds change the values only.
    """

    def __init__(self, downloads: Downloads) -> None:
        self._downloads = downloads
        self._last: bytearray | None = None
        self._ref: BlobRef | None = None
        self._masks: BlobRef | None = None
        self._terms: bytearray | None = None
        self._terms_ref: BlobRef | None = None
        #: The masks that this device holds.
        self.known: Known = {}

    def get(self, ref: BlobRef, masks: BlobRef | None = None) -> Payload:
        """The payload, on these masks; its tensors share memory with what is kept here."""
        if masks is not None and masks != self._masks:
            self._masks, self.known = None, {}
            self.known = known_masks(decode(self._fetch(masks)))
            self._masks = masks
        # The digest is checked again: a method may have written into the tensors it was given.
        if self._last is None or self._ref != ref or blob_ref(self._last) != ref:
            self._last = None
            self._last = self._fetch(ref)
            self._ref = ref
        return decode(self._last, known=self.known)

    def terms(self, ref: BlobRef) -> Payload:
        """Terms, which stay the same over many rounds, and are kept beside the payload."""
        if self._terms is None or self._terms_ref != ref:
            self._terms = self._fetch(ref)
            self._terms_ref = ref
        return decode(bytearray(self._terms))

    def _fetch(self, ref: BlobRef) -> bytearray:
        free_bytes = memory_budget().room_bytes
        if ref.size_bytes > free_bytes:
            raise InvalidPayload(
                f"the server offers {size_text(ref.size_bytes)}, more than the "
                f"{size_text(free_bytes)} of memory that this device has left"
            )
        return self._downloads.fetch(ref)

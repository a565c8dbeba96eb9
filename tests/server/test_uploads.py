"""Updates on their way in: what has come stays, within bounds, and only whole ones become blobs."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import BlobRef, ClientId
from coppice.errors import CoppiceError, DiskFull, InvalidMessage, TransferBroken
from server.blobs import Blobs
from server.uploads import Uploads
from tests.server.store_samples import mounted
from tests.server.test_blobs import DATA, DIGEST, REF, files, make_old

A, B, C = ClientId("a"), ClientId("b"), ClientId("c")
HALF = len(DATA) // 2


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def make(blobs: Blobs) -> Iterator[Callable[..., Uploads]]:
    """Those of a server that was started on the same folder."""
    with ExitStack() as opened:

        def made(**bounds: Any) -> Uploads:
            uploads = Uploads(blobs, **bounds)
            opened.callback(uploads.close)
            return uploads

        yield made


@pytest.fixture
def uploads(make: Callable[..., Uploads]) -> Uploads:
    return make()


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(hashlib.sha256(data).hexdigest(), len(data))


def break_off(uploads: Uploads, client_id: ClientId, ref: BlobRef = REF, count: int = HALF) -> None:
    upload = uploads.receive(client_id, ref)
    upload.write(DATA[:count])
    upload.failed(ConnectionError())


class TestWhole:
    def test_arrives_piece_by_piece(self, uploads: Uploads, blobs: Blobs) -> None:
        upload = uploads.receive(A, REF)
        for start in range(0, len(DATA), 1000):
            upload.write(memoryview(DATA)[start : start + 1000])
            assert not blobs.has(DIGEST)
        assert upload.commit() == REF
        assert blobs.read(DIGEST) == DATA
        assert files(blobs) == [DIGEST]
        # Nothing more happens to what is a blob by now.
        upload.end(keep=False)
        assert files(blobs) == [DIGEST]

    def test_is_on_disk_before_its_name_and_the_name_before_the_answer(
        self, uploads: Uploads, disk_calls: list[str]
    ) -> None:
        upload = uploads.receive(A, REF)
        upload.write(DATA)
        assert disk_calls == []
        upload.commit()
        assert disk_calls == ["file", "rename", "folder"]

    def test_of_two_clients_both_succeed(self, uploads: Uploads, blobs: Blobs) -> None:
        first, second = uploads.receive(A, REF), uploads.receive(B, REF)
        first.write(DATA)
        second.write(DATA[:1000])
        first.commit()
        second.write(DATA[1000:])
        second.commit()
        assert blobs.read(DIGEST) == DATA
        assert files(blobs) == [DIGEST]


class TestBroken:
    def test_goes_on_where_it_ended(self, uploads: Uploads, blobs: Blobs) -> None:
        break_off(uploads, A)
        assert uploads.received_bytes(A, REF) == HALF
        upload = uploads.receive(A, REF, HALF)
        upload.write(DATA[HALF:])
        upload.commit()
        assert blobs.read(DIGEST) == DATA
        assert files(blobs) == [DIGEST]
        assert uploads.received_bytes(A, REF) == 0

    def test_goes_on_after_the_server_was_killed(
        self, uploads: Uploads, make: Callable[..., Uploads]
    ) -> None:
        # Not ended, as in a process that is gone.
        uploads.receive(A, REF).write(DATA[:HALF])
        again = make()
        assert again.received_bytes(A, REF) == HALF
        upload = again.receive(A, REF, HALF)
        upload.write(DATA[HALF:])
        assert upload.commit() == REF

    def test_may_start_anew(self, uploads: Uploads) -> None:
        break_off(uploads, A)
        upload = uploads.receive(A, REF)
        upload.write(DATA)
        assert upload.commit() == REF

    @pytest.mark.parametrize("offset", [1, HALF - 1, HALF + 1, len(DATA), len(DATA) + 1])
    def test_goes_on_nowhere_else(self, uploads: Uploads, offset: int) -> None:
        break_off(uploads, A)
        with pytest.raises(TransferBroken, match=f"has {HALF} bytes of this update, not {offset}"):
            uploads.receive(A, REF, offset)
        assert uploads.received_bytes(A, REF) == HALF

    def test_of_one_client_is_not_of_another(self, uploads: Uploads) -> None:
        break_off(uploads, A)
        assert uploads.received_bytes(B, REF) == 0
        with pytest.raises(TransferBroken):
            uploads.receive(B, REF, HALF)

    def test_with_wrong_bytes_starts_anew(self, uploads: Uploads, blobs: Blobs) -> None:
        break_off(uploads, A)
        (partial,) = blobs.partial.iterdir()
        partial.write_bytes(bytes(HALF))
        upload = uploads.receive(A, REF, HALF)
        upload.write(DATA[HALF:])
        with pytest.raises(TransferBroken, match="damaged"):
            upload.commit()
        assert uploads.received_bytes(A, REF) == 0
        assert files(blobs) == []

    def test_is_ended_by_the_next_call_of_its_client(self, uploads: Uploads) -> None:
        old = uploads.receive(A, REF)
        old.write(DATA[:HALF])
        assert uploads.received_bytes(A, REF) == HALF
        for operation in (lambda: old.write(b"x"), old.commit):
            with pytest.raises(TransferBroken, match="another transfer"):
                operation()
        new = uploads.receive(A, REF, HALF)
        newest = uploads.receive(A, REF, HALF)
        with pytest.raises(TransferBroken, match="another transfer"):
            new.write(b"x")
        newest.write(DATA[HALF:])
        assert newest.commit() == REF

    def test_never_writes_into_what_is_a_blob_by_then(self, uploads: Uploads, blobs: Blobs) -> None:
        together = threading.Barrier(4)

        def push(last: bytes) -> None:
            with suppress(TransferBroken):
                together.wait(timeout=30)
                upload = uploads.receive(A, REF)
                for start in range(0, len(DATA), 4096):
                    upload.write((DATA[:-1] + last)[start : start + 4096])
                upload.commit()

        for _ in range(10):
            threads = [
                threading.Thread(target=push, args=(last,)) for last in (DATA[-1:], b"x") * 2
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=60)
            if blobs.has(DIGEST):
                assert blobs.read(DIGEST) == DATA

    def test_too_short_is_kept(self, uploads: Uploads) -> None:
        upload = uploads.receive(A, REF)
        upload.write(DATA[:-1])
        with pytest.raises(TransferBroken, match=f"{len(DATA) - 1} of {len(DATA)} bytes") as caught:
            upload.commit()
        upload.failed(caught.value)
        assert uploads.received_bytes(A, REF) == len(DATA) - 1

    @pytest.mark.parametrize("error", [InvalidMessage("no"), DiskFull("full")])
    def test_by_its_sender_or_a_full_disk_leaves_nothing(
        self, uploads: Uploads, blobs: Blobs, error: CoppiceError
    ) -> None:
        upload = uploads.receive(A, REF)
        upload.write(DATA[:HALF])
        upload.failed(error)
        assert files(blobs) == []

    def test_before_its_first_byte_leaves_nothing(self, uploads: Uploads, blobs: Blobs) -> None:
        uploads.receive(A, REF).failed(ConnectionError())
        assert files(blobs) == []


class TestBounds:
    def test_more_bytes_than_announced_are_refused(self, uploads: Uploads) -> None:
        upload = uploads.receive(A, BlobRef(DIGEST, 10))
        upload.write(DATA[:8])
        with pytest.raises(InvalidMessage, match="more bytes arrive than the 10"):
            upload.write(DATA[8:11])

    @pytest.mark.parametrize(
        "ref",
        [
            BlobRef("../" + "a" * 61, 1),
            BlobRef("A" * 64, 1),
            BlobRef("a" * 64 + "\n", 1),
            BlobRef("", 1),
            BlobRef("a" * 64, -1),
        ],
    )
    def test_what_cannot_be_a_blob_is_refused(self, uploads: Uploads, ref: BlobRef) -> None:
        with pytest.raises(InvalidMessage):
            uploads.receive(A, ref)
        with pytest.raises(InvalidMessage):
            uploads.received_bytes(A, ref)

    def test_a_client_has_one_broken_transfer(self, uploads: Uploads, blobs: Blobs) -> None:
        old = ref_of(b"old")
        break_off(uploads, A, old, 2)
        make_old(blobs.partial / f"a.{old.digest}", 60)
        break_off(uploads, A)
        uploads.receive(B, REF)
        assert uploads.received_bytes(A, old) == 0
        assert uploads.received_bytes(A, REF) == HALF

    def test_the_oldest_go_first(self, blobs: Blobs, make: Callable[..., Uploads]) -> None:
        uploads = make(most=2)
        for client_id, age in ((A, 30), (B, 20), (C, 10)):
            break_off(uploads, client_id)
            make_old(blobs.partial / f"{client_id}.{DIGEST}", age)
        # What a process before this one has left counts as well.
        again = make(most=2)
        again.receive(ClientId("d"), REF)
        assert [again.received_bytes(client_id, REF) for client_id in (A, B, C)] == [0, HALF, HALF]

    def test_their_bytes_are_bounded(self, blobs: Blobs, make: Callable[..., Uploads]) -> None:
        uploads = make(most_bytes=HALF + 10)
        break_off(uploads, A)
        make_old(blobs.partial / f"a.{DIGEST}", 10)
        break_off(uploads, B)
        uploads.receive(C, REF)
        assert uploads.received_bytes(A, REF) == 0
        assert uploads.received_bytes(B, REF) == HALF

    def test_one_that_goes_on_is_not_cleared_away(
        self, blobs: Blobs, make: Callable[..., Uploads]
    ) -> None:
        uploads = make(most=1)
        busy = uploads.receive(A, REF)
        busy.write(DATA[:HALF])
        make_old(blobs.partial / f"a.{DIGEST}")
        break_off(uploads, B)
        break_off(uploads, C)
        busy.write(DATA[HALF:])
        assert busy.commit() == REF

    def test_one_that_was_silent_for_a_day_is_swept(self, uploads: Uploads, blobs: Blobs) -> None:
        break_off(uploads, A)
        assert blobs.sweep(set(), older_than_seconds=60) == 0
        make_old(blobs.partial / f"a.{DIGEST}")
        assert blobs.sweep(set(), older_than_seconds=60) == HALF
        assert uploads.received_bytes(A, REF) == 0

    def test_one_that_was_swept_on_its_way_is_to_be_sent_again(
        self, uploads: Uploads, blobs: Blobs
    ) -> None:
        upload = uploads.receive(A, REF)
        upload.write(DATA)
        make_old(blobs.partial / f"a.{DIGEST}")
        blobs.sweep(set(), older_than_seconds=60)
        with pytest.raises(TransferBroken, match="send the bytes again"):
            upload.commit()


class TestFullDisk:
    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Blobs]:
        """Blobs on a disk of 1 MiB."""
        with mounted(tmp_path, "size=1m"):
            yield Blobs(tmp_path)

    def test_bytes_that_do_not_fit_leave_nothing(self, small: Blobs) -> None:
        data = os.urandom(2 * 2**20)
        upload = Uploads(small).receive(A, ref_of(data))
        with pytest.raises(DiskFull) as caught:
            upload.write(data)
        upload.failed(caught.value)
        assert files(small) == []

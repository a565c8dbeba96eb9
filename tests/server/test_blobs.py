"""Blobs: bytes under their digest, whole, on disk, and gone only when nothing needs them."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coppice.domain import BlobRef
from coppice.errors import DiskFull, InvalidMessage, StoreUnusable, UnknownBlob
from server.blobs import Blobs
from tests.server.store_samples import mounted

DATA = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
REF = BlobRef(DIGEST, len(DATA))
MISSING = "0" * 64


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "deep" / "blobs")


def files(blobs: Blobs) -> list[str]:
    """Everything in the folder, partial files included."""
    found = (path for path in blobs.folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(blobs.folder)) for path in found)


def make_old(path: Path, seconds: float = 90_000) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


class TestPut:
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_what_is_put_is_read_again(
        self, blobs: Blobs, kind: Callable[[bytes], bytes | bytearray | memoryview]
    ) -> None:
        assert blobs.put(kind(DATA)) == REF
        data = blobs.read(DIGEST)
        assert data == DATA
        assert blobs.has(DIGEST)
        assert blobs.path(DIGEST).read_bytes() == DATA
        with blobs.open(DIGEST) as file:
            file.seek(256)
            assert file.read(3) == b"\x00\x01\x02"
        assert files(blobs) == [DIGEST]

    def test_what_is_read_may_be_changed_and_the_blob_stays(self, blobs: Blobs) -> None:
        blobs.put(DATA)
        data = blobs.read(DIGEST)
        data[0] ^= 1
        assert blobs.read(DIGEST) == DATA

    def test_an_empty_blob_is_a_blob(self, blobs: Blobs) -> None:
        ref = blobs.put(b"")
        assert ref.size_bytes == 0
        assert blobs.read(ref.digest) == bytearray()

    def test_a_view_of_wider_elements_is_its_bytes(self, blobs: Blobs) -> None:
        view = memoryview(bytearray(DATA)).cast("q")
        assert blobs.put(view) == REF

    def test_bytes_that_are_there_are_not_written_again(self, blobs: Blobs) -> None:
        blobs.put(DATA)
        inode = blobs.path(DIGEST).stat().st_ino
        assert blobs.put(DATA) == REF
        assert blobs.path(DIGEST).stat().st_ino == inode

    def test_a_blob_that_lost_bytes_is_written_again(self, blobs: Blobs) -> None:
        blobs.put(DATA)
        os.truncate(blobs.path(DIGEST), 10)
        blobs.put(DATA)
        assert blobs.read(DIGEST) == DATA

    def test_only_this_user_may_read_blobs(self, blobs: Blobs) -> None:
        blobs.put(DATA)
        assert stat.S_IMODE(blobs.path(DIGEST).stat().st_mode) == 0o600


class TestThreads:
    def test_many_threads_may_put_the_same_bytes(self, blobs: Blobs) -> None:
        together = threading.Barrier(8)
        found: list[BlobRef] = []

        def put() -> None:
            together.wait(timeout=30)
            found.append(blobs.put(DATA))

        threads = [threading.Thread(target=put) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert found == [REF] * 8
        assert files(blobs) == [DIGEST]
        assert blobs.read(DIGEST) == DATA


class TestNames:
    def test_a_blob_that_is_not_there_is_unknown(self, blobs: Blobs) -> None:
        assert not blobs.has(MISSING)
        for operation in (blobs.path, blobs.open, blobs.read):
            with pytest.raises(UnknownBlob, match="000000000000… is not stored"):
                operation(MISSING)

    @pytest.mark.parametrize("name", ["../../secret", "partial", "/etc/passwd", "a" * 65, ""])
    def test_a_name_that_is_no_digest_never_becomes_a_path(self, blobs: Blobs, name: str) -> None:
        for operation in (blobs.path, blobs.open, blobs.read, blobs.has):
            with pytest.raises(InvalidMessage, match="not a SHA-256 digest"):
                operation(name)


class TestDurability:
    def test_the_file_is_on_disk_before_its_name_and_the_name_before_the_answer(
        self, blobs: Blobs, disk_calls: list[str]
    ) -> None:
        blobs.put(DATA)
        assert disk_calls == ["file", "rename", "folder"]

    def test_a_blob_that_another_thread_wrote_is_on_disk_before_the_answer_too(
        self, blobs: Blobs, disk_calls: list[str]
    ) -> None:
        blobs.put(DATA)
        disk_calls.clear()
        blobs.put(DATA)
        assert disk_calls == ["file", "folder"]

    def test_blobs_that_need_not_be_durable_do_not_wait_for_the_disk(
        self, tmp_path: Path, disk_calls: list[str]
    ) -> None:
        blobs = Blobs(tmp_path, durable=False)
        blobs.put(DATA)
        assert disk_calls == ["rename"]

    def test_a_killed_writer_leaves_no_blob(self, blobs: Blobs) -> None:
        script = """
import sys, threading
from pathlib import Path
from server import blobs

def wait(descriptor):
    print("written", flush=True)
    threading.Event().wait(60)

blobs.os.fsync = wait
blobs.Blobs(Path(sys.argv[1])).put(bytes(256000))
"""
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(blobs.folder)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"written\n"
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        (left,) = blobs.folder.glob("partial/*")
        assert blobs.sweep(set(), older_than_seconds=60) == 0
        make_old(left)
        assert blobs.sweep(set(), older_than_seconds=60) == 256000
        assert files(blobs) == []


class TestFullDisk:
    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Blobs]:
        """Blobs on a disk of 1 MiB."""
        with mounted(tmp_path, "size=1m"):
            yield Blobs(tmp_path)

    def test_bytes_that_do_not_fit_leave_nothing(self, small: Blobs) -> None:
        small.put(DATA)
        too_much = os.urandom(2 * 2**20)
        with pytest.raises(DiskFull, match=f"no space is left on the disk of {small.folder}"):
            small.put(too_much)
        assert files(small) == [DIGEST]
        assert small.read(DIGEST) == DATA
        assert small.put(b"something small").size_bytes == 15

    def test_a_file_over_the_quota_is_a_full_disk(
        self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: int) -> None:
            raise OSError(122, "Disk quota exceeded")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises(DiskFull):
                blobs.put(DATA)
        assert files(blobs) == []


class TestBadFolders:
    def test_a_file_in_the_place_of_the_folder_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "blobs"
        path.write_text("a file")
        with pytest.raises(StoreUnusable, match=f"cannot use {path}: Not a directory"):
            Blobs(path)

    def test_a_disk_that_may_not_be_written_is_named(self, tmp_path: Path) -> None:
        with mounted(tmp_path, "ro"), pytest.raises(StoreUnusable, match="Read-only"):
            Blobs(tmp_path)

    def test_a_folder_that_vanished_is_named(self, blobs: Blobs) -> None:
        (blobs.folder / "partial").rmdir()
        blobs.folder.rmdir()
        with pytest.raises(StoreUnusable, match="has vanished"):
            blobs.put(DATA)
        with pytest.raises(StoreUnusable, match="has vanished"):
            blobs.sweep(set(), older_than_seconds=0)


class TestSweep:
    def test_old_blobs_that_nothing_needs_go(self, blobs: Blobs) -> None:
        live, dead, young = (blobs.put(text) for text in (b"live", b"dead!", b"young"))
        for ref in (live, dead):
            make_old(blobs.path(ref.digest))
        assert blobs.sweep({live.digest}, older_than_seconds=60) == dead.size_bytes
        assert files(blobs) == sorted([live.digest, young.digest])

    def test_a_blob_that_was_put_again_is_young_again(self, blobs: Blobs) -> None:
        blobs.put(DATA)
        make_old(blobs.path(DIGEST))
        blobs.put(DATA)
        assert blobs.sweep(set(), older_than_seconds=60) == 0
        assert blobs.has(DIGEST)

    def test_an_open_blob_can_be_read_to_its_end(self, blobs: Blobs) -> None:
        blobs.put(DATA)
        make_old(blobs.path(DIGEST))
        with blobs.open(DIGEST) as file:
            assert blobs.sweep(set(), older_than_seconds=60) == len(DATA)
            assert file.read() == DATA

    def test_files_of_others_stay(self, blobs: Blobs) -> None:
        note = blobs.folder / "README"
        note.write_text("hello")
        make_old(note)
        assert blobs.sweep(set(), older_than_seconds=60) == 0
        assert note.exists()


def test_reading_takes_the_memory_of_the_blob_and_no_more(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path, durable=False)
    size_bytes = 64 * 2**20
    ref = blobs.put(bytes(size_bytes))
    script = """
import resource, sys
from pathlib import Path
from server.blobs import Blobs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = Blobs(Path(sys.argv[1])).read(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), ref.digest],
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(done.stdout) * 1024 < size_bytes * 1.25

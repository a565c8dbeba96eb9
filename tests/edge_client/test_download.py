"""Downloads go on where they ended, in this process or another, and end whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coppice.domain import BlobRef
from coppice.errors import ServerUnreachable
from coppice.wire.chunks import blob_ref
from edge_client import download
from edge_client.download import Downloads
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import FakeServer

BIG = {"parameters": {"w": torch.arange(200_000, dtype=torch.float32)}}
CUT = 300_000


@pytest.fixture
def downloads(device: ThreadedDevice) -> Downloads:
    return Downloads(device.link, device.folder.downloads)


@pytest.fixture
def ref(server: FakeServer) -> BlobRef:
    return server.add_blob(BIG)


def offsets(server: FakeServer) -> list[int]:
    return [request.offset for request in server.of("FetchBlob")]


def files(device: ThreadedDevice) -> list[Path]:
    folder = device.folder.downloads
    return sorted(folder.iterdir()) if folder.exists() else []


def test_blob_that_comes_at_once_never_touches_the_disk(
    server: FakeServer, device: ThreadedDevice, downloads: Downloads, ref: BlobRef
) -> None:
    assert blob_ref(downloads.fetch(ref)) == ref
    assert offsets(server) == [0]
    assert not device.folder.downloads.exists()


def test_link_that_breaks_twice_sends_no_byte_twice(
    server: FakeServer, device: ThreadedDevice, downloads: Downloads, ref: BlobRef
) -> None:
    server.cuts["FetchBlob"] = [CUT, CUT]
    assert blob_ref(downloads.fetch(ref)) == ref
    assert offsets(server) == [0, CUT, 2 * CUT]
    assert device.connection.bytes_down == ref.size_bytes
    assert files(device) == []


def broken_after(device: ThreadedDevice, server: FakeServer, ref: BlobRef, cut: int) -> None:
    """A process whose link broke when so many bytes had come, and that was killed then."""
    server.cuts["FetchBlob"] = [cut]
    part = download._Part(ref, device.folder.downloads)
    with pytest.raises(ServerUnreachable):
        download._whole(part, device.connection)


def test_next_process_goes_on_where_the_last_one_ended(
    server: FakeServer, device: ThreadedDevice, downloads: Downloads, ref: BlobRef
) -> None:
    broken_after(device, server, ref, CUT)
    assert [path.stat().st_size for path in files(device)] == [CUT]
    assert blob_ref(downloads.fetch(ref)) == ref
    assert offsets(server) == [0, CUT]
    assert files(device) == []


def test_what_lies_there_damaged_is_fetched_anew(
    server: FakeServer, device: ThreadedDevice, downloads: Downloads, ref: BlobRef
) -> None:
    broken_after(device, server, ref, CUT)
    (path,) = files(device)
    path.write_bytes(bytes(CUT))
    assert blob_ref(downloads.fetch(ref)) == ref
    assert offsets(server) == [0, CUT, 0]
    assert files(device) == []


def test_what_lies_there_too_long_is_fetched_anew(
    server: FakeServer, device: ThreadedDevice, downloads: Downloads, ref: BlobRef
) -> None:
    broken_after(device, server, ref, CUT)
    (path,) = files(device)
    path.write_bytes(bytes(ref.size_bytes + 1))
    assert blob_ref(downloads.fetch(ref)) == ref
    assert offsets(server) == [0, 0]


def test_one_blob_is_kept_the_last(
    server: FakeServer, device: ThreadedDevice, downloads: Downloads, ref: BlobRef
) -> None:
    broken_after(device, server, ref, CUT)
    other = server.add_blob({"parameters": {"w": torch.zeros(9)}})
    downloads.fetch(other)
    assert files(device) == []


def test_large_blob_is_written_down_now_and_then(
    server: FakeServer, device: ThreadedDevice, ref: BlobRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "WRITE_EVERY_BYTES", CUT)
    part = download._Part(ref, device.folder.downloads)
    part.add(bytes(CUT - 1))
    assert files(device) == []
    part.add(bytes(1))
    part.add(bytes(100))
    assert [path.stat().st_size for path in files(device)] == [CUT]
    assert download._Part(ref, device.folder.downloads).received_bytes == CUT


def test_blob_that_arrives_damaged_is_fetched_once_more_from_its_start(
    server: FakeServer, device: ThreadedDevice, downloads: Downloads, ref: BlobRef
) -> None:
    server.damage[ref.digest] = 1
    assert blob_ref(downloads.fetch(ref)) == ref
    assert offsets(server) == [0, 0]


def test_disk_that_is_full_does_not_stop_a_download(
    server: FakeServer, device: ThreadedDevice, downloads: Downloads, ref: BlobRef
) -> None:
    device.folder.downloads.write_text("a file where the folder should be")
    server.cuts["FetchBlob"] = [CUT]
    assert blob_ref(downloads.fetch(ref)) == ref
    assert offsets(server) == [0, CUT]

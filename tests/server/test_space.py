"""Room for updates: never less than the reserve, never more than the blobs may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from coppice.errors import ServerBusy
from server.blobs import Blobs
from server.limits import Limits
from server.space import Space
from server.uploads import Uploads
from tests.server.test_uploads import A, B, ref_of

_MB = 10**6


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs", durable=False)


def space_of(blobs: Blobs, free_mb: float, **limits: int) -> Space:
    return Space(blobs.folder, Limits(**limits), lambda folder: int(free_mb * _MB))


def test_update_is_let_in_while_the_reserve_stays(blobs: Blobs) -> None:
    space = space_of(blobs, 110, disk_reserve_mb=100)
    space.let_in(10 * _MB, 0)
    space.let_in(4 * _MB, 6 * _MB)
    for size, coming in ((10 * _MB + 1, 0), (4 * _MB, 6 * _MB + 1)):
        with pytest.raises(ServerBusy, match=r"reserve of 100 MB.*disk_reserve_mb") as caught:
            space.let_in(size, coming)
        assert caught.value.retry_seconds > 0


def test_blobs_take_no_more_than_they_may(blobs: Blobs) -> None:
    blobs.put(bytes(_MB // 2))
    (blobs.partial / "left").write_bytes(bytes(_MB // 4))
    space = space_of(blobs, 10**6, run_disk_mb=1)
    with pytest.raises(ServerBusy, match=r"may take 1 MB.*run_disk_mb"):
        space.let_in(_MB // 4 + 1, 0)
    space.let_in(_MB // 4, 0)
    # What was let in counts, although not a byte of it has come.
    with pytest.raises(ServerBusy):
        space.let_in(1, 0)


def test_what_others_still_send_is_counted(blobs: Blobs) -> None:
    data, other = bytes(6 * _MB), bytes(5 * _MB)
    uploads = Uploads(blobs, space=space_of(blobs, 110, disk_reserve_mb=100))
    upload = uploads.receive(A, ref_of(data))
    with pytest.raises(ServerBusy):
        uploads.receive(B, ref_of(other))
    assert [path.name.split(".")[0] for path in blobs.partial.iterdir()] == [A]
    # As it comes, the disk says so itself; with none to come there is room.
    upload.end(keep=False)
    uploads.receive(B, ref_of(other)).end(keep=False)


def test_rest_of_an_upload_is_all_that_needs_room(blobs: Blobs) -> None:
    data = bytes(6 * _MB)
    uploads = Uploads(blobs)
    upload = uploads.receive(A, ref_of(data))
    upload.write(data[: 4 * _MB])
    upload.end(keep=True)
    later = Uploads(blobs, space=space_of(blobs, 102, disk_reserve_mb=100))
    upload = later.receive(A, ref_of(data), offset=4 * _MB)
    upload.write(data[4 * _MB :])
    upload.commit()
    assert blobs.has(ref_of(data).digest)

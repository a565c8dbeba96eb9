"""Reading IDX pairs, plain and compressed."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coppice.domain import DataSpec
from coppice.errors import UnreadableData
from coppice.readers import limits, read

SPEC = DataSpec(classes=("a", "b"), input_shape=(1, 2, 3))
X = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
Y = np.array([0, 1, 1, 0], dtype=np.uint8)
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def idx(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](content))
    return path


def write_pair(folder: Path, stem: str = "train-", images: str = "", labels: str = "") -> Path:
    write(folder, f"{stem}labels-idx1-ubyte{labels}", idx(Y))
    return write(folder, f"{stem}images-idx3-ubyte{images}", idx(X))


@pytest.mark.parametrize("labels", PACK)
@pytest.mark.parametrize("images", PACK)
def test_a_pair_is_found_by_its_images_or_its_folder(
    tmp_path: Path, images: str, labels: str
) -> None:
    path = write_pair(tmp_path, images=images, labels=labels)
    for place in (path, tmp_path):
        raw = read(place, SPEC)
        assert np.array_equal(raw.inputs, X)
        assert np.array_equal(raw.labels, Y)
        assert raw.class_names is None


def test_labels_of_the_same_kind_come_first(tmp_path: Path) -> None:
    path = write_pair(tmp_path, images=".gz", labels=".gz")
    write(tmp_path, "train-labels-idx1-ubyte", b"something else")
    assert np.array_equal(read(path, SPEC).labels, Y)


def test_names_with_a_dot_are_known_too(tmp_path: Path) -> None:
    write(tmp_path, "labels.idx1-ubyte", idx(Y))
    assert len(read(write(tmp_path, "images.idx3-ubyte", idx(X)), SPEC).inputs) == 4


def test_a_folder_with_two_pairs_asks_for_one(tmp_path: Path) -> None:
    write_pair(tmp_path, "train-")
    write_pair(tmp_path, "t10k-")
    with pytest.raises(UnreadableData, match="t10k-images-idx3-ubyte, train-images-idx3-ubyte"):
        read(tmp_path, SPEC)


def test_missing_labels_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "train-images-idx3-ubyte", idx(X))
    with pytest.raises(UnreadableData, match="no train-labels-idx1-ubyte"):
        read(path, SPEC)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (idx(Y), "not an IDX file of bytes in 3 dimensions"),
        (idx(X)[:10], "cannot be read"),
        (idx(X)[:-1], "declares 24 bytes of data and holds 23"),
        (idx(X) + b"x", "declares 24 bytes of data and holds more"),
        (bytes([0, 0, 13]) + idx(X)[3:], "not an IDX file of bytes"),
        (idx(X)[:4] + struct.pack(">3I", 1 << 31, 1 << 31, 1 << 31), "allowed are"),
    ],
)
def test_damaged_images_are_refused(
    tmp_path: Path, suffix: str, content: bytes, message: str
) -> None:
    write_pair(tmp_path)
    path = write(tmp_path, f"train-images-idx3-ubyte{suffix}", content)
    with pytest.raises(UnreadableData) as caught:
        read(path, SPEC)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("damage", ["not compressed", "cut", "flipped", "no blocks"])
def test_damaged_compression_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    path = write_pair(tmp_path, images=suffix)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    # What follows gzip's ten bytes of header is no deflate block.
    damaged = {
        "not compressed": idx(X),
        "cut": whole[:-9],
        "flipped": flipped,
        "no blocks": whole[:10] + b"\xff" * 40,
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(UnreadableData, match="accepted are"):
        read(path, SPEC)


def test_a_declared_size_takes_no_memory_before_the_bytes_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path)
    declared = struct.pack(">3I", 1 << 10, 1 << 10, 1 << 10)
    path = write(tmp_path, "train-images-idx3-ubyte.gz", idx(X)[:4] + declared + bytes(100))
    with pytest.raises(UnreadableData, match=f"declares {1 << 30} bytes of data and holds 100"):
        read(path, SPEC)
    monkeypatch.setattr(limits, "MAX_BYTES", (1 << 30) - 1)
    with pytest.raises(UnreadableData, match=f"allowed are {(1 << 30) - 1}"):
        read(path, SPEC)

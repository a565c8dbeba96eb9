"""Reading a folder of images by class."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coppice.data import examples_from
from coppice.domain import DataSpec
from coppice.errors import DataError, UnreadableData
from coppice.readers import limits, read

RGB = DataSpec(classes=("cat", "dog"), input_shape=(3, 2, 4))
GREY = DataSpec(classes=("cat", "dog"), input_shape=(1, 2, 4))
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 3), np.uint8)


def save(folder: Path, name: str, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_images_are_read_by_class_in_a_fixed_order(tmp_path: Path) -> None:
    save(tmp_path, "dog/1.png", PIXELS)
    save(tmp_path, "cat/2.bmp", PIXELS // 2)
    save(tmp_path, "cat/1.ppm", PIXELS // 3)
    (tmp_path / "cat/.hidden").touch()
    (tmp_path / ".DS_Store").touch()
    raw = read(tmp_path, RGB)
    assert raw.inputs.dtype == np.uint8
    assert examples_from(raw, RGB).targets.tolist() == [0, 0, 1]
    wanted = np.stack([PIXELS // 3, PIXELS // 2, PIXELS])
    assert np.array_equal(raw.inputs, np.moveaxis(wanted, -1, 1))


def test_channels_are_those_that_the_run_wants(tmp_path: Path) -> None:
    grey = PIXELS[:, :, 0]
    save(tmp_path, "cat/grey.png", grey)
    assert np.array_equal(read(tmp_path, GREY).inputs, grey[np.newaxis, np.newaxis])
    assert np.array_equal(read(tmp_path, RGB).inputs, np.stack([grey] * 3)[np.newaxis])


def test_an_image_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    path = save(tmp_path, "cat/1.png", PIXELS[:, :3])
    with pytest.raises(DataError) as caught:
        read(tmp_path, RGB)
    assert f"{path} is 2 pixels high and 3 wide; the run wants 2 and 4" in str(caught.value)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, "cat/1.png", PIXELS)
    whole = path.read_bytes()
    for damaged in (b"", b"no image", whole[:40], whole[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(UnreadableData, match=r"cat/1\.png: not a whole image"):
            read(tmp_path, RGB)


def test_deep_pixels_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((2, 4), 40_000, np.uint16)).save(tmp_path / "cat/1.png")
    with pytest.raises(DataError, match=r"cat/1\.png has pixels of mode 'I;16'"):
        read(tmp_path, GREY)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.txt", "not the folder of a class"), ("cat/a.txt", "not an image that can be read")],
)
def test_a_file_out_of_place_is_named(tmp_path: Path, name: str, message: str) -> None:
    save(tmp_path, "cat/1.png", PIXELS)
    (tmp_path / name).touch()
    with pytest.raises(UnreadableData, match=message) as caught:
        read(tmp_path, RGB)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("folders", [[], ["cat", "dog"]])
def test_a_folder_without_images_is_refused(tmp_path: Path, folders: list[str]) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
    with pytest.raises(UnreadableData, match="holds no images"):
        read(tmp_path, RGB)


@pytest.mark.parametrize("shape", [(24,), (2, 4), (2, 2, 4)])
def test_a_run_without_image_shape_takes_no_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save(tmp_path, "cat/1.png", PIXELS)
    with pytest.raises(DataError, match=r"\[1 or 3, height, width\]"):
        read(tmp_path, DataSpec(classes=("cat", "dog"), input_shape=shape))


def test_too_many_images_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "cat/1.png", PIXELS)
    save(tmp_path, "cat/2.png", PIXELS)
    monkeypatch.setattr(limits, "MAX_BYTES", 47)
    with pytest.raises(UnreadableData, match="holds 48 bytes of data; allowed are 47"):
        read(tmp_path, RGB)


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "cat/1.png", PIXELS)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"needs PIL; run pip install 'coppice\[images\]'"):
        read(tmp_path, RGB)

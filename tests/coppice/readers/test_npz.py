"""Reading .npz files, whole and damaged."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppice.data import Raw
from coppice.domain import DataSpec
from coppice.errors import DataError, UnreadableData
from coppice.readers import limits, read

SPEC = DataSpec(classes=("a", "b"), input_shape=(3,))
X = np.arange(6, dtype=np.uint8).reshape(2, 3)
Y = np.array([0, 1])


def npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def with_member(path: Path, x: bytes) -> Path:
    """An archive whose member x.npy is these bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", x)
        archive.writestr("y.npy", member(Y))
    return path


def member(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    file = io.BytesIO()
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def test_arrays_are_read_as_they_are_stored(tmp_path: Path) -> None:
    raw = read(npz(tmp_path / "d.npz", x=X, y=Y, classes=np.array(["b", "a"])), SPEC)
    assert np.array_equal(raw.inputs, X)
    assert raw.inputs.dtype == np.uint8
    assert np.array_equal(raw.labels, Y)
    assert raw.class_names == ["b", "a"]
    assert read(npz(tmp_path / "d.npz", x=X, y=Y), SPEC).class_names is None


def test_column_order_and_version_2_headers_are_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asfortranarray(X), version=(2, 0))
    assert np.array_equal(read(with_member(tmp_path / "d.npz", file.getvalue()), SPEC).inputs, X)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "has no array x (arrays in it: y)"),
        ({"x": X}, "has no array y (arrays in it: x)"),
        ({"x": X, "y": np.array(1)}, "one entry for each example"),
        ({"x": X, "y": Y, "classes": np.array([1, 2])}, "classes must be a list of strings"),
        ({"x": X, "y": Y, "classes": np.array("a")}, "classes must be a list of strings"),
        ({"x": X, "y": np.array([None, {}], dtype=object)}, "holds Python objects"),
    ],
)
def test_arrays_that_are_missing_or_wrong_are_named(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    path = npz(tmp_path / "d.npz", **arrays)
    with pytest.raises(UnreadableData) as caught:
        read(path, SPEC)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "x",
    [
        b"",
        b"not an array",
        member(X)[:-1],
        member(X) + b"more",
        header((1 << 40, 3)) + bytes(6),
        header((-2, -3)) + bytes(6),
        header((1 << 60,), "<U0"),
        header((2, 3)).replace(b")", b"(") + bytes(6),
        b"\x93NUMPY\x03\x00" + bytes(100),
    ],
)
def test_a_damaged_array_is_refused_before_it_is_allocated(tmp_path: Path, x: bytes) -> None:
    with pytest.raises(UnreadableData):
        read(with_member(tmp_path / "d.npz", x), SPEC)


def test_more_data_than_the_limit_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", 100_000)
    path = npz(tmp_path / "bomb.npz", x=np.zeros((2, 1 << 20), np.uint8), y=Y)
    assert path.stat().st_size < 10_000
    with pytest.raises(UnreadableData, match="allowed are 100000"):
        read(path, SPEC)


# Damage may make a header look like one of Python 2, of which numpy warns.
@pytest.mark.filterwarnings("ignore:Reading")
@given(data=st.data())
def test_no_damage_raises_anything_but_data_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    whole = npz(folder / "d.npz", x=X, y=Y).read_bytes()
    damaged = bytearray(data.draw(st.sampled_from([whole, member(X)])))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged.npz"
    if damaged[:2] == b"PK":
        path.write_bytes(damaged)
    else:
        with_member(path, bytes(damaged))
    try:
        assert isinstance(read(path, SPEC), Raw)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017

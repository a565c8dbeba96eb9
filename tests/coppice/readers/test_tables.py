"""Reading CSV and Parquet."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coppice.data import examples_from
from coppice.domain import DataSpec
from coppice.errors import DataError, UnreadableData
from coppice.readers import limits, read

SPEC = DataSpec(classes=("ok", "faulty"), input_shape=(2,), label_column="state")
arrow: Any = importlib.import_module("pyarrow")
parquet: Any = importlib.import_module("pyarrow.parquet")


def csv(folder: Path, text: str) -> Path:
    path = folder / "data.csv"
    path.write_text(text)
    return path


def table(folder: Path, **columns: Any) -> Path:
    path = folder / "data.parquet"
    parquet.write_table(arrow.table(columns), path, row_group_size=2)
    return path


def paths(folder: Path, state: list[Any]) -> list[Path]:
    """The same three rows in both formats."""
    rows = zip([1.5, 2, 3], state, [7, 8, 9], strict=True)
    text = "\n".join(["a,state,b", *(",".join(map(str, row)) for row in rows)])
    return [csv(folder, text), table(folder, a=[1.5, 2.0, 3.0], state=state, b=[7, 8, 9])]


@pytest.mark.parametrize(
    ("state", "targets"), [(["faulty", "ok", "faulty"], [1, 0, 1]), ([0, 1, 1], [0, 1, 1])]
)
def test_all_columns_but_the_label_are_inputs(
    tmp_path: Path, state: list[Any], targets: list[int]
) -> None:
    for path in paths(tmp_path, state):
        raw = read(path, SPEC)
        assert raw.inputs.dtype == np.float32
        assert raw.inputs.tolist() == [[1.5, 7], [2, 8], [3, 9]]
        assert examples_from(raw, SPEC).targets.tolist() == targets


def test_run_can_name_its_columns_whatever_else_a_file_has_and_in_which_order(
    tmp_path: Path,
) -> None:
    spec = replace(SPEC, columns=("b", "a"))
    text = "note,b,a,state\nx,7,1.5,ok\n,8,2,faulty\n"
    assert read(csv(tmp_path, text), spec).inputs.tolist() == [[7, 1.5], [8, 2]]
    with pytest.raises(
        DataError, match=r"no column 'a' \(data.columns\); its columns are b, state"
    ):
        read(table(tmp_path, b=[1], state=["ok"]), spec)


@pytest.mark.parametrize("columns", [("a", "a"), ("a", "state")])
def test_column_is_named_once_and_is_not_the_label(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="names a column twice, or the label column"):
        replace(SPEC, columns=columns)


def test_categories_of_a_parquet_file_are_read(tmp_path: Path) -> None:
    state = arrow.array(["faulty", "ok", "ok"]).dictionary_encode()
    raw = read(table(tmp_path, a=[1, 2, 3], state=state, b=[True, False, True]), SPEC)
    assert raw.inputs.tolist() == [[1, 1], [2, 0], [3, 1]]
    assert examples_from(raw, SPEC).targets.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,ok\n", "no column 'state' (data.label_column); its columns are a, b"),
        ("a,state,b\n1,ok,\n2,ok,3\n", "column 'b' has empty cells"),
        ("a,state,b\n1,ok,x\n", "column 'b' is of type string; inputs must be numbers"),
        ("a,state,a\n1,ok,2\n", "two columns of one name"),
        ("a,state,b\n1,0.5,2\n", "label column 'state' is of type double"),
        ("a,state,b\n1,true,2\n", "label column 'state' is of type bool"),
    ],
)
def test_what_does_not_fit_the_run_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = csv(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read(path, SPEC)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_numbers_too_large_for_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        examples_from(read(csv(tmp_path, "a,state,b\n1e300,ok,1\n"), SPEC), SPEC)


@pytest.mark.parametrize(
    "content", [b"", b"a,state,b\n1,ok\n", b"a,state,b\n\xff,ok,1", b"a\xff,state\n1,ok"]
)
def test_a_damaged_csv_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, SPEC)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, a=[1, 2, 3], state=["ok"] * 3, b=[1, 2, 3])
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-6], whole[:20] + bytes(20) + whole[40:]):
        path.write_bytes(content)
        with pytest.raises(UnreadableData, match="not a Parquet file"):
            read(path, SPEC)


def test_more_data_than_the_limit_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [csv(tmp_path, "a,state,b\n1,ok,2\n")]
    found.append(table(tmp_path, a=[0] * 5000, state=["ok"] * 5000, b=[0] * 5000))
    monkeypatch.setattr(limits, "MAX_BYTES", 10)
    for path in found:
        with pytest.raises(UnreadableData, match="allowed are 10"):
            read(path, SPEC)


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path in paths(tmp_path, [0, 1, 1]):
        with pytest.raises(DataError, match=r"needs pyarrow; run pip install 'coppice\[tables\]'"):
            read(path, SPEC)

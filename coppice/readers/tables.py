"""Reads tables (CSV, Parquet): one row for each example, one column with its label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coppice.data import Raw, labelled
from coppice.domain import DataSpec
from coppice.errors import DataError
from coppice.readers.limits import bound, load_extra, unreadable

_FLOAT_BYTES = 4


def read_csv(path: Path, spec: DataSpec) -> Raw:
    """Read a CSV file with a header row."""
    arrow = load_extra("pyarrow", "tables", path)
    csv = load_extra("pyarrow.csv", "tables", path)
    bound(path, path.stat().st_size)
    try:
        return _raw(path, csv.read_csv(path), spec, arrow)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, f"not a CSV file with a header row ({error})") from None


def read_parquet(path: Path, spec: DataSpec) -> Raw:
    """Read a Parquet file."""
    arrow = load_extra("pyarrow", "tables", path)
    parquet = load_extra("pyarrow.parquet", "tables", path)
    try:
        with parquet.ParquetFile(path) as file:
            bound(path, file.metadata.num_rows * file.metadata.num_columns * _FLOAT_BYTES)
            groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
            bound(path, sum(group.total_byte_size for group in groups))
            return _raw(path, file.read(), spec, arrow)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, f"not a Parquet file ({error})") from None


def _raw(path: Path, table: Any, spec: DataSpec, arrow: Any) -> Raw:
    names, label_column = table.column_names, spec.label_column
    if len(set(names)) != len(names):
        raise DataError(f"{path} has two columns of one name; rename one")
    if label_column not in names:
        raise DataError(
            f"{path} has no column {label_column!r} (data.label_column); its columns are "
            f"{', '.join(names)}"
        )
    kinds = arrow.types
    features = spec.columns or [name for name in names if name != label_column]
    if missing := [name for name in features if name not in names]:
        raise DataError(
            f"{path} has no column {missing[0]!r} (data.columns); its columns are "
            f"{', '.join(names)}"
        )
    for name in features:
        kind = table.schema.field(name).type
        if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)):
            raise DataError(f"{path}: column {name!r} is of type {kind}; inputs must be numbers")
    for name in (*features, label_column):
        if table.column(name).null_count:
            raise DataError(
                f"{path}: column {name!r} has empty cells; remove their rows or fill them in"
            )
    # The transform makes float32 anyway, so nothing is lost by storing it.
    inputs = np.empty((table.num_rows, len(features)), np.float32)
    with np.errstate(over="ignore"):
        for at, name in enumerate(features):
            inputs[:, at] = table.column(name).to_numpy()
    labels = table.column(label_column)
    kind = labels.type.value_type if kinds.is_dictionary(labels.type) else labels.type
    if kinds.is_integer(kind):
        return Raw(inputs, np.array(labels.to_pylist()))
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        return labelled(inputs, labels.to_pylist())
    raise DataError(
        f"{path}: the label column {label_column!r} is of type {kind}; "
        "allowed are integers and text"
    )

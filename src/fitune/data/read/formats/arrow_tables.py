""".parquet, .arrow and folders saved by the `datasets` library."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune.data.read.formats.compressed import UnpackedSize
from fitune.data.read.formats.found import Found
from fitune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BATCH_ROWS = 256
NULLS = "fields of objects that are null are taken for absent: in Arrow's tables all objects have the same fields"


def read_parquet(name: str, content: bytes) -> Found:
    """A Parquet file.

    Raises:
        DataError: damaged, with two columns of one name, or larger than it can be (`UnpackedSize`).
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        names = file.schema_arrow.names
        one_of_each_name(name, names)
        return _of_batches(name, len(content), file.iter_batches(BATCH_ROWS), file.schema_arrow)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{name} is not a complete Parquet file: {error}") from error


def read_arrow(name: str, content: bytes) -> Found:
    """An Arrow file, or a stream of one.

    Raises:
        DataError: as `read_parquet`.
    """
    import pyarrow as pa

    try:
        opener = pa.ipc.open_file if content.startswith(b"ARROW1") else pa.ipc.open_stream
        table = opener(pa.py_buffer(content)).read_all()
        one_of_each_name(name, table.column_names)
        return _of_batches(name, len(content), table.to_batches(BATCH_ROWS), table.schema)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{name} is not a complete Arrow file: {error}") from error


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved the folder: a set, or several splits of one."""
    return any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))


def read_saved_dataset(name: str, folder: Path, split: str) -> Found:
    """A set saved with `save_to_disk`, or a split of it.

    Raises:
        DataError: damaged, or without the split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds; each means the same to the user
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name} is a data set's folder that cannot be opened: {first}; save it again") from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise DataError(f"{name} has no split {split}; set data.hub_split to one of {', '.join(map(str, dataset))}")
        dataset = dataset[split]
    return rows_of_dataset(dataset)


def rows_of_dataset(dataset: Dataset) -> Found:
    """The rows of a set of the `datasets` library."""
    return _without_nulls(Found([dict(row) for row in dataset], list(range(1, len(dataset) + 1))))


def _of_batches(name: str, packed_bytes: int, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Found:
    """The rows, batch by batch: a text that is stored once may stand in a million rows."""
    rows: list[dict[str, Any]] = []
    size, shared = UnpackedSize(name, packed_bytes), "dictionary<" in str(schema)
    for batch in batches:
        found = batch.to_pylist(maps_as_pydicts="strict")
        size.add(len(str(found)) if shared else batch.nbytes)
        rows += found
    return _without_nulls(Found(rows, list(range(1, len(rows) + 1))))


def one_of_each_name(name: str, columns: list[str]) -> None:
    """Raises DataError when two columns have one name."""
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise DataError(
            f'{name}: {columns.count(twice)} columns are named "{twice}" ({", ".join(columns)}); rename all but one'
        )


def _without_nulls(found: Found) -> Found:
    """Rows whose objects have no fields that are null; said where there were some."""
    found.rows, changed = without_null_fields(found.rows)
    if changed:
        found.notes.append(NULLS)
    return found


def without_null_fields(rows: list[dict[str, object]]) -> tuple[list[dict[str, object]], bool]:
    """Rows whose objects have no fields that are null, and whether there were some."""
    changed = False
    for row in rows:
        for column, value in row.items():
            if isinstance(value, list | dict):
                row[column] = bare = _bare(value)
                changed = changed or bare != value
    return rows, changed


def _bare(value: object) -> object:
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    return [_bare(item) for item in value] if isinstance(value, list) else value

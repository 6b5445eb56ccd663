"""Parquet tables -> the same as from CSV: the columns of numbers are written out as its rows, and read as those are.

pyarrow reads the file, a batch at a time, and is imported for nothing else. pandas would need it too, would hold the
whole table, and takes a value that is missing for one that is NaN.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from fgclip_doctor.run import Run
from fgclip_doctor.sources import lines, records, tables
from fgclip_doctor.sources.files import Unreadable, inside, open_regular

MAGIC = b"PAR1"
BESIDE = ("*metric*.parquet", "*history*.parquet", "*log*.parquet", "*progress*.parquet")  # other tables are data sets
MAX_BESIDE = 16
MAX_ROWS = 8_000_000
MAX_COLUMNS = 2_000
MAX_BYTES = 2 << 30  # of all columns once they are decompressed, as the file states it
MAX_GROUP = 512 << 20  # of one row group
MAX_FOOTER = 32 << 20  # bytes of the strings and lists in the file's own description
BATCH = 16_384  # rows


def is_parquet(path: Path) -> bool:
    """True if `path` is a file that begins as Parquet's do. Raises `Unreadable`."""
    with open_regular(path) as descriptor:
        return os.pread(descriptor, len(MAGIC), 0) == MAGIC


def beside(directory: Path) -> list[Run]:
    """What the tables in a run directory say that are called like logs."""
    found = []
    for path in sorted({path for pattern in BESIDE for path in directory.glob(pattern)})[:MAX_BESIDE]:
        try:
            found.append(read(inside(directory, path.name)))
        except Unreadable as error:
            found.append(Run(str(directory), problems=[str(error)]))
    return found


def read(path: Path) -> Run:
    """The series of a table. Raises `Unreadable` if it has none, or if pyarrow isn't there to read it."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise Unreadable(path, "is a Parquet table, which pyarrow reads: pip install pyarrow") from error
    with open_regular(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        try:
            return _read(path, file, parquet)
        except (arrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise Unreadable(path, f"can't be read as Parquet: {error}") from error


def _read(path: Path, file: BinaryIO, parquet: Any) -> Run:
    table = parquet.ParquetFile(
        file, thrift_string_size_limit=MAX_FOOTER, thrift_container_size_limit=MAX_FOOTER, pre_buffer=False
    )
    about = table.metadata
    groups = [about.row_group(index).total_byte_size for index in range(about.num_row_groups)]
    if about.num_rows > MAX_ROWS or about.num_columns > MAX_COLUMNS:
        raise Unreadable(
            path, f"has {about.num_rows:,} rows of {about.num_columns:,} columns, which is more than a log"
        )
    if sum(groups) > MAX_BYTES or max(groups, default=0) > MAX_GROUP:
        raise Unreadable(path, f"holds {sum(groups):,} bytes once decompressed, which is more than a log")
    names = [field.name for field in table.schema_arrow if _is_number(field.type)]
    if not any(records.clock(name) or records.METRIC.search(name) for name in names):
        raise Unreadable(path, "has no column that is a step or a metric")
    if len(set(names)) < len(names):
        raise Unreadable(path, "has two columns of the same name")
    return lines.collect(path, tables.Table(names, ","), _rows(table, names)).run


def _is_number(kind: Any) -> bool:
    types = import_module("pyarrow.types")
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _rows(table: Any, names: list[str]) -> Iterator[bytes]:
    """The rows as those of a CSV, without its header."""
    arrow, csv = import_module("pyarrow"), import_module("pyarrow.csv")
    for batch in table.iter_batches(batch_size=BATCH, columns=names, use_threads=False):
        if batch.schema.names != names:
            raise ValueError("its columns can't be told by their names")  # "a.b" beside an "a" with a "b" in it
        columns = [one.cast(arrow.float32()) if arrow.types.is_float16(one.type) else one for one in batch.columns]
        sink = arrow.BufferOutputStream()
        csv.write_csv(arrow.RecordBatch.from_arrays(columns, names=names), sink, csv.WriteOptions(include_header=False))
        yield sink.getvalue().to_pybytes()

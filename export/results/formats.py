"""Rows as CSV and JSON Lines, for those who have no reader of Parquet at hand."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv

from export.results.rows import open_rows
from stdac.files import atomic_write, sweep_temporary

ROWS = 16_384
"""Converted at once."""


@contextmanager
def keep_table(output: Path) -> Iterator[Path]:
    """The Parquet file in which the rows of `output` are kept: itself, or for another format one that goes at the end.

    That one is hidden, beside the output, so that an interrupted run finds it again.
    """
    if output.suffix.lower() == ".parquet":
        yield output
        return
    table = output.with_name(f".{output.name}.parquet")
    try:
        yield table
    finally:
        table.unlink(missing_ok=True)


def write_as_named(table: Path, output: Path) -> None:
    """Write the rows of a Parquet file in the format that the output's name says, whole or not at all."""
    write = WRITERS[output.suffix.lower()]
    if write is None:
        return
    sweep_temporary(output)
    with open_rows(table) as file, atomic_write(output) as out:
        write(out, file.schema_arrow, file.iter_batches(ROWS, use_threads=False))


def _write_csv(out: IO[bytes], schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """A header, then a line a row; nothing for null, lists as JSON."""
    plain = pa.schema([pa.field(f.name, pa.string() if pa.types.is_nested(f.type) else f.type) for f in schema])
    with pa.csv.CSVWriter(out, plain) as writer:
        for batch in batches:
            columns = [
                pa.array([None if value is None else json.dumps(value) for value in column.to_pylist()], pa.string())
                if pa.types.is_nested(column.type)
                else column
                for column in batch.columns
            ]
            writer.write_batch(pa.record_batch(columns, schema=plain))


def _write_json_lines(out: IO[bytes], schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """A JSON object a row."""
    for batch in batches:
        columns = [_to_shortest(column) if pa.types.is_float32(column.type) else column for column in batch.columns]
        for row in pa.RecordBatch.from_arrays(columns, names=schema.names).to_pylist():
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _to_shortest(column: pa.Array) -> pa.Array:
    """The shortest decimal numbers that are these float32, as CSV has them: 0.9, not 0.8999999761581421."""
    return column.cast(pa.string()).cast(pa.float64())


WRITERS: dict[str, Callable[[IO[bytes], pa.Schema, Iterator[pa.RecordBatch]], None] | None] = {
    ".parquet": None,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
}
"""By the end of a file's name, how rows are written; None: as they are."""

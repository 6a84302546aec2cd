"""clusters.parquet: its columns, the parts it is made of while a run goes on, and rows that need no second sorting."""

import fcntl
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.files import atomic_write, explain_refusal

ROW_GROUP = 65_536
FLUSH_S = 10.0
NO_STAT = (-1, -1)
MOST_CLUSTERS = 1 << 16
RUN_NAME = re.compile(r"run-[0-9]{6}")
WRITTEN: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
LATER = ("member",)
"""Columns that files of earlier versions lack."""

PROJECTED = 32
"""Values of a stored embedding."""

CLUSTERS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("cluster", pa.int32()),
        pa.field("name", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("runner_up", pa.int32()),
        pa.field("margin", pa.float32()),
        pa.field("content_hash", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("label", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("modified_ns", pa.int64()),
        pa.field("error", pa.string()),
    ]
)
"""clusters.parquet, one row an image, in the order of the inputs (a folder's files sorted by name).

source: the file, archive or data set; index: the image's place in it (0 for a picture file); member: what it is called
in a tar archive, null elsewhere. cluster: its id; name: the cluster's name, null where it has none. confidence: the
score of the cluster; runner_up: the cluster with the next score; margin: confidence minus that score. content_hash:
first 32 hex digits of SHA-256 of the picture file's bytes (of an array's pixels, (C, H, W)): equal ones are exact
duplicates. fingerprint: 128 bits in hex, a difference hash of the image at the model's size: near ones are candidates
for near duplicates. label: the truth where the input tells it (never used but for scores). bytes, modified_ns: of the
file that the image is in, null for data sets by name. error: why the image could not be read (then cluster to margin,
and embedding, are null), null for one that was.

Where the model was exported with its embedding, `embedding` comes before error: fixed_size_list<float16>, normalised to
length 1 and projected to at most PROJECTED dimensions by a fixed random projection.

Metadata of the schema: stdac.model (SHA-256 of the ONNX file), stdac.model_id, stdac.k, stdac.version.
"""


def make_schema(embedding: int, metadata: dict[str, str]) -> pa.Schema:
    """CLUSTERS with its metadata and, for a model whose embedding has that many values, the embedding's column."""
    schema = CLUSTERS
    if embedding:
        kind = pa.list_(pa.field("element", pa.float16()), min(embedding, PROJECTED))  # as Parquet names it
        schema = schema.insert(len(schema) - 1, pa.field("embedding", kind))
    return schema.with_metadata(metadata)


class Known:
    """Rows of earlier runs of the same model, found by source and index."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.filter(table["error"].is_null()).combine_chunks()  # taking rows from chunks is slow
        keys: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        for batch in self.table.select(["source", "index"]).to_batches(max_chunksize=ROW_GROUP):
            pairs = zip(batch["source"].to_pylist(), batch["index"].to_pylist(), strict=True)
            keys.append(np.fromiter(map(hash, pairs), np.int64, len(batch)))
        key = np.concatenate(keys)
        self._order = np.argsort(key, kind="stable")
        self._key = key[self._order]

    def find(
        self, source: Sequence[str], index: NDArray[np.int64], stat_of: Callable[[int], tuple[int, int] | None]
    ) -> NDArray[np.int64]:
        """The row of each image, (n,) int64, -1 for one that is not there or whose file has changed since.

        stat_of: the i-th image's file's (bytes, modified_ns), None where it has none; asked where there is a row.
        """
        row = np.full(len(source), -1)
        if not len(self._key):
            return row
        key = np.fromiter(map(hash, zip(source, index.tolist(), strict=True)), np.int64, len(source))
        place = np.searchsorted(self._key, key).clip(max=len(self._key) - 1)
        found = np.flatnonzero(self._key[place] == key)
        candidates = self._order[place[found]]
        there = self.table.select(["source", "index", "bytes", "modified_ns"]).take(candidates)
        about = np.array([stat_of(i) or NO_STAT for i in found.tolist()], np.int64).reshape(-1, 2)
        same = pc.equal(there["source"], pa.array([source[i] for i in found.tolist()], pa.string())).to_numpy()
        same &= there["index"].to_numpy() == index[found]
        for column, value in zip(("bytes", "modified_ns"), about.T, strict=True):
            same &= there[column].fill_null(-1).to_numpy() == value
        row[found[same]] = candidates[same]
        return row


class Parts:
    """The rows of a run in progress, in the folder OUTPUT.parts, until the output appears whole.

    A part is written every few seconds, so that a run that is killed loses no more than those; what is left of it is
    `known` to the next run of the same model. A second run on the same output is refused while the first is at it.
    """

    def __init__(self, output: Path, schema: pa.Schema, *, resume: bool = False, fresh: bool = False) -> None:
        self.output, self.schema = output, schema
        self.folder = output.with_name(f"{output.name}.parts")
        with explain_refused(output):
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StdacError(
                f"another stdac cluster is writing {output}: wait for it, or choose another output"
            ) from error
        try:
            if fresh:
                self._sweep()
            runs = [run for run in self.folder.iterdir() if RUN_NAME.fullmatch(run.name)]
            parts = [read_rows(part, schema) for run in sorted(runs) for part in sorted(run.glob("part-*.parquet"))]
            tables = [table for table in parts if table is not None]
            if resume and output.exists():
                tables.append(_read_output(output, schema))
            self.known = Known(pa.concat_tables(tables) if tables else schema.empty_table())
            last = max((int(run.name.removeprefix("run-")) for run in runs), default=0)
            self._run = self.folder / f"run-{last + 1:06}"
            with explain_refused(output):
                self._run.mkdir()
        except BaseException:
            self._leave()
            raise
        self._waiting: list[pa.Table] = []
        self._rows = self._parts = 0
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep what there is, unless the run has finished."""
        if self._run.exists():
            with suppress(StdacError):
                self._flush()
            with suppress(OSError):
                self._run.rmdir()  # only where it is empty
        self._leave()

    def _leave(self) -> None:
        """Let others at the folder, which goes where it holds no run."""
        if not any(self.folder.glob("run-*")):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def add(self, table: pa.Table) -> None:
        """Take the next rows."""
        self._waiting.append(table)
        self._rows += len(table)
        if self._rows >= ROW_GROUP or time.monotonic() - self._flushed >= FLUSH_S:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            with atomic_write(self._run / f"part-{self._parts:06}.parquet") as file:
                pq.write_table(pa.concat_tables(self._waiting), file, **WRITTEN)
            self._parts += 1
        self._waiting, self._rows, self._flushed = [], 0, time.monotonic()

    def read(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of this run, in order."""
        self._flush()
        for part in sorted(self._run.glob("part-*.parquet")):
            with open_rows(part) as file:
                yield file.read(columns, use_threads=False)

    def finish(self, tables: Iterable[pa.Table]) -> None:
        """Write the output whole, in row groups of ROW_GROUP rows, and remove the parts."""
        merged = self.folder / "merged.parquet"
        with atomic_write(merged) as file, pq.ParquetWriter(file, self.schema, **WRITTEN) as writer:
            for group in _regroup(tables, ROW_GROUP):
                writer.write_table(group.combine_chunks(), row_group_size=ROW_GROUP)  # equal rows, equal bytes
        with explain_refused(self.output):
            merged.replace(self.output)
        self._sweep()

    def _sweep(self) -> None:
        for run in self.folder.glob("run-*"):
            shutil.rmtree(run, ignore_errors=True)


@contextmanager
def explain_refused(path: Path) -> Iterator[None]:
    """OS errors become one sentence on why `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise explain_refusal(error, path) from error


def read_rows(path: Path, schema: pa.Schema) -> pa.Table | None:
    """The rows of a file that has the columns and the metadata (model, version) of the schema; None for any other."""
    try:
        with open_rows(path) as file:
            if not file.schema_arrow.equals(schema, check_metadata=True):
                return None
            table = file.read(use_threads=False).cast(schema)
    except (OSError, pa.ArrowException):
        return None
    return table if _is_sound(table, int(schema.metadata[b"stdac.k"])) else None


def _is_sound(rows: pa.Table | pa.RecordBatch, k: int) -> bool:
    """Whether rows have either a cluster in [0, K) or an error."""
    found = pc.min_max(rows["cluster"]).as_py()
    in_range = found["min"] is None or (found["min"] >= 0 and found["max"] < k)
    either = pc.xor(rows["cluster"].is_null(), rows["error"].is_null())
    return in_range and pc.all(either).as_py() is not False


def check_rows(path: Path) -> None:
    """Raise StdacError for a file that is not a clusters.parquet whose clusters its model has."""
    try:
        with open_rows(path) as file:
            schema = file.schema_arrow
            k = int((schema.metadata or {}).get(b"stdac.k", b"0")[:9])
            fields = [schema.field(i) for i in range(len(schema))]
            sound = (
                k <= MOST_CLUSTERS
                and all(fields.count(field) == 1 for field in CLUSTERS if field.name not in LATER)
                and len(set(schema.names)) == len(fields)
            )
            for batch in file.iter_batches(columns=["cluster", "error"], use_threads=False) if sound else ():
                sound &= _is_sound(batch, k)
    except FileNotFoundError as error:
        raise StdacError(f"there is no {path}: expected a clusters.parquet of an earlier stdac cluster") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise StdacError(
            f"cannot read {path} as clusters.parquet ({reason}): write it again with stdac cluster"
        ) from error
    if not sound:
        raise StdacError(f"{path} is damaged, or not the clusters.parquet of a stdac cluster: write it again with that")


@contextmanager
def open_rows(path: Path) -> Iterator[pq.ParquetFile]:
    """A clusters.parquet or a part of one, its pages checked as they are read. Raises OSError or pa.ArrowException.

    To be read with use_threads=False: a thread of Arrow that still holds the Python file when the interpreter ends
    aborts the process.
    """
    if not path.is_file() and path.exists():
        raise OSError(f"{path} is not a regular file")
    with path.open("rb") as file:  # a name that is not UTF-8 is nothing for Arrow
        yield pq.ParquetFile(file, page_checksum_verification=True)


def _read_output(path: Path, schema: pa.Schema) -> pa.Table:
    """An earlier output whose rows are to be kept. Raises StdacError where it is damaged, or of another model."""
    table = read_rows(path, schema)
    if table is None:
        raise StdacError(
            f"{path} is damaged, or was not written with this model by this version of stdac: leave out --resume to "
            "sort all images anew, or name another output"
        )
    return table


def _regroup(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows as tables of `size` rows, the last one shorter."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        while rows >= size:
            together = pa.concat_tables(waiting)
            yield together.slice(0, size)
            waiting, rows = [together.slice(size)], rows - size
    if rows:
        yield pa.concat_tables(waiting)

"""What the gallery shows of clusters.parquet: columns, one after the other, then a choice of rows. No pixels here."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.gallery.duplicates import Codes, Rows, find_exact_groups, read_codes
from export.results.truth import encode_labels
from stdac.errors import StdacError

THUMBNAILS = 3000
"""Images to show in all clusters together; with them the page has a few MB."""

MOST_SAMPLED = 200
MOST_EXTREME = 48
MOST_GROUPS = 12
CELL_IMAGES = 800
MOST_IN_CELL = 6
DETAILS = ("source", "index", "runner_up", "margin")
READ = ("cluster", "confidence", "label", "content_hash", "fingerprint", "error", *DETAILS)


class Columns(NamedTuple):
    """What every row says, (N,) each.

    cluster: int64, -1 where the image could not be read. confidence: float32, 0 there. label: int64 a place in
    `labels`, -1 for none. content, fingerprint: (N, 8) uint16.
    """

    cluster: Rows
    confidence: NDArray[np.float32]
    label: Rows
    labels: tuple[str, ...]
    content: Codes
    fingerprint: Codes


class View(NamedTuple):
    """The rows that are shown of one cluster, each a copy of none before it.

    sample: at random, in random order. most, least: by confidence, the extreme one first. cells: for the confusion
    matrix, some of each label.
    """

    sample: Rows
    most: Rows
    least: Rows
    cells: Rows


def open_table(path: Path) -> pq.ParquetFile:
    """Open clusters.parquet. Raises StdacError where it cannot be read, or lacks a column."""
    try:
        file = pq.ParquetFile(path.open("rb"))  # a name that is not UTF-8 is nothing for Arrow
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n", maxsplit=1)[0]
        raise StdacError(f"cannot read {path} ({reason}): expected the table that stdac cluster writes") from error
    missing = [name for name in READ if name not in file.schema_arrow.names]
    if missing:
        raise StdacError(f"{path} has no column {missing[0]}: it is of another stdac; run stdac cluster again")
    return file


def read_columns(file: pq.ParquetFile, k: int) -> Columns:
    """One column after the other: a million rows need about 200 MB. Raises StdacError for a cluster that is not < k."""

    def column(name: str) -> pa.ChunkedArray:
        return file.read([name], use_threads=False).column(0)

    cluster = column("cluster").fill_null(-1).to_numpy().astype(np.int64)
    if cluster.max(initial=-1) >= k:
        raise StdacError(f"the table has cluster {cluster.max()}, but the model has {k} clusters: it is of another one")
    confidence = column("confidence").fill_null(0).to_numpy()
    labels, label = encode_labels(column("label"))
    return Columns(
        cluster, confidence, label, labels, read_codes(column("content_hash")), read_codes(column("fingerprint"))
    )


def read_details(file: pq.ParquetFile, rows: Rows, names: tuple[str, ...] = DETAILS) -> dict[str, list[Any]]:
    """The columns of a few rows, which are sorted; one row group is in memory at a time."""
    parts, start = [], 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)] - start
        if len(here):
            parts.append(file.read_row_group(group, columns=list(names), use_threads=False).take(here))
        start = end
    columns: dict[str, list[Any]] = pa.concat_tables(parts).to_pydict() if parts else {name: [] for name in names}
    return columns


def read_errors(file: pq.ParquetFile, most: int) -> tuple[dict[str, int], list[tuple[str, int, str]]]:
    """How often each reason is given, and source, index and reason of the first `most` images with an error."""
    reasons: dict[str, int] = {}
    first: list[tuple[str, int, str]] = []
    for batch in file.iter_batches(columns=["source", "index", "error"], use_threads=False):
        bad = batch.filter(batch["error"].is_valid())
        for value in bad["error"].value_counts().to_pylist():
            reasons[value["values"]] = reasons.get(value["values"], 0) + value["counts"]
        rows = bad.slice(0, most - len(first)).to_pydict()
        first += zip(rows["source"], rows["index"], rows["error"], strict=True)
    return reasons, first


def find_first_copies(columns: Columns) -> tuple[Rows, Rows]:
    """(N,) int64 the first row with the same content in the same cluster, and how many have it; -1 and 0 for errors."""
    first, copies = np.full(len(columns.cluster), -1, np.int64), np.zeros(len(columns.cluster), np.int64)
    read = np.flatnonzero(columns.cluster >= 0)
    first[read] = read[find_exact_groups(columns.content[read])]
    np.add.at(copies, first[read], 1)
    return first, copies


def choose(columns: Columns, k: int, first: Rows) -> list[View]:
    """What to show of each cluster; equal tables give equal choices. first: as `find_first_copies` gives it."""
    heads = np.flatnonzero(first == np.arange(len(first)))
    order = heads[np.lexsort((-columns.confidence[heads], columns.cluster[heads]))]
    ends = np.searchsorted(columns.cluster[order], np.arange(k + 1))
    shown = int(np.clip(THUMBNAILS // k, 12, MOST_SAMPLED + 2 * MOST_EXTREME))
    extreme = min(MOST_EXTREME, shown // 4)
    in_cell = min(MOST_IN_CELL, CELL_IMAGES // max(k * len(columns.labels), 1))
    views = []
    for cluster in range(k):
        ranked = order[ends[cluster] : ends[cluster + 1]]
        mixed = np.random.default_rng(cluster).permutation(ranked)
        cells = _find_first_of_each(mixed, columns.label[mixed], in_cell)
        views.append(View(mixed[: shown - 2 * extreme], ranked[:extreme], ranked[::-1][:extreme], cells))
    return views


def _find_first_of_each(rows: Rows, label: Rows, most: int) -> Rows:
    """The first `most` rows of each label, in their order; those without a label left out."""
    order = np.argsort(label, kind="stable")
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows)) - np.searchsorted(label[order], label[order])
    return rows[(ranks < most) & (label >= 0)]


def find_largest_groups(first: Rows, copies: Rows, cluster: Rows, k: int) -> list[Rows]:
    """The first rows of the largest groups of exact duplicates of each cluster."""
    heads = np.flatnonzero(copies > 1)
    heads = heads[np.lexsort((-copies[heads], cluster[heads]))]
    ends = np.searchsorted(cluster[heads], np.arange(k + 1))
    return [heads[ends[c] : ends[c + 1]][: choose_groups(k)] for c in range(k)]


def find_copies(first: Rows, heads: Rows, most: int) -> Rows:
    """The rows, sorted, that are copies of `heads`, without these: the first `most` of each."""
    rows = np.flatnonzero(np.isin(first, heads) & (first != np.arange(len(first))))
    return _find_first_of_each(rows, first[rows], most)


def choose_groups(k: int) -> int:
    """How many groups of duplicates a cluster shows at most."""
    return int(np.clip(120 // k, 2, MOST_GROUPS))

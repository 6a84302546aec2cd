"""A file of labels, the truth that results are scored with: which image has which."""

import csv
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.pictures.arrays import STREAM_ERRORS, StoredArray, check_are_labels, open_idx, open_npy, read_label_texts
from stdac.pictures.batches import explain_error
from stdac.pictures.child import iterate_in_child
from stdac.pictures.columns import (
    find_fraction,
    is_label,
    is_name,
    read_features,
    read_label_text,
    refuse_label,
)
from stdac.pictures.kinds import recognize_kind
from stdac.text import compose, escape_label, escape_name, find_encoding
from stdac.words import count_noun

if TYPE_CHECKING:
    import pyarrow as pa

NAME_COLUMNS = ("source", "path", "file", "filename", "file_name", "filepath", "image", "name")
LABEL_COLUMNS = ("label", "class", "labels", "target", "y", "category")
LINE_CHARS = 1 << 20
LABELS_BYTES = 1 << 28
"""Of the labels in an .npy or IDX file together."""

EXPECTED = (
    "expected a CSV, TSV or Parquet file with a column of paths (source, path, file or name) and one of labels (label "
    "or class), or an .npy, IDX or text file with one label an image in the order of the inputs"
)


class Labels(Protocol):
    """The labels of images, by their names or by their order."""

    def of(self, source: Sequence[str], index: NDArray[np.int64], position: int) -> list[str | None]:
        """The labels of consecutive images, None where there is none.

        source, index: as in `stdac.pictures.batches.Batch`. position: the first one's place in the order of the inputs.
        Raises StdacError where labels and images do not fit together.
        """

    def check(self, images: int) -> list[str]:
        """After all so many images: what did not fit, a sentence each. Raises StdacError where the labels are for
        others."""


def read_labels(path: Path) -> Labels:
    """The labels in a file; what it is, its content and its name tell. Raises StdacError for what cannot be understood.

    A CSV or TSV file with a header, or a Parquet file, has a column of names (NAME_COLUMNS) and one of labels
    (LABEL_COLUMNS), and may have one named index for images in arrays and archives. A name is a path as in the output,
    or the end of one: relative to an input folder, or the file's name alone. Any other file has one label an image in
    the order of the inputs: .npy, IDX, a table with the column of labels alone, or text with a label a line.
    """
    if not path.is_file():
        raise StdacError(f"cannot read {path}, which does not exist or is no regular file: {EXPECTED}")
    try:
        kind, suffix = recognize_kind(str(path)), path.suffix.lower()
        if kind == "array":
            return InOrder(path, _read_stored(path))
        if kind == "parquet":
            return _read_table(path, _read_parquet(path))
        if suffix in (".csv", ".tsv"):
            return _read_table(path, _read_csv(path))
        return InOrder(path, [sys.intern(escape_label(line.rstrip("\r\n"))) for line in _open_text(path)])
    except STREAM_ERRORS as error:
        raise StdacError(f"cannot read {path} ({explain_error(error, str(path))}): {EXPECTED}") from error


class InOrder:
    """One label an image, in the order of the inputs."""

    def __init__(self, path: Path, labels: Sequence[str | None] | NDArray[np.generic]) -> None:
        self.path, self.labels = path, labels

    def of(self, source: Sequence[str], index: NDArray[np.int64], position: int) -> list[str | None]:
        end = position + len(source)
        if end > len(self.labels):
            raise self._misfit(f"at least {end:,}")
        part = self.labels[position:end]
        given = read_label_texts(part, len(source)) if isinstance(part, np.ndarray) else part
        return [label or None for label in given]

    def check(self, images: int) -> list[str]:
        if images != len(self.labels):
            raise self._misfit(f"{images:,}")
        empty = 0 if isinstance(self.labels, np.ndarray) else sum(not label for label in self.labels)
        return [f"{empty:,} of the {count_noun(images, 'label')} in {self.path} are empty"] if empty else []

    def _misfit(self, images: str) -> StdacError:
        return StdacError(
            f"{self.path} has {len(self.labels):,} labels for {images} images: expected one label an image, in the "
            "order of the inputs"
        )


class ByName:
    """Labels that say which image they belong to, by a path or the end of one."""

    def __init__(self, path: Path, rows: Iterable[tuple[str, int, str | None]]) -> None:
        self.path = path
        self._row: dict[str, int] = {}
        self._label: list[str | None] = []
        for name, index, label in rows:
            key = _make_key(compose(name).removeprefix("./"), index)
            row = self._row.setdefault(key, len(self._label))
            if row == len(self._label):
                self._label.append(None if label is None else sys.intern(label))
            elif self._label[row] != label:
                raise StdacError(f"{path} has several labels for {name}: expected one, or paths that tell images apart")
        self._owner = array("q", bytes(8 * len(self._label)))  # hash of the image that a row was given to, 0 for none
        self._folder = escape_name(os.getcwd())  # noqa: PTH109

    def of(self, source: Sequence[str], index: NDArray[np.int64], position: int) -> list[str | None]:
        return [self._of(name, i) for name, i in zip(source, index.tolist(), strict=True)]

    def _of(self, source: str, index: int) -> str | None:
        row = self._find(source, index)
        if row is None:
            return None
        owner = hash((source, index)) or 1
        if self._owner[row] not in (0, owner):
            raise StdacError(
                f"a name in {self.path} fits several images, one of them {source}: expected names that tell the images "
                "apart, such as paths from the current folder"
            )
        self._owner[row] = owner
        return self._label[row]

    def _find(self, source: str, index: int) -> int | None:
        """The row of the longest name that an image's absolute path ends with."""
        path, place = compose(os.path.normpath(f"{self._folder}/{source}" if source[:1] != "/" else source)), 0
        while True:
            row = self._row.get(_make_key(path[place:], index))
            place = path.find("/", place) + 1
            if row is not None or not place:
                return row

    def check(self, images: int) -> list[str]:
        total = len(self._label)
        lost = [key.partition("\0")[0] for key, row in self._row.items() if not self._owner[row]]
        if images and total and len(lost) == total:
            raise StdacError(
                f"no name in {self.path} is that of an image (the first is {lost[0]}): expected paths as in the column "
                "source of the output, or the ends of such"
            )
        empty = sum(label is None for label in self._label)
        labelled = sum(bool(owner) and label is not None for owner, label in zip(self._owner, self._label, strict=True))
        notes = (
            (len(lost), f"{count_noun(total, 'name')} in {self.path} are of no image (the first: {''.join(lost[:1])})"),
            (empty, f"{count_noun(total, 'row')} in {self.path} have no label"),
            (images - labelled, f"{count_noun(images, 'image')} have no label in {self.path}"),
        )
        return [f"{n:,} of {what}" for n, what in notes if n]


def _make_key(name: str, index: int) -> str:
    """What identifies an image: its path, and its place in there unless that is 0."""
    return f"{name}\0{index}" if index else name


def _read_table(path: Path, rows: Iterator[Sequence[str | None]]) -> Labels:
    """The labels in a table, of which the first row has the names of the columns."""
    header = [(name or "").strip().lower() for name in next(rows, [])]
    name, label = (
        next((header.index(c) for c in wanted if c in header), None) for wanted in (NAME_COLUMNS, LABEL_COLUMNS)
    )
    if label is None or (name is None and len(header) > 1):
        raise StdacError(f"{path} has the columns {', '.join(header)[:200] or 'of an empty file'}: {EXPECTED}")
    if name is None:
        return InOrder(path, [escape_label(row[label] or "") or None for row in rows])
    place = header.index("index") if "index" in header else None

    def name_rows() -> Iterator[tuple[str, int, str | None]]:
        for row in rows:
            yield row[name] or "", 0 if place is None else int(row[place] or 0), escape_label(row[label] or "") or None

    return ByName(path, name_rows())


def _read_csv(path: Path) -> Iterator[Sequence[str]]:
    """The rows of a CSV or TSV file, those that are empty left out. Raises StdacError for a row of another length."""
    lines = _open_text(path)
    first = next(lines, "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    width = None
    try:
        for row in csv.reader(chain([first], lines), delimiter=delimiter):
            width = width or len(row)
            if row and len(row) != width:
                raise StdacError(
                    f"{path} has a row of {len(row)} values, expected {width} as in its header: {row[0][:80]}"
                )
            if row:
                yield row
    except csv.Error as error:
        raise StdacError(f"{path} is not a CSV file ({error}): {EXPECTED}") from error


def _open_text(path: Path) -> Iterator[str]:
    r"""The lines of a text file, with their ends, decoded by its byte order mark, else as UTF-8; what is not becomes
    \x escapes, as in the output."""
    with path.open("rb") as head:
        encoding = find_encoding(head.read(4))
    with path.open(encoding=encoding, errors="backslashreplace", newline="") as file:
        while line := file.readline(LINE_CHARS):
            if len(line) == LINE_CHARS:
                raise StdacError(f"{path} has a line of {LINE_CHARS:,} characters or more: {EXPECTED}")
            yield line


def _read_parquet(path: Path) -> Iterator[Sequence[str | None]]:
    """The rows of the columns of a Parquet file that can be names, indices or labels, after those columns' names."""
    try:
        for rows in iterate_in_child("export.results.labels:read_rows", str(path)):
            yield from rows
    except StdacError as error:
        raise StdacError(f"cannot read {path} ({error}): {EXPECTED}") from error


def read_rows(path: str) -> Iterator[list[Sequence[str | None]]]:
    """What `_read_parquet` gives, in lists; for a process of its own. Raises whatever pyarrow does."""
    import pyarrow.parquet as pq

    with open(path, "rb") as opened, pq.ParquetFile(opened) as file:  # a name that is not UTF-8 is nothing for Arrow
        schema = file.schema_arrow
        features = read_features(schema)
        columns = _choose_columns(schema)
        label = columns[-1] if columns else None
        if label is None:
            yield [schema.names]  # the caller says what is wrong with them
            return
        kind = schema.field(label).type
        if not is_label(kind):
            raise refuse_label(label, kind)
        if (value := find_fraction(file, label)) is not None:
            raise refuse_label(label, kind, value)
        yield [columns]
        classes = [tuple(map(str, features.get(column, {}).get("names") or ())) for column in columns]
        for batch in file.iter_batches(columns=columns, use_threads=False):
            values = [
                [read_label_text(v, names) for v in batch.column(c).to_pylist()]
                for c, names in zip(columns, classes, strict=True)
            ]
            yield list(zip(*values, strict=True))


def _choose_columns(schema: "pa.Schema") -> list[str]:
    """The columns of names and of places, where there are any, and last that of labels; none without it."""
    wanted: list[tuple[Sequence[str], Callable[[pa.DataType], bool]]] = [
        (NAME_COLUMNS, is_name),
        (("index",), is_label),
        (LABEL_COLUMNS, is_label),
        (LABEL_COLUMNS, lambda _: True),
    ]
    *found, usable, label = (
        next((f.name for name in names for f in schema if f.name.lower() == name and fits(f.type)), None)
        for names, fits in wanted
    )
    found.append(usable or label)
    return [name for name in found if name is not None] if found[-1] is not None else []


def _read_stored(path: Path) -> Sequence[str | None] | NDArray[np.generic]:
    """The labels in an .npy or IDX file: texts, or (N,) integers."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        labels: StoredArray = open_npy(file) if file.peek(6)[:6] == b"\x93NUMPY" else open_idx(str(path), stack)
        if not check_are_labels(labels):
            raise StdacError(f"{path} holds an array of shape {labels.shape} and type {labels.dtype}: {EXPECTED}")
        if labels.row_bytes * labels.shape[0] > LABELS_BYTES:
            raise StdacError(f"{path} promises {labels.shape[0]:,} labels, which is a lot of memory: {EXPECTED}")
        values = labels.take(labels.shape[0])
        if len(values) < labels.shape[0]:
            raise StdacError(
                f"{path} is cut short or damaged: {len(values):,} of its {labels.shape[0]:,} labels are there"
            )
        return (
            values if values.dtype.kind in "iub" else [sys.intern(text or "") for text in read_label_texts(values, 0)]
        )

"""Batches of images on their way from a source to a decoder."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.pictures.child import ChildNotStarted
from stdac.pictures.pixels import Pixels
from stdac.text import escape_name

BATCH = 128
MEMBER_BYTES = 1 << 26
"""A picture of an archive with more bytes is not read: a few batches of them are in memory at a time."""

BATCH_BYTES = 1 << 24
"""A batch is closed at BATCH images, or earlier where their pixels or encoded pictures exceed BATCH_BYTES."""

MOST_NS = (1 << 63) - 1

Stat = tuple[int, int]

T = TypeVar("T")


class Unreadable(NamedTuple):
    """An image that its source cannot give, and why. ends: how many more are missing with it, nobody knows."""

    reason: str
    ends: bool = False


Content = str | bytes | Unreadable


@dataclass(frozen=True)
class Batch:
    """Up to BATCH consecutive images of one source, not yet decoded; picklable, it is what a decoder process gets.

    source: the printable name of the file, archive or data set of each image. index: (n,) int64, its place in it, 0 for
    a picture file. content: paths to read, encoded pictures, or pixels (n, C, H, W) uint8. label: the truth, None where
    there is none. stat: (bytes, modified_ns) of the archive that all of them are in; None where each path has its own,
    or there is none. member: what each is called in its archive, None where it has no name there. left_out: pictures of
    the archive that are no images of their own, by name.
    """

    source: list[str]
    index: NDArray[np.int64]
    content: list[Content] | Pixels
    label: list[str | None]
    stat: Stat | None = None
    member: list[str] | None = None
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def nbytes(self) -> int:
        """Bytes that its content holds in memory; paths count nothing."""
        if isinstance(self.content, np.ndarray):
            return self.content.nbytes
        return sum(len(part) for part in self.content if isinstance(part, bytes))

    def select(self, rows: NDArray[np.int64] | list[int]) -> "Batch":
        """The batch of some of its images."""
        places = np.asarray(rows, np.int64)
        content = self.content
        return replace(
            self,
            source=[self.source[i] for i in places],
            index=self.index[places],
            content=content[places] if isinstance(content, np.ndarray) else [content[i] for i in places],
            label=[self.label[i] for i in places],
            member=None if self.member is None else [self.member[i] for i in places],
        )


class Source(Protocol):
    """Where images come from, see `stdac.pictures.sources`."""

    @property
    def name(self) -> str:
        """Printable name of the input."""

    def count(self) -> int | None:
        """The number of images, None where it takes reading them all."""

    def batches(self) -> Iterator[Batch]:
        """All images in an order and in batches that depend on the source alone; may be called again."""


class Item(NamedTuple):
    """One picture of a folder, an archive or a list, and its label. member, left_out: as in Batch, "" for no name."""

    content: Content
    label: str | None
    member: str = ""
    left_out: tuple[str, ...] = ()


def batch_items(items: Iterable[Item], name: str, stat: Stat | None) -> Iterator[Batch]:
    """The pictures of one archive, in order, as batches.

    Raises StdacError for what its items raise, after the others.
    """
    failures: list[Exception] = []
    waiting: list[Item] = []
    start = size = 0
    for item in catch_failure(items, failures):
        waiting.append(item)
        size += len(item.content) if isinstance(item.content, bytes) else 0
        if len(waiting) == BATCH or size >= BATCH_BYTES:
            yield _make_archive_batch(waiting, name, start, stat)
            waiting, start, size = [], start + len(waiting), 0
    if waiting:
        yield _make_archive_batch(waiting, name, start, stat)
    if failures:
        raise StdacError(explain_error(failures[0], name)) from failures[0]


def catch_failure(items: Iterable[T], failures: list[Exception]) -> Iterator[T]:
    """The items. An error while reading them ends the iteration and is added to `failures`, so that the caller can
    first finish with the items before it."""
    try:
        yield from items
    except Exception as error:  # noqa: BLE001  # readers raise anything on damaged files
        failures.append(error)


def _make_archive_batch(items: list[Item], name: str, start: int, stat: Stat | None) -> Batch:
    """Consecutive pictures of one archive, the first of them at `start`."""
    content, label, member, left_out = zip(*items, strict=True)
    index = np.arange(start, start + len(items), dtype=np.int64)
    names = list(member) if any(member) else None
    return Batch([name] * len(items), index, list(content), list(label), stat, names, tuple(chain(*left_out)))


def make_files_batch(items: list[Item], paths: Iterable[str]) -> Batch:
    """A batch of picture files."""
    names = [escape_name(path) for path in paths]
    return Batch(
        names, np.zeros(len(items), np.int64), [item.content for item in items], [item.label for item in items]
    )


def refuse_large(size: int) -> Unreadable | None:
    """Why a picture of so many bytes is not read, if it is not."""
    return (
        Unreadable(f"its {size:,} bytes are more than the {MEMBER_BYTES:,} that are read")
        if size > MEMBER_BYTES
        else None
    )


def end_with_reason(batches: Iterator[Batch], path: str, stat: Stat | None = None) -> Iterator[Batch]:
    """The batches of one file or data set. Where reading breaks off, or there are no images, one more batch of a single
    Unreadable says so, at the index of the image that is missing."""
    name, n = escape_name(path), 0
    try:
        for batch in batches:
            n += len(batch)
            yield batch
    except ChildNotStarted:  # no fault of the file
        raise
    except Exception as error:  # noqa: BLE001  # readers raise anything on damaged files
        yield _make_archive_batch([Item(Unreadable(explain_error(error, path), ends=True), None)], name, n, stat)
        return
    if not n:
        yield _make_archive_batch([Item(Unreadable("it holds no images", ends=True), None)], name, 0, stat)


def read_stat(path: str) -> Stat | None:
    """(bytes, modified_ns) of a file, None where it is not there."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return cut_stat(about)


def cut_stat(about: os.stat_result) -> Stat:
    """(bytes, modified_ns); a time that 64 bits cannot hold (before 1677, after 2262) is cut to one that they can."""
    return about.st_size, max(-MOST_NS, min(about.st_mtime_ns, MOST_NS))


def explain_error(error: Exception, source: str) -> str:
    """Why a source could not be read, without its name in front, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = "it takes more memory than there is" if isinstance(error, MemoryError) else str(error)
    return escape_name(text.removeprefix(f"{source}: ").split("\n")[0][:300] or type(error).__name__)


def split_items(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter (itertools.batched is of Python 3.12)."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part

"""Where images to be sorted come from: folders, files of all kinds, data sets, a list on stdin. No torch."""

import gzip
import os
import random
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numpy as np

from export.inputs.arrays import ArrayFile
from export.inputs.parquet import ParquetFile
from export.inputs.runs import RUN, Content, Run, Source, Unreadable, ended_well, printable, reason
from export.inputs.tar import TarFile
from stdac.data import NAMES, load
from stdac.errors import StdacError
from stdac.images import IDX_TYPES, SUFFIXES, Pixels, check_regular, read_image, resize, walk

__all__ = ["RUN", "Run", "Source", "Unreadable", "conform", "open_source", "printable", "reason", "sample"]

SAMPLE = 1536
LINE_BYTES = 1 << 16
EXPECTED = (
    "a folder of images, an image, an .npz, .npy, IDX, Parquet or tar file, - for a list of images on stdin, "
    f"or one of {', '.join(NAMES)}"
)

T = TypeVar("T")


def open_source(text: str) -> Source:
    """What an INPUT is: -, the name of a data set (./digits is a folder), a folder, or a file, which its content tells.

    Nothing is decoded yet. Raises StdacError for what is not there, a folder without images, a Parquet file without a
    column of images, and what is neither a file nor a folder; a file that is damaged becomes a row with an error.
    """
    if text == "-":
        return Listed()
    if text in NAMES:
        return Named(text)
    path = str(Path(os.path.expanduser(text))) if text else ""  # noqa: PTH111  # Path.expanduser raises for ~$x.png
    try:
        about = os.stat(path)
    except FileNotFoundError as error:
        raise StdacError(f"{printable(path) or 'an empty name'} does not exist: expected {EXPECTED}") from error
    except (OSError, ValueError) as error:
        raise StdacError(f"cannot read {printable(path)}: {reason(error, path)}") from error
    if stat.S_ISDIR(about.st_mode):
        return Folder(path)
    if not stat.S_ISREG(about.st_mode):
        raise StdacError(f"{printable(path)} is neither a file nor a folder: expected {EXPECTED}")
    return KINDS[kind_of(path)](path)


@dataclass(frozen=True)
class Named:
    """A data set by name, loaded whole."""

    name: str

    def count(self) -> None:
        return None

    def runs(self) -> Iterator[Run]:
        return ended_well(self._runs(), self.name)

    def _runs(self) -> Iterator[Run]:
        try:
            dataset = load(self.name)
        except ImportError as error:
            raise StdacError(
                f"this data set needs {error.name}, which is not installed: pip install {error.name}"
            ) from error
        names = dict(enumerate(dataset.class_names))
        for start in range(0, len(dataset.images), RUN):
            images = dataset.images[start : start + RUN]
            index = np.arange(start, start + len(images), dtype=np.int64)
            label: list[str | None] = [None] * len(images)
            if dataset.labels is not None:
                label = [names.get(k, str(k)) for k in dataset.labels[index].tolist()]
            yield Run([self.name] * len(images), index, images, label)


@dataclass(frozen=True)
class Picture:
    """One picture file."""

    path: str

    @property
    def name(self) -> str:
        return printable(self.path)

    def count(self) -> int:
        return 1

    def runs(self) -> Iterator[Run]:
        yield files_run([File(self.path, None)], [self.path])


class File(NamedTuple):
    """A picture file of a run, and its label."""

    content: Content
    label: str | None


def files_run(files: list[File], paths: Iterable[str]) -> Run:
    """A run of picture files."""
    names = [printable(path) for path in paths]
    return Run(names, np.zeros(len(files), np.int64), [file.content for file in files], [file.label for file in files])


class Survey(NamedTuple):
    """What a walk through a folder found: rows, and whether the first sub-folders' names are labels."""

    rows: int
    labelled: bool


@dataclass(frozen=True)
class Folder:
    """Picture files below a folder, in the order of `stdac.images.walk`."""

    path: str

    def __post_init__(self) -> None:
        if not self.survey.rows:
            raise StdacError(
                f"{printable(self.path)} holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}"
            )

    @property
    def name(self) -> str:
        return printable(self.path)

    @cached_property
    def survey(self) -> Survey:
        """One walk ahead; labels as in `stdac.images.folder_labels`: each picture in a sub-folder, two of these."""
        rows = 0
        classes: set[str] = set()
        for path in walk(self.path):
            rows += 1
            if not path.endswith("/"):
                classes.add(self._class_of(path))
        return Survey(rows, len(classes) > 1 and "" not in classes)

    def _class_of(self, path: str) -> str:
        """The first sub-folder that a picture lies in, "" for none."""
        below = path[len(self.path) :].lstrip("/")
        return below.partition("/")[0] if "/" in below else ""

    def count(self) -> int:
        return self.survey.rows

    def runs(self) -> Iterator[Run]:
        for paths in batched(walk(self.path), RUN):
            yield files_run([self._file(path) for path in paths], [path.removesuffix("/") for path in paths])

    def _file(self, path: str) -> File:
        if path.endswith("/"):
            return File(Unreadable("this folder cannot be listed"), None)
        return File(path, printable(self._class_of(path)) if self.survey.labelled else None)


class Listed:
    """Picture files listed on stdin, one a line, or ended by NUL bytes where there are any.

    What has been read is kept in a temporary file, for a second pass. Raises StdacError where stdin is a terminal.
    """

    name = "-"

    def __init__(self, stream: BufferedIOBase | None = None) -> None:
        if stream is None and (sys.stdin is None or sys.stdin.isatty()):
            raise StdacError("- reads a list of images from stdin, which is a terminal: pipe one, as in find . | …")
        self._stream = stream or cast(BufferedIOBase, sys.stdin.buffer)
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as its owner

    def count(self) -> None:
        return None

    def runs(self) -> Iterator[Run]:
        for names in batched(self._names(), RUN):
            yield files_run([listed_file(name) for name in names], names)

    def _names(self) -> Iterator[str]:
        """The listed paths; what is longer than LINE_BYTES is cut."""
        separator, rest = b"", b""
        for block in self._blocks():
            separator = separator or (b"\0" if b"\0" in block else b"\n" if b"\n" in block else b"")
            *lines, rest = (rest + block).split(separator) if separator else [rest + block]
            yield from map(os.fsdecode, filter(None, (self._line(line, separator) for line in lines)))
            rest = rest[:LINE_BYTES]
        if line := self._line(rest, separator):
            yield os.fsdecode(line)

    def _line(self, line: bytes, separator: bytes) -> bytes:
        return (line if separator == b"\0" else line.removesuffix(b"\r"))[:LINE_BYTES]

    def _blocks(self) -> Iterator[bytes]:
        """Stdin from its beginning, read as far as it is asked for."""
        place = 0
        while True:
            self._kept.seek(place)
            block = self._kept.read(LINE_BYTES)
            if not block:
                block = self._stream.read1(LINE_BYTES)
                self._kept.seek(0, os.SEEK_END)
                self._kept.write(block)
            if not block:
                return
            place += len(block)
            yield block


def listed_file(path: str) -> File:
    """A path of a list: a file to decode, or what is wrong with it."""
    try:
        check_regular(os.stat(path))
        kind = "picture" if path[path.rfind(".") :].lower() in SUFFIXES else kind_of(path)
    except (OSError, ValueError, StdacError) as error:
        return File(Unreadable(reason(error, path)), None)
    if kind != "picture":
        return File(Unreadable(f"this is {KIND_NAMES[kind]}, expected a picture: name it as an INPUT of its own"), None)
    return File(path, None)


KINDS: dict[str, Callable[[str], Source]] = {
    "picture": Picture,
    "array": ArrayFile,
    "parquet": ParquetFile,
    "tar": TarFile,
}
KIND_NAMES = {
    "array": "an .npz, .npy or IDX file",
    "parquet": "a Parquet file",
    "tar": "a tar file",
}

TAR_NAMES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def kind_of(path: str) -> str:
    """A key of KINDS: what a file is by its first bytes, or else by its name; "picture" where neither says."""
    try:
        with open(path, "rb", opener=at_once) as file:
            head = file.read(512) or b""
    except OSError:
        head = b""
    name = os.fsdecode(path).lower()
    if head[:4] == b"PAR1":
        return "parquet"
    if head[257:262] == b"ustar" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0":
        return "tar"
    if head[:2] == b"\x1f\x8b" and not name.endswith(TAR_NAMES):
        return "tar" if unpacked_head(path)[257:262] == b"ustar" else "array"
    is_idx = len(head) > 2 and head[:2] == b"\0\0" and head[2] in IDX_TYPES
    if is_idx or head[:4] in (b"\x93NUM", b"PK\3\4", b"PK\5\6"):
        return "array"
    by_name = {".npz": "array", ".npy": "array", ".gz": "array", ".parquet": "parquet"}
    return "tar" if name.endswith(TAR_NAMES) else by_name.get(name[name.rfind(".") :], "picture")


def at_once(path: str, flags: int) -> int:
    """Open a file without waiting for what it may say, as some below /proc and /sys would make one."""
    return os.open(path, flags | os.O_NONBLOCK)


def unpacked_head(path: str) -> bytes:
    """The first bytes in a gzipped file, none where it is damaged."""
    try:
        with gzip.open(path) as file:
            return file.read(512)
    except (OSError, EOFError, zlib.error):
        return b""


def sample(text: str, shape: tuple[int, int, int]) -> Pixels:
    """Images of an INPUT, SAMPLE at most, at random but the same every time: (n, C, H, W) uint8 of the shape (C, H, W).

    Raises StdacError where none of them can be read.
    """
    first: str | None = None
    images: list[Pixels] = []
    for name, content in reservoir(chain.from_iterable(map(contents, open_source(text).runs())), SAMPLE):
        try:
            images.append(picture_of(content, shape))
        except StdacError as error:
            first = first or reason(error, name)
    if not images:
        raise StdacError(f"none of the images of {text} could be read: {first or 'it is empty'}")
    return np.stack(images)


def reservoir(items: Iterable[T], size: int) -> list[T]:
    """At most `size` of the items, each as likely as any other (Vitter 1985, Algorithm R)."""
    chosen: list[T] = []
    rng = random.Random(0)
    for i, item in enumerate(items):
        if i < size:
            chosen.append(item)
        elif (place := rng.randrange(i + 1)) < size:
            chosen[place] = item
    return chosen


def contents(run: Run) -> Iterator[tuple[str, Content | Pixels]]:
    """Each image of a run with its source's name."""
    return zip(run.source, run.content, strict=True)


def picture_of(content: Content | Pixels, shape: tuple[int, int, int]) -> Pixels:
    """One image of a run as (C, H, W) uint8 of the shape. Raises StdacError where it cannot be read."""
    if isinstance(content, Unreadable):
        raise StdacError(content.reason)
    if isinstance(content, np.ndarray):
        image: Pixels = conform(content[None], shape)[0]
        return image
    return read_image(content, shape[0], shape[1:])


def conform(images: Pixels, shape: tuple[int, int, int]) -> Pixels:
    """Images (N, C, H, W) uint8 in the colour mode and size of the shape (C, H, W), converted as picture files are."""
    if images.shape[1] == 3 and shape[0] == 1:
        weights = np.array([19595, 38470, 7471], np.uint32)[:, None, None]  # Pillow's "L": ITU-R 601-2, in 1/65536
        images = ((images * weights).sum(1, keepdims=True) + 0x8000 >> 16).astype(np.uint8)
    elif images.shape[1] == 1 and shape[0] == 3:
        images = np.repeat(images, 3, axis=1)
    return resize(images, shape[1:])


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter (itertools.batched is of Python 3.12)."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part

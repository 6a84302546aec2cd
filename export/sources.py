"""Where images to be sorted come from: folders, picture files, .npz, .npy, IDX, data sets, as batches. No torch."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stdac.data import NAMES, load
from stdac.errors import StdacError
from stdac.images import IDX_TYPES, SUFFIXES, Pixels, as_pixels, read_arrays, read_idx, read_image, resize

BATCH = 256
RUN = 64  # pictures that one task decodes: a future for each would cost as much as a small PNG
WORKERS = 4

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Batch:
    """Up to BATCH images, in the order of their source.

    source: the file or data set that each comes from. index: (n,) int64, its place in there (0 for a picture).
    images: (n, C, H, W) uint8 as the model takes them, zeros where errors, one text or None an image, says why not.
    """

    source: list[str]
    index: NDArray[np.int64]
    images: Pixels
    errors: list[str | None]


@dataclass(frozen=True)
class Files:
    """Picture files: their number, and a function that lists their paths."""

    count: int
    paths: Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Array:
    """Images in one array: its name, and a function that loads it as (N, C, H, W) uint8."""

    name: str
    load: Callable[[], Pixels]


Source = Files | Array


def open_source(text: str) -> Source:
    """What an INPUT is: the name of a data set (./digits is a folder), a folder, an array file, or else one picture.

    Raises StdacError for what is not there and for a folder without images. Nothing is decoded yet.
    """
    if text in NAMES:
        return Array(text, lambda: load_named(text))
    path = Path(text).expanduser()
    try:
        return open_path(path)
    except OSError as error:
        raise StdacError(f"cannot read {path}: {error.strerror}") from error


def open_path(path: Path) -> Source:
    """What a path is, see `open_source`."""
    if path.is_dir():
        return open_folder(path)
    if not path.is_file():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise StdacError(
            f"{path} {what}: expected a folder of images, an image, an .npz, .npy or IDX file, "
            f"or one of {', '.join(NAMES)}"
        )
    if path.suffix in (".npz", ".npy"):
        return Array(str(path), lambda: read_arrays(path)[0])
    if is_idx(path):
        return Array(str(path), lambda: as_pixels(read_idx(path), path))
    return Files(1, lambda: [str(path)])


def load_named(name: str) -> Pixels:
    """A data set by name, (N, C, H, W) uint8. Raises StdacError where the package that has it is not installed."""
    try:
        return load(name).images
    except ImportError as error:
        raise StdacError(
            f"this data set needs {error.name}, which is not installed: pip install {error.name}"
        ) from error


def is_idx(path: Path) -> bool:
    """Whether a file is gzipped or begins as IDX does: no picture does either."""
    try:
        with path.open("rb") as file:
            head = file.read(3)
    except OSError:
        return False
    return head[:2] == b"\x1f\x8b" or (head[:2] == b"\0\0" and head[2:] != b"" and head[2] in IDX_TYPES)


def open_folder(folder: Path) -> Files:
    """A folder of pictures. Raises StdacError where there is none."""
    count = sum(1 for _ in walk(str(folder)))
    if not count:
        raise StdacError(f"{folder} holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}")
    return Files(count, lambda: walk(str(folder)))


def walk(folder: str) -> Iterator[str]:
    """The image files below a folder, those of `stdac.images.find_images` in its order, as a stream.

    Hidden ones are left out, links to folders not followed. A folder that cannot be listed is itself yielded, to end up
    as a row with an error.
    """
    waiting = [(folder, True)]
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield path
            continue
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
            waiting += [(e.path, e.is_dir(follow_symlinks=False)) for e in entries if is_wanted(e)]
        except OSError:
            yield path


def is_wanted(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a visible folder, or a visible file, or link to one, with an image's suffix."""
    if entry.name.startswith("."):
        return False
    if entry.is_dir(follow_symlinks=False):
        return True
    if Path(entry.name).suffix.lower() not in SUFFIXES:
        return False
    if entry.is_symlink():
        return os.path.isfile(entry.path)  # noqa: PTH113  # Path.is_file raises where a folder is closed
    return entry.is_file()


def stream(sources: Sequence[Source], shape: tuple[int, int, int]) -> Iterator[Batch]:
    """All images of the sources, in order, as batches of images (n, C, H, W) uint8 of the given shape (C, H, W).

    What cannot be read is a row with an error. At most a few batches of pictures are in memory, and one array.
    """
    for kind, group in groupby(sources, key=type):
        if kind is Files:
            yield from decode(chain.from_iterable(s.paths() for s in group if isinstance(s, Files)), shape)
        else:
            for source in group:
                assert isinstance(source, Array)
                yield from array_batches(source, shape)


def sample(text: str, shape: tuple[int, int, int]) -> Pixels:
    """The first images of an INPUT, at most BATCH, (n, C, H, W) uint8. Raises StdacError where none can be read."""
    batch = next(stream([open_source(text)], shape), None)
    readable = [] if batch is None else [i for i, error in enumerate(batch.errors) if error is None]
    if batch is None or not readable:
        raise StdacError(
            f"none of the first images of {text} could be read: {batch.errors[0] if batch else 'it is empty'}"
        )
    return batch.images[readable]


def decode(paths: Iterable[str], shape: tuple[int, int, int]) -> Iterator[Batch]:
    """Decode picture files in a few threads, some batches ahead of the reader."""
    with ThreadPoolExecutor(WORKERS) as pool:
        runs = map_ahead(pool, lambda run: decode_run(run, shape), batched(paths, RUN), 2 * BATCH // RUN)
        for parts in batched(runs, BATCH // RUN):
            images = np.concatenate([part.images for part in parts])
            names, errors = chain.from_iterable(p.source for p in parts), chain.from_iterable(p.errors for p in parts)
            yield Batch(list(names), np.zeros(len(images), np.int64), images, list(errors))


def decode_run(paths: Sequence[str], shape: tuple[int, int, int]) -> Batch:
    """Decode some picture files, one after another."""
    images = np.zeros((len(paths), *shape), np.uint8)
    errors: list[str | None] = [None] * len(paths)
    for i, path in enumerate(paths):
        try:
            images[i] = read_image(Path(path), shape[0], shape[1:])
        except Exception as error:  # noqa: BLE001  # decoders raise anything on hostile files; the others go on
            errors[i] = "this folder cannot be listed" if os.path.isdir(path) else reason(error, path)  # noqa: PTH112
    return Batch([printable(path) for path in paths], np.zeros(len(paths), np.int64), images, errors)


def array_batches(source: Array, shape: tuple[int, int, int]) -> Iterator[Batch]:
    """The images of an array in batches; one row with an error where it cannot be loaded."""
    name = printable(source.name)
    try:
        images = source.load()
    except Exception as error:  # noqa: BLE001  # a damaged archive raises whatever its parts do
        yield Batch([name], np.zeros(1, np.int64), np.zeros((1, *shape), np.uint8), [reason(error, source.name)])
        return
    for start in range(0, len(images), BATCH):
        part = conform(images[start : start + BATCH], shape)
        index = np.arange(start, start + len(part), dtype=np.int64)
        yield Batch([name] * len(part), index, part, [None] * len(part))


def conform(images: Pixels, shape: tuple[int, int, int]) -> Pixels:
    """Images (N, C, H, W) uint8 in the colour mode and size of the shape (C, H, W), converted as picture files are."""
    if images.shape[1] == 3 and shape[0] == 1:
        weights = np.array([19595, 38470, 7471], np.uint32)[:, None, None]  # Pillow's "L": ITU-R 601-2, in 1/65536
        images = ((images * weights).sum(1, keepdims=True) + 0x8000 >> 16).astype(np.uint8)
    elif images.shape[1] == 1 and shape[0] == 3:
        images = np.repeat(images, 3, axis=1)
    return resize(images, shape[1:])


def reason(error: Exception, source: str) -> str:
    """Why a source could not be read, without its name in front."""
    return printable(str(error).removeprefix(f"{source}: ") or type(error).__name__)


def printable(name: str) -> str:
    r"""A file name as text: bytes that are not UTF-8 become \x escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Tuples of `size` items, the last one shorter (itertools.batched is of Python 3.12)."""
    iterator = iter(items)
    while part := tuple(islice(iterator, size)):
        yield part


def map_ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Map in a pool, results in order, at most `ahead` of them waiting (Executor.map would take all items at once)."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

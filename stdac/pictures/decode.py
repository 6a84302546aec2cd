"""Runs of images become pixels, in child processes: in parallel, and safe from what hostile files do to decoders."""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.inputs.child import Child, ChildDied
from export.inputs.runs import Content, Run, Source, Stat, Unreadable, reason, stat_in, stat_of
from export.inputs.sources import conform
from export.runtime import available_cpus
from stdac.errors import StdacError
from stdac.images import Pixels, read_file, read_image

RUN_TIMEOUT_S = 60.0
IMAGE_TIMEOUT_S = 20.0
MEMORY_BYTES = 1 << 30
AHEAD_BYTES = 1 << 26

T = TypeVar("T")
R = TypeVar("R")

Key = tuple[str, int]


class Decoded(NamedTuple):
    """A run's images (n, C, H, W) uint8, zeros where `errors`, one text or None an image, says why there is none.

    content_hash, fingerprint: hex digits, see `export.results.rows.CLUSTERS`. stat: (bytes, modified_ns) of the file
    that each image is in.
    """

    images: Pixels
    errors: list[str | None]
    content_hash: list[str | None]
    fingerprint: list[str | None]
    stat: list[Stat | None]


@dataclass(frozen=True)
class Decoders:
    """A pool of child processes that call one function of a run; made by `decoders`."""

    threads: ThreadPoolExecutor
    idle: "SimpleQueue[Child]"
    workers: int

    def map(
        self, function: Callable[[Child, T], R], items: Iterable[T], ahead: int, nbytes: Callable[[T], int]
    ) -> Iterator[R]:
        """Call function(child, item) for each item, some ahead of the reader, see `map_ahead`; results in order."""

        def work(item: T) -> R:
            child = self.idle.get()
            try:
                return function(child, item)
            finally:
                self.idle.put(child)

        return map_ahead(self.threads, work, items, ahead + self.workers, nbytes)


@contextmanager
def decoders(function: str, workers: int) -> Iterator[Decoders]:
    """Child processes, each started when it is first needed, that run "package.module:name"."""
    with ExitStack() as stack:
        children = [stack.enter_context(Child(function, MEMORY_BYTES)) for _ in range(workers)]
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        idle: SimpleQueue[Child] = SimpleQueue()
        for child in children:
            idle.put(child)
            stack.callback(child.stop)  # Ctrl-C does not wait for a picture that takes long
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        yield Decoders(pool, idle, workers)


def decode_safely(child: Child, run: Run, shape: tuple[int, int, int]) -> Decoded:
    """`decode_run` in a child, or here where the pixels need no work; what breaks the child is its image's error."""
    if isinstance(run.content, np.ndarray) and run.content.shape[1:] == shape:
        return decode_run(run, shape)
    try:
        decoded: Decoded = child.call(run, shape, timeout_s=RUN_TIMEOUT_S)
    except (ChildDied, MemoryError):
        child.close()
        return merged([decode_one(child, run.select([i]), shape) for i in range(len(run))])
    return decoded


def decode_one(child: Child, run: Run, shape: tuple[int, int, int]) -> Decoded:
    """A run of one image."""
    try:
        decoded: Decoded = child.call(run, shape, timeout_s=IMAGE_TIMEOUT_S)
    except (ChildDied, MemoryError) as error:
        child.close()
        why = (
            f"decoding it takes more than {MEMORY_BYTES >> 20} MiB of memory"
            if isinstance(error, MemoryError)
            else f"its decoder crashed, or took more than {IMAGE_TIMEOUT_S:.0f} s"
        )
        return Decoded(np.zeros((1, *shape), np.uint8), [why], [None], [None], [run.stat])
    return decoded


def merged(parts: Sequence[Decoded]) -> Decoded:
    """Several runs as one."""
    images, *columns = zip(*parts, strict=True)
    errors, hashes, prints, stats = ([value for part in column for value in part] for column in columns)
    return Decoded(np.concatenate(images), errors, hashes, prints, stats)


def decode_run(run: Run, shape: tuple[int, int, int]) -> Decoded:
    """The images of a run as the model takes them: (n, C, H, W) uint8 of the shape (C, H, W)."""
    n = len(run)
    if isinstance(run.content, np.ndarray):
        images = conform(run.content, shape)
        hashes: list[str | None] = [content_hash(np.ascontiguousarray(image).data) for image in run.content]
        return Decoded(images, [None] * n, hashes, fingerprints(images), [run.stat] * n)
    images = np.zeros((n, *shape), np.uint8)
    errors: list[str | None] = [None] * n
    hashes, stats = [None] * n, [run.stat] * n
    for i, content in enumerate(run.content):
        try:
            data, stats[i] = read_content(content, run.stat)
            hashes[i] = content_hash(data)
            images[i] = read_image(data, shape[0], shape[1:])
        except MemoryError:
            raise  # the child is told to start anew
        except (StdacError, OSError, ValueError) as error:
            errors[i] = reason(error, run.source[i])
    prints = [None if error else text for error, text in zip(errors, fingerprints(images), strict=True)]
    return Decoded(images, errors, hashes, prints, stats)


def read_content(content: Content, archive: Stat | None) -> tuple[bytes, Stat | None]:
    """The bytes of a picture, and (bytes, modified_ns) of the file it is in. Raises OSError, ValueError."""
    if isinstance(content, bytes):
        return content, archive
    if isinstance(content, Unreadable):
        raise ValueError(content.reason)
    data, about = read_file(content)
    return data, stat_in(about)


def file_stat(run: Run, i: int) -> Stat | None:
    """(bytes, modified_ns) of the file that the run's i-th image is in, None where it is in none."""
    content = run.content[i]
    return stat_of(content) if isinstance(content, str) else run.stat


def content_hash(data: bytes | memoryview) -> str:
    """The first 32 hex digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def fingerprints(images: Pixels) -> list[str | None]:
    """A difference hash of each image (n, C, H, W) uint8: 64 bits along rows and 64 along columns, 32 hex digits.

    Gray means over 9 x 9 fields; a bit says that a field is brighter than its neighbour by more than 1 of 255.
    """
    n, channels, height, width = images.shape
    gray = images[:, 0] if channels == 1 else images.sum(1, dtype=np.uint16)
    rows, columns = edges(height), edges(width)
    strips = gray.reshape(-1, width).astype(np.float32) @ fields_of(width)  # whole numbers: exact below 2^24
    sums = np.add.reduceat(strips.reshape(n, height, 9), rows[:9], 1)
    sizes = np.outer(np.diff(rows).clip(1), np.diff(columns).clip(1)) * channels
    fields = sums / sizes  # (n, 9, 9)
    along = fields[:, :8, 1:] - fields[:, :8, :-1] > 1
    down = fields[:, 1:, :8] - fields[:, :-1, :8] > 1
    text = np.packbits(np.concatenate([along.reshape(n, 64), down.reshape(n, 64)], 1), axis=1).tobytes().hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]


def edges(side: int) -> NDArray[np.int64]:
    """Where nine fields of a side begin, and where the last one ends."""
    return np.arange(10) * side // 9


@lru_cache(maxsize=8)
def fields_of(side: int) -> NDArray[np.float32]:
    """(side, 9) float32, 1 where a pixel is in a field; a field has at least one."""
    place = edges(side)
    pixel = np.arange(side)[:, None]
    inside: NDArray[np.float32] = ((pixel >= place[:9]) & (pixel < place[1:].clip(place[:9] + 1))).astype(np.float32)
    return inside


def pictures(
    sources: Sequence[Source], wanted: Collection[Key], side: int, workers: int | None = None
) -> Iterator[tuple[Key, Pixels]]:
    """Thumbnails of the wanted images, ((source, index), (H, W) or (H, W, 3) uint8), sides at most `side` pixels.

    Goes through the sources once more and decodes the wanted ones alone; those that cannot be read are left out.
    """
    keys = frozenset(wanted)
    with decoders("export.inputs.decode:thumbnail_run", workers or available_cpus()) as pool:
        for found in pool.map(
            lambda child, run: thumbnails_safely(child, run, side), chosen(sources, keys), 0, lambda run: run.nbytes
        ):
            yield from found


def chosen(sources: Sequence[Source], keys: frozenset[Key]) -> Iterator[Run]:
    """The wanted images of the sources, as runs."""
    for source in sources:
        for run in source.runs():
            here = [i for i, key in enumerate(zip(run.source, run.index.tolist(), strict=True)) if key in keys]
            if here:
                yield run.select(here)


def thumbnails_safely(child: Child, run: Run, side: int) -> list[tuple[Key, Pixels]]:
    """`thumbnail_run` in a child; without the image that breaks it."""
    try:
        found: list[tuple[Key, Pixels]] = child.call(run, side, timeout_s=RUN_TIMEOUT_S)
    except (ChildDied, MemoryError):
        child.close()
        if len(run) == 1:
            return []
        return [found for i in range(len(run)) for found in thumbnails_safely(child, run.select([i]), side)]
    return found


def thumbnail_run(run: Run, side: int) -> list[tuple[Key, Pixels]]:
    """The thumbnails of a run's images that can be read."""
    found: list[tuple[Key, Pixels]] = []
    for i, key in enumerate(zip(run.source, run.index.tolist(), strict=True)):
        try:
            if isinstance(run.content, np.ndarray):
                pixels = run.content[i]
            else:
                pixels = read_image(read_content(run.content[i], run.stat)[0], side=side)
        except (StdacError, OSError, ValueError):  # its row in clusters.parquet says why
            continue
        found.append((key, pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))))
    return found


def map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[T], R],
    items: Iterable[T],
    ahead: int,
    nbytes: Callable[[T], int],
) -> Iterator[R]:
    """Map in a pool, results in order (Executor.map would take all items at once).

    At most `ahead` of them wait, and of large ones, whose sizes `nbytes` tells, as many as AHEAD_BYTES hold.
    """
    waiting: deque[tuple[Future[R], int]] = deque()
    held = 0
    for item in items:
        size = nbytes(item)
        while waiting and held + size > AHEAD_BYTES:
            future, freed = waiting.popleft()
            held -= freed
            yield future.result()
        waiting.append((pool.submit(function, item), size))
        held += size
        if len(waiting) >= ahead:
            future, freed = waiting.popleft()
            held -= freed
            yield future.result()
    while waiting:
        yield waiting.popleft()[0].result()

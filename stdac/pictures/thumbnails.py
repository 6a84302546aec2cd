"""Small pictures of some of the images of sources, for a gallery."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from stdac.errors import StdacError
from stdac.pictures.batches import Batch, Source
from stdac.pictures.child import Child, ChildDied
from stdac.pictures.decode import READING, Reading, read_content
from stdac.pictures.image import read_image
from stdac.pictures.pixels import Pixels
from stdac.pictures.pool import open_decoders

Key = tuple[str, int]


def read_thumbnails(
    sources: Sequence[Source],
    wanted: Collection[Key],
    side: int,
    workers: int | None = None,
    reading: Reading = READING,
) -> Iterator[tuple[Key, Pixels]]:
    """Thumbnails of the wanted images, ((source, index), (H, W) or (H, W, 3) uint8), sides at most `side` pixels.

    Goes through the sources once more and decodes the wanted ones alone; those that cannot be read are left out.
    """
    keys = frozenset(wanted)
    with open_decoders("stdac.pictures.thumbnails:make_thumbnails", workers) as pool:
        for found in pool.map(
            lambda child, batch: _thumbnails_safely(child, batch, side, reading),
            _select_wanted(sources, keys),
            0,
            lambda batch: batch.nbytes,
        ):
            yield from found


def _select_wanted(sources: Sequence[Source], keys: frozenset[Key]) -> Iterator[Batch]:
    """The wanted images of the sources, as batches."""
    for source in sources:
        for batch in source.batches():
            here = [i for i, key in enumerate(zip(batch.source, batch.index.tolist(), strict=True)) if key in keys]
            if here:
                yield batch.select(here)


def _thumbnails_safely(child: Child, batch: Batch, side: int, reading: Reading) -> list[tuple[Key, Pixels]]:
    """`make_thumbnails` in a child; without the image that breaks it."""
    try:
        thumbnails: list[tuple[Key, Pixels]] = child.call(batch, side, reading.background, **reading.for_batch)
    except (ChildDied, MemoryError):
        child.close()
        if len(batch) == 1:
            return []
        alone = (_thumbnails_safely(child, batch.select([i]), side, reading) for i in range(len(batch)))
        return [found for part in alone for found in part]
    return thumbnails


def make_thumbnails(batch: Batch, side: int, background: str = "black") -> list[tuple[Key, Pixels]]:
    """The thumbnails of a batch's images that can be read."""
    thumbnails: list[tuple[Key, Pixels]] = []
    for i, key in enumerate(zip(batch.source, batch.index.tolist(), strict=True)):
        try:
            if isinstance(batch.content, np.ndarray):
                pixels = batch.content[i]
            else:
                pixels = read_image(read_content(batch.content[i], batch.stat)[0], side=side, background=background)
        except (StdacError, OSError, ValueError):  # its row in clusters.parquet says why
            continue
        thumbnails.append((key, pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))))
    return thumbnails

"""Some images of a source, at random but the same every time, to verify, calibrate and measure a model on."""

import random
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TypeVar

import numpy as np

from stdac.errors import StdacError
from stdac.pictures.batches import Batch, Content, Source, Unreadable, explain_error
from stdac.pictures.image import read_image
from stdac.pictures.pixels import Pixels, conform

SAMPLE = 1536

T = TypeVar("T")


def sample_images(source: Source, shape: tuple[int, int, int], background: str = "black") -> Pixels:
    """Images of a source, SAMPLE at most, at random but the same every time: (n, C, H, W) uint8 of the shape (C, H, W).

    Raises StdacError where none of them can be read.
    """
    first: str | None = None
    images: list[Pixels] = []
    contents = chain.from_iterable(map(_iterate_contents, source.batches()))
    for name, content in _sample_items(contents, SAMPLE):
        try:
            images.append(_decode_content(content, shape, background))
        except StdacError as error:
            first = first or explain_error(error, name)
    if not images:
        raise StdacError(f"none of the images of {source.name} could be read: {first or 'it is empty'}")
    return np.stack(images)


def _sample_items(items: Iterable[T], size: int) -> list[T]:
    """At most `size` of the items, each as likely as any other (Vitter 1985, Algorithm R)."""
    sampled: list[T] = []
    rng = random.Random(0)
    for i, item in enumerate(items):
        if i < size:
            sampled.append(item)
        elif (place := rng.randrange(i + 1)) < size:
            sampled[place] = item
    return sampled


def _iterate_contents(batch: Batch) -> Iterator[tuple[str, Content | Pixels]]:
    """Each image of a batch with its source's name."""
    return zip(batch.source, batch.content, strict=True)


def _decode_content(content: Content | Pixels, shape: tuple[int, int, int], background: str) -> Pixels:
    """One image of a batch as (C, H, W) uint8 of the shape. Raises StdacError where it cannot be read."""
    if isinstance(content, Unreadable):
        raise StdacError(content.reason)
    if isinstance(content, np.ndarray):
        image: Pixels = conform(content[None], shape)[0]
        return image
    return read_image(content, shape[0], shape[1:], background=background)

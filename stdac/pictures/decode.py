"""Batches of images become pixels, in child processes: in parallel, and safe from what hostile files do to decoders."""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from stdac.errors import StdacError
from stdac.pictures.batches import BATCH_BYTES, Batch, Content, Stat, Unreadable, cut_stat, explain_error, read_stat
from stdac.pictures.child import Child, ChildDied, ChildLate, ChildSlow
from stdac.pictures.hashes import compute_fingerprints, hash_content
from stdac.pictures.image import read_file, read_image, read_size
from stdac.pictures.pixels import Pixels, conform, resize
from stdac.pictures.pool import MEMORY_BYTES

DECODE_S = 20.0
DECODE_VARIABLE = "STDAC_DECODE_S"
BATCH_FACTOR = 3
WAIT_FACTOR = 10


class Reading(NamedTuple):
    """How pictures are decoded. background: of `colour.BACKGROUNDS`. seconds: of CPU that one may take.

    A batch may take BATCH_FACTOR times that much CPU, and both WAIT_FACTOR times that much time: an answer is long in
    coming where a machine has other things to do.
    """

    background: str = "black"
    seconds: float = DECODE_S

    @property
    def for_batch(self) -> dict[str, float]:
        """The limits of a call that decodes a batch."""
        return {"cpu_s": BATCH_FACTOR * self.seconds, "wait_s": WAIT_FACTOR * self.seconds}

    @property
    def for_one(self) -> dict[str, float]:
        """The limits of a call that decodes a picture alone."""
        return {"cpu_s": self.seconds, "wait_s": WAIT_FACTOR * self.seconds}


READING = Reading()


def choose_reading(background: str = "black", seconds: float | None = None) -> Reading:
    """How to decode. seconds: None for $STDAC_DECODE_S, else DECODE_S. Raises StdacError for no number above 0."""
    given = (os.environ.get(DECODE_VARIABLE) or DECODE_S) if seconds is None else seconds
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise StdacError(f"got {given} seconds to decode a picture ({DECODE_VARIABLE}), expected a number above 0")
    return Reading(background, number)


class DecodedBatch(NamedTuple):
    """A batch's images (n, C, H, W) uint8, zeros where `errors`, one text or None an image, says why there is none.

    content_hash, fingerprint: hex digits, see `export.results.rows.CLUSTERS`. stat: (bytes, modified_ns) of the file
    that each image is in.
    """

    images: Pixels
    errors: list[str | None]
    content_hash: list[str | None]
    fingerprint: list[str | None]
    stat: list[Stat | None]


def decode_safely(child: Child, batch: Batch, shape: tuple[int, int, int], reading: Reading = READING) -> DecodedBatch:
    """`decode_batch` in a child process; in this one where the pixels are there already.

    Where the child crashes or takes too long, each image is decoded once more alone, and the one that breaks the child
    has an error.
    """
    if isinstance(batch.content, np.ndarray) and batch.content.shape[1:] == shape:
        return decode_batch(batch, shape)
    try:
        decoded: DecodedBatch = child.call(batch, shape, reading.background, **reading.for_batch)
    except (ChildDied, MemoryError):
        child.close()
        return merge_decoded([_decode_one(child, batch.select([i]), shape, reading) for i in range(len(batch))])
    return decoded


def _decode_one(child: Child, batch: Batch, shape: tuple[int, int, int], reading: Reading) -> DecodedBatch:
    """A batch of one image."""
    try:
        decoded: DecodedBatch = child.call(batch, shape, reading.background, **reading.for_one)
    except (ChildDied, MemoryError) as error:
        child.close()
        reason = _broken_reason(error, reading)
        return DecodedBatch(np.zeros((1, *shape), np.uint8), [reason], [None], [None], [batch.stat])
    return decoded


def _broken_reason(error: Exception, reading: Reading) -> str:
    """Why an image that broke the child is not decoded."""
    if isinstance(error, MemoryError):
        return f"decoding it takes more than {MEMORY_BYTES >> 20} MiB of memory"
    if isinstance(error, ChildSlow):
        return f"decoding it takes more than {reading.seconds:g} s of CPU: set STDAC_DECODE_S to allow more"
    if isinstance(error, ChildLate):
        return (
            f"its decoder gave no answer within {WAIT_FACTOR * reading.seconds:g} s: is the machine or its disk busy?"
        )
    return "it crashed its decoder"


def merge_decoded(parts: Sequence[DecodedBatch]) -> DecodedBatch:
    """Several batches as one."""
    images, *columns = zip(*parts, strict=True)
    errors, hashes, prints, stats = ([value for part in column for value in part] for column in columns)
    return DecodedBatch(np.concatenate(images), errors, hashes, prints, stats)


def decode_batch(batch: Batch, shape: tuple[int, int, int], background: str = "black") -> DecodedBatch:
    """The images of a batch as the model takes them: (n, C, H, W) uint8 of the shape (C, H, W)."""
    n = len(batch)
    if isinstance(batch.content, np.ndarray):
        images = conform(batch.content, shape)
        hashes: list[str | None] = [hash_content(np.ascontiguousarray(image).data) for image in batch.content]
        return DecodedBatch(images, [None] * n, hashes, compute_fingerprints(images), [batch.stat] * n)
    images = np.zeros((n, *shape), np.uint8)
    errors: list[str | None] = [None] * n
    hashes, stats = [None] * n, [batch.stat] * n
    for i, content in enumerate(batch.content):
        try:
            data, stats[i] = read_content(content, batch.stat)
            hashes[i] = hash_content(data)
            images[i] = read_image(data, shape[0], shape[1:], background=background)
        except MemoryError:
            raise  # the child is told to start anew
        except (StdacError, OSError, ValueError) as error:
            errors[i] = explain_error(error, batch.source[i])
    prints = [None if error else text for error, text in zip(errors, compute_fingerprints(images), strict=True)]
    return DecodedBatch(images, errors, hashes, prints, stats)


def decode_each_safely(
    child: Child, batch: Batch, size: tuple[int, int] | None, reading: Reading = READING
) -> Pixels | list[Pixels | Unreadable]:
    """The images of a batch, each (C, H, W) uint8 in its own colour mode and in its own size, or in `size`.

    Arrays are resized here, pictures decoded in a child that calls `decode_each`; what breaks it is Unreadable.
    """
    if isinstance(batch.content, np.ndarray):
        return batch.content if size is None else resize(batch.content, size)
    decoded: list[Pixels | Unreadable] = []
    while (done := len(decoded)) < len(batch):
        decoded += _decode_next(child, batch.select(list(range(done, len(batch)))), size, reading)
    return decoded


def _decode_next(
    child: Child, batch: Batch, size: tuple[int, int] | None, reading: Reading
) -> list[Pixels | Unreadable]:
    """The first images of a batch, one at least; where they break the child, all of them once more one by one."""
    if isinstance(batch.content[0], Unreadable):
        return [batch.content[0]]
    try:
        images: list[Pixels | Unreadable] = child.call(batch, size, reading.background, **reading.for_batch)
    except (ChildDied, MemoryError):
        child.close()
        return [_decode_alone(child, batch.select([i]), size, reading) for i in range(len(batch))]
    return images


def _decode_alone(child: Child, batch: Batch, size: tuple[int, int] | None, reading: Reading) -> Pixels | Unreadable:
    """The image of a batch of one."""
    if isinstance(batch.content[0], Unreadable):
        return batch.content[0]
    try:
        images: list[Pixels | Unreadable] = child.call(batch, size, reading.background, **reading.for_one)
    except (ChildDied, MemoryError) as error:
        child.close()
        return Unreadable(_broken_reason(error, reading))
    return images[0]


def decode_each(batch: Batch, size: tuple[int, int] | None, background: str = "black") -> list[Pixels | Unreadable]:
    """The first images of a batch, one at least, until they hold BATCH_BYTES: each (C, H, W) uint8, or why not."""
    images: list[Pixels | Unreadable] = []
    nbytes = 0
    for name, content in zip(batch.source, batch.content, strict=True):
        try:
            image = read_image(read_content(content, None)[0], size=size, background=background)
            images.append(image)
            nbytes += image.nbytes
        except MemoryError:
            raise  # the child is told to start anew
        except (StdacError, OSError, ValueError) as error:
            images.append(Unreadable(explain_error(error, name)))
        if nbytes >= BATCH_BYTES:
            break
    return images


def measure_each_safely(child: Child, batch: Batch, reading: Reading = READING) -> list[tuple[int, int]]:
    """(height, width) of the images of a batch, without those whose size cannot be told; the pictures' in a child that
    calls `measure_each`."""
    if isinstance(batch.content, np.ndarray):
        return [(batch.content.shape[2], batch.content.shape[3])]
    try:
        sizes: list[tuple[int, int]] = child.call(batch, **reading.for_batch)
    except (ChildDied, MemoryError):
        child.close()
        return []
    return sizes


def measure_each(batch: Batch) -> list[tuple[int, int]]:
    """(height, width) of the pictures of a batch, as their heads tell it, without those that are none."""
    sizes = []
    for content in batch.content:
        with suppress(Exception):  # of hostile files; whoever decodes them says what is wrong
            sizes.append(read_size(read_content(content, None)[0]))
    return sizes


def read_content(content: Content, archive: Stat | None) -> tuple[bytes, Stat | None]:
    """The bytes of a picture, and (bytes, modified_ns) of the file it is in. Raises OSError, ValueError."""
    if isinstance(content, bytes):
        return content, archive
    if isinstance(content, Unreadable):
        raise ValueError(content.reason)
    data, about = read_file(content)
    return data, cut_stat(about)


def read_file_stat(batch: Batch, i: int) -> Stat | None:
    """(bytes, modified_ns) of the file that the batch's i-th image is in, None where it is in none."""
    content = batch.content[i]
    return read_stat(content) if isinstance(content, str) else batch.stat

"""Batches of images become pixels, in child processes: in parallel, and safe from what hostile files do to decoders."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stdac.errors import StdacError
from stdac.pictures.batches import BATCH_BYTES, Batch, Content, Stat, Unreadable, cut_stat, explain_error, read_stat
from stdac.pictures.child import Child, ChildDied
from stdac.pictures.hashes import compute_fingerprints, hash_content
from stdac.pictures.image import read_file, read_image
from stdac.pictures.pixels import Pixels, conform, resize
from stdac.pictures.pool import MEMORY_BYTES

BATCH_TIMEOUT_S = 60.0
IMAGE_TIMEOUT_S = 20.0


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


def decode_safely(child: Child, batch: Batch, shape: tuple[int, int, int]) -> DecodedBatch:
    """`decode_batch` in a child process; in this one where the pixels are there already.

    Where the child crashes or hangs, each image is decoded alone, and the one that breaks the child is Unreadable.
    """
    if isinstance(batch.content, np.ndarray) and batch.content.shape[1:] == shape:
        return decode_batch(batch, shape)
    try:
        decoded: DecodedBatch = child.call(batch, shape, timeout_s=BATCH_TIMEOUT_S)
    except (ChildDied, MemoryError):
        child.close()
        return merge_decoded([_decode_one(child, batch.select([i]), shape) for i in range(len(batch))])
    return decoded


def _decode_one(child: Child, batch: Batch, shape: tuple[int, int, int]) -> DecodedBatch:
    """A batch of one image."""
    try:
        decoded: DecodedBatch = child.call(batch, shape, timeout_s=IMAGE_TIMEOUT_S)
    except (ChildDied, MemoryError) as error:
        child.close()
        return DecodedBatch(np.zeros((1, *shape), np.uint8), [_broken_reason(error)], [None], [None], [batch.stat])
    return decoded


def _broken_reason(error: Exception) -> str:
    """Why an image that broke the child is not decoded."""
    if isinstance(error, MemoryError):
        return f"decoding it takes more than {MEMORY_BYTES >> 20} MiB of memory"
    return f"its decoder crashed, or took more than {IMAGE_TIMEOUT_S:.0f} s"


def merge_decoded(parts: Sequence[DecodedBatch]) -> DecodedBatch:
    """Several batches as one."""
    images, *columns = zip(*parts, strict=True)
    errors, hashes, prints, stats = ([value for part in column for value in part] for column in columns)
    return DecodedBatch(np.concatenate(images), errors, hashes, prints, stats)


def decode_batch(batch: Batch, shape: tuple[int, int, int]) -> DecodedBatch:
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
            images[i] = read_image(data, shape[0], shape[1:])
        except MemoryError:
            raise  # the child is told to start anew
        except (StdacError, OSError, ValueError) as error:
            errors[i] = explain_error(error, batch.source[i])
    prints = [None if error else text for error, text in zip(errors, compute_fingerprints(images), strict=True)]
    return DecodedBatch(images, errors, hashes, prints, stats)


def decode_each_safely(child: Child, batch: Batch, size: tuple[int, int] | None) -> Pixels | list[Pixels | Unreadable]:
    """The images of a batch, each (C, H, W) uint8 in its own colour mode and in its own size, or in `size`.

    Arrays are resized here, pictures decoded in a child that calls `decode_each`; what breaks it is Unreadable.
    """
    if isinstance(batch.content, np.ndarray):
        return batch.content if size is None else resize(batch.content, size)
    decoded: list[Pixels | Unreadable] = []
    while (done := len(decoded)) < len(batch):
        decoded += _decode_next(child, batch.select(list(range(done, len(batch)))), size)
    return decoded


def _decode_next(child: Child, batch: Batch, size: tuple[int, int] | None) -> list[Pixels | Unreadable]:
    """The first images of a batch, one at least; where they break the child, all of them one by one."""
    if isinstance(batch.content[0], Unreadable):
        return [batch.content[0]]
    single = len(batch) == 1
    try:
        images: list[Pixels | Unreadable] = child.call(
            batch, size, timeout_s=IMAGE_TIMEOUT_S if single else BATCH_TIMEOUT_S
        )
    except (ChildDied, MemoryError) as error:
        child.close()
        if single:
            return [Unreadable(_broken_reason(error))]
        return [image for i in range(len(batch)) for image in _decode_next(child, batch.select([i]), size)]
    return images


def decode_each(batch: Batch, size: tuple[int, int] | None) -> list[Pixels | Unreadable]:
    """The first images of a batch, one at least, until they hold BATCH_BYTES: each (C, H, W) uint8, or why not."""
    images: list[Pixels | Unreadable] = []
    nbytes = 0
    for name, content in zip(batch.source, batch.content, strict=True):
        try:
            image = read_image(read_content(content, None)[0], size=size)
            images.append(image)
            nbytes += image.nbytes
        except (StdacError, OSError, ValueError) as error:
            images.append(Unreadable(explain_error(error, name)))
        if nbytes >= BATCH_BYTES:
            break
    return images


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

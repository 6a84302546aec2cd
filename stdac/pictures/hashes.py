"""What tells images apart, or alike: a hash of their bytes, and one of what they look like."""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stdac.pictures.pixels import Pixels


def hash_content(data: bytes | memoryview) -> str:
    """The first 32 hex digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def compute_fingerprints(images: Pixels) -> list[str | None]:
    """A difference hash of each image (n, C, H, W) uint8: 64 bits along rows and 64 along columns, 32 hex digits.

    None for an image of one colour, which looks like any other such. Gray means over 9 x 9 fields; a bit says that a
    field is brighter than its neighbour by more than 1 of 255.
    """
    n, channels, height, width = images.shape
    gray = images[:, 0] if channels == 1 else images.sum(1, dtype=np.uint16)
    rows, columns = _field_edges(height), _field_edges(width)
    strips = gray.reshape(-1, width).astype(np.float32) @ _field_matrix(width)  # whole numbers: exact below 2^24
    sums = np.add.reduceat(strips.reshape(n, height, 9), rows[:9], 1)
    sizes = np.outer(np.diff(rows).clip(1), np.diff(columns).clip(1)) * channels
    fields = sums / sizes  # (n, 9, 9)
    along = fields[:, :8, 1:] - fields[:, :8, :-1] > 1
    down = fields[:, 1:, :8] - fields[:, :-1, :8] > 1
    text = np.packbits(np.concatenate([along.reshape(n, 64), down.reshape(n, 64)], 1), axis=1).tobytes().hex()
    flat = find_flat(images).tolist()
    return [None if flat[i] else text[32 * i : 32 * (i + 1)] for i in range(n)]


def find_flat(images: Pixels) -> NDArray[np.bool_]:
    """Which of the images (n, C, H, W) have one colour, (n,) bool."""
    flat: NDArray[np.bool_] = (images == images[:, :, :1, :1]).all((1, 2, 3))
    return flat


def _field_edges(side: int) -> NDArray[np.int64]:
    """Where nine fields of a side begin, and where the last one ends."""
    return np.arange(10) * side // 9


@lru_cache(maxsize=8)
def _field_matrix(side: int) -> NDArray[np.float32]:
    """(side, 9) float32, 1 where a pixel is in a field; a field has at least one."""
    place = _field_edges(side)
    pixel = np.arange(side)[:, None]
    inside: NDArray[np.float32] = ((pixel >= place[:9]) & (pixel < place[1:].clip(place[:9] + 1))).astype(np.float32)
    return inside

"""Exact and near duplicates among a million images, from the hashes and fingerprints of clusters.parquet. numpy only.

A code is the 128 bits of a hash or fingerprint as eight words of 16 bits. Two codes that differ in at most RADIUS = 6
bits differ in at most six of the eight words, so they agree in at least two (the pigeonhole principle): sorting by each
of the 28 pairs of words brings all near pairs side by side. Where more than WINDOW codes share two words, only the
WINDOW next ones in the order are compared, which bounds the time. A near fingerprint is only a candidate: small dark
images collide easily, so `are_alike` looks at the pixels before two pictures are called near duplicates.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from stdac.errors import StdacError

Codes = NDArray[np.uint16]
Rows = NDArray[np.int64]

WORDS = 8
RADIUS = 6
"""Largest Hamming distance of two fingerprints, in bits of 128, that makes their images candidates."""

WINDOW = 4
SIDE = 32
CORRELATION = 0.99
FLAT = 2.0
"""Standard deviation, in gray levels, below which a picture has no structure to correlate."""

BITS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, dtype=np.uint8)


class Candidates(NamedTuple):
    """pairs: (M, 2) int64 positions, the nearest first, first position below the second. found: how many there were."""

    pairs: Rows
    found: int


def read_codes(column: pa.ChunkedArray) -> Codes:
    """(N, 8) uint16 words of N strings of 32 hex digits; null becomes 0. Raises StdacError for other strings."""
    parts = [split_words(chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros((0, WORDS), np.uint16)


def split_words(chunk: pa.Array) -> Codes:
    """(n, 8) uint16 words of one Arrow array of hex strings."""
    try:
        fixed = chunk.fill_null("0" * 32).cast(pa.binary()).cast(pa.binary(32))
    except pa.ArrowInvalid as error:
        raise StdacError(
            f"a hash is not 32 hex digits ({error}): stdac did not write this table; run stdac cluster again"
        ) from error
    digits = np.frombuffer(fixed.buffers()[1], np.uint8)[fixed.offset * 32 :][: len(fixed) * 32].reshape(-1, 32)
    nibbles = (digits & 15) + 9 * (digits >> 6)
    return (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).view(">u2").astype(np.uint16)


def find_exact_groups(content: Codes) -> Rows:
    """(N,) int64: for each code the position of the first that equals it, its own where it is the first.

    content: (N, 8) uint16. Two images are exact duplicates where the results are equal.
    """
    halves = np.ascontiguousarray(content).view(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    new = np.ones(len(order), bool)
    new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[new][np.cumsum(new) - 1]
    return first


def find_near_pairs(fingerprint: Codes, most: int) -> Candidates:
    """Pairs of fingerprints at most RADIUS bits apart: the `most` nearest of them, see the module's docstring.

    fingerprint: (N, 8) uint16. Memory is bounded by N and `most`; a million take some twenty seconds.
    """
    n, kept, found = len(fingerprint), np.zeros((0, 2), np.int64), 0
    for first, second in combinations(range(WORDS), 2):
        for keys in _find_agreeing(fingerprint, first, second):
            found += len(keys)
            kept = find_nearest(np.concatenate([kept, keys]), most)
    return Candidates(np.stack(np.divmod(kept[:, 1], max(n, 1)), axis=1), found)


def _find_agreeing(fingerprint: Codes, first: int, second: int) -> Iterator[Rows]:
    """Near pairs whose first two equal words are `first` and `second`: (m, 2) int64 distance and key a * N + b, a < b.

    So each pair is found in one order only, and counted once.
    """
    n = len(fingerprint)
    rest = [w for w in range(WORDS) if w not in (first, second)]
    key = np.zeros(n, np.uint64)
    for word in (first, second, *rest[:2]):
        key = key << np.uint64(16) | fingerprint[:, word]
    order = np.argsort(key, kind="stable")
    shared, ordered = key[order] >> np.uint64(32), fingerprint[order].view(np.uint64)
    for shift in range(1, min(WINDOW, n - 1) + 1):
        at = np.flatnonzero(shared[shift:] == shared[:-shift])
        different = ordered[at] ^ ordered[at + shift]
        distance = count_bits(different)
        near = distance <= RADIUS
        near[near] = (different[near].view(np.uint16)[:, :second] == 0).sum(1) == 1
        a, b = order[at[near]], order[at[near] + shift]
        yield np.stack([distance[near], np.minimum(a, b) * n + np.maximum(a, b)], axis=1)


def count_bits(different: NDArray[np.uint64]) -> Rows:
    """(m,) int64 bits that are set in (m, 2) uint64."""
    native = hasattr(np, "bitwise_count")  # numpy >= 2.0
    bits = np.bitwise_count(different) if native else BITS[different.view(np.uint16)]
    return np.asarray(bits.sum(1), np.int64)


def find_nearest(keys: Rows, most: int) -> Rows:
    """The `most` rows with the lowest distance, then key, of (m, 2) distances and keys."""
    if len(keys) > most:
        keys = keys[keys[:, 0] <= np.partition(keys[:, 0], most - 1)[most - 1]]
    return keys[np.lexsort((keys[:, 1], keys[:, 0]))[:most]]


def are_alike(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Whether two thumbnails show the same picture: at SIDE x SIDE their pixels correlate with at least CORRELATION.

    a, b: (H, W) or (H, W, 3) uint8. Insensitive to size, brightness and contrast, sensitive to a shift of some percent.
    A picture without structure is like no other: there is nothing to tell it by.
    """
    x, y = (_center(image) for image in (a, b))
    if min(x.std(), y.std()) < FLAT:
        return False
    return float((x * y).mean() / (x.std() * y.std())) >= CORRELATION


def _center(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The picture as SIDE x SIDE x 3 float32, each channel of mean 0."""
    small = Image.fromarray(image).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = np.asarray(small, np.float32)
    return np.asarray(values - values.mean((0, 1)), np.float32)


def join(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups that pairs connect, each sorted, in the order of their first members (union-find).

    A group is a chain of near pairs: its ends may differ more than its neighbours.
    """
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while parent.setdefault(x, x) != x:
            parent[x] = x = parent[parent[x]]
        return x

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for x in sorted(parent):
        groups.setdefault(root(x), []).append(x)
    return list(groups.values())

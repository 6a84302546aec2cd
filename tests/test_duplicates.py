"""Duplicates: what brute force finds among codes is found, and pixels decide who is a near duplicate."""

from io import BytesIO
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import export.gallery.duplicates
from export.gallery.duplicates import (
    BITS,
    RADIUS,
    Codes,
    are_alike,
    count_bits,
    find_exact_groups,
    find_near_pairs,
    join,
    read_codes,
)
from stdac.errors import StdacError
from stdac.pictures.pixels import Pixels


def random_codes(n: int, seed: int = 0) -> Codes:
    """(n, 8) uint16."""
    return np.random.default_rng(seed).integers(0, 1 << 16, (n, 8), dtype=np.uint16)


def flipped(codes: Codes, bits: int, seed: int = 1) -> Codes:
    """The codes with exactly `bits` bits of each turned over."""
    rng = np.random.default_rng(seed)
    flips = np.zeros((len(codes), 128), np.uint8)
    for row in flips:
        row[rng.choice(128, bits, replace=False)] = 1
    return codes ^ np.packbits(flips, axis=1).view(np.uint16)


def by_brute_force(codes: Codes) -> set[tuple[int, int]]:
    """All pairs at most RADIUS bits apart."""
    return {(a, b) for a, b in combinations(range(len(codes)), 2) if BITS[codes[a] ^ codes[b]].sum() <= RADIUS}


def smooth_picture(seed: int, side: int = 96) -> NDArray[np.uint8]:
    """A picture (side, side, 3) with broad shapes, as photographs have."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def test_hexadecimal_hashes_become_words_and_null_becomes_zero() -> None:
    column = pa.chunked_array([["00010203040506070809" + "0a0b0c0d0e0f", None], ["FFFF" + "0" * 28]])
    codes = read_codes(column)
    assert codes.shape == (3, 8)
    assert codes[0].tolist() == [0x0001, 0x0203, 0x0405, 0x0607, 0x0809, 0x0A0B, 0x0C0D, 0x0E0F]
    assert not codes[1].any()
    assert codes[2].tolist() == [0xFFFF, 0, 0, 0, 0, 0, 0, 0]
    assert read_codes(pa.chunked_array([], pa.string())).shape == (0, 8)
    sliced = column.chunk(0).slice(1)
    assert not read_codes(pa.chunked_array([sliced])).any()


def test_a_hash_of_another_length_is_one_sentence() -> None:
    with pytest.raises(StdacError, match="not 32 hex digits"):
        read_codes(pa.chunked_array([["abc"]]))


def test_exact_duplicates_point_to_the_first_of_them() -> None:
    codes = random_codes(50)
    order = np.random.default_rng(3).integers(0, 50, 400)
    first = find_exact_groups(codes[order])
    seen: dict[int, int] = {}
    assert first.tolist() == [seen.setdefault(int(which), row) for row, which in enumerate(order)]


@pytest.mark.parametrize("bits", [0, 1, RADIUS - 1, RADIUS])
def test_every_pair_within_the_radius_is_found(bits: int) -> None:
    codes = random_codes(300)
    both = np.concatenate([codes, flipped(codes, bits)])
    pairs, found = find_near_pairs(both, 1000)
    assert {(int(a), int(b)) for a, b in pairs} == {(i, 300 + i) for i in range(300)} == by_brute_force(both)
    assert found == 300


def test_no_pair_beyond_the_radius_is_a_candidate() -> None:
    codes = random_codes(300)
    assert find_near_pairs(np.concatenate([codes, flipped(codes, RADIUS + 1)]), 1000).found == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=0, max_size=5), st.integers(0, 2**32))
def test_what_is_found_is_what_brute_force_finds_in_small_groups(distances: list[int], seed: int) -> None:
    base = random_codes(20, seed)
    codes = np.concatenate([base, *(flipped(base[i : i + 1], d, seed + i) for i, d in enumerate(distances))])
    assert {(int(a), int(b)) for a, b in find_near_pairs(codes, 1000).pairs} == by_brute_force(codes)


def test_the_nearest_pairs_are_kept_where_there_are_more_than_wanted() -> None:
    codes = random_codes(300)
    both = np.concatenate([codes, flipped(codes[:200], 4), flipped(codes[200:], 1)])
    pairs, found = find_near_pairs(both, 100)
    assert found == 300
    assert pairs.tolist() == [[i, 300 + i] for i in range(200, 300)]


def test_a_crowd_of_equal_fingerprints_stays_one_group_in_bounded_work() -> None:
    pairs, found = find_near_pairs(np.zeros((5000, 8), np.uint16), 100_000)
    assert found <= 5000 * export.gallery.duplicates.WINDOW
    assert [len(group) for group in join(pairs.tolist())] == [5000]


def test_no_rows_or_a_single_one_have_no_pairs() -> None:
    assert find_near_pairs(random_codes(0), 10).pairs.shape == (0, 2)
    assert find_near_pairs(random_codes(1), 10).pairs.shape == (0, 2)
    assert find_exact_groups(random_codes(0)).shape == (0,)


def test_bits_are_counted_the_same_with_and_without_numpys_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    words = random_codes(100).view(np.uint64)
    native = count_bits(words)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert (
        count_bits(words).tolist()
        == native.tolist()
        == [bin(a).count("1") + bin(b).count("1") for a, b in words.tolist()]
    )


def test_a_picture_is_alike_to_its_recompressed_brighter_and_smaller_copies() -> None:
    picture = smooth_picture(0)
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=50)
    brighter = (picture * 0.8 + 30).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX))
    for copy in (np.asarray(Image.open(file)), brighter, smaller):
        assert are_alike(picture, copy)


def test_other_pictures_mirrored_and_shifted_ones_are_not_alike() -> None:
    picture = smooth_picture(0)
    for other in (smooth_picture(1), picture[:, ::-1], np.roll(picture, 16, 1), 255 - picture):
        assert not are_alike(picture, np.ascontiguousarray(other))


def test_plain_pictures_are_like_no_other() -> None:
    red = np.full((20, 20, 3), (250, 0, 0), np.uint8)
    assert not are_alike(red, red)
    assert not are_alike(red, smooth_picture(0))


def test_different_handwriting_with_near_fingerprints_is_mostly_not_alike() -> None:
    digits: Pixels = pytest.importorskip("stdac.data").load("digits").images[:, 0]
    ones = digits[:400]
    pairs = list(combinations(range(0, 400, 8), 2))
    assert sum(are_alike(ones[a], ones[b]) for a, b in pairs) <= len(pairs) / 1000


def test_groups_are_joined_across_chains() -> None:
    assert join([(5, 7), (1, 2), (7, 3), (9, 8), (2, 1)]) == [[1, 2], [3, 5, 7], [8, 9]]
    assert join([]) == []

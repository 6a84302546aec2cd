"""Pictures become uint8 arrays: every mode and format as it is meant; a hostile one gets no further than a sentence."""

import io
import os
import random
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from stdac.data import load
from stdac.errors import StdacError
from stdac.pictures.formats import FORMATS, SUFFIXES
from stdac.pictures.image import MAX_BYTES, read_file, read_image
from stdac.pictures.pixels import Pixels
from stdac.pictures.walk import Walk, describe_left_out

NOISE = np.random.default_rng(0).normal(size=(40, 48))
GRAY = np.clip(np.cumsum(np.cumsum(NOISE, 0), 1) * 3 + 128, 0, 255).astype(np.uint8)
RGB = np.stack([GRAY, GRAY[::-1], 255 - GRAY], 2)
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
RED = Image.new("RGB", (6, 4), (200, 30, 10))


def encoded(image: Image.Image | Pixels, format: str, **options: Any) -> bytes:
    """A picture as a file's bytes."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    """EXIF data with an orientation."""
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG file made by hand, of modes that Pillow does not write."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    parts = chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(samples: Any, tags: dict[int, Any] | None = None, order: str = "<", packed: bool = False) -> bytes:
    """A TIFF file made by hand from (H, W, S) of any type; tags: besides, or other ones."""
    x = np.asarray(samples)
    height, width, count = x.shape
    more = {262: 2 if count > 2 else 1, 284: 1} | (tags or {})
    planes = [x] if more[284] == 1 else np.split(x, count, 2)
    strips = [np.ascontiguousarray(plane.astype(x.dtype.newbyteorder(order))).tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    values: dict[int, Any] = {256: width, 257: height, 258: (x.dtype.itemsize * 8,) * count, 259: 8 if packed else 1}
    values |= {273: (0,) * len(strips), 277: count, 278: height, 279: tuple(map(len, strips))}
    values |= {339: ({"u": 1, "i": 2, "f": 3}[x.dtype.kind],) * count} | more
    entries = {tag: value if isinstance(value, tuple) else (value,) for tag, value in sorted(values.items())}
    start = 8 + 2 + 12 * len(entries) + 4
    lengths = [4 * len(value) for value in entries.values()]
    place = start + sum(length for length in lengths if length > 4)
    entries[273] = tuple(place + sum(map(len, strips[:i])) for i in range(len(strips)))
    table, beyond = b"", b""
    for tag, value in entries.items():
        data = struct.pack(f"{order}{len(value)}I", *value)
        table += struct.pack(f"{order}HHI", tag, 4, len(value))
        table += data if len(data) == 4 else struct.pack(f"{order}I", start + len(beyond))
        beyond += data if len(data) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + table + bytes(4) + beyond + b"".join(strips)


def pixel_of(data: bytes, channels: int | None = None) -> list[int]:
    """The first pixel, (C,)."""
    return [int(v) for v in read_image(data, channels)[:, 0, 0]]


# --- modes


def test_gray_and_colour_come_as_they_are() -> None:
    np.testing.assert_array_equal(read_image(encoded(GRAY, "PNG")), GRAY[None])
    np.testing.assert_array_equal(read_image(encoded(RGB, "PNG")), RGB.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image(encoded(GRAY, "PNG"), 3), np.stack([GRAY] * 3))
    luma = Image.fromarray(RGB).convert("L")
    np.testing.assert_array_equal(read_image(encoded(RGB, "PNG"), 1)[0], np.asarray(luma))


def test_a_path_and_its_bytes_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RGB, "PNG"))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(read_image(path), read_image(encoded(RGB, "PNG")))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(format: str) -> None:
    wide = GRAY.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_image(encoded(wide, format)), GRAY[None])
    np.testing.assert_array_equal(read_image(encoded(wide, format), 3), np.stack([GRAY] * 3))
    near = np.array([[0, 128, 129, 32767, 65407, 65535]], np.uint16)
    assert read_image(encoded(near, format)).ravel().tolist() == [0, 0, 1, 127, 255, 255]


def test_big_endian_and_inverted_and_twelve_bit_tiffs_are_scaled() -> None:
    wide = Image.fromarray(GRAY.astype(np.uint16) * 257)
    inverted = encoded(Image.fromarray(65535 - GRAY.astype(np.uint16) * 257), "TIFF", tiffinfo={262: 0})
    swapped = Image.frombytes("I;16B", wide.size, (GRAY.astype(">u2") * 257).tobytes())
    for data in (inverted, encoded(swapped, "TIFF")):
        np.testing.assert_array_equal(read_image(data), GRAY[None])
    assert pixel_of(twelve_bit_tiff(0xFFF)) == [255]
    assert pixel_of(twelve_bit_tiff(0x800)) == [128]


def twelve_bit_tiff(value: int) -> bytes:
    """A TIFF of 2 x 1 pixels of 12 bits, both of one value."""
    packed = (value << 12 | value).to_bytes(3, "big")
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\4\0" + (1).to_bytes(4, "little") + v.to_bytes(4, "little")
        for tag, v in tags.items()
    )
    return b"II*\0" + (12).to_bytes(4, "little") + packed + b"\0" + bytes([len(tags), 0]) + entries + b"\0" * 4


def test_sixteen_bit_colour_keeps_its_colours() -> None:
    row = b"\0" + (np.array([200, 30, 10, 255, 0, 0], np.uint16) * 257).astype(">u2").tobytes()
    assert pixel_of(png(2, 1, 16, 2, row)) == [200, 30, 10]
    faded = b"\0" + (np.array([200, 0], np.uint16) * 257).astype(">u2").tobytes()
    assert pixel_of(png(1, 1, 16, 4, faded), 1) == [0]


def test_one_bit_is_black_and_white() -> None:
    bits = Image.fromarray(GRAY > 128)
    for format in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(read_image(encoded(bits, format))[0], np.where(GRAY > 128, 255, 0))
    fax = encoded(bits, "TIFF", compression="group4")
    np.testing.assert_array_equal(read_image(fax)[0], np.where(GRAY > 128, 255, 0))


def test_floats_are_taken_by_their_range() -> None:
    unit, wide = (GRAY / 255).astype(np.float32), GRAY.astype(np.float32)
    for values in (unit, wide):
        np.testing.assert_array_equal(read_image(encoded(values, "TIFF")), GRAY[None])
    odd = np.array([[np.nan, np.inf, -np.inf, -3, 100.4, 300]], np.float32)
    assert read_image(encoded(odd, "TIFF")).ravel().tolist() == [0, 255, 0, 0, 100, 255]
    assert read_image(encoded(np.full((2, 2), np.nan, np.float32), "TIFF")).any() == np.False_


VALUES = np.random.default_rng(1).integers(0, 1 << 16, (5, 7, 4), dtype=np.uint16)
KINDS: dict[str, tuple[Any, dict[int, Any], Any]] = {  # samples (H, W, S), tags, and what is to become of them
    "8-bit RGB": (VALUES[..., :3] >> 8, {}, VALUES[..., :3] >> 8),
    "8-bit RGB in planes": (VALUES[..., :3] >> 8, {284: 2}, VALUES[..., :3] >> 8),
    "16-bit RGB": (VALUES[..., :3], {}, VALUES[..., :3] >> 8),
    "16-bit gray": (VALUES[..., :1], {}, (VALUES[..., :1].astype(int) + 128) // 257),
    "int16": ((VALUES[..., :1] >> 1).astype(np.int16), {}, ((VALUES[..., :1] >> 1).astype(int) + 128) // 257),
    "int32": (VALUES[..., :1].astype(np.int32), {}, (VALUES[..., :1].astype(int) + 128) // 257),
    "floats in [0, 1]": ((VALUES[..., :1] / 65535).astype(np.float32), {}, np.rint(VALUES[..., :1] / 257)),
    "floats from below 0": (
        (VALUES[..., :1] / 65535 - 0.5).astype(np.float32),
        {},
        np.rint((VALUES[..., :1] / 65535 - 0.5).clip(0, 255)),
    ),
    "floats beyond 1": (
        (VALUES[..., :1] / 100 - 99).astype(np.float32),
        {},
        np.rint((VALUES[..., :1] / 100 - 99).astype(np.float32).clip(0, 255)),
    ),
    "gray and associated alpha": ((VALUES[..., :2] >> 9) + [0, 128], {338: 1}, VALUES[..., :1] >> 9),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiff_is_what_numpy_says(kind: str) -> None:
    samples, tags, expected = KINDS[kind]
    samples = samples.astype(np.uint8) if kind.startswith("8-bit") or "alpha" in kind else samples
    for order in "<>":
        for packed in (False, True):
            got = read_image(tiff(samples, tags, order, packed)).astype(int)
            assert np.abs(got - np.asarray(expected).transpose(2, 0, 1)).max() <= ("alpha" in kind), (order, packed)


REFUSED: dict[str, tuple[Any, dict[int, Any]]] = {
    "16-bit unsigned integers, 3 samples a pixel, in separate planes": (VALUES[..., :3], {284: 2}),
    "8-bit unsigned integers, 2 samples a pixel, in separate planes": (
        VALUES[..., :2].astype(np.uint8),
        {284: 2, 338: 2},
    ),
    "32-bit unsigned integers, 1 sample a pixel": (VALUES[..., :1].astype(np.uint32), {}),
    "8-bit signed integers, 1 sample a pixel": (VALUES[..., :1].astype(np.int8), {}),
    "16-bit unsigned integers, 2 samples a pixel": (VALUES[..., :2], {338: 2}),
    "64-bit floats, 1 sample a pixel": (VALUES[..., :1].astype(np.float64), {}),
    "32-bit floats, 3 samples a pixel": (VALUES[..., :3].astype(np.float32), {}),
    "32-bit floats, 1 sample a pixel, white as 0": (VALUES[..., :1].astype(np.float32), {262: 0}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tiff_that_would_be_read_wrong_is_refused_by_its_kind(kind: str) -> None:
    for order in "<>":
        for packed in (False, True):
            with pytest.raises(StdacError) as caught:
                read_image(tiff(*REFUSED[kind], order, packed))
            assert str(caught.value) == (
                f"this kind of TIFF is not read ({kind}): save it with 8 bits a sample, or as PNG"
            )
    with pytest.raises(StdacError, match=r"^a TIFF of signed integers from -5 to 7 is not read, expected 0 to 65,535"):
        read_image(tiff(np.array([-5, 7, 0, 1], np.int16).reshape(2, 2, 1)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_gray_is_one_of_the_files_own_values(depth: int) -> None:
    most = (1 << depth) - 1
    values = [0, most, most // 2, min(most, 1)]
    bits = "".join(f"{value:0{depth}b}" for value in values).ljust(8, "0")
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    for key in values:
        data = png(4, 1, depth, 0, row, chunk(b"tRNS", key.to_bytes(2, "big")))
        for background, ground in (("black", 0), ("white", 255)):
            expected = [ground if value == key else round(value * 255 / most) for value in values]
            assert read_image(data, 1, background=background).ravel().tolist() == expected


def test_a_transparent_colour_of_sixteen_bits_is_compared_in_all_of_them() -> None:
    row = np.array([[1, 2, 3], [1, 2, 4], [0x1234, 0x5678, 0x9ABC], [0x1235, 0x5678, 0x9ABC]], ">u2")
    for key in row:
        data = png(4, 1, 16, 2, b"\0" + row.tobytes(), chunk(b"tRNS", key.tobytes()))
        expected = np.where((row == key).all(1, keepdims=True), 255, row >> 8)
        assert read_image(data, 3, background="white")[:, 0].T.tolist() == expected.tolist()
        assert not read_image(data, 3)[:, 0].T[(row == key).all(1)].any()


def sign(colour: int, size: int = 60) -> Image.Image:
    """A cross of a gray level on transparency."""
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., :3] = 255 - colour  # which nobody is to see
    pixels[size // 3 : size // 2] = pixels[:, size // 3 : size // 2] = (*(colour,) * 3, 255)
    return Image.fromarray(pixels)


def test_a_background_makes_visible_what_is_drawn_on_transparency() -> None:
    for colour, grounds in (
        (20, {"black": 0, "white": 255, "auto": 255}),
        (220, {"black": 0, "white": 255, "auto": 0}),
    ):
        for data in (encoded(sign(colour), "PNG"), encoded(sign(colour).quantize(8), "GIF", transparency=0)):
            for background, ground in grounds.items():
                for size in (None, (60, 60), (12, 12)):
                    got = read_image(data, 1, size, background=background)[0]
                    if "GIF" not in str(data[:3]):
                        assert (int(got[0, 0]), int(got[-1, -1])) == (ground, ground)
                        assert int(got[len(got) * 5 // 12, 0]) == colour
    large = encoded(sign(20, 2400), "PNG")
    assert read_image(large, 1, (28, 28), background="auto")[0, 0, 0] == 255
    nothing = encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG")
    assert not read_image(nothing, 1, background="auto").any()
    assert pixel_of(encoded(RED, "PNG")) == [
        int(v) for v in read_image(encoded(RED, "PNG"), background="white")[:, 0, 0]
    ]


TRANSPARENT = {
    "RGBA": encoded(Image.new("RGBA", (2, 2), (200, 100, 50, 0)), "PNG"),
    "LA": encoded(Image.new("LA", (2, 2), (200, 0)), "PNG"),
    "RGB with a transparent colour": encoded(
        Image.new("RGB", (2, 2), (200, 100, 50)), "PNG", transparency=(200, 100, 50)
    ),
    "L with a transparent gray": encoded(Image.new("L", (2, 2), 200), "PNG", transparency=200),
    "1 with a transparent white": png(2, 1, 1, 0, b"\0\xff", chunk(b"tRNS", b"\0\1")),
    "palette with a transparent index": encoded(RED.quantize(2), "PNG", transparency=0),
    "palette with an alpha each": encoded(RED.quantize(2), "PNG", transparency=b"\0\0"),
    "GIF": encoded(RED.quantize(2), "GIF", transparency=0),
    "WebP": encoded(Image.new("RGBA", (2, 2), (200, 100, 50, 0)), "WEBP", lossless=True, exact=True),
    "TIFF": encoded(Image.new("RGBA", (2, 2), (200, 100, 50, 0)), "TIFF"),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_is_laid_on_black(kind: str) -> None:
    for channels in (None, 1, 3):
        assert not any(pixel_of(TRANSPARENT[kind], channels))


def test_half_transparent_is_half_as_bright() -> None:
    assert pixel_of(encoded(Image.new("RGBA", (2, 2), (200, 100, 50, 128)), "PNG")) == [100, 50, 25]
    assert pixel_of(encoded(Image.new("LA", (2, 2), (200, 128)), "PNG")) == [100]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "P", "RGBX"])
@pytest.mark.parametrize("format", ["TIFF", "JPEG"])
def test_other_colour_spaces_become_rgb(mode: str, format: str) -> None:
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(RED, srgb, lab, outputMode="LAB")
    else:
        image = RED.quantize(2) if mode == "P" else RED.convert(mode)
    assert image is not None
    try:
        data = encoded(image, format)
    except OSError:
        pytest.skip(f"Pillow writes no {mode} as {format}")
    got = np.array(pixel_of(data))
    assert np.abs(got - [200, 30, 10]).max() <= (12 if format == "JPEG" else 3), got
    gray = pixel_of(data, 1)[0]
    assert abs(gray - 78) <= 8


def test_a_ycck_jpeg_has_its_colours() -> None:
    """Adobe's marker says that the parts C, M, Y are stored as Y, Cb, Cr; all four are stored inverted."""
    planes = RED.convert("CMYK").split()
    ycc = Image.merge("RGB", planes[:3]).convert("YCbCr").split()
    stored = Image.merge("CMYK", [plane.point(lambda v: 255 - v) for plane in ycc] + [planes[3]])
    data = bytearray(encoded(stored, "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2
    assert np.abs(np.array(pixel_of(bytes(data))) - [200, 30, 10]).max() <= 6
    plain = encoded(RED.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(np.array(pixel_of(plain)) - [200, 30, 10]).max() <= 6


def test_a_cmyk_profile_is_used_and_a_broken_one_ignored() -> None:
    cmyk = RED.convert("CMYK")
    plain = read_image(encoded(cmyk, "TIFF"))
    for profile in (b"not a profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        np.testing.assert_array_equal(read_image(encoded(cmyk, "TIFF", icc_profile=profile)), plain)


# --- orientation, frames, sizes


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(format: str, orientation: int) -> None:
    marked = np.zeros((8, 16), np.uint8)
    marked[:4, :4] = 250  # top left
    inverse: dict[int, Callable[[Pixels], Pixels]] = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: np.rot90,
        7: lambda x: x[::-1, ::-1].T,
        8: lambda x: np.rot90(x, -1),
    }
    data = encoded(np.ascontiguousarray(inverse[orientation](marked)), format, exif=exif(orientation))
    for size in (None, (8, 16), (4, 8)):
        got = read_image(data, 1, size)[0].astype(int)
        height, width = size or (8, 16)
        assert got.shape == (height, width)
        expected = np.kron([[1, 0, 0, 0], [0, 0, 0, 0]], np.ones((height // 2, width // 4))) * 250
        assert np.abs(got - expected).max() <= 30
    assert read_image(data, 1, side=8).shape == (1, 4, 8)


XMP = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


def test_an_orientation_counts_in_exif_alone_as_in_browsers() -> None:
    plain, other = Image.Exif(), np.ascontiguousarray(GRAY)
    plain[0x010F] = "a maker"
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        for data in (plain, None):
            options: dict[str, Any] = {"exif": data} if data is not None else {}
            if format == "PNG":
                info = PngImagePlugin.PngInfo()
                info.add_itxt("XML:com.adobe.xmp", XMP.decode())
                options["pnginfo"] = info
            elif format == "TIFF":
                options["tiffinfo"] = {700: XMP}
            else:
                options["xmp"] = XMP
            assert read_image(encoded(other, format, **options), 1).shape == (1, *GRAY.shape), (format, data)


def test_tiffs_are_turned_in_every_compression() -> None:
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate"):
        data = encoded(np.ascontiguousarray(np.rot90(GRAY)), "TIFF", compression=compression, exif=exif(6))
        np.testing.assert_array_equal(read_image(data)[0], GRAY)


@quiet
@pytest.mark.parametrize("broken", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40])
def test_broken_exif_does_not_matter(broken: bytes) -> None:
    data = encoded(GRAY, "JPEG", quality=95)
    marker = b"\xff\xe1" + (len(broken) + 2).to_bytes(2, "big") + broken
    np.testing.assert_array_equal(read_image(data[:2] + marker + data[2:]), read_image(data))
    assert read_image(encoded(GRAY, "JPEG", exif=exif(77))).shape == (1, 40, 48)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_many_frames_the_first_counts(format: str) -> None:
    frames = [Image.new("L", (9, 7), value) for value in (50, 120, 200)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert pixel_of(data, 1) == [50]


def test_size_and_side() -> None:
    data = encoded(RGB, "PNG")
    assert read_image(data, 1, (28, 30)).shape == (1, 28, 30)
    assert read_image(data, side=24).shape == (3, 20, 24)
    assert read_image(data, side=48).shape == (3, 40, 48)
    assert read_image(data, side=1).shape == (3, 1, 1)
    np.testing.assert_array_equal(read_image(data, side=1000), read_image(data))
    half = Image.fromarray(RGB).resize((24, 20), Image.Resampling.BOX)
    np.testing.assert_array_equal(read_image(data, 3, (20, 24)), np.asarray(half).transpose(2, 0, 1))


def photo(width: int, height: int) -> Image.Image:
    """A smooth colour picture."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [127 + 120 * np.sin(x / width * 9), 127 + 120 * np.cos(y / height * 7), 255 * x * y / width / height]
    return Image.fromarray(np.stack(planes, 2).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "I;16", "F", "1"])
def test_large_pictures_are_averaged_in_strips_as_small_ones_are_at_once(mode: str) -> None:
    image = photo(2611, 1733)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    image = image if image.mode == mode else image.convert(mode)
    data = encoded(image, "TIFF")
    for channels in (1, 3):
        whole = read_image(data, channels)
        planes = [Image.fromarray(plane).resize((32, 28), Image.Resampling.BOX) for plane in whole]
        expected = np.stack([np.asarray(plane) for plane in planes]).astype(int)
        assert np.abs(read_image(data, channels, (28, 32)) - expected).max() <= 3


def test_a_jpeg_is_decoded_at_a_reduced_scale() -> None:
    data = encoded(photo(3000, 2000), "JPEG", quality=90)
    began = time.process_time()  # of the clock, what runs beside it takes a part
    small = read_image(data, 3, (28, 28)).astype(int)
    reduced_s = time.process_time() - began
    began = time.process_time()
    whole = read_image(data, 3)
    whole_s = time.process_time() - began
    planes = [np.asarray(Image.fromarray(plane).resize((28, 28), Image.Resampling.BOX)) for plane in whole]
    assert np.abs(small - np.stack(planes)).max() <= 3
    assert reduced_s < whole_s / 2
    turned = encoded(photo(3000, 2000), "JPEG", exif=exif(6))
    assert read_image(turned, 3, side=100).shape == (3, 100, 67)


# --- what is refused


def test_formats_that_are_not_documented_are_not_tried() -> None:
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"8BPS\0\1" + b"\0" * 40):
        with pytest.raises(StdacError, match=r"^not a readable image$"):
            read_image(data)
    with pytest.raises(StdacError, match=r"^not a readable image$"):
        read_image(encoded(RGB, "ICO"))


@quiet
def test_bombs_are_refused_before_they_are_decoded() -> None:
    bombs = [png(w, h, 8, 0, b"\0" * 10) for w, h in ((10_001, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1))]
    tracemalloc.start()
    for data in bombs:
        with pytest.raises(StdacError, match=r"^it(s \d+ x \d+ pixels are| has) more than 100,000,000( pixels)?$"):
            read_image(data, 1, (28, 28))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_a_hundred_megapixels_are_read() -> None:
    data = encoded(Image.new("1", (10_000, 10_000), 1), "PNG")
    assert (read_image(data, 1, (28, 28)) == 255).all()


MEMORY = """
import resource, sys
from pathlib import Path
from stdac.pictures.image import read_image
data = Path(sys.argv[1]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_image(data, 1, (28, 28))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_memory_is_that_of_the_decoder(tmp_path: Path, format: str) -> None:
    Image.new("RGBA" if format == "PNG" else "RGB", (6000, 5000)).save(tmp_path / "a", format)
    result = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert int(result.stdout) < (220 if format == "PNG" else 60)  # 120 MB for RGBA, and a strip's conversions


def test_a_hostile_png_text_or_profile_is_no_bomb() -> None:
    zeros = zlib.compress(b"\0" * (300 << 20))
    for more in (chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"iCCP", b"a\0\0" + zeros)):
        with pytest.raises(StdacError, match=r"^damaged \(Decompressed data too large"):
            read_image(png(1, 1, 8, 0, b"\0\7", more))


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    with server:
        for name in ("pipe", "socket", "/dev/zero"):
            with pytest.raises(StdacError, match="this is a pipe, a socket or a device, expected a picture file"):
                read_image(tmp_path / name)
    with pytest.raises(StdacError, match="this is a folder, expected a picture file"):
        read_image(tmp_path)
    with pytest.raises(StdacError, match=r"gone\.png: No such file or directory$"):
        read_image(tmp_path / "gone.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(StdacError, match=r"huge\.png: its 268,435,457 bytes are more than the 268,435,456"):
        read_image(tmp_path / "huge.png")


def test_a_file_is_read_whole_with_its_stat(tmp_path: Path) -> None:
    for content in (b"", b"abc", bytes(3_000_000)):
        (tmp_path / "a").write_bytes(content)
        data, about = read_file(tmp_path / "a")
        assert data == content
        assert (about.st_size, about.st_mtime_ns) == (len(content), (tmp_path / "a").stat().st_mtime_ns)


# --- damage

PALETTE = Image.fromarray(RGB).quantize(32)
FILES = {
    "gray.png": encoded(GRAY, "PNG"),
    "rgb.png": encoded(RGB, "PNG"),
    "wide.png": encoded(GRAY.astype(np.uint16) * 257, "PNG"),
    "palette.png": encoded(PALETTE, "PNG", transparency=3),
    "animated.png": encoded(GRAY, "PNG", save_all=True, append_images=[Image.fromarray(255 - GRAY)]),
    "rgb.jpg": encoded(RGB, "JPEG"),
    "progressive.jpg": encoded(RGB, "JPEG", progressive=True),
    "cmyk.jpg": encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "rgb.webp": encoded(RGB, "WEBP"),
    "lossless.webp": encoded(RGB, "WEBP", lossless=True),
    "animated.webp": encoded(RGB, "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
    "rgb.tif": encoded(RGB, "TIFF"),
    "lzw.tif": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "zip.tif": encoded(GRAY.astype(np.uint16) * 257, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg.tif": encoded(RGB, "TIFF", compression="jpeg"),
    "float.tif": encoded((GRAY / 255).astype(np.float32), "TIFF"),
    "fax.tif": encoded(Image.fromarray(GRAY > 128), "TIFF", compression="group4"),
    "rgb.bmp": encoded(RGB, "BMP"),
    "palette.bmp": encoded(PALETTE, "BMP"),
    "animated.gif": encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(90)]),
    "rgb.ppm": encoded(RGB, "PPM"),
    "gray.pgm": encoded(GRAY, "PPM"),
}


@pytest.mark.parametrize("name", FILES)
@quiet
def test_a_picture_cut_short_is_an_error_or_whole(name: str) -> None:
    data, whole = FILES[name], read_image(FILES[name])
    for end in {*range(0, len(data), max(1, len(data) // 150)), *range(max(0, len(data) - 20), len(data))}:
        try:
            got = read_image(data[:end])
        except StdacError as error:
            assert "\n" not in str(error) and len(str(error)) < 150
            continue
        np.testing.assert_array_equal(got, whole, err_msg=f"cut at {end} of {len(data)}")


@quiet
@settings(max_examples=300, deadline=60_000)
@given(st.sampled_from(sorted(FILES)), st.integers(0, 2**32), st.sampled_from([1, 1, 2, 8, 50]), st.booleans())
def test_damaged_pictures_give_pixels_or_a_sentence(name: str, seed: int, flips: int, cut: bool) -> None:
    data, chance = bytearray(FILES[name]), random.Random(seed)
    for _ in range(flips):
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        got = read_image(bytes(data[: chance.randrange(len(data))] if cut else data), 1, (28, 28))
    except StdacError as error:
        assert "\n" not in str(error)
    else:
        assert got.shape == (1, 28, 28) and got.dtype == np.uint8


@quiet
@settings(max_examples=200, deadline=60_000)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"P5 "]),
)
def test_any_bytes_give_pixels_or_a_sentence(data: bytes, magic: bytes) -> None:
    try:
        read_image(magic + data)
    except StdacError as error:
        assert "\n" not in str(error)


# --- folders


def walk(folder: Path) -> tuple[list[str], dict[str, int]]:
    """The pictures of a walk, relative to the folder, and what is left out."""
    walk = Walk(str(folder))
    return [str(Path(path).relative_to(folder)) for path in walk], dict(walk.left_out)


def touch(folder: Path, *names: str, content: bytes = b"") -> None:
    """Files."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)


def test_a_walk_is_sorted_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.png", "a.png", "a/2.jpg", "a b/3.png", ".hidden/4.png", "b/.5.png", "b/notes.txt", "B/c/6.Png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    names, left_out = walk(tmp_path)
    assert names == ["B/c/6.Png", "a/2.jpg", "a b/3.png", "a.png", "b/1.png"]
    assert describe_left_out(left_out) == (
        "8 left out: 2 broken links, 1 hidden file, 1 hidden folder, "
        "1 linked picture that would come twice, 1 link to a folder above, 1 special file, 1 .txt"
    )


def test_a_walk_takes_what_the_decoder_reads(tmp_path: Path) -> None:
    taken = {
        **{
            f"{i}{suffix}": encoded(RGB, "JPEG")
            for i, suffix in enumerate([".jpg", ".jfif", ".jpe", ".JIF", ".jfi", ".mpo"])
        },
        **{name: encoded(GRAY, "PPM") for name in ("a.pgm", "a.pnm", "no suffix", "IMG_2024.05.17", "a.jpg?width=300")},
        "a.pbm": encoded(Image.fromarray(GRAY > 99), "PPM"),
        "a.apng": encoded(GRAY, "PNG"),
        "a.dib": encoded(RGB, "DIB"),
        "a.jp2": encoded(RGB, "JPEG2000"),
        "a.j2k": encoded(RGB, "JPEG2000", no_jp2=True),
        **({"a.avif": encoded(RGB, "AVIF")} if "AVIF" in FORMATS else {}),
        **{format: encoded(RGB, format) for format in FORMATS if format not in ("DIB",)},
    }
    left = {
        "a.heic": b"..",
        "b.HEIC": b"..",
        "raw.nef": encoded(RGB, "TIFF"),
        "README": b"P6 is a format",
        "x.svg": b"<svg/>",
    }
    for name, content in (taken | left).items():
        touch(tmp_path, name, content=content)
    names, left_out = walk(tmp_path)
    assert sorted(names) == sorted(taken)
    assert left_out == {".heic": 2, ".nef": 1, "file{s} without a suffix": 1, ".svg": 1}
    for name in names:
        assert read_image(tmp_path / name, 1).shape == (1, 40, 48), name


def test_what_a_nas_a_bin_and_a_mac_leave_behind_is_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.png",
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
        "@eaDir/b.jpg",
        "x/$RECYCLE.BIN/S-1/c.png",
        "__MACOSX/._a.png",
    )
    touch(
        tmp_path,
        "._a.png",
        ".Trash-1000/files/d.png",
        "#recycle/e.png",
        "System Volume Information/f.png",
        "lost+found/g.png",
    )
    names, left_out = walk(tmp_path)
    assert names == ["a.png"]
    assert sum(left_out.values()) == 9 and left_out["in @eaDir"] == 2
    assert left_out["hidden file{s}"] == left_out["hidden folder{s}"] == 1


def test_links_are_followed_and_each_picture_comes_once(tmp_path: Path) -> None:
    photos, store = tmp_path / "photos", tmp_path / "store"
    touch(store, "cats/1.png", "cats/2.png", "dogs/3.png", "single.png", "blob", content=encoded(GRAY, "PNG"))
    touch(photos, "real/4.png", ".pool/5.png", ".pool/6.png")
    (photos / "cats").symlink_to(store / "cats")
    (photos / "dogs").symlink_to(store / "dogs")
    (photos / "again").symlink_to(store / "cats")
    (photos / "0real").symlink_to(photos / "real")  # comes first by its name, and yet the real one counts
    (photos / "pool").symlink_to(".pool")
    (store / "cats" / "back").symlink_to(photos)
    (store / "dogs" / "up").symlink_to(store)
    for name in ("a.png", "b.png"):
        (photos / name).symlink_to(store / "single.png")
    (photos / "c.png").symlink_to(store / "blob")
    (photos / "d.png").symlink_to("real/4.png")
    (photos / "e.png").symlink_to(".pool/5.png")
    names, left_out = walk(photos)
    expected = ["a.png", "again/1.png", "again/2.png", "c.png", "dogs/3.png", "e.png", "pool/6.png", "real/4.png"]
    assert names == expected
    assert sum(left_out.values()) == 8, left_out
    assert walk(photos) == (names, left_out)


def test_a_walk_keeps_every_name(tmp_path: Path) -> None:
    names = [b"new\nline.png", "Größe 大.png".encode(), b"latin-\xe9.png", b"two..dots.PNG", b" .png", b"-.gif"]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb"):
            pass
    assert sorted(os.fsencode(path).rpartition(b"/")[2] for path in Walk(str(tmp_path))) == sorted(names)


def test_every_suffix_of_the_formats_is_known_and_no_other() -> None:
    registered = Image.registered_extensions()
    assert {suffix for suffix, format in registered.items() if format in (*FORMATS, "MPO")} <= SUFFIXES
    assert {registered.get(suffix, "JPEG") for suffix in SUFFIXES} <= {*FORMATS, "MPO"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_closed_folder_is_yielded_with_a_slash(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert list(Walk(str(tmp_path))) == [f"{tmp_path}/closed/"]
    with pytest.raises(StdacError, match="cannot be listed"):
        load(str(tmp_path))


# --- speed


def test_a_small_png_costs_little_more_than_pillow_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(GRAY[:28, :28]).save(path)

    def bare() -> None:
        image = Image.open(path)
        image.load()
        np.asarray(image)

    def fastest(function: Callable[[], object]) -> float:
        times = []
        for _ in range(30):
            began = time.process_time()
            for _ in range(100):
                function()
            times.append(time.process_time() - began)
        return min(times)

    ratios = [fastest(lambda: read_image(path, 1, (28, 28))) / fastest(bare) for _ in range(3)]
    assert min(ratios) < 1.15, ratios

"""The transparent gray or colour of a PNG (tRNS), which Pillow compares with values of another depth."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRAY, RGB = 0, 2
"""Colour types."""


def apply_transparent_value(image: Image.Image, data: bytes) -> Image.Image:
    """A decoded PNG with the transparency of its bytes as Pillow understands it.

    Gray of 1 to 4 bits: the value in 8 bits. Gray and colour of 16 bits: a picture with an alpha channel.
    """
    depth, colour = data[24], data[25]
    key = image.info["transparency"]
    if data[12:16] != b"IHDR":
        return image
    if colour == GRAY and depth < 8 and isinstance(key, int):
        scaled = image.convert("L") if image.mode == "1" else image
        scaled.info["transparency"] = (key & (1 << depth) - 1) * 255 // ((1 << depth) - 1)
        return _keep_info(scaled, image)
    if colour == GRAY and depth == 16:
        values = np.asarray(image).astype(np.uint32)
        return _add_alpha(Image.fromarray(((values + 128) // 257).astype(np.uint8)), values != key, image)
    if colour == RGB and depth == 16:
        high, low = np.asarray(image), _read_low_bytes(data)
        opaque = ((high != np.array(key) >> 8) | (low != np.array(key) & 255)).any(2)
        return _add_alpha(image, opaque, image)
    return image


def _add_alpha(image: Image.Image, opaque: NDArray[np.bool_], original: Image.Image) -> Image.Image:
    """An L or RGB picture, transparent but where (H, W) says."""
    alpha = Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8))
    merged = Image.merge(f"{image.mode}A", (*image.split(), alpha))
    merged = _keep_info(merged, original)
    merged.info.pop("transparency")
    return merged


def _keep_info(image: Image.Image, original: Image.Image) -> Image.Image:
    """The picture with what else the file says: its orientation."""
    image.info = original.info | image.info
    return image


def _read_low_bytes(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: the lower halves of 16-bit colours, of which Pillow keeps the upper ones."""
    image = Image.open(BytesIO(data), formats=("PNG",))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # the other order of bytes
    return np.asarray(image)

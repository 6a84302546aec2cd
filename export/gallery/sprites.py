"""Thumbnails as sprite sheets: one picture a cluster, which a browser decodes far faster than many small ones."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

Thumbnail = NDArray[np.uint8]

SMALL = 32
"""Side in pixels up to which every pixel counts: such thumbnails are kept without loss, and shown enlarged."""

QUALITY = 78


class Sheet(NamedTuple):
    """uri: the picture as a data URI. columns: tiles a row. tile: width and height of a tile in pixels."""

    uri: str
    columns: int
    tile: tuple[int, int]


def make_sheet(thumbnails: Sequence[Thumbnail]) -> Sheet:
    """Lay thumbnails side by side, row by row, each at the upper left of its tile.

    thumbnails: at least one of (H, W) or (H, W, 3) uint8; sizes may differ. In colour as soon as one of them is.
    """
    height, width = (max(image.shape[axis] for image in thumbnails) for axis in (0, 1))
    columns = int(np.ceil(np.sqrt(len(thumbnails))))
    rows = -(-len(thumbnails) // columns)
    colour = any(image.ndim == 3 for image in thumbnails)
    sheet = np.zeros((rows * height, columns * width, *((3,) if colour else ())), np.uint8)
    for i, image in enumerate(thumbnails):
        y, x = i // columns * height, i % columns * width
        pixels = image[..., None] if colour and image.ndim == 2 else image
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = pixels
    return Sheet(encode_data_uri(Image.fromarray(sheet), max(height, width) <= SMALL), columns, (width, height))


def encode_data_uri(sheet: Image.Image, lossless: bool) -> str:
    """The picture as WebP, or as PNG or JPEG where Pillow was built without WebP."""
    file, webp = BytesIO(), features.check("webp")
    if webp:
        sheet.save(file, "WEBP", lossless=lossless, quality=QUALITY, method=4)
    else:
        sheet.save(file, "PNG" if lossless else "JPEG", quality=QUALITY)
    kind = "webp" if webp else "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

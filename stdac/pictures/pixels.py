"""Pixels as arrays (N, C, H, W) uint8: what shapes and types are taken, and how sizes and colours are changed."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stdac.errors import StdacError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
"""An image of more pixels is refused."""


def to_pixels(images: NDArray[np.generic], source: object) -> Pixels:
    """(N, C, H, W) uint8 from (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels.

    uint8 is taken as it is. Raises StdacError for other shapes and types: floats have no agreed range.
    """
    check_pixels(images.shape, images.dtype, source)
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    channels_last = images.shape[1] not in (1, 3)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if channels_last else images)


def check_pixels(shape: tuple[int, ...], dtype: np.dtype[np.generic], source: object) -> None:
    """Raise StdacError for what `to_pixels` does not take."""
    if dtype != np.uint8:
        raise StdacError(
            f"{source} has images of type {dtype}, expected uint8 with values 0 to 255: scale and round them"
        )
    if 0 in shape:
        raise StdacError(f"{source} holds no images: its shape is {shape}")
    if len(shape) != 3 and not (len(shape) == 4 and {shape[1], shape[3]} & {1, 3}):
        raise StdacError(
            f"{source} has images of shape {shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3"
        )


def resize(images: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (N, C, H, W) uint8 to (height, width), each channel as `stdac.pictures.image.read_image` does."""
    if images.shape[2:] == size:
        return images
    out = np.empty((*images.shape[:2], *size), dtype=np.uint8)
    for i, image in enumerate(images):
        for c, plane in enumerate(image):
            out[i, c] = np.asarray(resize_image(Image.fromarray(plane), size[1], size[0]))
    return out


def resize_image(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """The picture, or the box (left, top, right, bottom) of it: means where it shrinks on both sides, else linear."""
    shrinks = image.width >= width and image.height >= height
    return image.resize((width, height), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR, box)


def to_planes(data: bytes, width: int, height: int) -> Pixels:
    """The bytes of a gray or RGB picture, (C, H, W) uint8."""
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, -1)
    return pixels.reshape(1, height, width) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def conform(images: Pixels, shape: tuple[int, int, int]) -> Pixels:
    """Images (N, C, H, W) uint8 in the colour mode and size of the shape (C, H, W), converted as picture files are."""
    if images.shape[1] == 3 and shape[0] == 1:
        weights = np.array([19595, 38470, 7471], np.uint32)[:, None, None]  # Pillow's "L": ITU-R 601-2, in 1/65536
        images = ((images * weights).sum(1, keepdims=True) + 0x8000 >> 16).astype(np.uint8)
    elif images.shape[1] == 1 and shape[0] == 3:
        images = np.repeat(images, 3, axis=1)
    return resize(images, shape[1:])

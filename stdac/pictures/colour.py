"""Colour modes: whatever a picture has, as opaque gray or RGB of 8 bits, large ones a strip at a time."""

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stdac.errors import StdacError
from stdac.pictures.tiff import BITS, PHOTOMETRIC

if TYPE_CHECKING:
    from PIL import ImageCms

GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})

STRIP_PIXELS = 1 << 22
"""Pictures of more pixels are made smaller in strips of about so many, as conversions take several times the memory."""

BACKGROUNDS = ("black", "white", "auto")
"""What transparency is laid on; auto: white below a dark picture, black below a bright one."""

SAMPLED_SIDE = 512


def choose_ground(image: Image.Image, background: str) -> int:
    """The gray level, 0 or 255, on which a picture's transparency is laid.

    background: of BACKGROUNDS; for auto the mean luminance of the picture counts, each pixel by its opacity.
    """
    if background == "black" or not image.has_transparency_data:
        return 0
    if background == "white":
        return 255
    small = image.resize((min(image.width, SAMPLED_SIDE), min(image.height, SAMPLED_SIDE)), Image.Resampling.NEAREST)
    rgba = small.convert("RGBA")
    opacity = np.asarray(rgba.getchannel("A"), np.float64)
    luminance = np.asarray(rgba.convert("RGB").convert("L"), np.float64)
    return 255 if (luminance * opacity).sum() < 127.5 * opacity.sum() else 0


def spread_values(image: Image.Image) -> Image.Image:
    """Floats that all lie in [0, 1] times 255; 12-bit gray times 16; gray with white as 0 inverted.

    Raises StdacError for integers of 32 bits, or with a sign, that are not in [0, 65535].
    """
    if image.mode == "F":
        values = np.asarray(image)
        in_unit = np.fmax.reduce(values, None) <= 1 and np.fmin.reduce(values, None) >= 0
        return image.point(lambda v: v * 255) if in_unit else image
    if image.mode == "I":
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise StdacError(
                f"a TIFF of signed integers from {low:,} to {high:,} is not read, expected 0 to 65,535: save it with 8 "
                "or 16 bits, unsigned"
            )
    if image.mode == "La":
        return image.convert("LA")
    if image.mode == "I;16":
        tags = getattr(image, "tag_v2", {})
        if tags.get(BITS) == (12,):
            image = image.point(lambda v: v * 16)
        if tags.get(PHOTOMETRIC) == 0:
            image = image.point(lambda v: v * -1 + 65535)
    return image


def shrink_image(
    image: Image.Image, width: int, height: int, gray: bool, ground: int = 0
) -> tuple[Image.Image, tuple[int, int]]:
    """`_flatten`, and of a large picture the mean over blocks, no fewer than width by height; with the blocks' size."""
    factor = max(1, image.width // width), max(1, image.height // height)
    if factor == (1, 1) or image.width * image.height <= STRIP_PIXELS:
        return _flatten(image, gray, ground), (1, 1)
    rows = factor[1] * max(1, STRIP_PIXELS // (image.width * factor[1]))
    small = Image.new("L" if gray else "RGB", (-(-image.width // factor[0]), -(-image.height // factor[1])))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(_flatten(strip, gray, ground).reduce(factor), (0, top // factor[1]))
    return small, factor


def _flatten(image: Image.Image, gray: bool, ground: int) -> Image.Image:
    """8-bit gray or RGB, transparency laid on a gray level."""
    mode = "L" if gray else "RGB"
    if image.mode != mode or "transparency" in image.info:
        image = _to_eight_bit(image, ground) if image.mode in GRAY_MODES - {"LA"} else _to_opaque_rgb(image, ground)
    return image if image.mode == mode else image.convert(mode)


def _to_eight_bit(image: Image.Image, ground: int) -> Image.Image:
    """Gray of 1, 16 or 32 bits, or floats in [0, 255], as gray of 8 bits."""
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.rint(np.nan_to_num(np.asarray(image)).clip(0, 255)).astype(np.uint8))
    return image.convert("L") if "transparency" not in image.info else _to_opaque_rgb(image, ground)


def _to_opaque_rgb(image: Image.Image, ground: int) -> Image.Image:
    """RGB, transparency laid on a gray level."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (ground, ground, ground, 255)), rgba).convert("RGB")
    profile = image.info.get("icc_profile") if image.mode == "CMYK" else None
    transform = _cmyk_transform(profile) if isinstance(profile, bytes) else None
    if transform is not None:
        return transform.apply(image)
    return image.convert("RGB")


@lru_cache(maxsize=2)
def _cmyk_transform(profile: bytes) -> "ImageCms.ImageCmsTransform | None":
    """From CMYK by an ICC profile to sRGB; None where it is no such profile, or Pillow was built without Little CMS."""
    from PIL import ImageCms

    try:
        source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, target, "CMYK", "RGB")
    except (ImportError, OSError, ImageCms.PyCMSError):
        return None

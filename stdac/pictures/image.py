"""One picture, from its file or its bytes, as (C, H, W) uint8: upright, of the wanted size, however hostile it is."""

import os
import stat
from io import BytesIO
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from stdac.errors import StdacError
from stdac.pictures.colour import GRAY_MODES, choose_ground, shrink_image, spread_values
from stdac.pictures.formats import FORMATS
from stdac.pictures.pixels import MAX_PIXELS, Pixels, resize_image, to_planes
from stdac.pictures.png import apply_transparent_value
from stdac.pictures.tiff import explain_unopened, prepare_tiff

T = TypeVar("T")

MAX_BYTES = 1 << 28
"""A picture of more bytes, or of more than MAX_PIXELS pixels, is refused before it is decoded."""

ROOM = 4
"""Fast, coarse shrinking stops at this many times the wanted size; the last, exact resize does the rest."""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS

MODES = {1: "L", 3: "RGB"}
SPECIAL_INFO = frozenset({"exif", "Raw profile type exif", "transparency"})
"""What a picture may come with that makes it other than its pixels."""

ORIENTATION = 274
"""Tag of EXIF."""

UPRIGHT_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation to what undoes it; 5 and above swap height and width."""


def read_file(path: str | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file, and what the system says of it. Raises OSError, and StdacError for what else it is.

    Pipes, sockets and devices are not opened; a file of more than MAX_BYTES is not read.
    """
    check_regular(os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        check_regular(about)
        data = os.read(descriptor, about.st_size + 1)
        while len(data) < about.st_size and (more := os.read(descriptor, about.st_size - len(data))):
            data += more
    finally:
        os.close(descriptor)
    return data, about


def check_regular(about: os.stat_result) -> None:
    """Raise StdacError for what is not a regular file of at most MAX_BYTES."""
    if not stat.S_ISREG(about.st_mode):
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe, a socket or a device"
        raise StdacError(f"this is {what}, expected a picture file")
    if about.st_size > MAX_BYTES:
        raise StdacError(f"its {about.st_size:,} bytes are more than the {MAX_BYTES:,} that are read")


def read_image(
    picture: str | os.PathLike[str] | bytes,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    *,
    side: int | None = None,
    background: str = "black",
) -> Pixels:
    """Decode one picture: (C, H, W) uint8, its first frame, turned upright by its EXIF orientation.

    picture: a file's path, or its bytes. channels: 1 (gray), 3 (RGB), or None for what the file holds. size: (height,
    width) to resize to, antialiased; side: instead of it, the most pixels a side may have.

    16 bits are scaled to 8, floats taken as [0, 1] where all of them lie there and else as [0, 255]. Transparency is
    laid on `background`, see `stdac.pictures.colour.BACKGROUNDS`; black is what spatial transformers see beyond an
    image's border too. CMYK is converted by its ICC profile where it has one; other profiles are ignored. A JPEG is
    decoded at a half, quarter or eighth of its size where that leaves ROOM times the wanted one, and a picture of more
    than STRIP_PIXELS is averaged down to no less than that first: both differ slightly from one resize.

    Raises StdacError, in a few words after the path, for what is not a readable image of at most MAX_PIXELS pixels, and
    MemoryError.
    """
    try:
        data = picture if isinstance(picture, bytes) else read_file(picture)[0]
        return _decode(data, channels, size, side, background)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on hostile files
        name = "" if isinstance(picture, bytes) else f"{os.fspath(picture)}: "
        raise StdacError(name + _decoder_reason(error)) from error


def _decoder_reason(error: Exception) -> str:
    """Why a picture could not be decoded, in a few words."""
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not a readable image"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return "cut short"
    if isinstance(error, StdacError) or getattr(error, "errno", None):
        return text
    return f"damaged ({text.splitlines()[0][:100] if text else type(error).__name__})"


def _open(data: bytes) -> ImageFile:
    """A picture, not yet decoded. Raises what Pillow does, and StdacError for a TIFF of a kind that is not read."""
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if (refused := explain_unopened(data)) is not None:
            raise refused from None
        raise
    _check_size(image)
    if image.format == "TIFF":
        prepare_tiff(image)
        image.info.pop("xmp", None)  # or Pillow turns it by an orientation in there
    return image


def _decode(
    data: bytes, channels: int | None, size: tuple[int, int] | None, side: int | None, background: str
) -> Pixels:
    """`read_image` of bytes; raises whatever the decoders do."""
    image: Image.Image = _open(data)
    height, width = size or (side or MAX_PIXELS,) * 2
    drafted = (
        image.draft(None, _turn_sides(image, ROOM * width, ROOM * height)) if image.format in ("JPEG", "MPO") else None
    )
    image.load()
    is_wanted = image.size == (width, height) and channels is not None and image.mode == MODES[channels]
    if is_wanted and image.format != "TIFF" and SPECIAL_INFO.isdisjoint(image.info):  # as sets of small pictures are
        return to_planes(image.tobytes(), width, height)
    extent: tuple[float, float] = image.size if drafted is None else drafted[1][2:]
    if image.mode == "F" or image.format == "TIFF":
        image = spread_values(image)
    if image.format == "PNG" and "transparency" in image.info:
        image = apply_transparent_value(image, data)
    gray = channels == 1 or image.mode in GRAY_MODES
    ground = choose_ground(image, background)
    flat, factor = shrink_image(image, *_turn_sides(image, ROOM * width, ROOM * height), gray, ground)
    extent = extent[0] / factor[0], extent[1] / factor[1]  # the last row and column may be of smaller blocks
    if size is None and side is not None and max(extent) > side:
        width, height = (max(1, round(length * side / max(extent))) for length in _turn_sides(image, *extent))
        size = height, width
    if size is not None and flat.size != _turn_sides(image, width, height):
        flat = resize_image(flat, *_turn_sides(image, width, height), (0, 0, *extent))
    if (orientation := _orientation_of(image)) != 1:
        flat = flat.transpose(UPRIGHT_TURNS[orientation])
    planes = to_planes(flat.tobytes(), *flat.size)
    return np.repeat(planes, 3, 0) if gray and channels == 3 else planes


def read_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a picture turned upright, without decoding it. Raises whatever the decoders do."""
    image = _open(data)
    width, height = _turn_sides(image, *image.size)
    return height, width


def _check_size(image: Image.Image) -> None:
    """Raise StdacError for a picture, or a tile of a TIFF, of more than MAX_PIXELS pixels."""
    tags = getattr(image, "tag_v2", {})
    for width, height in (image.size, (tags.get(322, 1), tags.get(323, 1))):
        if width * height > MAX_PIXELS:
            raise StdacError(f"its {width} x {height} pixels are more than {MAX_PIXELS:,}")


def _orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, where there is one that can be read, else 1; TIFFs are turned as they are loaded.

    One in XMP does not count, as in browsers; Pillow's own `getexif` takes it where EXIF has none.
    """
    if "exif" not in image.info and "Raw profile type exif" not in image.info:
        return 1
    try:
        raw = image.info.get("exif")
        if raw is None:  # as older programs write it, in hexadecimal after three lines
            raw = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        exif = Image.Exif()
        exif.load(raw)
        orientation = exif.get(ORIENTATION)
    except Exception:  # noqa: BLE001  # a parser of hostile bytes; the picture itself may be sound
        return 1
    return orientation if orientation in UPRIGHT_TURNS else 1


def _turn_sides(image: Image.Image, width: T, height: T) -> tuple[T, T]:
    """A width and height of the upright picture as they are in the file, or the other way round."""
    return (height, width) if _orientation_of(image) >= 5 else (width, height)

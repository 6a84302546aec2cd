"""Pictures from files, as uint8 arrays: folders, .npz, .npy, IDX. No torch: batch clustering uses it too."""

import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stdac.errors import StdacError

if TYPE_CHECKING:
    from PIL import ImageCms

Pixels = NDArray[np.uint8]

T = TypeVar("T")

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"})
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""What a file's first bytes may say it is; Pillow's other decoders, some of which start programs, are never tried."""

GRAY_MODES = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 28
"""A picture of more pixels or bytes is refused before it is decoded."""

STRIP_PIXELS = 1 << 22
"""Pictures of more pixels are made smaller in strips of about so many, as conversions take several times the memory."""

ENOUGH = 4
"""How many times the wanted size leaves the last resize room to be precise."""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS

MODES = {1: "L", 3: "RGB"}
SPECIAL = frozenset({"exif", "Raw profile type exif", "transparency"})
"""What a picture may come with that makes it other than its pixels."""

ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262
"""Tags of EXIF and TIFF."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation to what undoes it; 5 and above swap height and width."""


def walk(folder: str) -> Iterator[str]:
    """The image files below a folder, by suffix, sorted by name within each folder; the names of one are in memory.

    Hidden ones are left out, links to folders not followed. A folder that cannot be listed is yielded with a slash at
    its end.
    """
    waiting = [(folder, list_reversed(folder))]
    while waiting:
        path, names = waiting[-1]
        if names is None:
            yield path + "/"
        if not names:
            waiting.pop()
            continue
        name = names.pop()
        below = os.path.join(path, name.rstrip("/"))  # noqa: PTH118  # a Path for each of a million would cost
        if name.endswith("/"):
            waiting.append((below, list_reversed(below)))
        else:
            yield below


def list_reversed(folder: str) -> list[str] | None:
    """The wanted names in a folder, last one first, sub-folders with a slash at the end; None where it is closed."""
    try:
        with os.scandir(folder) as entries:
            names = [name for name in map(wanted_name, entries) if name]
    except OSError:
        return None
    names.sort(key=lambda name: name.rstrip("/"), reverse=True)
    return names


def wanted_name(entry: os.DirEntry[str]) -> str | None:
    """The name of a visible folder, with a slash, or of a visible file, or link to one, with an image's suffix."""
    name = entry.name
    if name.startswith("."):
        return None
    if entry.is_dir(follow_symlinks=False):
        return name + "/"
    if name[name.rfind(".") :].lower() not in SUFFIXES:
        return None
    if entry.is_symlink():
        return name if os.path.isfile(entry.path) else None  # noqa: PTH113  # Path.is_file raises where a folder is closed
    return name if entry.is_file() else None


def find_images(folder: Path) -> list[Path]:
    """The image files below a folder, those of `walk`. Raises StdacError where a part of it cannot be listed."""
    paths = list(walk(str(folder)))
    closed = next((path for path in paths if path.endswith("/")), None)
    if closed is not None:
        raise StdacError(f"{closed}: this folder cannot be listed")
    return [Path(path) for path in paths]


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
) -> Pixels:
    """Decode one picture: (C, H, W) uint8, its first frame, turned upright by its EXIF orientation.

    picture: a file's path, or its bytes. channels: 1 (gray), 3 (RGB), or None for what the file holds. size: (height,
    width) to resize to, antialiased; side: instead of it, the most pixels a side may have.

    16 bits are scaled to 8, floats taken as [0, 1] where all of them lie there and else as [0, 255]. Transparency is
    laid on black, the value that spatial transformers see beyond an image's border too. CMYK is converted by its ICC
    profile where it has one; other profiles are ignored. A JPEG is decoded at a half, quarter or eighth of its size
    where that leaves ENOUGH times the wanted one, and a picture of more than STRIP_PIXELS is averaged down to no less
    than that first: both differ slightly from one resize. Raises StdacError, in a few words after the path, for what is
    not a readable image of at most MAX_PIXELS pixels, and MemoryError.
    """
    try:
        data = picture if isinstance(picture, bytes) else read_file(picture)[0]
        return decode(data, channels, size, side)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on hostile files
        name = "" if isinstance(picture, bytes) else f"{os.fspath(picture)}: "
        raise StdacError(name + decoder_reason(error)) from error


def decoder_reason(error: Exception) -> str:
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


def decode(data: bytes, channels: int | None, size: tuple[int, int] | None, side: int | None) -> Pixels:
    """`read_image` of bytes; raises whatever the decoders do."""
    image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
    check_size(image)
    height, width = size or (side or MAX_PIXELS,) * 2
    drafted = (
        image.draft(None, turned(image, ENOUGH * width, ENOUGH * height)) if image.format in ("JPEG", "MPO") else None
    )
    image.load()
    is_wanted = image.size == (width, height) and channels is not None and image.mode == MODES[channels]
    if is_wanted and image.format != "TIFF" and SPECIAL.isdisjoint(image.info):  # as sets of small pictures are
        return as_planes(image.tobytes(), width, height)
    extent: tuple[float, float] = image.size if drafted is None else drafted[1][2:]
    if image.mode == "F" or image.format == "TIFF":
        image = spread(image)
    gray = channels == 1 or image.mode in GRAY_MODES
    flat, factor = shrink(image, *turned(image, ENOUGH * width, ENOUGH * height), gray)
    extent = extent[0] / factor[0], extent[1] / factor[1]  # the last row and column may be of smaller blocks
    if size is None and side is not None and max(extent) > side:
        width, height = (max(1, round(length * side / max(extent))) for length in turned(image, *extent))
        size = height, width
    if size is not None and flat.size != turned(image, width, height):
        flat = resized(flat, *turned(image, width, height), (0, 0, *extent))
    if (orientation := orientation_of(image)) != 1:
        flat = flat.transpose(UPRIGHT[orientation])
    planes = as_planes(flat.tobytes(), *flat.size)
    return np.repeat(planes, 3, 0) if gray and channels == 3 else planes


def as_planes(data: bytes, width: int, height: int) -> Pixels:
    """The bytes of a gray or RGB picture, (C, H, W) uint8."""
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, -1)
    return pixels.reshape(1, height, width) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def check_size(image: Image.Image) -> None:
    """Raise StdacError for a picture, or a tile of a TIFF, of more than MAX_PIXELS pixels."""
    tags = getattr(image, "tag_v2", {})
    for width, height in (image.size, (tags.get(322, 1), tags.get(323, 1))):
        if width * height > MAX_PIXELS:
            raise StdacError(f"its {width} x {height} pixels are more than {MAX_PIXELS:,}")


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, where there is one that can be read, else 1; TIFFs are turned as they are loaded."""
    if "exif" not in image.info and "Raw profile type exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # noqa: BLE001  # a parser of hostile bytes; the picture itself may be sound
        return 1
    return orientation if orientation in UPRIGHT else 1


def turned(image: Image.Image, width: T, height: T) -> tuple[T, T]:
    """A width and height of the upright picture as they are in the file, or the other way round."""
    return (height, width) if orientation_of(image) >= 5 else (width, height)


def spread(image: Image.Image) -> Image.Image:
    """Floats of which none is above 1 times 255; 12-bit gray times 16; gray with white as 0 inverted."""
    if image.mode == "F":
        return image.point(lambda v: v * 255) if np.fmax.reduce(np.asarray(image), None) <= 1 else image
    if image.mode == "I;16":
        tags = getattr(image, "tag_v2", {})
        if tags.get(BITS) == (12,):
            image = image.point(lambda v: v * 16)
        if tags.get(PHOTOMETRIC) == 0:
            image = image.point(lambda v: v * -1 + 65535)
    return image


def shrink(image: Image.Image, width: int, height: int, gray: bool) -> tuple[Image.Image, tuple[int, int]]:
    """`flatten`, and of a large picture the mean over blocks, no fewer than width by height; with the blocks' size."""
    factor = max(1, image.width // width), max(1, image.height // height)
    if factor == (1, 1) or image.width * image.height <= STRIP_PIXELS:
        return flatten(image, gray), (1, 1)
    rows = factor[1] * max(1, STRIP_PIXELS // (image.width * factor[1]))
    small = Image.new("L" if gray else "RGB", (-(-image.width // factor[0]), -(-image.height // factor[1])))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(flatten(strip, gray).reduce(factor), (0, top // factor[1]))
    return small, factor


def flatten(image: Image.Image, gray: bool) -> Image.Image:
    """8-bit gray or RGB."""
    mode = "L" if gray else "RGB"
    if image.mode != mode or "transparency" in image.info:
        image = eight_bit(image) if image.mode in GRAY_MODES - {"LA"} else opaque_rgb(image)
    return image if image.mode == mode else image.convert(mode)


def eight_bit(image: Image.Image) -> Image.Image:
    """Gray of 1, 16 or 32 bits, or floats in [0, 255], as gray of 8 bits."""
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.rint(np.nan_to_num(np.asarray(image)).clip(0, 255)).astype(np.uint8))
    return image.convert("L") if "transparency" not in image.info else opaque_rgb(image)


def opaque_rgb(image: Image.Image) -> Image.Image:
    """RGB, transparency laid on black."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    profile = image.info.get("icc_profile") if image.mode == "CMYK" else None
    transform = cmyk_transform(profile) if isinstance(profile, bytes) else None
    if transform is not None:
        return transform.apply(image)
    return image.convert("RGB")


@lru_cache(maxsize=2)
def cmyk_transform(profile: bytes) -> "ImageCms.ImageCmsTransform | None":
    """From CMYK by an ICC profile to sRGB; None where it is no such profile, or Pillow was built without Little CMS."""
    from PIL import ImageCms

    try:
        source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, target, "CMYK", "RGB")
    except (ImportError, OSError, ImageCms.PyCMSError):
        return None


def resized(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """The picture, or the box (left, top, right, bottom) of it: means where it shrinks on both sides, else linear."""
    shrinks = image.width >= width and image.height >= height
    return image.resize((width, height), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR, box)


def resize(images: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (N, C, H, W) uint8 to (height, width), each channel as `read_image` does."""
    if images.shape[2:] == size:
        return images
    out = np.empty((*images.shape[:2], *size), dtype=np.uint8)
    for i, image in enumerate(images):
        for c, plane in enumerate(image):
            out[i, c] = np.asarray(resized(Image.fromarray(plane), size[1], size[0]))
    return out


def read_folder(
    folder: Path, size: tuple[int, int] | None = None
) -> tuple[Pixels, NDArray[np.int64] | None, list[str]]:
    """A folder of pictures: images (N, C, H, W) uint8, labels, class names.

    Where every picture lies in a sub-folder, its name is the picture's class; else labels are None. RGB as soon as one
    picture is in colour. Raises StdacError for a folder without images, a broken image, or mixed sizes without `size`.
    """
    paths = find_images(folder)
    if not paths:
        raise StdacError(f"{folder} holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}")
    images = [read_image(path, size=size) for path in paths]
    first = images[0].shape[1:]
    odd = next((p for p, x in zip(paths, images, strict=True) if x.shape[1:] != first), None)
    if odd is not None:
        other = images[paths.index(odd)].shape[1:]
        raise StdacError(
            f"{folder} holds images of mixed sizes, {paths[0].name} has {first[0]}x{first[1]} pixels and {odd.name} "
            f"{other[0]}x{other[1]}: pass an image size to bring all to one (--image-size 28)"
        )
    channels = max(x.shape[0] for x in images)
    pixels = np.stack([np.repeat(x, channels, 0) if x.shape[0] < channels else x for x in images])
    return pixels, *folder_labels(folder, paths)


def folder_labels(folder: Path, paths: Sequence[Path]) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Classes by first-level sub-folder, if every picture lies in one and there are at least two."""
    parts = [path.relative_to(folder).parts for path in paths]
    if any(len(p) < 2 for p in parts):
        return None, []
    names = sorted({p[0] for p in parts})
    if len(names) < 2:
        return None, []
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[p[0]] for p in parts], dtype=np.int64), names


IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: Path) -> NDArray[np.generic]:
    """An IDX file (the format of MNIST), gzipped or not. Raises StdacError where it is not one or is cut short."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise StdacError(f"{path}: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES or not 1 <= data[3] <= 4:
        raise StdacError(f"{path} is not an IDX file: its first bytes are {data[:4].hex()}")
    ndim, dtype = data[3], np.dtype(IDX_TYPES[data[2]])
    shape = tuple(int(n) for n in np.frombuffer(data[4 : 4 + 4 * ndim], ">u4")) if len(data) >= 4 + 4 * ndim else ()
    expected = 4 + 4 * ndim + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(shape) != ndim or len(data) != expected:
        raise StdacError(f"{path} is cut short or damaged: it has {len(data)} bytes, its header says {expected}")
    return np.frombuffer(data, dtype, offset=4 + 4 * ndim).reshape(shape)


def read_arrays(path: Path) -> tuple[Pixels, NDArray[np.int64] | None]:
    """Images and labels of an .npz, .npy or IDX file: (N, C, H, W) uint8 and (N,) int64 or None.

    An .npz holds "images" (or "x") and, if it likes, "labels" (or "y"). Beside an IDX file named …images-idx3…, one
    named …labels-idx1… is taken as its labels. Raises StdacError for what cannot be understood.
    """
    if path.suffix not in (".npz", ".npy"):
        pixels = as_pixels(read_idx(path), path)
        return pixels, idx_labels(path, len(pixels))
    try:
        images, labels = read_numpy(path)
    except (OSError, ValueError, EOFError, MemoryError, BadZipFile, zlib.error) as error:
        raise StdacError(f"{path} is not a plain NumPy file: {str(error).split('. ')[0]}") from error
    pixels = as_pixels(images, path)
    return pixels, None if labels is None else as_labels(labels, len(pixels), path)


def read_numpy(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    """Images and labels as an .npz or .npy file has them; what it is, its content tells. Nothing is unpickled."""
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded, None
    with loaded:
        images, labels = first_of(loaded.files, ("images", "x")), first_of(loaded.files, ("labels", "y"))
        if images is None:
            raise StdacError(
                f"{path} holds {', '.join(loaded.files) or 'nothing'}, expected an array named images (or x)"
            )
        return loaded[images], None if labels is None else loaded[labels]


def first_of(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The first wanted name that is there."""
    there = set(names)
    return next((name for name in wanted if name in there), None)


def idx_labels(path: Path, n: int) -> NDArray[np.int64] | None:
    """The n labels beside an IDX file of images, or None."""
    if "images-idx3" not in path.name:
        return None
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if not beside.exists():
        return None
    return as_labels(read_idx(beside), n, beside)


def as_labels(labels: NDArray[np.generic], n: int, source: object) -> NDArray[np.int64]:
    """(N,) int64 from integers of any width. Raises StdacError for another shape, type or length."""
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise StdacError(f"{source} has labels of shape {labels.shape} and type {labels.dtype}, expected (N,) integers")
    if len(labels) != n:
        raise StdacError(f"{source} has {n} images but {len(labels)} labels: expected one label an image")
    return labels.astype(np.int64)


def as_pixels(images: NDArray[np.generic], source: object) -> Pixels:
    """(N, C, H, W) uint8 from (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels.

    uint8 is taken as it is. Raises StdacError for other shapes and types: floats have no agreed range.
    """
    check_pixels(images.shape, images.dtype, source)
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    channels_last = images.shape[1] not in (1, 3)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if channels_last else images)


def check_pixels(shape: tuple[int, ...], dtype: np.dtype[np.generic], source: object) -> None:
    """Raise StdacError for what `as_pixels` does not take."""
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

"""Pictures from files, as uint8 arrays: folders, .npz, .npy, IDX. No torch: batch clustering uses it too."""

import gzip
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stdac.errors import StdacError

Pixels = NDArray[np.uint8]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"})
GRAY_MODES = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
Image.MAX_IMAGE_PIXELS = 100_000_000


def find_images(folder: Path) -> list[Path]:
    """The image files below a folder, by suffix, hidden ones left out, in a stable order."""
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted(p for p in paths if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_image(path: Path, channels: int | None = None, size: tuple[int, int] | None = None) -> Pixels:
    """Decode one picture: (C, H, W) uint8, its first frame, turned upright by its EXIF orientation.

    channels: 1 (gray), 3 (RGB), or None for what the file holds. size: (height, width) to resize to, antialiased.
    16-bit gray is scaled to 8; transparency is laid on black. Raises StdacError for what is not a readable image.
    """
    try:
        with Image.open(path) as image:
            image.seek(0)
            upright = ImageOps.exif_transpose(image)
            flat = to_gray(upright) if (channels or channels_of(image)) == 1 else to_rgb(upright)
            if size is not None and flat.size != (size[1], size[0]):
                flat = flat.resize(
                    (size[1], size[0]), Image.Resampling.BOX if shrinks(flat, size) else Image.Resampling.BILINEAR
                )
            pixels = np.asarray(flat, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError, EOFError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not a readable image" if unknown else getattr(error, "strerror", None) or str(error)
        raise StdacError(f"{path}: {reason}") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def shrinks(image: Image.Image, size: tuple[int, int]) -> bool:
    """Whether a resize to (height, width) makes the picture smaller on both sides."""
    return image.size[0] >= size[1] and image.size[1] >= size[0]


def channels_of(image: Image.Image) -> int:
    """1 for gray pictures, 3 for all others."""
    return 1 if image.mode in GRAY_MODES else 3


def to_gray(image: Image.Image) -> Image.Image:
    """8-bit gray; 16-bit values are scaled, floats must lie in [0, 255]."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8))
    return on_black(image).convert("L")


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB."""
    return to_gray(image).convert("RGB") if image.mode in GRAY_MODES else on_black(image).convert("RGB")


def on_black(image: Image.Image) -> Image.Image:
    """The picture without transparency, laid on black; others unchanged."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")


def resize(images: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (N, C, H, W) uint8 to (height, width), each channel as `read_image` does."""
    if images.shape[2:] == size:
        return images
    out = np.empty((*images.shape[:2], *size), dtype=np.uint8)
    for i, image in enumerate(images):
        for c, plane in enumerate(image):
            picture = Image.fromarray(plane)
            how = Image.Resampling.BOX if shrinks(picture, size) else Image.Resampling.BILINEAR
            out[i, c] = np.asarray(picture.resize((size[1], size[0]), how))
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
    if images.dtype != np.uint8:
        raise StdacError(
            f"{source} has images of type {images.dtype}, expected uint8 with values 0 to 255: scale and round them"
        )
    if images.size == 0:
        raise StdacError(f"{source} holds no images: its shape is {images.shape}")
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return np.ascontiguousarray(images)
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise StdacError(
        f"{source} has images of shape {images.shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3"
    )

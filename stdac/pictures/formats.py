"""Which picture formats are read, and how their files are known: by suffix, or by their first bytes."""

import os
import re
from contextlib import suppress
from importlib import import_module

from PIL import Image

_SUFFIXES = {
    "PNG": ".png .apng",
    "JPEG": ".jpg .jpeg .jpe .jfif .jif .jfi .mpo",
    "WEBP": ".webp",
    "TIFF": ".tif .tiff",
    "BMP": ".bmp",
    "DIB": ".dib",
    "GIF": ".gif",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "JPEG2000": ".jp2 .j2k .j2c .jpc .jpf .jpx",
    "AVIF": ".avif .avifs",
}


def _find_formats() -> tuple[str, ...]:
    """Those of _SUFFIXES that this Pillow reads: AVIF came with 11.3."""
    Image.preinit()
    for plugin in ("WebP", "Tiff", "Jpeg2K", "Avif"):
        with suppress(ImportError):
            import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in _SUFFIXES if name in Image.OPEN)


FORMATS = _find_formats()
"""What a file's first bytes may say it is; Pillow's other decoders, some of which start programs, are never tried."""

SUFFIXES = frozenset(suffix for name in FORMATS for suffix in _SUFFIXES[name].split())

SUFFIX = re.compile(r"\.(?=[^.]*[a-z])[a-z0-9]{1,9}", re.ASCII)
"""A dot and letters end a name: what follows the dot of `2024.05` or of `a.jpg?width=300` is no suffix."""

MAGIC = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0"
    rb"|P[1-6]\s+[#0-9]|P[Ff]\s+[#0-9]|\0\0\0\x0cjP  |\xff\x4f\xff\x51|.{4}ftypavi[fs]",
    re.DOTALL,
)
"""How the files of FORMATS begin; a .dib begins with nothing of its own."""


def find_suffix(name: str) -> str:
    """The suffix of a file's name in small letters, with its dot; "" for none."""
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    return suffix if suffix in SUFFIXES or SUFFIX.fullmatch(suffix) else ""


def is_picture(path: str) -> bool:
    """Whether a regular file is a picture by its suffix, or without one by its first bytes."""
    suffix = find_suffix(os.path.basename(path))  # noqa: PTH119  # a Path for each of a million would cost
    return suffix in SUFFIXES or (not suffix and _begins_as_picture(path))


def _begins_as_picture(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    try:
        return MAGIC.match(os.read(descriptor, 32)) is not None
    except OSError:
        return False
    finally:
        os.close(descriptor)

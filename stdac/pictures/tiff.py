"""Which kinds of TIFF are read: Pillow opens some that it gets wrong, and says nothing of others."""

from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any

from PIL.ImageFile import ImageFile

from stdac.errors import StdacError

BITS, PHOTOMETRIC, SAMPLES, PLANAR, EXTRA, SAMPLE_FORMAT = 258, 262, 277, 284, 338, 339
"""Tags."""

WHITE_IS_ZERO, PLANES, ALPHA = 0, 2, 2
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
FORMAT_NAMES = {UNSIGNED: "unsigned integers", SIGNED: "signed integers", FLOAT: "floats"}

IN_PLANES = frozenset({"RGB", "RGBA", "CMYK"})
"""Modes that are read where each of their channels of 8 bits is stored apart."""


def prepare_tiff(image: ImageFile) -> None:
    """See to a TIFF that is open and not yet loaded. Raises StdacError for a kind that Pillow would read wrong."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits, kind = set(tags.get(BITS, (1,))), set(tags.get(SAMPLE_FORMAT, (UNSIGNED,)))
    in_planes = tags.get(PLANAR) == PLANES and tags.get(SAMPLES, 1) > 1
    if (
        (in_planes and (bits != {8} or image.mode not in IN_PLANES or tags.get(EXTRA, (ALPHA,)) != (ALPHA,)))
        or (bits == {32} and kind == {UNSIGNED})
        or (bits == {8} and kind != {UNSIGNED})
        or (kind == {FLOAT} and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO)
    ):
        raise refuse_tiff(tags)
    for i, (decoder, extents, offset, args) in enumerate(image.tile):
        if decoder == "libtiff" and isinstance(args, tuple) and args[0] in NATIVE:  # its bytes are swapped already
            image.tile[i] = type(image.tile[i])(decoder, extents, offset, (NATIVE[args[0]], *args[1:]))


NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}
"""Pillow's names for values in big endian, and in the order of this machine."""


def explain_unopened(data: bytes) -> StdacError | None:
    """Why a file that Pillow does not know is not read, where it is a TIFF; None for another one."""
    from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2

    if not data.startswith(tuple(PREFIXES)):
        return None
    with suppress(Exception):  # a parser of hostile bytes
        tags = ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" or data[3:4] == b"+" else data[:8])
        file = BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        if BITS in tags:
            return refuse_tiff(tags)
    return None


def refuse_tiff(tags: Mapping[int, Any]) -> StdacError:
    """The error for a TIFF of a kind that is not read."""
    bits = sorted({int(b) for b in tags.get(BITS, (1,))})
    kinds = sorted({int(kind) for kind in tags.get(SAMPLE_FORMAT, (UNSIGNED,))})
    values = " or ".join(FORMAT_NAMES.get(kind, f"values of format {kind}") for kind in kinds)
    samples = int(tags.get(SAMPLES, 1))
    parts = [
        f"{'/'.join(map(str, bits))}-bit {values}",
        f"{samples} sample{'' if samples == 1 else 's'} a pixel",
        "in separate planes" if tags.get(PLANAR) == PLANES and samples > 1 else "",
        "white as 0" if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else "",
    ]
    return StdacError(
        f"this kind of TIFF is not read ({', '.join(filter(None, parts))}): save it with 8 bits a sample, or as PNG"
    )

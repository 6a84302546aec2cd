"""The pixels, labels and class names that small data sets of every kind give: trials resume by their fingerprints."""

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stdac.data import load


def idx(array: NDArray[np.uint8]) -> bytes:
    """An array as an IDX file's bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def ramp(*shape: int, step: int = 7) -> NDArray[np.uint8]:
    """Values that are all over the range, the same everywhere."""
    return (np.arange(np.prod(shape)) * step % 251).astype(np.uint8).reshape(shape)


def png(pixels: NDArray[np.uint8], orientation: int = 1) -> bytes:
    """A picture as a PNG file's bytes, with an EXIF orientation."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "PNG", exif=exif if orientation > 1 else None)
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Files by path."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


LABELS = np.array([3, 10, -2, 10, 3, 0, 1], np.int16)


def build(folder: Path) -> None:
    """Data sets of every kind, in files whose pixels do not depend on the version of a library."""
    gray, rgb = ramp(7, 9, 8), ramp(7, 6, 5, 3)
    mixed = {
        "b/2.png": png(ramp(12, 10)),
        "b/10.png": png(ramp(12, 10, 3, step=11)),
        "a/deep/1.PNG": png(ramp(10, 12, step=13), orientation=6),
        "C, größe/x.bmp": png(ramp(12, 10, step=17)),
        "b/.hidden.png": b"not read",
        "b/notes.txt": b"not read",
    }
    write(folder / "mixed", mixed)
    flat = {"b.png": png(ramp(9, 9)), "a.png": png(ramp(9, 9, step=3)), "sub/c.png": png(ramp(9, 9, step=5))}
    write(folder / "flat", flat)
    sizes = {"a/1.png": png(ramp(30, 20)), "b/1.png": png(ramp(20, 40, 3)), "b/2.png": png(ramp(5, 6))}
    write(folder / "sizes", sizes)
    write(folder / "many", {f"{9 + i % 3}/{i:03}.png": png(ramp(6, 6, step=i + 1)) for i in range(300)})
    np.savez_compressed(folder / "gray.npz", images=gray, labels=LABELS)
    np.savez(folder / "rgb.npz", x=rgb, y=LABELS > 3)
    np.save(folder / "first.npy", rgb.transpose(0, 3, 1, 2))
    np.save(folder / "fortran.npy", np.asfortranarray(rgb))
    (folder / "train-images-idx3-ubyte").write_bytes(idx(gray))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(ramp(7, step=100)))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(ramp(300, 9, 8))))


PINNED: dict[str, tuple[str, dict[str, Any], str, list[int] | None, tuple[str, ...]]] = {
    "mixed": (
        "mixed",
        {},
        "9119a0fe59104c1f2f7cc6a3844fccfff5bcff10d279d87f1bc96384dd5d84cb",
        [0, 1, 2, 2],
        ("C, größe", "a", "b"),
    ),
    "mixed resized": (
        "mixed",
        {"image_size": 8},
        "7e2afb26e014e9194d917e8fdf93c4aebaf01d88341a9eb6f8d8489db1a03bf3",
        [0, 1, 2, 2],
        ("C, größe", "a", "b"),
    ),
    "flat": ("flat", {}, "35a5b2e2be38cafcdfa4abf80189bc53a4adc29c69b4a9c599e2a463ba8b4920", None, ()),
    "sizes": (
        "sizes",
        {"image_size": 11},
        "85f3bd824a6651f267d495d51aba9350a46a09b84aecc9ca30e1f5bddaaa6e70",
        [0, 1, 1],
        ("a", "b"),
    ),
    "sizes larger": (
        "sizes",
        {"image_size": 33},
        "948d4dca6f02bb54fa7b4d13dad281caffcf08f9947fb7763331debfc807a39a",
        [0, 1, 1],
        ("a", "b"),
    ),
    "many": (
        "many",
        {"limit": 20},
        "592de431d9f63200bafb580fff30442ea5358c9f0ec079b0f500a44a8ae42186",
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2],
        ("10", "11", "9"),
    ),
    "gray npz": (
        "gray.npz",
        {},
        "577305e30a342d5c6ee58e997a28539338c228cb11344918c32027d4d4e213dc",
        [3, 10, -2, 10, 3, 0, 1],
        (),
    ),
    "gray npz resized": (
        "gray.npz",
        {"image_size": 5},
        "86ab403f0aee236a4315d140d808da1f6f30a19ec7f7aa0508bab55840db4cbd",
        [3, 10, -2, 10, 3, 0, 1],
        (),
    ),
    "rgb npz": (
        "rgb.npz",
        {},
        "8a931f9455b081d943871443b201dba1933abfa468196ec2434627bc34b40506",
        [0, 1, 0, 1, 0, 0, 0],
        (),
    ),
    "rgb npz larger": (
        "rgb.npz",
        {"image_size": 13, "limit": 4},
        "8ce407ed0cc7317fa5f64b5f02a9141d6224dbade3bc57137ecd375625c3a7eb",
        [0, 0, 0, 0],
        (),
    ),
    "npy": ("first.npy", {}, "8a931f9455b081d943871443b201dba1933abfa468196ec2434627bc34b40506", None, ()),
    "fortran npy": ("fortran.npy", {}, "8a931f9455b081d943871443b201dba1933abfa468196ec2434627bc34b40506", None, ()),
    "idx": (
        "train-images-idx3-ubyte",
        {},
        "577305e30a342d5c6ee58e997a28539338c228cb11344918c32027d4d4e213dc",
        [0, 100, 200, 49, 149, 249, 98],
        (),
    ),
    "idx gz": (
        "t10k-images-idx3-ubyte.gz",
        {},
        "b76dbcc3650d791c7941f4b57c9c55959eed38d6cc2ab4b9f99b503f02b87c0a",
        None,
        (),
    ),
    "idx gz limit": (
        "t10k-images-idx3-ubyte.gz",
        {"limit": 30, "image_size": 20},
        "a7e53560d144b9b10858c90b955471b39dd67b3ab5ad257af619bb80731ab638",
        None,
        (),
    ),
}


@pytest.mark.parametrize("case", PINNED)
def test_a_data_set_is_what_it_always_was(tmp_path: Path, case: str) -> None:
    name, options, fingerprint, labels, class_names = PINNED[case]
    build(tmp_path)
    dataset = load(str(tmp_path / name), **options)
    assert dataset.fingerprint == fingerprint
    assert (None if dataset.labels is None else dataset.labels.tolist()) == labels
    assert dataset.labels is None or dataset.labels.dtype == np.int64
    assert dataset.class_names == class_names

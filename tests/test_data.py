"""Data sets by name, folder and file; whatever is wrong with one is told in one sentence."""

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

import stdac.pictures.decode
from cluster_jobs.commands.train import train_command
from stdac.data import NAMES, Dataset, load
from stdac.errors import StdacError
from stdac.pictures.batches import Batch

TORCHVISION_DIR = Path(os.environ.get("STDAC_DATA") or Path(__file__).parents[2] / "shared" / "data")
IMAGES = np.arange(5 * 8 * 6, dtype=np.uint8).reshape(5, 8, 6)
LABELS = np.array([0, 1, 2, 1, 0], dtype=np.uint8)


def idx(array: NDArray[Any], code: int = 8) -> bytes:
    """An array as an IDX file's bytes."""
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def npy(array: NDArray[Any]) -> bytes:
    """An array as an .npy file's bytes."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: NDArray[Any]) -> bytes:
    """Arrays as an .npz file's bytes."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=True, **arrays)
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    """Files as a zip archive's bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    """Files as a tar archive's bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def parquet(**columns: list[Any]) -> bytes:
    """Columns as a Parquet file's bytes."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture as a PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def save_picture(path: Path, height: int = 10, width: int = 12, mode: str = "L", value: int = 100) -> None:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), value if mode == "L" else (value, 0, 0)).save(path)


def fill(folder: Path, *names: str) -> None:
    """Pictures of more than one colour."""
    for name, image in zip(names, [*IMAGES] * 9, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(image))


# --- by name


def test_digits_are_1797_images_of_28_by_28() -> None:
    digits = load("digits")
    assert digits.images.shape == (1797, 1, 28, 28) and digits.images.dtype == np.uint8
    assert digits.images.min() == 0 and digits.images.max() == 255
    assert digits.labels is not None and digits.labels.dtype == np.int64 and set(digits.labels) == set(range(10))
    assert digits.class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("name", "folder", "mean", "counts"),
    [
        ("mnist", "MNIST", 0.13093, [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]),
        ("fashion-mnist", "FashionMNIST", 0.28616, [7000] * 10),
    ],
)
def test_torchvision_sets_are_train_and_test_together(name: str, folder: str, mean: float, counts: list[int]) -> None:
    if not (TORCHVISION_DIR / folder / "raw").is_dir():
        pytest.skip(f"no {folder} in {TORCHVISION_DIR}: set STDAC_DATA to a folder in torchvision's layout")
    dataset = load(name, data_dir=TORCHVISION_DIR)
    assert dataset.images.shape == (70_000, 1, 28, 28) and dataset.images.dtype == np.uint8
    assert dataset.images.mean() / 255 == pytest.approx(mean, abs=1e-5)
    assert dataset.labels is not None and np.bincount(dataset.labels).tolist() == counts


def test_an_unknown_name_is_told_the_valid_ones() -> None:
    with pytest.raises(StdacError, match=f"no data set minst here.*{', '.join(NAMES)}"):
        load("minst")


def test_image_size_resizes_every_image() -> None:
    assert load("digits", image_size=16).images.shape == (1797, 1, 16, 16)


# --- a fixed subset


def test_limit_is_a_fixed_subset_that_mixes_the_classes() -> None:
    few, again, all_of_it = load("digits", limit=200), load("digits", limit=200), load("digits")
    assert few.labels is not None and all_of_it.labels is not None
    assert few.fingerprint == again.fingerprint
    assert np.bincount(few.labels, minlength=10).min() >= 5
    rows = {image.tobytes(): label for image, label in zip(all_of_it.images, all_of_it.labels, strict=True)}
    assert all(rows[x.tobytes()] == label for x, label in zip(few.images, few.labels, strict=True))
    assert len(load("digits", limit=5000).images) == 1797


def test_a_smaller_limit_is_part_of_a_larger_one() -> None:
    small, large = ({x.tobytes() for x in load("digits", limit=n).images} for n in (100, 300))
    assert small <= large


def test_fingerprint_tells_pixels_and_shape_but_not_labels() -> None:
    x = IMAGES[:, None]
    changed = x.copy()
    changed[0, 0, 0, 0] ^= 1
    assert Dataset(x, None).fingerprint == Dataset(x.copy(), LABELS.astype(np.int64)).fingerprint
    others = {Dataset(y, None).fingerprint for y in (x, changed, x[::-1], x.transpose(0, 1, 3, 2))}
    assert len(others) == 4 and len({Dataset(x.reshape(5, 1, 6, 8), None).fingerprint} | others) == 5


# --- folders


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/deep/2.PNG", "dog, old/3.bmp"):
        save_picture(tmp_path / name)
    dataset = load(str(tmp_path))
    assert dataset.images.shape == (3, 1, 10, 12)
    assert dataset.labels is not None and dataset.labels.tolist() == [0, 0, 1]
    assert dataset.class_names == ("cat", "dog, old")


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "b" / "c.png")
    assert load(str(tmp_path)).labels is None


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png", ".checkpoints/3.png", "a/._1.png"):
        save_picture(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    assert load(str(tmp_path)).class_names == ("a", "b")
    assert len(load(str(tmp_path)).images) == 2


def test_one_picture_in_colour_makes_all_rgb(tmp_path: Path) -> None:
    save_picture(tmp_path / "gray.png", value=7)
    save_picture(tmp_path / "red.png", mode="RGB", value=9)
    images = load(str(tmp_path)).images
    assert images.shape == (2, 3, 10, 12)
    assert images[:, :, 0, 0].tolist() == [[7, 7, 7], [9, 0, 0]]


def test_mixed_sizes_are_an_error_that_an_image_size_cures(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", 10, 12)
    save_picture(tmp_path / "b.png", 20, 22)
    with pytest.raises(StdacError, match=r"mixed sizes, a\.png has 10x12 pixels and b\.png 20x22.*--image-size"):
        load(str(tmp_path))
    assert load(str(tmp_path), image_size=16).images.shape == (2, 1, 16, 16)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_broken_picture_is_left_out_counted_and_named(tmp_path: Path, content: bytes | None) -> None:
    fill(tmp_path, "a/1.png", "b/2.png", "b/4.png")
    good = load(str(tmp_path))
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "3.png").write_bytes(whole[: len(whole) // 2] if content is None else content)
    dataset = load(str(tmp_path))
    assert dataset.fingerprint == good.fingerprint and good.labels is not None and dataset.labels is not None
    assert dataset.labels.tolist() == good.labels.tolist() == [0, 1, 1]
    assert not good.notes
    (note,) = dataset.notes
    why = "cut short" if content is None else "not a readable image"
    assert note == f"1 of 4 pictures left out: {tmp_path}/a/3.png ({why})"
    (tmp_path / "b" / "5.png").write_bytes(b"")
    assert load(str(tmp_path), limit=2).notes == (note.replace("1 of 4", "2 of 5").replace("out:", "out, the first:"),)


def test_where_no_picture_can_be_read_the_first_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(StdacError, match=r"cannot read .*/a\.png: not a readable image; repair or remove it$"):
        load(str(tmp_path))


def test_a_broken_picture_of_an_archive_is_left_out_with_its_label(tmp_path: Path) -> None:
    pictures = [PICTURE, b"hello", None, PICTURE]
    (tmp_path / "a.parquet").write_bytes(parquet(image=pictures, label=["x", "broken", "missing", "y"]))
    (tmp_path / "a.tar").write_bytes(tar({"a.png": PICTURE, "b.png": b"hello", "c.png": PICTURE}))
    dataset = load(str(tmp_path / "a.parquet"))
    assert dataset.labels is not None and dataset.class_names == ("x", "y")
    assert (len(dataset.images), dataset.labels.tolist()) == (2, [0, 1])
    assert dataset.notes == (
        f"2 of 4 pictures left out, the first: {tmp_path}/a.parquet, image 1 (not a readable image)",
    )
    assert len(load(str(tmp_path / "a.tar")).images) == 2


def test_training_says_once_what_it_leaves_out(tmp_path: Path) -> None:
    fill(tmp_path / "in", *(f"{i}.png" for i in range(4)))
    for name in ("broken.png", "a.heic", "b.heic", ".hidden.png"):
        (tmp_path / "in" / name).write_bytes(b"")
    command = f"--dataset {tmp_path}/in --method kmeans --clusters 2 --out {tmp_path}/run".split()
    ran = CliRunner().invoke(train_command, command)
    assert ran.exit_code == 0, ran.output
    assert f"{tmp_path}/in: 3 left out: 1 hidden file, 2 .heic\n" in ran.stderr
    assert f"1 of 5 pictures left out: {tmp_path}/in/broken.png (not a readable image)\n" in ran.stderr
    assert "left out" not in CliRunner().invoke(train_command, command).output


def test_pictures_of_one_colour_are_counted_and_a_background_makes_them_visible(tmp_path: Path) -> None:
    for i in range(3):
        pixels = np.zeros((12, 12, 4), np.uint8)
        pixels[i : i + 5, i : i + 3, 3] = 255  # black, on transparency
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    black, auto = load(str(tmp_path)), load(str(tmp_path), background="auto")
    assert not black.images.any()
    assert black.notes == (
        f"3 of 3 pictures of {tmp_path} have nothing but one colour: what is drawn in black on transparency is seen "
        "after training with --background auto",
    )
    assert auto.notes == () and auto.images[:, 0].min((1, 2)).tolist() == [0, 0, 0]
    np.testing.assert_array_equal(auto.images, load(str(tmp_path), background="white").images)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(
        StdacError, match=r"holds no images \(1 left out: 1 \.txt\): expected files ending in .*, \.webp$"
    ):
        load(str(tmp_path))


# --- arrays


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW", "NHWC rgb", "NCHW rgb"])
def test_npz_takes_every_layout(tmp_path: Path, layout: str) -> None:
    rgb = np.stack([IMAGES, 2 * IMAGES, 3 * IMAGES], axis=1)
    stored, expected = {
        "NHW": (IMAGES, IMAGES[:, None]),
        "NHWC": (IMAGES[..., None], IMAGES[:, None]),
        "NCHW": (IMAGES[:, None], IMAGES[:, None]),
        "NHWC rgb": (rgb.transpose(0, 2, 3, 1), rgb),
        "NCHW rgb": (rgb, rgb),
    }[layout]
    (tmp_path / "set.npz").write_bytes(npz(images=stored, labels=LABELS))
    dataset = load(str(tmp_path / "set.npz"))
    np.testing.assert_array_equal(dataset.images, expected)
    assert dataset.labels is not None and dataset.labels.tolist() == LABELS.tolist()


def test_npz_may_call_them_x_and_y_and_npy_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_bytes(npz(x=IMAGES, y=LABELS))
    (tmp_path / "set.npy").write_bytes(npy(IMAGES))
    with_labels, without = load(str(tmp_path / "set.npz")), load(str(tmp_path / "set.npy"))
    assert with_labels.labels is not None and without.labels is None
    assert with_labels.fingerprint == without.fingerprint


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_finds_its_labels_beside_it(tmp_path: Path, suffix: str) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if suffix else bytes
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(pack(idx(IMAGES)))
    assert load(str(path)).labels is None
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(LABELS)))
    dataset = load(str(path))
    np.testing.assert_array_equal(dataset.images, IMAGES[:, None])
    assert dataset.labels is not None and dataset.labels.tolist() == LABELS.tolist()


def test_idx_labels_of_another_length_are_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "a-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx(LABELS[:4]))
    dataset = load(str(tmp_path / "a-images-idx3-ubyte"))
    assert dataset.labels is None
    assert dataset.notes[0].endswith("-ubyte is read without labels: it has 5 images but 4 labels")


def flipped(data: bytes, position: int) -> bytes:
    """The bytes with one of them inverted."""
    return data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :]


PICTURE = png(IMAGES[0])
PARQUET = parquet(image=[PICTURE], label=["a"])
OBJECTS = np.array([{"a": 1}], dtype=object)
NOISE = np.random.default_rng(0).integers(0, 256, (9, 16, 16), dtype=np.uint8)
BAD_FILES = {
    "cut.idx": idx(IMAGES)[:-1],
    "header-cut.idx": idx(IMAGES)[:7],
    "too-long.idx": idx(IMAGES) + b"0",
    "huge.idx": b"\x00\x00\x08\x03" + b"\xff" * 12,
    "255-dimensions.idx": b"\x00\x00\x08\xff" + b"\x00" * 1020,
    "no-dimension.idx": b"\x00\x00\x08\x00\x01",
    "no-images.idx": b"\x00\x00\x08\x03" + b"\x00" * 12,
    "text.txt": b"hello",
    "empty.idx": b"",
    "labels.idx": idx(LABELS),
    "floats.idx": idx(IMAGES.astype(">f4"), 13),
    "cut.idx.gz": gzip.compress(idx(IMAGES))[:-9],
    "damaged.idx.gz": flipped(gzip.compress(idx(NOISE)), 16),
    "not-gzip.gz": b"hello",
    "cut.npz": npz(images=NOISE)[:-30],
    "damaged.npz": flipped(npz(images=NOISE), 400),
    "text.npz": b"hello",
    "empty.npz": b"",
    "objects.npz": npz(images=OBJECTS),
    "pickle.npy": pickle.dumps(IMAGES),
    "other-names.npz": npz(pictures=IMAGES, more=IMAGES),
    "cut.npy": npy(IMAGES)[:-5],
    "huge.npy": npy(IMAGES).replace(b"(5, 8, 6), }        ", b"(5000000000000,8,6)}"),
    "beyond-64-bits.npy": npy(IMAGES).replace(b"(5, 8, 6), }" + b" " * 14, b"(%d,8,6)}" % 2**61),
    "floats.npy": npy(IMAGES / 255),
    "one-image.npy": npy(IMAGES[0]),
    "five-channels.npy": npy(np.zeros((4, 8, 8, 5), np.uint8)),
    "no-images.npy": npy(IMAGES[:0]),
    "no-array.npz": zipped({"images": b"text", "y.npy": npy(LABELS)}),
    "cut.parquet": PARQUET[:-5],
    "no-pictures.parquet": parquet(label=["a"]),
    "no-pictures.tar": tar({"a.txt": b"a"}),
    "cut.tar": tar({"a.png": PICTURE, "b.png": PICTURE})[:1700],
    "one.png": PICTURE,
}
SENTENCES = json.loads((Path(__file__).parent / "frozen" / "bad_files.json").read_text())
"""How the sentence about each begins, {} being its path; where a library gives the reason, up to that."""


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_told_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD_FILES[name])
    with pytest.raises(StdacError) as caught:
        load(str(path))
    assert str(caught.value).startswith(SENTENCES[name].format(path)) and "\n" not in str(caught.value)


class Bomb:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["hostile.npy", "hostile.npz", "pickle.npy"])
def test_nothing_is_ever_unpickled(tmp_path: Path, name: str) -> None:
    bombs = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    content = {"hostile.npy": npy, "hostile.npz": lambda a: npz(images=a), "pickle.npy": pickle.dumps}[name](bombs)
    (tmp_path / name).write_bytes(content)
    said = "is not a plain NumPy file, nor IDX" if name == "pickle.npy" else "type object, expected images"
    with pytest.raises(StdacError, match=f"{name}.*{said}"):
        load(str(tmp_path / name))
    assert not (tmp_path / "exploded").exists()


def test_a_file_named_as_the_other_kind_is_read_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "array.npz").write_bytes(npy(IMAGES))
    (tmp_path / "archive.npy").write_bytes(npz(images=IMAGES, labels=LABELS))
    assert load(str(tmp_path / "array.npz")).fingerprint == load(str(tmp_path / "archive.npy")).fingerprint


# --- archives, and what all kinds share

NAMED = ["zebra", "ant", "zebra", "größe", "ant"]
PNGS = [png(image) for image in IMAGES]
SAMPLES = {
    name: content
    for i, (picture, label) in enumerate(zip(PNGS, NAMED, strict=True))
    for name, content in ((f"{i}.png", picture), (f"{i}.cls", label.encode()))
}
LABELLED = {
    "a.parquet": parquet(image=PNGS, label=NAMED),
    "a.tar": tar(SAMPLES),
    "a.tar.gz": gzip.compress(tar(SAMPLES)),
    "text.npz": npz(images=IMAGES, labels=np.array(NAMED)),
}


@pytest.mark.parametrize("name", LABELLED)
def test_text_labels_are_class_names_sorted_and_numbered(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LABELLED[name])
    (tmp_path / "set.npy").write_bytes(npy(IMAGES))
    dataset = load(str(tmp_path / name))
    assert dataset.fingerprint == load(str(tmp_path / "set.npy")).fingerprint
    assert dataset.labels is not None and dataset.labels.dtype == np.int64
    assert dataset.class_names == ("ant", "größe", "zebra")
    assert dataset.labels.tolist() == [2, 0, 2, 1, 0]
    assert load(str(tmp_path / name), image_size=4, limit=3).images.shape == (3, 1, 4, 4)


def test_labels_that_some_images_lack_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(image=PNGS, label=[*NAMED[:4], None]))
    dataset = load(str(tmp_path / "a.parquet"))
    assert dataset.labels is None and dataset.class_names == ()


@pytest.mark.parametrize("kind", ["folder", "a.parquet"])
def test_colour_that_comes_late_makes_all_rgb(tmp_path: Path, kind: str) -> None:
    red = np.zeros((8, 6, 3), np.uint8) + np.array([9, 0, 0], np.uint8)
    pictures = [*PNGS * 60, png(red), PNGS[0]]
    if kind == "folder":
        (tmp_path / kind).mkdir()
        for i, content in enumerate(pictures):
            (tmp_path / kind / f"{i:03}.png").write_bytes(content)
    else:
        (tmp_path / kind).write_bytes(parquet(image=pictures))
    images = load(str(tmp_path / kind)).images
    np.testing.assert_array_equal(images[:300], np.repeat(np.concatenate([IMAGES] * 60)[:, None], 3, 1))
    np.testing.assert_array_equal(images[300], red.transpose(2, 0, 1))
    np.testing.assert_array_equal(images[301], np.stack([IMAGES[0]] * 3))


def test_pictures_of_mixed_sizes_in_an_archive_are_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar({"a.png": PNGS[0], "b.png": PNGS[1], "c.png": png(IMAGES[0, :5])}))
    with pytest.raises(StdacError, match=r"a\.tar .*mixed sizes, a.png has 8x6 pixels and c.png 5x6.*--image"):
        load(str(tmp_path / "a.tar"))
    assert load(str(tmp_path / "a.tar"), image_size=5).images.shape == (3, 1, 5, 5)


def test_a_child_answers_in_parts_where_pictures_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdac.pictures.decode, "BATCH_BYTES", 100)
    batch = Batch(["a.tar"] * 5, np.arange(5), list(PNGS), [None] * 5)
    assert len(stdac.pictures.decode.decode_each(batch, None)) == 3
    assert len(stdac.pictures.decode.decode_each(batch, (50, 50))) == 1


CRASHES = """
import os, sys
if "stdac.pictures.child" in sys.orig_argv:
    import stdac.pictures.image as image
    read = image.read_file
    image.read_file = lambda path: os.abort() if path.endswith("7.png") else read(path)
"""


def test_a_picture_that_crashes_its_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "in", *(f"{i}.png" for i in range(10)))
    (tmp_path / "sitecustomize.py").write_text(CRASHES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    dataset = load(str(tmp_path / "in"))
    assert len(dataset.images) == 9
    assert dataset.notes == (f"1 of 10 pictures left out: {tmp_path}/in/7.png (it crashed its decoder)",)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.png", "closed/2.png"):
        save_picture(tmp_path / name)
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StdacError, match=r"cannot read .*/closed: this folder cannot be listed"):
        load(str(tmp_path))


def test_an_array_is_collected_in_little_more_than_its_own_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": (60_000, 50, 50), "fortran_order": False, "descr": "|u1"})
        file.truncate(file.tell() + 60_000 * 2500)
    code = f"""
import resource
from stdac.data import load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert load({str(tmp_path / "a.npy")!r}).images.shape == (60_000, 1, 50, 50)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 230  # MiB, for 143


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone.npz").symlink_to("nowhere")
    kinds = "a folder of images, or an .npz, .npy, IDX, Parquet or tar file"
    reasons = {"pipe": "neither a file nor a folder", "gone.npz": "no data set .* here", "-": "no data set - here"}
    for name, why in reasons.items():
        with pytest.raises(StdacError, match=f"{why}.*expected .*{kinds}"):
            load(name if name == "-" else str(tmp_path / name))

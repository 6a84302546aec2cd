"""Sources give their images as batches, whatever they are; what is broken is an Unreadable row, and the rows add up."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import re
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import stdac.pictures.parquet
import stdac.pictures.tar
from export.results.labels import read_labels
from stdac.data import load, open_input
from stdac.errors import StdacError
from stdac.pictures.arrays import read_batches
from stdac.pictures.batches import BATCH, BATCH_BYTES, MEMBER_BYTES, Batch, Source, Unreadable, end_with_reason
from stdac.pictures.folder import Folder, drop_repeated
from stdac.pictures.image import read_image
from stdac.pictures.listing import PictureList
from stdac.pictures.parquet import find_columns
from stdac.pictures.pixels import Pixels, conform
from stdac.pictures.samples import SAMPLE, sample_images
from stdac.pictures.sources import list_notes, open_source
from stdac.pictures.tar import read_tar
from tests.waiting import LONG_S

N = 150
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 12, 10), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (N, 3, 12, 10), dtype=np.uint8)
LABELS = [str(i % 7) for i in range(N)]
GRAY = (1, 12, 10)


def png(image: Pixels) -> bytes:
    """A picture (H, W) as a PNG file's bytes."""
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


PNGS = [png(image) for image in IMAGES]


def idx(array: np.ndarray, code: int = 8) -> bytes:
    """An array as an IDX file's bytes."""
    return bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def npy(array: np.ndarray) -> bytes:
    """An array as an .npy file's bytes."""
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(*shape: int, fortran: bool = False) -> bytes:
    """The header of an .npy file of that shape."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": fortran, "descr": "|u1"})
    return file.getvalue()


def npz(save: Callable[..., None] = np.savez_compressed, **arrays: np.ndarray) -> bytes:
    """Arrays as an .npz file's bytes."""
    file = BytesIO()
    save(file, **arrays)
    return file.getvalue()


def tar(members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """Files as a tar archive's bytes."""
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return file.getvalue()


def shard(n: int = N) -> bytes:
    """A WebDataset shard of n samples: JSON, picture, class."""
    samples = zip(range(n), PNGS, LABELS, strict=False)
    return tar(
        [
            member
            for i, picture, label in samples
            for member in ((f"./{i:04}.json", b"{}"), (f"./{i:04}.png", picture), (f"./{i:04}.cls", label.encode()))
        ]
    )


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A table as a Parquet file's bytes."""
    file = BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def hugging_face(n: int = N, **options: Any) -> bytes:
    """n pictures as the library `datasets` writes them."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": [f"class {i}" for i in range(7)], "_type": "ClassLabel"},
    }
    columns = {
        "image": pa.array([{"bytes": p, "path": f"{i}.png"} for i, p in enumerate(PNGS[:n])]),
        "label": pa.array([int(label) for label in LABELS[:n]]),
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return parquet(pa.table(columns).replace_schema_metadata(metadata), **options)


def rows(source: Source | Iterator[Batch]) -> list[tuple[str, int, Any, str | None]]:
    """All rows, checked: (source, index, pixels (C, H, W) or why there are none, label)."""
    got = []
    for batch in source if isinstance(source, Iterator) else source.batches():
        assert 1 <= len(batch) <= BATCH
        assert len(batch.source) == len(batch.index) == len(batch.content) == len(batch.label)
        assert pickle.loads(pickle.dumps(batch)).source == batch.source
        for name, index, content, label in zip(
            batch.source, batch.index.tolist(), batch.content, batch.label, strict=True
        ):
            readable = isinstance(content, str | bytes)
            got.append((name, index, read_image(content) if readable else content, label))
    return got


def opened(folder: Path, name: str, content: bytes) -> Source:
    """A file with that content, as a source."""
    (folder / name).write_bytes(content)
    return open_input(str(folder / name))


ARCHIVES: dict[str, bytes] = {
    "a.npy": npy(IMAGES),
    "fortran.npy": npy(np.asfortranarray(IMAGES)),
    "plain.npz": npz(np.savez, images=IMAGES),
    "packed.npz": npz(x=IMAGES, y=np.array(LABELS)),
    "some-images-idx3-ubyte": idx(IMAGES),
    "images.gz": gzip.compress(idx(IMAGES)),
    "binary.parquet": parquet(pa.table({"png": PNGS, "class": LABELS}), row_group_size=40),
    "large.parquet": parquet(pa.table({"img": pa.array(PNGS, pa.large_binary())}), compression="zstd"),
    "hugging face.parquet": hugging_face(row_group_size=70),
    "shard.tar": shard(),
    "shard.tar.gz": gzip.compress(shard()),
    "shard.tgz": gzip.compress(shard()),
    "shard.tar.bz2": bz2.compress(shard()),
    "shard.tar.xz": lzma.compress(shard()),
    "gnu.tar": tar([(f"a/{'x' * 120}{i:04}.png", p) for i, p in enumerate(PNGS)], tarfile.GNU_FORMAT),
    "v7.tar": tar([(f"{i:04}.png", p) for i, p in enumerate(PNGS)], tarfile.USTAR_FORMAT),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_kind_of_file_gives_the_same_images_in_order(tmp_path: Path, name: str) -> None:
    source = opened(tmp_path, name, ARCHIVES[name])
    got = rows(source)
    assert [row[:2] for row in got] == [(str(tmp_path / name), i) for i in range(N)]
    for (_, _, pixels, _), image in zip(got, IMAGES, strict=True):
        np.testing.assert_array_equal(pixels, image[None])
    assert source.count() in (N, None)
    assert source.name == str(tmp_path / name)
    labels = [row[3] for row in got]
    if name.startswith("hugging"):
        assert labels == [f"class {label}" for label in LABELS]
    else:
        has_labels = name.startswith("shard") or name in ("packed.npz", "binary.parquet")
        assert labels == (LABELS if has_labels else [None] * N)
    about = (tmp_path / name).stat()
    batches = list(source.batches())
    assert {batch.stat for batch in batches} == {(about.st_size, about.st_mtime_ns)}
    assert [len(batch) for batch in batches] == [BATCH, N - BATCH]


@pytest.mark.parametrize("name", ["a.npy", "packed.npz", "images.gz", "hugging face.parquet", "shard.tar", "shard.tgz"])
def test_content_tells_what_a_file_is_not_its_name(tmp_path: Path, name: str) -> None:
    for other in ("noname", "a.png", "a.npy", "a.parquet", "b.dat"):
        assert len(rows(opened(tmp_path, other, ARCHIVES[name]))) == N


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW", "N1HW", "NHW1"])
def test_every_layout_of_an_array(tmp_path: Path, layout: str) -> None:
    stored = {
        "NHW": IMAGES,
        "NHWC": COLOUR.transpose(0, 2, 3, 1),
        "NCHW": COLOUR,
        "N1HW": IMAGES[:, None],
        "NHW1": IMAGES[..., None],
    }[layout]
    expected = COLOUR if "C" in layout else IMAGES[:, None]
    for name, content in {"a.npy": npy(np.ascontiguousarray(stored)), "a.npz": npz(x=stored)}.items():
        got = rows(opened(tmp_path, name, content))
        np.testing.assert_array_equal(np.stack([row[2] for row in got]), expected)


def test_runs_depend_on_the_source_alone_and_come_again(tmp_path: Path) -> None:
    for name in ("a.npy", "packed.npz", "images.gz", "hugging face.parquet", "shard.tar"):
        source = opened(tmp_path, name, ARCHIVES[name])
        interleaved = [
            (a.index.tolist(), b.index.tolist()) for a, b in zip(source.batches(), source.batches(), strict=True)
        ]
        assert all(a == b for a, b in interleaved)
    assert len(list(source.batches())) == -(-N // BATCH)


def test_a_run_ends_early_where_its_bytes_are_many(tmp_path: Path) -> None:
    images = np.zeros((5, 3, 1500, 1500), np.uint8)
    assert [len(batch) for batch in opened(tmp_path, "a.npy", npy(images)).batches()] == [2, 2, 1]
    large = PNGS[0] + bytes(BATCH_BYTES // 3)
    for name, content in {
        "a.tar": tar([(f"{i}.png", large) for i in range(5)]),
        "a.parquet": parquet(pa.table({"a": [large] * 5})),
    }.items():
        assert [len(batch) for batch in opened(tmp_path, name, content).batches()] == [3, 2]


def test_some_rows_of_a_run() -> None:
    index = np.arange(3)
    batch = Batch(["a", "b", "c"], index, ["x", b"y", Unreadable("z")], ["1", None, "3"], (7, 8))
    some = batch.select(np.array([2, 0]))
    assert (some.source, some.index.tolist(), some.content) == (["c", "a"], [2, 0], [Unreadable("z"), "x"])
    assert (some.label, some.stat) == (["3", "1"], (7, 8))
    pixels = Batch(["a"] * 3, index, COLOUR[:3], [None] * 3).select(np.array([1]))
    np.testing.assert_array_equal(pixels.content, COLOUR[1:2])
    assert len(batch.select([])) == 0


# --- folders, pictures, data sets


def fill(folder: Path, *names: str) -> None:
    """Pictures of those names."""
    for name, content in zip(names, PNGS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


FOLDERS = {
    "classes": ["cat/1.png", "cat/deep/2.png", "dog, old/3.png"],
    "one class": ["cat/1.png", "cat/2.png"],
    "one outside": ["cat/1.png", "dog/2.png", "3.png"],
    "hidden outside": ["cat/1.png", "dog/2.png", ".3.png", ".git/4.png"],
    "flat": ["1.png", "2.png"],
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_names_of_sub_folders_are_labels_as_in_training(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, *FOLDERS[kind])
    training = load(str(tmp_path))
    names, n = training.class_names, len(training.images)
    expected = [None] * n if training.labels is None else [names[k] for k in training.labels]
    for text in (str(tmp_path), f"{tmp_path}/", f"{tmp_path}/../{tmp_path.name}"):
        assert [row[3] for row in rows(open_input(text))] == expected


@pytest.mark.parametrize(
    ("names", "labels", "note"),
    [
        (("test/b/1.png", "train/a/1.png", "val/b/2.png"), "bab", "in parts (test, train, val), the classes are the 2"),
        (("Train/a/1.png", "Train/b/1.png"), "ab", "in parts (Train), the classes are the 2 folders below"),
        (("test/1.png", "train/1.png"), None, "in parts (test, train), there are no classes"),
        (("test/1.png", "train/a/1.png", "train/b/1.png"), None, "in parts (test, train), there are no classes"),
        (("cat/train/1.png", "dog/test/1.png"), ("cat", "dog"), None),
        (("cat/1.png", "train/1.png"), ("cat", "train"), None),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, names: Any, labels: Any, note: str | None) -> None:
    fill(tmp_path / "in", *names)
    source = open_source(str(tmp_path / "in"))
    assert [row[3] for row in rows(source)] == (list(labels) if labels else [None] * len(names))
    notes = list_notes(source)
    assert notes[0].startswith(f"{tmp_path}/in: {note}") if note else notes == []


LAYOUTS: dict[str, tuple[dict[str, Any], list[str | None]]] = {
    "keras": (
        {
            "x_train": IMAGES[:3], "y_train": np.array([1, 2, 3]),
            "x_test": IMAGES[3:5], "y_test": np.array([4, 5]),
        },
        ["1", "2", "3", "4", "5"],
    ),
    "medmnist": (
        {
            "test_images": IMAGES[4:5], "test_labels": np.array([[5]]),
            "train_images": IMAGES[:3], "train_labels": np.array([[1], [2], [3]], np.uint8),
            "val_images": IMAGES[3:4], "val_labels": np.array([[4.0]]),
        },
        ["1", "2", "3", "4", "5"],
    ),
    "unlabelled": (
        {"train_images": IMAGES[:3], "train_labels": np.array([b"1", b"2", b"3"]), "test_images": IMAGES[3:5]},
        ["1", "2", "3", None, None],
    ),
    "alone": ({"arr_0": IMAGES[:5]}, [None] * 5),
    "capital": ({"X": IMAGES[:5], "Y": np.arange(5)}, ["0", "1", "2", "3", "4"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_others_call_the_arrays_of_an_npz(tmp_path: Path, name: str) -> None:
    arrays, labels = LAYOUTS[name]
    source = opened(tmp_path, "a.npz", npz(**arrays))
    got = rows(source)
    assert [row[3] for row in got] == labels and [row[1] for row in got] == list(range(5))
    assert all(np.array_equal(row[2], image[None]) for row, image in zip(got, IMAGES, strict=False))
    taken = {
        "keras": "x_train, then x_test",
        "medmnist": "train_images, then val_images, then test_images",
        "unlabelled": "train_images, then test_images",
    }
    assert list_notes(source) == ([f"the images of {tmp_path}/a.npz are {taken[name]}"] if name in taken else [])
    assert source.count() == 5


def test_a_folder_gives_paths_in_runs_with_its_count(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{i:03}.png" for i in range(N)))
    source = open_input(str(tmp_path))
    assert source.count() == N
    batches = list(source.batches())
    assert [len(batch) for batch in batches] == [BATCH, N - BATCH]
    assert batches[0].content[5] == batches[0].source[5] == str(tmp_path / "005.png")
    assert {batch.stat for batch in batches} == {None}
    assert not any(batch.index.any() for batch in batches)


def test_relative_folders_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "in/cat/1.png", "in/dog/2.png")
    monkeypatch.chdir(tmp_path)
    assert [row[0] for row in rows(open_input("in"))] == ["in/cat/1.png", "in/dog/2.png"]
    monkeypatch.chdir(tmp_path / "in")
    assert [(row[0], row[3]) for row in rows(open_input("."))] == [("./cat/1.png", "cat"), ("./dog/2.png", "dog")]


def test_odd_names_are_kept_printable(tmp_path: Path) -> None:
    for name in (b"new\nline.png", "Größe 大.png".encode(), b"latin-\xe9.png", b"quote'\".png"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(PNGS[0])
    got = rows(open_input(str(tmp_path)))
    names = {Path(row[0]).name for row in got}
    assert names == {"new\nline.png", "Größe 大.png", r"latin-\xe9.png", "quote'\".png"}
    assert all(isinstance(row[2], np.ndarray) for row in got)
    for row in got:
        row[0].encode()


def test_loops_pipes_and_broken_links_in_a_folder_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert len(rows(open_input(str(tmp_path)))) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_closed_folder_is_a_row(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "closed").mkdir(mode=0)
    source = open_input(str(tmp_path))
    assert source.count() == 3
    got = rows(source)
    assert got[1][0] == str(tmp_path / "closed")
    assert got[1][2] == Unreadable("this folder cannot be listed", ends=True)
    assert [row[3] for row in got] == ["cat", None, "dog"]


def test_a_closed_folder_is_a_row_even_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "cat/1.png", "closed/2.png", "dog/3.png")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    got = rows(open_input(str(tmp_path)))
    assert [row[3] for row in got] == ["cat", None, "dog"]
    assert got[1][0] == str(tmp_path / "closed")
    assert got[1][2] == Unreadable("this folder cannot be listed", ends=True)


def test_a_picture_that_several_inputs_hold_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "ph/a.png", "ph/sub/b.png", "other/c.png")
    (tmp_path / "link").symlink_to("ph")
    (tmp_path / "ph" / ".hidden.png").write_bytes(PNGS[0])
    monkeypatch.chdir(tmp_path)

    def names(*inputs: str) -> tuple[list[str], int]:
        sources, left_out = drop_repeated(map(open_input, inputs))
        return [row[0] for source in sources for row in rows(source)], left_out.total() - left_out["hidden file{s}"]

    both = ["ph/a.png", "ph/sub/b.png"]
    assert names("ph", "ph/", "./ph", "link", str(tmp_path / "ph")) == (both, 4)
    assert names("ph", "ph/sub", "ph/a.png", "link/a.png", "other") == ([*both, "other/c.png"], 3)
    assert names("ph/sub", "ph") == (["ph/sub/b.png", "ph/a.png"], 1)
    assert names("ph/a.png", "ph", "./ph/a.png") == (both, 2)
    assert names("ph/a.png", "ph/sub", ".", "other/c.png")[0] == [*both, "./other/c.png"]
    assert names("ph", "ph/.hidden.png")[0] == [*both, "ph/.hidden.png"]
    assert names("ph/sub/b.png", "ph/sub") == (["ph/sub/b.png"], 1)
    assert len(drop_repeated(map(open_input, ("digits", "digits")))[0]) == 1


def test_classes_may_be_links(tmp_path: Path) -> None:
    fill(tmp_path / "store", "cats/1.png", "dogs/2.png")
    (tmp_path / "set").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "store" / name)
    training = load(str(tmp_path / "set"))
    assert (len(training.images), training.class_names) == (2, ("cats", "dogs"))
    assert [row[3] for row in rows(open_input(str(tmp_path / "set")))] == ["cats", "dogs"]


def test_a_single_picture(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "no suffix")
    for name in ("a.png", "no suffix"):
        source = open_input(str(tmp_path / name))
        assert source.count() == 1
        (batch,) = source.batches()
        assert (batch.source, batch.content, batch.label, batch.stat) == ([str(tmp_path / name)],) * 2 + ([None], None)


def test_a_data_set_has_its_classes_as_labels() -> None:
    source = open_input("digits")
    dataset = load("digits")
    assert dataset.labels is not None
    got = rows(source)
    np.testing.assert_array_equal(np.stack([row[2] for row in got]), dataset.images)
    assert [row[3] for row in got] == [dataset.class_names[k] for k in dataset.labels]
    assert {row[0] for row in got} == {"digits"}
    assert next(source.batches()).stat is None


def test_a_data_set_whose_package_is_missing_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    ((name, index, why, label),) = rows(open_input("digits"))
    assert (name, index, label) == ("digits", 0, None)
    assert "which is not installed: pip install" in why.reason


def test_what_cannot_be_a_source_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    with server:
        for text, why in {
            str(tmp_path / "empty"): "holds no images: expected files ending in",
            str(tmp_path / "gone"): "does not exist: expected a folder of images",
            str(tmp_path / "pipe"): "is neither a file nor a folder: expected",
            str(tmp_path / "socket"): "is neither a file nor a folder: expected",
            "/dev/zero": "is neither a file nor a folder: expected",
            "a" * 300: "cannot read a{300}: File name too long",
            "a\0b": "cannot read a.b: embedded null",
            str(tmp_path / "gone\nline"): "gone\nline does not exist: expected a folder of images",
        }.items():
            with pytest.raises(StdacError, match=why):
                open_input(text)


def test_a_million_names_fit_into_little_memory(tmp_path: Path) -> None:
    """At a small part of the size: names of one folder are all that is kept, less than 100 bytes each."""
    code = """
import os, sys, resource
from stdac.pictures.sources import open_source
for i in range(20_000):
    os.close(os.open(f"{sys.argv[1]}/image_{i:07}.png", os.O_CREAT | os.O_WRONLY))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = open_source(sys.argv[1])
assert source.count() == sum(len(batch) for batch in source.batches()) == 20_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 8_000


# --- a list on stdin


def listed(data: bytes | io.RawIOBase) -> PictureList:
    """A list of paths, given in small pieces."""
    raw = BytesIO(data) if isinstance(data, bytes) else data
    return PictureList(io.BufferedReader(raw, 16))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["{}\n", "{}\r\n", "{}\0", "\n{}\n\n"])
def test_listed_pictures_come_in_order_twice(tmp_path: Path, form: str) -> None:
    names = [f"{i:03}.png" for i in range(N)]
    fill(tmp_path, *names)
    source = listed("".join(form.format(tmp_path / name) for name in names).encode())
    assert source.count() is None
    for _ in range(2):
        assert [row[0] for row in rows(source)] == [str(tmp_path / name) for name in names]
    assert [len(batch) for batch in source.batches()] == [BATCH, N - BATCH]


def test_the_last_line_may_lack_its_end_and_names_may_be_odd(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "new\nline.png")
    with open(os.fsencode(tmp_path) + b"/latin-\xe9.png", "wb") as file:
        file.write(PNGS[0])
    folder = os.fsencode(tmp_path)
    got = rows(listed(folder + b"/a.png\n" + folder + b"/latin-\xe9.png"))
    assert [Path(row[0]).name for row in got] == ["a.png", r"latin-\xe9.png"]
    got = rows(listed(folder + b"/new\nline.png\0" + folder + b"/a.png\0"))
    assert [Path(row[0]).name for row in got] == ["new\nline.png", "a.png"]
    assert rows(listed(b"")) == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_is_read_by_its_mark(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PowerShell writes UTF-16."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "größe.png", "b.png")
    got = rows(listed("größe.png\r\nb.png\r\n".encode(encoding)))
    assert [row[0] for row in got] == ["größe.png", "b.png"]
    assert all(isinstance(row[2], np.ndarray) for row in got)


def test_what_is_listed_and_no_picture_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.npy").write_bytes(npy(IMAGES))
    (tmp_path / "a.tar").write_bytes(shard(1))
    fill(tmp_path, "good.png")
    names = ["folder", "pipe.png", "gone.png", "a.npy", "a.tar", "good.png"]
    lines = [os.fsencode(tmp_path / name) for name in names]
    got = rows(listed(b"\n".join([*lines, b"/dev/zero", b"x" * 200_000, b"\xff"])))
    reasons = [row[2].reason if isinstance(row[2], Unreadable) else None for row in got]
    assert reasons[:6] == [
        "this is a folder, expected a picture file",
        "this is a pipe, a socket or a device, expected a picture file",
        "No such file or directory",
        "this is an .npz, .npy or IDX file, expected a picture: name it as an INPUT of its own",
        "this is a tar file, expected a picture: name it as an INPUT of its own",
        None,
    ]
    assert reasons[6] == "this is a pipe, a socket or a device, expected a picture file"
    assert all(reasons[7:])


def test_a_list_is_read_only_as_far_as_it_is_needed(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    taken = 0

    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            nonlocal taken
            line = os.fsencode(tmp_path / "a.png") + b"\n"
            buffer[: len(line)] = line
            taken += 1
            return len(line)

    source = PictureList(io.BufferedReader(Endless(), 1 << 12))
    batches = source.batches()
    assert len(next(batches)) == BATCH
    assert taken <= 2 * BATCH
    again = source.batches()
    assert len(next(again)) == BATCH
    assert taken <= 2 * BATCH
    for _ in range(3):
        next(batches)
        next(again)


def test_a_terminal_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(StdacError, match="stdin, which is a terminal"):
        open_input("-")


# --- what is broken


def broken(source: Source) -> tuple[int, str]:
    """How many images a source gives, and what its last row, an Unreadable one, says."""
    got = rows(source)
    assert [row[1] for row in got] == list(range(len(got)))
    assert all(isinstance(row[2], np.ndarray) for row in got[:-1])
    assert isinstance(got[-1][2], Unreadable), "the last row tells no error"
    assert "\n" not in got[-1][2].reason
    return len(got) - 1, got[-1][2].reason


CUT = {
    "a.npy": (npy(IMAGES)[:-1], 149, "cut short or damaged: 149 of its 150 images"),
    "head.npy": (npy(IMAGES)[:50], 0, ""),
    "plain.npz": (npz(np.savez, images=IMAGES)[:-900], 0, "zip"),
    "a.idx": (idx(IMAGES)[: 16 + 120 * 70 + 5], 70, "70 of its 150 images"),
    "header.idx": (idx(IMAGES)[:7], 0, "its header is not complete"),
    "a.gz": (gzip.compress(idx(IMAGES))[:-9], 149, "ended before"),
    "half.gz": (gzip.compress(idx(IMAGES))[:9000], 60, "ended before"),
    "crc.gz": (gzip.compress(idx(IMAGES))[:-8] + bytes(8), 150, "CRC"),
    "long.idx": (idx(IMAGES) + b"0", 150, "goes on after the 150 images of its header"),
    "twice.npy": (npy(IMAGES) * 2, 150, "goes on after the 150 images of its header"),
    "shard.tar": (shard()[: len(shard()) // 2], 50, "cut short"),
    "shard.tgz": (gzip.compress(shard())[:-9], 149, "ended before"),
    "shard.tar.bz2": (bz2.compress(shard())[:-50], 0, "ended before"),
    "shard.tar.xz": (lzma.compress(shard())[:-50], 50, "ended before"),
    "cut.parquet": (hugging_face()[:-1], 0, "Parquet"),
    "head.parquet": (hugging_face()[:2000], 0, "Parquet"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_short_gives_what_it_has_and_says_so(tmp_path: Path, name: str) -> None:
    content, least, why = CUT[name]
    n, reason = broken(opened(tmp_path, name, content))
    assert n >= least, (n, reason)
    assert n == least or not name.endswith((".npy", ".idx"))
    assert why in reason, reason


def test_a_damaged_page_of_parquet_ends_the_file_but_not_those_before(tmp_path: Path) -> None:
    content = bytearray(hugging_face(row_group_size=50, compression="none", use_dictionary=False))
    place = content.index(PNGS[120])
    content[place - 4 : place] = b"\xff" * 4  # how long it is
    n, reason = broken(opened(tmp_path, "a.parquet", bytes(content)))
    assert 50 <= n <= 120, reason


BAD = {
    "float.npy": (npy(IMAGES / 255), "float64, expected uint8"),
    "objects.npy": (npy(np.array([{}, {}], dtype=object)), ""),
    "scalar.npy": (npy(np.array(3, np.uint8)), "shape ()"),
    "structured.npy": (npy(np.zeros(3, [("a", "u1")])), "expected uint8"),
    "one-image.npy": (npy(IMAGES[0]), "shape (12, 10)"),
    "five-channels.npy": (npy(np.zeros((4, 8, 8, 5), np.uint8)), "shape (4, 8, 8, 5)"),
    "no-images.npy": (npy(IMAGES[:0]), "no images"),
    "huge.npy": (npy_header(5, 90_000, 90_000), "at most 100,000,000"),
    "negative.npy": (npy_header(-5, 12, 10), "shape (-5, 12, 10)"),
    "damaged-header.npy": (npy(IMAGES).replace(b"(150, 12, 10), }", b"(150, 12, 10))}"), ""),
    "fortran.npy": (npy_header(10**8, 9, 9, fortran=True), "Fortran order"),
    "pickle.npy": (pickle.dumps(IMAGES), "plain NumPy file"),
    "text.npz": (b"hello", "plain NumPy file"),
    "empty.npz": (b"", "plain NumPy file"),
    "other-names.npz": (npz(pictures=IMAGES, more=IMAGES), "holds pictures, more, expected an array named images"),
    "floats.idx": (idx(IMAGES.astype(">f4"), 13), "expected uint8"),
    "labels.idx": (idx(IMAGES[0, 0]), "shape"),
    "huge.idx": (b"\0\0\x08\x03" + b"\xff" * 12, "at most 100,000,000"),
    "dimensions.idx": (b"\0\0\x08\xff" + bytes(1020), "not an IDX file"),
    "hello.gz": (gzip.compress(b"hello"), "not an IDX file"),
    "plain.gz": (b"hello", ""),
    "text.tar": (b"hello" * 500, ""),
    "empty.tar": (tar([]), "it holds no images"),
    "text-only.tar": (
        tar([("a.txt", b"a"), (".hidden.png", PNGS[0]), ("__MACOSX/._a.png", PNGS[0])]),
        "it holds no images",
    ),
    "zero.parquet": (parquet(pa.table({"image": pa.array([], pa.binary())})), "it holds no images"),
    "text.parquet": (b"PAR1 hello", ""),
    "empty.parquet": (b"", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_none_of_its_kind_is_one_row(tmp_path: Path, name: str) -> None:
    content, why = BAD[name]
    source = opened(tmp_path, name, content)
    n, reason = broken(source)
    assert n == 0
    assert why in reason, reason
    assert source.count() in (1, None)


class Bomb:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    bombs = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    for name, content in {"a.npy": npy(bombs), "a.npz": npz(images=bombs), "b.npy": pickle.dumps(bombs)}.items():
        assert broken(opened(tmp_path, name, content))[0] == 0
    assert not (tmp_path / "exploded").exists()


# --- bombs: much from little, in bounded memory

PEAK = """
import resource, sys
import stdac.pictures.parquet
from stdac.pictures.sources import open_source
stdac.pictures.parquet.MEMORY_BYTES = 300 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
last, n = None, 0
for batch in open_source(sys.argv[1]).batches():
    last, n = batch.content[-1], n + len(batch)
    if n > 200_000:
        break
ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(n, getattr(last, "reason", ""), ours // 1024, children // 1024, sep="|")
"""


def peak(path: Path) -> tuple[int, str, int, int]:
    """Read a source in a process of its own: rows, the last one's reason, MiB that it grew by, MiB of its children."""
    command = [sys.executable, "-c", PEAK, path]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONG_S)
    n, reason, ours, children = result.stdout.strip().split("|")
    return int(n), reason, int(ours), int(children)


def test_a_zip_bomb_is_read_a_run_at_a_time(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w") as file,
    ):
        file.write(npy_header(15_000, 100, 100))
        for _ in range(15):
            file.write(bytes(10_000_000))
    n, _, ours, _ = peak(tmp_path / "a.npz")
    assert n == 15_000
    assert ours < 60


def test_a_huge_npy_is_read_a_run_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(npy_header(10**8, 50, 50))
        file.truncate(250_000_000_000)
    n, _, ours, _ = peak(tmp_path / "a.npy")
    assert n > 200_000
    assert ours < 60


def test_a_gzip_bomb_in_a_tar_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("bomb.png")
    info.size = 260 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        file.write(info.tobuf())
        for _ in range(260):
            file.write(bytes(1 << 20))
        file.write(shard(2))
    n, _, ours, children = peak(tmp_path / "a.tar.gz")
    assert n == 3
    assert ours < 60 and children < 200
    first = next(iter(rows(open_input(str(tmp_path / "a.tar.gz")))))
    assert first[2] == Unreadable(f"its {260 << 20:,} bytes are more than the {MEMBER_BYTES:,} that are read")


def test_a_parquet_bomb_is_a_row(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema({"image": pa.binary()}), compression="zstd") as writer:
        writer.write_table(pa.table({"image": [PNGS[0]]}))
        writer.write_table(pa.table({"image": pa.array([bytes(250 << 20)] + [b""] * 9)}))
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    n, reason, ours, children = peak(tmp_path / "a.parquet")
    assert n == 2 and "memory" in reason
    assert ours < 100 and children < 500


def test_tar_headers_that_go_backwards_do_not_loop(tmp_path: Path) -> None:
    good = tar([("a.png", PNGS[0])])[:1024]
    for size in (-512, -1024, -(2**40)):
        info = tarfile.TarInfo("b.png")
        info.size = size
        n, _ = broken(opened(tmp_path, "a.tar", good + negative(info) + bytes(4096)))
        assert n == 1
    pax = tarfile.TarInfo("c.png")
    pax.pax_headers = {"size": "-5120"}
    n, _ = broken(opened(tmp_path, "a.tar", good + pax.tobuf(tarfile.PAX_FORMAT) + bytes(4096)))
    assert n == 1


def negative(info: tarfile.TarInfo) -> bytes:
    """A tar header with a negative size, as base 256 has it."""
    size = info.size
    info.size = 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (size % (1 << 88)).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_links_and_devices_in_a_tar_are_left_out(tmp_path: Path) -> None:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("../../up.png")
        info.size = len(PNGS[0])
        archive.addfile(info, BytesIO(PNGS[0]))
        info.name = "good.png"
        archive.addfile(info, BytesIO(PNGS[0]))
    assert len(rows(opened(tmp_path, "a.tar", file.getvalue()))) == 1


def test_a_label_of_a_tar_comes_before_or_after_its_pictures(tmp_path: Path) -> None:
    members = [
        ("a/1.cls", b"cat\n"), ("a/1.png", PNGS[0]), ("a/1.seg.png", PNGS[1]),
        ("b/1.png", PNGS[2]), ("b/1.cls", "größe".encode()),
        ("b/2.png", PNGS[3]),
        ("b/3.PNG", PNGS[4]), ("b/3.cls", b"\xff"), ("b/4.cls", b"7"),
    ]  # fmt: skip
    got = rows(opened(tmp_path, "a.tar", tar(members)))
    assert [row[3] for row in got] == ["cat", "größe", None, r"\xff"]


def test_masks_beside_the_picture_of_a_sample_are_left_out_and_told(tmp_path: Path) -> None:
    members = [
        ("a/1.jpg", PNGS[0]), ("a/1.seg.png", PNGS[1]), ("a/1.cls", b"cat"),
        ("a/2.depth.png", PNGS[2]), ("a/2.jpg", PNGS[3]),
        ("a/3.left.png", PNGS[4]), ("a/3.right.png", PNGS[5]),
    ]  # fmt: skip
    source = opened(tmp_path, "a.tar", tar(members))
    batches = list(source.batches())
    assert [name for batch in batches for name in batch.member or ()] == [
        "a/1.jpg", "a/2.jpg", "a/3.left.png", "a/3.right.png",
    ]  # fmt: skip
    assert [label for batch in batches for label in batch.label] == ["cat", None, None, None]
    assert list_notes(source) == [
        f"2 pictures of {tmp_path}/a.tar left out, as they come with the picture of a sample: a/1.seg.png first"
    ]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_folder_of_shards_is_one_data_set(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        content = hugging_face(4 + i) if kind == "parquet" else shard(4 + i)
        (tmp_path / "in" / f"train-{i}.{kind}").write_bytes(content)
    source = open_source(str(tmp_path / "in"))
    got = rows(source)
    assert [Path(row[0]).name for row in got] == [f"train-{i}.{kind}" for i in range(3) for _ in range(4 + i)]
    assert [row[1] for row in got] == [*range(4), *range(5), *range(6)]
    assert list_notes(source) == [f"{tmp_path}/in: 3 files read in the order of their names"]


def test_a_tar_whose_names_share_a_key_is_not_held_back(tmp_path: Path) -> None:
    got = rows(opened(tmp_path, "a.tar", tar([(f"img.{i:04}.png", p) for i, p in enumerate(PNGS)])))
    assert [row[1] for row in got] == list(range(N))


# --- columns of Parquet


def schema(**columns: Any) -> pa.Schema:
    """A schema of these columns."""
    return pa.schema(columns)


PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("columns", "image", "label"),
    [
        ({"image": PICTURE, "label": pa.int64()}, "image", "label"),
        ({"IMG": pa.binary(), "Class": pa.string()}, "IMG", "Class"),
        ({"anything": pa.large_binary()}, "anything", None),
        ({"thumbnail": pa.binary(), "jpg": pa.binary(), "y": pa.bool_()}, "jpg", "y"),
        ({"image": pa.binary(16), "target": pa.dictionary(pa.int8(), pa.string())}, "image", "target"),
        ({"image": PICTURE, "labels": pa.list_(pa.int64()), "class": pa.int8(), "y": pa.int8()}, "image", "class"),
        ({"image": PICTURE, "label": pa.float32()}, "image", "label"),
        ({"image": pa.binary_view(), "label": pa.string_view()}, "image", "label"),
        ({"image": pa.dictionary(pa.int32(), pa.large_binary()), "label": pa.decimal128(3)}, "image", "label"),
        ({"image": pa.list_(pa.uint8()), "label": pa.binary()}, "image", "label"),
        ({"pic": pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()}), "y": pa.date32()}, "pic", "y"),
    ],
)
def test_columns_are_found_by_type_and_name(columns: dict[str, Any], image: str, label: str | None) -> None:
    assert find_columns(schema(**columns))[:2] == (image, label)


IMAGE_VALUES: dict[str, Any] = {
    "view": pa.array(PNGS[:3], pa.binary_view()),
    "large": pa.array(PNGS[:3], pa.large_binary()),
    "dictionary": pa.array(PNGS[:3]).dictionary_encode(),
    "list": pa.array([list(png) for png in PNGS[:3]], pa.list_(pa.uint8())),
    "struct": pa.array(
        [{"path": "a", "bytes": png} for png in PNGS[:3]],
        pa.struct({"path": pa.string_view(), "bytes": pa.binary_view()}),
    ),
}


@pytest.mark.parametrize("kind", IMAGE_VALUES)
def test_pictures_are_what_values_can_be(tmp_path: Path, kind: str) -> None:
    """polars writes views, pandas' categories are dictionaries."""
    got = rows(opened(tmp_path, "a.parquet", parquet(pa.table({"image": IMAGE_VALUES[kind]}))))
    expected = rows(opened(tmp_path, "b.parquet", parquet(pa.table({"image": PNGS[:3]}))))
    assert len(got) == 3 and all(np.array_equal(a[2], b[2]) for a, b in zip(got, expected, strict=True))


def test_parquet_files_whose_names_are_not_utf_8_are_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xef.parquet")
    assert [row[3] for row in rows(opened(tmp_path, name, hugging_face(3)))] == [f"class {i}" for i in LABELS[:3]]
    pq.write_table(pa.table({"file": ["a.png"], "label": ["x"]}), tmp_path / "l.parquet")
    (tmp_path / "l.parquet").rename(tmp_path / name)
    assert of(read_labels(tmp_path / name), "a.png") == ["x"]


def test_hugging_face_says_which_column_is_which() -> None:
    features = {"a": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": ["x", "y"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = schema(image=pa.binary(), a=PICTURE, fine=pa.int64(), other=pa.int64()).with_metadata(metadata)
    assert find_columns(columns)[:3] == ("a", "fine", ("x", "y"))
    for broken_metadata in ("{", "[]", '{"info": 3}', '{"info": {"features": {"image": 4}}}', "[" * 5000):
        assert find_columns(schema(image=PICTURE).with_metadata({"huggingface": broken_metadata})).image == "image"


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (
            {"source": ["a"], "cluster": [1]},
            r"a\.parquet holds no images.*columns are source \(string\), cluster \(int64\)",
        ),
        ({"a": [b"x"], "b": [b"y"]}, r"several columns that could be the images.*a \(binary\), b \(binary\)"),
        (
            {"image": [b"x"], "png": [b"y"]},
            r"several columns that could be the images.*image \(binary\), png \(binary\)$",
        ),
        ({"image": ["text"]}, r"a\.parquet holds no images: .*; its columns are image \(string\)$"),
        ({"image": [[1, 2]]}, r"a\.parquet holds no images: .*; its columns are image \(list<.*>\)$"),
    ],
)
def test_parquet_without_a_clear_column_is_one_sentence(tmp_path: Path, columns: dict[str, Any], why: str) -> None:
    with pytest.raises(StdacError, match=why) as caught:
        opened(tmp_path, "a.parquet", parquet(pa.table(columns)))
    assert "\n" not in str(caught.value)


def test_missing_pictures_and_labels_of_parquet(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    columns = {
        "image": pa.array(
            [None, {"bytes": None, "path": "a.png"}, {"bytes": PNGS[0], "path": None}, {"bytes": PNGS[1]}], PICTURE
        ),
        "label": pa.array([None, -1, 1, 7]),
    }
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    got = rows(opened(tmp_path, "a.parquet", parquet(table)))
    assert [row[3] for row in got] == [None, None, "y", "7"]
    assert [row[2] for row in got[:2]] == [Unreadable("its row holds no bytes")] * 2
    assert isinstance(got[2][2], np.ndarray)


# --- fuzzing, in this process: what children do is the same


FUZZED: dict[str, tuple[bytes, Callable[[str], Iterator[Batch]]]] = {
    "a.npy": (npy(IMAGES[:70]), read_batches),
    "a.npz": (npz(np.savez, images=IMAGES[:70], labels=np.arange(70)), read_batches),
    "b.npz": (npz(images=IMAGES[:70] // 9), read_batches),
    "a.idx": (idx(IMAGES[:70]), read_batches),
    "a.gz": (gzip.compress(idx(IMAGES[:70])), read_batches),
    "a.tar": (shard(20), read_tar),
    "b.tar": (tar([(f"{'x' * 150}{i}.png", p) for i, p in enumerate(PNGS[:20])]), read_tar),
    "a.tgz": (gzip.compress(shard(20)), read_tar),
    "a.tar.bz2": (bz2.compress(shard(20)), read_tar),
    "a.tar.xz": (lzma.compress(shard(20)), read_tar),
}


@settings(max_examples=400, deadline=60_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(FUZZED)), st.integers(0, 2**32), st.sampled_from([0, 1, 1, 3, 30]), st.booleans())
def test_damaged_files_give_images_and_then_a_reason(
    tmp_path: Path, name: str, seed: int, flips: int, cut: bool
) -> None:
    content, read = FUZZED[name]
    data, chance = bytearray(content), random.Random(seed)
    for _ in range(flips):
        data[chance.randrange(min(len(data), chance.choice([300, 2000, 10**9])))] = chance.randrange(256)
    path = tmp_path / name
    path.write_bytes(data[: chance.randrange(len(data))] if cut else data)
    got = [
        (index, content)
        for batch in end_with_reason(read(str(path)), str(path))
        for index, content in zip(batch.index, batch.content, strict=True)
    ]
    assert [index for index, _ in got] == list(range(len(got)))
    assert got
    for _, value in got[:-1]:
        assert isinstance(value, bytes | np.ndarray | Unreadable)
    if isinstance(got[-1][1], Unreadable):
        assert "\n" not in got[-1][1].reason


def test_damaged_parquet_gives_images_and_then_a_reason(tmp_path: Path) -> None:
    """In children, some of which pyarrow may crash."""
    content = hugging_face(40, row_group_size=15)
    chance = random.Random(3)
    for turn in range(6):
        data = bytearray(content)
        for _ in range(chance.choice([1, 5])):
            data[chance.randrange(len(data) - 2500 if turn % 2 else 0, len(data))] = chance.randrange(256)
        try:
            source = opened(
                tmp_path, "a.parquet", bytes(data[: chance.randrange(len(data))] if turn % 3 == 0 else data)
            )
        except StdacError as error:
            assert "\n" not in str(error)
            continue
        got = [index for batch in source.batches() for index in batch.index.tolist()]
        assert got == list(range(len(got)))
        assert 1 <= len(got) <= 41


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_reader_that_dies_is_a_row(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tar([("large.png", bytes(64 << 20))])
    source = opened(tmp_path, name, {"a.tar": large, "a.parquet": hugging_face()}[name])
    monkeypatch.setattr(stdac.pictures.tar, "MEMORY_BYTES", 20 << 20)
    monkeypatch.setattr(stdac.pictures.parquet, "MEMORY_BYTES", 20 << 20)
    n, reason = broken(source)
    assert n == 0
    assert reason


# --- labels from a file


def of(labels: Any, *names: str, index: list[int] | None = None, position: int = 0) -> list[str | None]:
    """The labels of some images."""
    return list(labels.of(list(names), np.array(index or [0] * len(names)), position))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "semicolon.csv"])
def test_a_table_of_labels_finds_paths_and_their_ends(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [
        ("in/cat/1.png", "cat"),
        ("dog/1.png", "dog"),
        ("./x.png", "x"),
        (f"{tmp_path}/in/y.png", "y"),
        ("e.png", ""),
    ]
    path = tmp_path / f"labels.{suffix}"
    if suffix == "parquet":
        pq.write_table(
            pa.table({"file": [a for a, _ in pairs], "class": [b for _, b in pairs], "other": [1.5] * 5}), path
        )
    else:
        between = {"csv": ",", "tsv": "\t", "semicolon.csv": ";"}[suffix]
        lines = [f"more{between}File{between}Label", *(f"1{between}{a}{between}{b}" for a, b in pairs), ""]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    labels = read_labels(path)
    names = ["in/cat/1.png", "in/dog/1.png", "in/deep/x.png", "./in/y.png", "in/e.png", "in/none.png"]
    assert of(labels, *names) == ["cat", "dog", "x", "y", None, None]
    assert of(labels, *names) == ["cat", "dog", "x", "y", None, None]
    labels.check(6)


def test_labels_whose_names_are_composed_otherwise_are_found(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,label\nl\u00e9o/1.png,caf\u00e9\nma\u00f1ana.png,cafe\u0301\n", "utf-8")
    labels = read_labels(tmp_path / "l.csv")
    assert of(labels, "in/le\u0301o/1.png", "in/man\u0303ana.png") == ["caf\u00e9", "caf\u00e9"]
    assert labels.check(2) == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.txt"])
def test_text_files_of_labels_are_read_by_their_mark(tmp_path: Path, encoding: str, name: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text = "größe\r\nklein\r\n" if name == "l.txt" else "file\tlabel\r\na.png\tgröße\r\nb.png\tklein\r\n"
    (tmp_path / name).write_text(mark + text, encoding, newline="")
    assert of(read_labels(tmp_path / name), "in/a.png", "in/b.png") == ["größe", "klein"]


def test_labels_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    rows = {"path": ["a.png", "b.png", "gone.png", "none.png"], "label": [1.0, None, 2.0, float("nan")]}
    pq.write_table(pa.table(rows), tmp_path / "l.parquet")
    labels = read_labels(tmp_path / "l.parquet")
    assert of(labels, "in/a.png", "in/b.png", "in/c.png") == ["1", None, None]
    assert labels.check(3) == [
        f"2 of 4 names in {tmp_path}/l.parquet are of no image (the first: gone.png)",
        f"2 of 4 rows in {tmp_path}/l.parquet have no label",
        f"2 of 3 images have no label in {tmp_path}/l.parquet",
    ]
    (tmp_path / "l.txt").write_text("a\n\nb\n")
    labels = read_labels(tmp_path / "l.txt")
    assert of(labels, "a", "b", "c") == ["a", None, "b"]
    assert labels.check(3) == [f"1 of the 3 labels in {tmp_path}/l.txt are empty"]


LABEL_VALUES: dict[str, tuple[Any, list[str | None]]] = {
    "view": (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
    "large": (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    "dictionary": (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    "bytes": (pa.array([b"a", b"\xff"]), ["a", r"\xff"]),
    "double": (pa.array([3.0, None]), ["3", None]),
    "half": (pa.array(np.array([3, 4], np.float16)), ["3", "4"]),
    "decimal": (pa.array([1, 2], pa.decimal128(5, 2)), ["1", "2"]),
    "bool": (pa.array([True, False]), ["True", "False"]),
}


@pytest.mark.parametrize("kind", LABEL_VALUES)
def test_labels_are_what_values_can_be(tmp_path: Path, kind: str) -> None:
    column, expected = LABEL_VALUES[kind]
    pq.write_table(pa.table({"file": ["a.png", "b.png"], "label": column}), tmp_path / "l.parquet")
    assert of(read_labels(tmp_path / "l.parquet"), "a.png", "b.png") == expected
    source = opened(tmp_path, "a.parquet", parquet(pa.table({"image": PNGS[:2], "label": column})))
    assert [row[3] for row in rows(source)] == expected and list_notes(source) == []


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([1.0, 0.5], "column label has type double with values such as 0.5, expected text or whole numbers as labels"),
        ([[1], [2]], "column label has type list<element: int64>, expected text or whole numbers as labels"),
    ],
)
def test_values_that_are_no_labels_are_told(tmp_path: Path, column: list[Any], said: str) -> None:
    pq.write_table(pa.table({"file": ["a.png", "b.png"], "label": column}), tmp_path / "l.parquet")
    with pytest.raises(StdacError, match=re.escape(f"l.parquet ({said})")):
        read_labels(tmp_path / "l.parquet")
    source = opened(tmp_path, "a.parquet", parquet(pa.table({"image": PNGS[:2], "label": column})))
    assert [row[3] for row in rows(source)] == [None, None]
    assert list_notes(source) == [f"{tmp_path}/a.parquet is read without labels: {said}"]


def test_the_longest_name_counts(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,label\n1.png,short\ncat/1.png,long\n")
    assert of(read_labels(tmp_path / "l.csv"), "in/cat/1.png", "in/dog/1.png") == ["long", "short"]


def test_a_bare_name_that_fits_two_images_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("name,label\n1.png,a\n")
    labels = read_labels(tmp_path / "l.csv")
    assert of(labels, "in/cat/1.png") == ["a"]
    with pytest.raises(StdacError, match=r"l\.csv fits several images, one of them in/dog/1\.png"):
        of(labels, "in/dog/1.png")
    (tmp_path / "l.csv").write_text("name,label\n1.png,a\n1.png,b\n")
    with pytest.raises(StdacError, match=r"several labels for 1\.png"):
        read_labels(tmp_path / "l.csv")


def test_images_in_archives_are_labelled_by_index(tmp_path: Path) -> None:
    table = pa.table(
        {"source": ["a.npz"] * 3 + ["b.png"], "index": [0, 1, 2, 0], "label": ["x", "y", None, "z"], "name": ["n"] * 4}
    )
    pq.write_table(table, tmp_path / "l.parquet")
    labels = read_labels(tmp_path / "l.parquet")
    assert of(labels, "a.npz", "a.npz", "in/a.npz", index=[2, 1, 9]) == [None, "y", None]
    assert of(labels, "in/b.png") == ["z"]


def test_labels_of_hugging_face_have_their_names(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    table = pa.table({"file": ["a.png", "b.png"], "label": [1, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "l.parquet")
    assert of(read_labels(tmp_path / "l.parquet"), "a.png", "b.png") == ["y", "x"]


def test_names_that_are_not_utf_8_are_found_as_they_are_printed(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"path,label\nlatin-\xe9.png,caf\xc3\xa9\n")
    assert of(read_labels(tmp_path / "l.csv"), r"in/latin-\xe9.png") == ["café"]


IN_ORDER = {
    "l.npy": npy(np.array([3, 1, 2])),
    "text.npy": npy(np.array(["3", "1", "2"])),
    "labels-idx1-ubyte": idx(np.array([3, 1, 2], np.uint8)),
    "l.gz": gzip.compress(idx(np.array([3, 1, 2], np.uint8))),
    "l.txt": b"3\n1\n2\n",
    "windows.txt": "\ufeff3\r\n1\r\n2".encode(),
    "l.csv": b"label\n3\n1\n2\n",
    "l.parquet": parquet(pa.table({"y": [3, 1, 2]})),
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_labels_in_the_order_of_the_inputs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(IN_ORDER[name])
    labels = read_labels(tmp_path / name)
    assert of(labels, "a", "b") == ["3", "1"]
    assert of(labels, "c", position=2) == ["2"]
    labels.check(3)
    with pytest.raises(StdacError, match="has 3 labels for at least 4 images"):
        of(labels, "c", "d", position=2)
    with pytest.raises(StdacError, match="has 3 labels for 2 images: expected one label an image"):
        labels.check(2)


BAD_LABELS: dict[str, tuple[bytes, str]] = {
    "l.csv": (b"a,b\n1,2\n", "{path} has the columns a, b: expected a CSV"),
    "empty.csv": (b"", "{path} has the columns of an empty file: expected a CSV"),
    "no-label.csv": (b"path,thing\n1,2\n", "{path} has the columns path, thing: expected a CSV"),
    "ragged.csv": (b"path,label\na,b,c\n", "{path} has a row of 3 values, expected 2 as in its header: a"),
    "nul.csv": (b'path,label\n"a' + b"x" * 200_000, "{path} is not a CSV file (field larger than field limit"),
    "floats.npy": (npy(np.array([1.5])), "cannot read {path} (a label is 1.5, expected text or whole numbers"),
    "wide.npy": (npy(np.eye(3, dtype=int)), "{path} holds an array of shape (3, 3) and type int64: expected a CSV"),
    "cut.npy": (npy(np.arange(1000))[:-5], "{path} is cut short or damaged: 999 of its 1,000 labels are there"),
    "objects.npy": (
        npy(np.array([{}], dtype=object)),
        "cannot read {path} (its header promises an array of shape (1,) and type object",
    ),
    "images-idx": (idx(IMAGES), "{path} holds an array of shape (150, 12, 10) and type uint8: expected a CSV"),
    "text.npz": (b"hello", "{path} is not an IDX file: its first bytes are 68656c6c"),
    "a.npz": (npz(images=IMAGES), "{path} is not an IDX file: its first bytes are 504b0304"),
    "text.parquet": (b"PAR1 hello", "cannot read {path} (Parquet magic bytes not found in footer"),
    "images.parquet": (parquet(pa.table({"image": PNGS})), "{path} has the columns "),
    "index.csv": (b"path,index,label\na,x,y\n", "cannot read {path} (invalid literal for int()"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_labels_that_cannot_be_understood_are_one_sentence(tmp_path: Path, name: str) -> None:
    content, said = BAD_LABELS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StdacError) as caught:
        read_labels(tmp_path / name)
    assert str(caught.value).startswith(said.replace("{path}", str(tmp_path / name))) and "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe.csv")
    for other in ("gone.csv", "pipe.csv"):
        with pytest.raises(StdacError, match=f"{other}, which does not exist or is no regular file"):
            read_labels(tmp_path / other)


def test_labels_of_other_images_are_told(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,label\na.png,x\n")
    labels = read_labels(tmp_path / "l.csv")
    assert of(labels, "b.png") == [None]
    with pytest.raises(StdacError, match=r"no name in .*l\.csv is that of an image \(the first is a\.png\)"):
        labels.check(1)


# --- conform, sample


def test_arrays_are_converted_as_files_are(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    for shape in ((1, 20, 20), (3, 20, 20), (1, 40, 30), (1, 50, 50)):
        expected = read_image(tmp_path / "a.png", shape[0], shape[1:])
        np.testing.assert_array_equal(conform(image.transpose(2, 0, 1)[None], shape)[0], expected)


def test_a_sample_is_of_readable_images_from_all_over_and_the_same_every_time(tmp_path: Path) -> None:
    fill(tmp_path / "in", *(f"{i:03}.png" for i in range(1, 6)))
    (tmp_path / "in" / "000.png").write_bytes(b"no picture")
    (tmp_path / "a.npy").write_bytes(npy(np.concatenate([IMAGES] * 3)))
    (tmp_path / "a.tar").write_bytes(shard())
    assert sample_images(open_input(str(tmp_path / "in")), GRAY).shape == (5, *GRAY)
    assert sample_images(open_input(str(tmp_path / "a.npy")), (3, 20, 20)).shape == (3 * N, 3, 20, 20)
    np.testing.assert_array_equal(sample_images(open_input(str(tmp_path / "a.tar")), GRAY), IMAGES[:, None])
    digits = sample_images(open_input("digits"), (1, 28, 28))
    assert digits.shape == (SAMPLE, 1, 28, 28)
    np.testing.assert_array_equal(digits, sample_images(open_input("digits"), (1, 28, 28)))
    assert not np.array_equal(digits, load("digits").images[:SAMPLE])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(StdacError, match=r"none of the images of .*bad\.png could be read: not a readable image"):
        sample_images(open_input(str(tmp_path / "bad.png")), GRAY)


def test_a_folder_is_surveyed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png")
    source = Folder(str(tmp_path))
    monkeypatch.setattr(os, "scandir", None)
    assert source.count() == 1


def test_importing_sources_loads_neither_pyarrow_nor_torch() -> None:
    heavy = "{'torch', 'torchvision', 'sklearn', 'scipy', 'matplotlib', 'pyarrow', 'onnxruntime'}"
    code = f"import sys, stdac.data, export.results.labels; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_pictures_are_on_the_ground_floor() -> None:
    """The package imports no more of ours than what is below it."""
    code = """
import importlib, pkgutil, sys, stdac.pictures
for module in pkgutil.iter_modules(stdac.pictures.__path__, "stdac.pictures."):
    importlib.import_module(module.name)
print(*(name for name in sys.modules if name.partition(".")[0] in ("stdac", "export", "cluster_jobs", "analysis")))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    others = {name for name in result.stdout.split() if not name.startswith("stdac.pictures")}
    assert others <= {
        "stdac",
        *(f"stdac.{name}" for name in ("cores", "errors", "files", "processes", "text", "words")),
    }

"""Hostile inputs to `stdac cluster`: each is a row or a sentence, memory is bounded, and the others are sorted."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from export.cluster import Settings, cluster_files
from export.results.labels import read_labels
from stdac.data import open_input
from stdac.errors import StdacError
from stdac.pictures.batches import cut_stat
from stdac.pictures.pixels import Pixels
from stdac.text import escape_name
from tests.waiting import LONG_S

GOOD = 12
MEMORY_MIB = 1536
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP", "gif": "GIF", "ppm": "PPM"}
CPU = Settings(provider="cpu", workers=2)


# --- a run as a user starts it -------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a command ended: exit code, its stderr, its rows (None: no output), peak memory of it and its children."""

    code: int
    error: str
    rows: list[dict[str, object]] | None
    mib: int


def processes(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    try:
        children = Path(f"/proc/{root}/task").glob("*/children")
        for text in [path.read_text() for path in children]:
            for child in text.split():
                yield from processes(int(child))
    except OSError:
        return


def pss_kib(process: int) -> int:
    """The memory of a process, its share of what is shared."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def cluster(
    model: Path,
    *inputs: object,
    output: Path,
    stdin: bytes = b"",
    meanwhile: Callable[[int, set[int]], None] = lambda pid, children: None,
) -> Ended:
    """Run `stdac cluster`; fails where it hangs, shows a traceback, or leaves a process or a temporary file."""
    command = [sys.executable, "-c", "from cluster_jobs.commands.stdac import main; main()", "cluster", str(model)]
    command += [*map(os.fspath, inputs), "-o", str(output), "--workers", "2", "--provider", "cpu"]  # type: ignore[call-overload]
    with (output.parent / "stdin").open("w+b") as given, (output.parent / "stderr").open("w+b") as said:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=subprocess.DEVNULL, stderr=said)
        seen: set[int] = set()
        peak, began = 0, time.monotonic()
        while process.poll() is None:
            now = set(processes(process.pid))
            peak = max(peak, sum(map(pss_kib, now)))
            seen |= now
            meanwhile(process.pid, now - {process.pid})
            if time.monotonic() - began > LONG_S:
                process.kill()
                raise AssertionError("it hangs")
            time.sleep(0.05)
        said.seek(0)
        error = said.read().decode("utf-8", "replace")
    assert "Traceback" not in error
    assert "unexpected" not in error
    assert "Warning" not in error
    assert not [pid for pid in seen if running(pid)]
    rows = pq.read_table(output).to_pylist() if output.exists() else None
    return Ended(process.returncode, error, rows, peak >> 10)


def running(pid: int) -> bool:
    """Whether a process is there and no zombie; given a moment to end."""
    for _ in range(600):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return False
        except OSError:
            return False
        time.sleep(0.05)
    return True


def checked(ended: Ended, output: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of a run that sorted something, by source; nothing is left beside them."""
    assert ended.code == 0, ended.error
    assert ended.mib < MEMORY_MIB
    assert not [p for p in output.parent.iterdir() if p.name.startswith(f"{output.name}.") or p.name.endswith(".tmp")]
    assert ended.rows is not None
    by_source: dict[str, list[dict[str, object]]] = {}
    for row in ended.rows:
        assert (row["error"] is None) == (row["cluster"] is not None) == (row["confidence"] is not None)
        assert row["error"] is None or "\n" not in str(row["error"])
        by_source.setdefault(str(row["source"]), []).append(row)
    return by_source


@pytest.fixture(scope="module")
def good(digits: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sound pictures."""
    folder = tmp_path_factory.mktemp("good")
    for i, image in enumerate(digits[:GOOD]):
        Image.fromarray(image[0]).save(folder / f"good{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def clusters(good: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The clusters of the sound pictures, sorted alone."""
    output = tmp_path_factory.mktemp("alone") / "out.parquet"
    cluster_files(model, [str(good)], output, CPU)
    found: list[int] = pq.read_table(output)["cluster"].to_pylist()
    return found


def sound(by_source: dict[str, list[dict[str, object]]], folder: Path) -> list[object]:
    """The clusters of the sound pictures in a folder."""
    return [by_source[str(folder / f"good{i:02}.png")][0]["cluster"] for i in range(GOOD)]


# --- files that are not what they seem -----------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    """A gray PNG of 8 bits with whatever data."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """A little-endian TIFF with (tag, type, count, value) and no more."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 8)  # the next directory: itself


def jpeg_with(segment: bytes, data: bytes, picture: bytes) -> bytes:
    """A JPEG with many such segments after its beginning."""
    return picture[:2] + (segment + struct.pack(">H", len(data) + 2) + data) * 200 + picture[2:]


def bombs(jpeg: bytes) -> dict[str, bytes]:
    """Pictures that promise, or unpack to, more than they should; by file name."""
    import zlib

    zeros = zlib.compress(b"\0" * (1 << 26), 9)
    sizes = ((256, 4, 1, 60000), (257, 4, 1, 60000))
    strips = ((258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1 << 30, 8), (279, 4, 1 << 30, 8))
    exif = b"Exif\0\0" + tiff((0x8769, 4, 1, 8), (0x112, 3, 1 << 31, 8), (0x8825, 4, 1, 8))
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return {
        "huge.png": png(60000, 60000, zeros),
        "more.png": png(28, 28, zeros),
        "text.png": png(28, 28, zeros, *[chunk(b"zTXt", b"k\0\0" + zeros)] * 9),
        "profile.png": png(28, 28, zeros, chunk(b"iCCP", b"k\0\0" + zeros)),
        "frames.png": png(
            28, 28, zeros, chunk(b"acTL", b"\0\xff\xff\xff\0\0\0\0"), *[chunk(b"fcTL", b"\0" * 26)] * 999
        ),
        "zero.png": png(0, 0, b""),
        "huge.gif": b"GIF89a\xff\xff\xff\xff\0\0\0" + frame + b";",
        "frames.gif": b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * 100_000 + b";",
        "huge.bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
        "rle.bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 9999, 9999, 1, 8, 1, 0, 0, 0, 2**31, 0),
        "huge.tif": tiff(*sizes),
        "strips.tif": tiff((256, 4, 1, 28), (257, 4, 1, 28), *strips),
        "tiles.tif": tiff((256, 4, 1, 9), (257, 4, 1, 9), (322, 4, 1, 1 << 31), (323, 4, 1, 1 << 31), *strips),
        "huge.webp": b"RIFF\xff\xff\xff\x7fWEBPVP8X\n\0\0\0\x12\0\0\0" + b"\xff" * 6,
        "huge.ppm": b"P5 99999999999 99999999999 255\n",
        "plain.pgm": b"P2 9999 9999 65535\n" + b"1 " * 999,
        "exif.jpg": jpeg_with(b"\xff\xe1", exif, jpeg),
        "profile.jpg": jpeg_with(b"\xff\xe2", b"ICC_PROFILE\0\1\xff" + b"\0" * 65000, jpeg),
        "mpf.jpg": jpeg_with(b"\xff\xe2", b"MPF\0" + tiff((0xB001, 4, 1, 2**31), (0xB002, 7, 2**31, 8)), jpeg),
        "end.jpg": jpeg[:2] + b"\xff" * 100_000,
    }


def odd_names() -> list[bytes]:
    """File names that break what does not expect them."""
    return [
        b"new\nline",
        b"\xff\xfe",
        b"\x1b[31m\x1b]0;x\x07",
        b"n" * 251,
        b" ",
        b"\t",
        b"-rf",
        b"'\"`$(id)",
        b"<b>",
        b"~$",
    ]


def fill_with_traps(folder: Path, picture: bytes) -> int:
    """Everything but pictures under the names of pictures; how many rows of it are good."""
    os.mkfifo(folder / "fifo.png")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        listener.bind("socket.png")
        os.chdir(here)
    for name, target in (
        ("loop", "loop.png"),
        ("gone", "nowhere"),
        ("device", "/dev/zero"),
        ("self", "/proc/self/mem"),
    ):
        (folder / f"{name}.png").symlink_to(target)
    (folder / "up").symlink_to("..")
    (folder / "folder.png").mkdir()
    for name in ("sparse.bmp", "huge.tif.png"):
        with (folder / name).open("wb") as file:
            file.truncate(1 << (40 if "huge" in name else 27))
    for name in odd_names():
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".png")).write_bytes(picture)
    inside = os.open(folder, os.O_RDONLY)
    for _ in range(25):  # deeper than PATH_MAX
        os.mkdir("d" * 200, dir_fd=inside)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = below
    os.close(inside)
    return len(odd_names())


def test_traps_and_bombs_in_a_folder_are_rows_and_the_others_keep_their_clusters(
    model: Path, good: Path, clusters: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(good, folder)
    picture = (good / "good00.png").read_bytes()
    jpeg = io.BytesIO()
    Image.open(good / "good00.png").save(jpeg, "JPEG")
    fine = fill_with_traps(folder, picture)
    for name, data in bombs(jpeg.getvalue()).items():
        (folder / f"bomb-{name}").write_bytes(data)
    output = tmp_path / "out.parquet"
    by_source = checked(cluster(model, folder, output=output), output)
    assert sound(by_source, folder) == clusters
    named = [by_source[escape_name(os.fsdecode(os.fsencode(folder) + b"/" + n + b".png"))][0] for n in odd_names()]
    assert [row["cluster"] for row in named] == [clusters[0]] * fine
    assert "cannot be listed" in str([row["error"] for rows in by_source.values() for row in rows])
    refused = {
        "huge.png",
        "zero.png",
        "huge.gif",
        "huge.bmp",
        "huge.tif",
        "tiles.tif",
        "huge.webp",
        "huge.ppm",
        "end.jpg",
    }
    assert all(by_source[str(folder / f"bomb-{name}")][0]["error"] for name in refused)
    shutil.rmtree(folder)


# --- archives ------------------------------------------------------------------------------------------------------


def npy_head(shape: object, kind: str = "|u1", length: int | None = None) -> bytes:
    """The header of an .npy file, version 2, whatever length it claims."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\2\0" + struct.pack("<I", len(text) if length is None else length) + text


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    """A zip archive."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def directory(entries: int) -> bytes:
    """A zip archive that is all directory."""
    entry = b"PK\1\2" + bytes(24) + struct.pack("<HHHHHII", 4, 0, 0, 0, 0, 0, 0) + b"name"
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, len(entry) * entries, 30, 0)
    return b"PK\3\4" + bytes(26) + entry * entries + end


def tar_head(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """The header of a member of a tar archive, whatever its size."""
    head = bytearray(512)
    head[: len(name)] = name
    head[100:108] = b"0000644\0"
    head[124:136] = b"\x80" + size.to_bytes(11, "big")
    head[148:157] = b" " * 8 + kind
    head[257:265] = b"ustar\x0000"
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def array_bombs(folder: Path) -> None:
    """Files of arrays that lie about themselves."""
    with (folder / "header.npy").open("wb") as file:
        file.write(npy_head((3, 28, 28), length=(1 << 32) - 1))
        file.truncate(1 << 33)
    for name, shape in {
        "minus": (-1, 28, 28),
        "large": (1 << 62, 28, 28),
        "wide": (2, 1 << 62, 9),
        "text": ("a",),
    }.items():
        (folder / f"{name}.npy").write_bytes(npy_head(shape) + bytes(7840))
    for name, kind in {"objects": "|O", "floats": "<f8", "nothing": "|V0"}.items():
        (folder / f"{name}.npy").write_bytes(npy_head((9, 28, 28), kind) + bytes(7840))
    zipped(folder / "header.npz", {"images.npy": npy_head((3, 28, 28), length=1 << 27) + b" " * (1 << 27)})
    (folder / "directory.npz").write_bytes(directory(500_000))
    images = npy_head((3, 28, 28)) + bytes(3 * 784)
    zipped(folder / "lzma.npz", {"images.npy": images}, zipfile.ZIP_LZMA)
    zipped(folder / "labels.npz", {"images.npy": images, "labels.npy": npy_head((3,), "<U99999999") + bytes(99)})
    (folder / "lying-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(7840))
    (folder / "zeros.gz").write_bytes(
        gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(1 << 26))
    )


def parquet_bombs(folder: Path, picture: bytes) -> None:
    """Parquet files that lie, or unpack to too much."""
    large = pa.array([bytes(200 << 20)]).take(pa.array([0] * 6))
    pq.write_table(pa.table({"image": large}), folder / "values.parquet", compression="zstd")
    labels = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["\ud800"]}}}}
    table = pa.table({"image": [picture], "label": [0]}).replace_schema_metadata({"huggingface": json.dumps(labels)})
    pq.write_table(table, folder / "surrogate.parquet")
    sound = (folder / "surrogate.parquet").read_bytes()
    (folder / "footer.parquet").write_bytes(sound[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")
    (folder / "empty.parquet").write_bytes(b"PAR1")


def tar_bombs(folder: Path) -> None:
    """Tar archives that lie, or unpack to too much."""
    (folder / "member.tar").write_bytes(tar_head(b"a.png", 1 << 62) + bytes(512))
    (folder / "skipped.tar").write_bytes(tar_head(b"a.txt", 1 << 58) + bytes(512))
    (folder / "pax.tar").write_bytes(tar_head(b"a", 1 << 40, b"x") + bytes(512))
    (folder / "sparse.tar").write_bytes(tar_head(b"a.png", 9, b"S") + bytes(512))
    zeros = bz2.compress(bytes(1 << 26))
    (folder / "bomb.tar.bz2").write_bytes(bz2.compress(tar_head(b"a.txt", 1 << 45)) + zeros * 9999)
    (folder / "zeros.tar.gz").write_bytes(gzip.compress(bytes(1 << 26)))
    (folder / "empty.tar.xz").write_bytes(lzma.compress(b"") * 99)


def test_bombs_in_archives_are_rows_and_the_others_keep_their_clusters(
    model: Path, good: Path, clusters: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    array_bombs(folder)
    parquet_bombs(folder, (good / "good00.png").read_bytes())
    tar_bombs(folder)
    output = tmp_path / "out.parquet"
    by_source = checked(cluster(model, *sorted(folder.iterdir()), good, output=output), output)
    assert sound(by_source, good) == clusters
    assert by_source.pop(str(folder / "surrogate.parquet"))[0]["label"] == "\\ud800"
    whole = [source for source, rows in by_source.items() if source.startswith(str(folder)) and not rows[-1]["error"]]
    assert whole == [str(folder / "labels.npz")]  # of which only the labels, which nobody needs, are a bomb
    shutil.rmtree(folder)


# --- damage --------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, left out, doubled or cut off."""
    broken = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        place = rng.randrange(max(1, min(len(broken), rng.choice([64, 512, len(broken) or 1]))))
        how = rng.randrange(5)
        if how == 0:
            del broken[place:]
        elif how == 1:
            del broken[place : place + rng.randrange(1, 9)]
        elif how == 2:
            broken[place:place] = broken[place : place + rng.randrange(1, 99)]
        else:
            broken[place : place + 1] = bytes([rng.choice([0, 255, 127, 128, rng.randrange(256)])])
    return bytes(broken)


def sound_pictures(image: Image.Image) -> dict[str, bytes]:
    """One picture in every format, by suffix; several of PNG, JPEG and TIFF."""
    made: dict[str, bytes] = {}
    exif = Image.Exif()
    exif[274] = 6
    kinds: list[tuple[str, str, dict[str, object]]] = [(suffix, kind, {}) for suffix, kind in FORMATS.items()]
    kinds += [
        ("x.jpg", "JPEG", {"progressive": True, "exif": exif.tobytes()}),
        ("x.png", "PNG", {"exif": exif.tobytes()}),
    ]
    kinds += [(f"{c}.tif", "TIFF", {"compression": c}) for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
    for suffix, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        made[suffix] = file.getvalue()
    return made


def damaged_pictures(folder: Path, good: Path, n: int, seed: int) -> None:
    """The sound pictures and n damaged ones, some with another format's suffix."""
    shutil.copytree(good, folder)
    rng = random.Random(seed)
    pictures = sound_pictures(Image.open(good / "good00.png").resize((40, 30)))
    for i in range(n):
        suffix, data = rng.choice(sorted(pictures.items()))
        name = rng.choice(sorted(FORMATS)) if rng.random() < 0.2 else suffix
        (folder / f"{i:05}.{name}").write_bytes(damaged(data, rng))


def check_damaged_pictures(model: Path, good: Path, clusters: list[int], folder: Path, n: int, seed: int) -> None:
    damaged_pictures(folder / "in", good, n, seed)
    output = folder / "out.parquet"
    by_source = checked(cluster(model, folder / "in", output=output), output)
    assert len(by_source) == GOOD + n
    assert sound(by_source, folder / "in") == clusters


def test_damaged_pictures_are_rows(model: Path, good: Path, clusters: list[int], tmp_path: Path) -> None:
    check_damaged_pictures(model, good, clusters, tmp_path, 1500, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_damaged_pictures_are_rows(
    model: Path, good: Path, clusters: list[int], tmp_path: Path, seed: int
) -> None:
    check_damaged_pictures(model, good, clusters, tmp_path, 20_000, seed)


def sound_archives(folder: Path, images: Pixels, pictures: Sequence[bytes]) -> dict[str, bytes]:
    """The same images in every kind of archive."""
    folder.mkdir()
    np.save(folder / "a.npy", images[:, 0])
    np.savez(folder / "a.npz", images=images[:, 0], labels=np.arange(len(images)))
    np.savez_compressed(folder / "b.npz", images=images[:, 0], labels=np.array(["x"] * len(images)))
    idx = bytes([0, 0, 8, 3]) + np.array(images[:, 0].shape, ">u4").tobytes() + images.tobytes()
    (folder / "a-idx").write_bytes(idx)
    (folder / "a.gz").write_bytes(gzip.compress(idx))
    table = pa.table({"image": pictures, "label": [str(i) for i in range(len(pictures))]})
    pq.write_table(table, folder / "a.parquet")
    pq.write_table(table, folder / "b.parquet", compression="zstd", use_dictionary=False)
    for name, mode in (("a.tar", "w"), ("a.tgz", "w:gz"), ("b.tar", "w")):
        style = tarfile.PAX_FORMAT if name == "b.tar" else tarfile.GNU_FORMAT
        with tarfile.open(folder / name, mode, format=style) as archive:  # type: ignore[call-overload]
            for i, picture in enumerate(pictures):
                member = tarfile.TarInfo(("é" * 150 if i == 1 else "") + f"{i}.png")
                member.size = len(picture)
                archive.addfile(member, io.BytesIO(picture))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def check_damaged_archives(model: Path, folder: Path, archives: dict[str, bytes], seed: int) -> None:
    """Damaged archives, each an input: rows or a sentence, and what is written fits the summary."""
    rng = random.Random(seed)
    for name, data in archives.items():
        (folder / name).write_bytes(damaged(data, rng))
    inputs = []
    for name in archives:
        try:
            open_input(str(folder / name))
        except StdacError as error:
            assert "\n" not in str(error)
        else:
            inputs.append(str(folder / name))
    output = folder / "out.parquet"
    summary = cluster_files(model, inputs, output, CPU)
    table = pq.read_table(output)
    assert summary.images + summary.errors == len(table)
    assert set(table["source"].to_pylist()) == set(inputs)
    assert not list(folder.glob("*.parts"))


@pytest.fixture(scope="module")
def archives(good: Path, digits: Pixels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Sound archives, by name."""
    pictures = [path.read_bytes() for path in sorted(good.iterdir())]
    return sound_archives(tmp_path_factory.mktemp("archives") / "in", digits[:GOOD], pictures)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_archives_are_rows_or_a_sentence(
    model: Path, archives: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    check_damaged_archives(model, tmp_path, archives, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_many_damaged_archives_are_rows_or_a_sentence(
    model: Path, archives: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    check_damaged_archives(model, tmp_path, archives, seed)


# --- lists, arguments, labels --------------------------------------------------------------------------------------


def test_junk_in_a_list_is_rows_and_the_others_keep_their_clusters(
    model: Path, good: Path, clusters: list[int], tmp_path: Path
) -> None:
    output = tmp_path / "out.parquet"
    os.mkfifo(tmp_path / "fifo.png")
    junk = [
        b"/proc/kmsg",
        b"/proc/self/mem",
        b"/dev/zero",
        b"/dev/stdin",
        b"/",
        b"-",
        b"~x/y",
        b"\xff",
        b"a" * (1 << 20),
    ]
    junk += [
        os.fsencode(output),
        os.fsencode(tmp_path / "fifo.png"),
        b"\x1b[31m",
        b"digits",
        random.Random(0).randbytes(999),
    ]
    lines = [os.fsencode(path) for path in sorted(good.iterdir())] + junk
    by_source = checked(cluster(model, "-", "-", output=output, stdin=b"\n".join(lines)), output)
    assert sound(by_source, good) == clusters
    assert all(rows[0]["error"] for source, rows in by_source.items() if "good" not in source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty name does not exist: expected a folder of images"),
        ("~nobody-of-that-name/x", "~nobody-of-that-name/x does not exist: expected a folder of images"),
        ("~$x.png", "~$x.png does not exist: expected a folder of images"),
        ("a" * 300, "cannot read " + "a" * 300 + ": File name too long"),
        ("/" + "a/" * 3000, "cannot read /" + "a/" * 3000),
        ("\udcff\x1b", "\\xff\x1b does not exist: expected a folder of images"),
        ("a\0b", "cannot read a\0b: embedded null"),
    ],
)
def test_an_odd_argument_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(StdacError) as caught:
        open_input(text)
    assert str(caught.value).startswith(said.rstrip("/"))


def test_a_time_of_no_calendar_is_kept_as_one_that_64_bits_hold() -> None:
    for modified_ns in (-(1 << 80), -1, 0, 1 << 80):
        about = os.stat_result((0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0.0, 0.0, 0.0, 0, modified_ns, 0))
        assert pa.array(cut_stat(about), pa.int64())[0].as_py() == 7


def hostile_labels(folder: Path) -> dict[str, Path]:
    """Files of labels that no one should send."""
    texts = {
        "line.csv": b"a" * (1 << 22),
        "columns.csv": b"file,label" + b"," * (1 << 21),
        "wide.csv": b"file,label\n" + b"x," * (1 << 17),
        "utf16.csv": "file,label\na.png,x\n".encode("utf-16"),
        "nul.csv": b"file,label\na.png,\0\n",
        "quote.csv": b'file,label\n"a.png,' + b"x\n" * 200_000,
        "index.csv": b"file,label,index\na.png,a,zz\n",
        "columns.tsv": b"\0" * 999,
        "random.parquet": b"PAR1" + random.Random(0).randbytes(999) + b"PAR1",
        "u0.npy": npy_head((9,), "<U0"),
        "unicode.npy": npy_head((1,), "<U1") + b"\xff\xff\xff\x7f",
        "promise.npy": npy_head((1 << 60,), "<i8"),
        "bomb.gz": gzip.compress(bytes([0, 0, 8, 1, 255, 255, 255, 255]) + bytes(1 << 26)),
    }
    for name, data in texts.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "fifo.csv")
    large = pa.array(["x" * (100 << 20)]).take(pa.array([0] * 11))
    pq.write_table(pa.table({"file": large, "label": large}), folder / "large.parquet", compression="zstd")
    return {name: folder / name for name in [*texts, "fifo.csv", "large.parquet"]}


def test_hostile_labels_are_labels_or_one_sentence(tmp_path: Path) -> None:
    told = set()
    for name, path in hostile_labels(tmp_path).items():
        try:
            read_labels(path)
        except StdacError as error:
            assert "\n" not in str(error)
            told.add(name)
    assert told >= {
        "line.csv",
        "columns.csv",
        "fifo.csv",
        "promise.npy",
        "bomb.gz",
        "unicode.npy",
        "large.parquet",
        "u0.npy",
    }


@given(
    data=st.binary(max_size=300), suffix=st.sampled_from(["csv", "tsv", "txt", "npy", "gz", "parquet", "npz", "png"])
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_labels_or_one_sentence(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"l.{suffix}"
    path.write_bytes(data)
    try:
        labels = read_labels(path)
        labels.of(["a.png"], np.zeros(1, np.int64), 0)
        labels.check(1)
    except StdacError as error:
        assert str(error)


# --- while it runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(digits: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of enough pictures to do something meanwhile."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(3000):
        Image.fromarray(digits[i % len(digits), 0]).save(folder / f"{i:05}.png")
    return folder


def test_decoders_that_are_killed_cost_no_rows(model: Path, many: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(_: int, children: set[int]) -> None:
        if len(children) > 1 and not killed:
            killed.extend(children)
            for child in children:
                os.kill(child, signal.SIGKILL)

    cluster_files(model, [str(many)], tmp_path / "alone.parquet", CPU)
    output = tmp_path / "out.parquet"
    checked(cluster(model, many, output=output, meanwhile=kill), output)
    assert len(killed) == 2
    assert output.read_bytes() == (tmp_path / "alone.parquet").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_its_children_and_the_next_run_gives_the_same_rows(
    model: Path, many: Path, tmp_path: Path, number: signal.Signals
) -> None:
    sent: list[int] = []

    def end(pid: int, children: set[int]) -> None:
        if len(children) > 1 and not sent:
            sent.append(pid)
            os.kill(pid, number)

    output = tmp_path / "out.parquet"
    ended = cluster(model, many, output=output, meanwhile=end)
    assert ended.code != 0
    assert ended.rows is None
    checked(cluster(model, many, output=output), output)
    cluster_files(model, [str(many)], tmp_path / "alone.parquet", CPU)
    assert output.read_bytes() == (tmp_path / "alone.parquet").read_bytes()


def test_files_that_change_during_the_run_are_rows_or_left_out(model: Path, many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(many, folder)
    rng = random.Random(0)
    paths = sorted(folder.iterdir())

    def change(_: int, __: set[int]) -> None:
        for path in rng.sample(paths, 60):
            how = rng.randrange(4)
            if not path.is_file():
                continue
            if how == 0:
                path.rename(path.with_suffix(".gone"))
            elif how == 1:
                os.truncate(path, rng.randrange(300))
            elif how == 2:
                with path.open("ab") as file:
                    file.write(b"x" * 999)
            else:
                path.unlink()
                os.mkfifo(path)

    output = tmp_path / "out.parquet"
    by_source = checked(cluster(model, folder, output=output, meanwhile=change), output)
    assert set(by_source) <= {str(path) for path in paths}

"""Images in .npy, .npz and IDX files, read a batch at a time: their size is no matter, and nothing is unpickled."""

import gzip
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeVar, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipExtFile, ZipFile

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.pictures.batches import BATCH, BATCH_BYTES, Batch, end_with_reason, read_stat
from stdac.pictures.columns import read_label_text
from stdac.pictures.layouts import EXPECTED, choose_arrays
from stdac.pictures.pixels import MAX_PIXELS, check_pixels, to_pixels
from stdac.text import LABEL_CHARS, escape_name
from stdac.words import count_noun

T = TypeVar("T")

IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
"""What an IDX file's third byte says its values are."""

PIECE_BYTES = 1 << 16
FORTRAN_BYTES = 1 << 28
"""Arrays in Fortran order have to be read whole, so larger ones are refused."""

HEADER_BYTES = 1 << 20

STREAM_ERRORS = (OSError, EOFError, ValueError, RuntimeError, zlib.error, LZMAError, BadZipFile)
"""What streams of damaged, encrypted or unknown archives raise."""


class ByteStream(Protocol):
    """A stream of bytes; `read1` gives what there is before it fails."""

    def read(self, n: int = -1, /) -> bytes: ...

    def read1(self, n: int, /) -> bytes: ...


class GuardedFile:
    """A file of which one read may ask for no more than HEADER_BYTES, as the headers of hostile files promise any."""

    def __init__(self, file: ByteStream) -> None:
        self._file = file

    def read(self, n: int = -1) -> bytes:
        if n > HEADER_BYTES:
            raise ValueError(f"a header of it has {n:,} bytes, more than the {HEADER_BYTES:,} that are read")
        return self._file.read(n if n >= 0 else HEADER_BYTES)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class StoredArray:
    """An array in a stream, in C order, of which some rows after others are taken."""

    def __init__(self, file: ByteStream, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        self.file, self.shape, self.dtype = file, shape, dtype
        self.row_bytes = dtype.itemsize * math.prod(shape[1:])
        self.error: Exception | None = None

    def take(self, rows: int) -> NDArray[np.generic]:
        """The next rows; fewer, or none, where the stream ends or breaks (`error` says how)."""
        wanted, data = rows * self.row_bytes, bytearray()
        try:
            while len(data) < wanted and (piece := self.file.read1(min(PIECE_BYTES, wanted - len(data)))):
                data += piece
        except STREAM_ERRORS as error:
            self.error = error
        whole = len(data) // self.row_bytes
        return np.frombuffer(data, self.dtype, whole * math.prod(self.shape[1:])).reshape(whole, *self.shape[1:])


class ArrayPart(NamedTuple):
    """Images that follow each other in a file, and their labels, which fit them; None for none."""

    images: StoredArray
    labels: StoredArray | None


class Opened(NamedTuple):
    """An array file at its beginning. notes: what a person should know of how it is read."""

    parts: list[ArrayPart]
    notes: list[str]


@dataclass(frozen=True)
class ArrayFile:
    """An .npy, .npz or IDX file as a source, its labels with it."""

    path: str

    @property
    def name(self) -> str:
        return escape_name(self.path)

    @property
    def notes(self) -> list[str]:
        """What a person should know of how it is read."""
        return self._ask(lambda opened: opened.notes, [])

    def count(self) -> int:
        """What the header says; 1 for a file that cannot be read, which becomes one row."""
        return self._ask(lambda opened: sum(part.images.shape[0] for part in opened.parts), 1)

    def has_numbers(self) -> bool:
        """Whether its labels are numbers, not names."""
        none: list[StoredArray] = []
        labels = self._ask(lambda opened: [part.labels for part in opened.parts if part.labels is not None], none)
        return bool(labels) and all(array.dtype.kind in "iubf" for array in labels)

    def _ask(self, question: Callable[[Opened], T], otherwise: T) -> T:
        """What its headers say; something else where it cannot be read."""
        try:
            with open_array(self.path) as opened:
                return question(opened)
        except (*STREAM_ERRORS, StdacError, MemoryError):
            return otherwise

    def batches(self) -> Iterator[Batch]:
        return end_with_reason(read_batches(self.path), self.path, read_stat(self.path))


def read_batches(path: str) -> Iterator[Batch]:
    """The images of an array file and their labels. Raises StdacError where it cannot be read, or no further."""
    name, stat = escape_name(path), read_stat(path)
    with open_array(path) as opened:
        start = 0
        for images, labels in opened.parts:
            n, done = images.shape[0], 0
            while done < n:
                pixels = images.take(min(BATCH, max(1, BATCH_BYTES // images.row_bytes), n - done))
                if not len(pixels):
                    raise _cut_short_error(images, done)
                label = read_label_texts(None if labels is None else labels.take(len(pixels)), len(pixels))
                index = np.arange(start + done, start + done + len(pixels), dtype=np.int64)
                yield Batch([name] * len(pixels), index, to_pixels(pixels, path), label, stat)
                done += len(pixels)
            _check_ends(images)
            start += n


def _check_ends(images: StoredArray) -> None:
    """Raise StdacError, or what the stream raised, where something follows the images."""
    rest = StoredArray(images.file, (1,), np.dtype("u1"))
    if len(rest.take(1)):
        raise StdacError(
            f"it goes on after the {images.shape[0]:,} images of its header, which is damaged or not its only one"
        )
    if rest.error is not None:
        raise rest.error


@contextmanager
def open_array(path: str) -> Iterator[Opened]:
    """An array file whose images can be read. Labels that are not one an image are left out, and noted.

    Raises StdacError for other files.
    """
    with ExitStack() as stack:
        pairs, notes = _open_pairs(path, stack)
        parts = []
        for images, open_labels in pairs:
            check_pixels(images.shape, images.dtype, path)
            if images.row_bytes > MAX_PIXELS:
                raise StdacError(
                    f"{path} has images of shape {images.shape[1:]}, expected at most {MAX_PIXELS:,} values"
                )
            why = None if open_labels is None else _explain_unusable(open_labels, images.shape[0])
            if why:
                notes.append(f"{escape_name(path)} is read without labels: {why}")
            parts.append(ArrayPart(images, None if open_labels is None or why else open_labels()))
        yield Opened(parts, notes)


def _cut_short_error(images: StoredArray, done: int) -> StdacError:
    """Why an array ends before the end that its header promises."""
    why = f" ({str(images.error).splitlines()[0]})" if images.error is not None and str(images.error) else ""
    return StdacError(f"it is cut short or damaged{why}: {done:,} of its {images.shape[0]:,} images can be read")


OpenLabels = Callable[[], StoredArray]


def _explain_unusable(open_labels: OpenLabels, n: int) -> str:
    """Why labels are not one for each of n images, "" where they are."""
    try:
        labels = open_labels()
        if not check_are_labels(labels):
            return f"they have shape {labels.shape} and type {labels.dtype}, expected (N,) whole numbers or text"
        if labels.shape[0] != n:
            return f"it has {count_noun(n, 'image')} but {count_noun(labels.shape[0], 'label')}"
        while labels.dtype.kind == "f" and len(values := labels.take(PIECE_BYTES)):
            read_label_texts(values, 0)
    except (*STREAM_ERRORS, StdacError) as error:
        return str(error).split("\n", maxsplit=1)[0]
    return ""


def check_are_labels(array: StoredArray) -> bool:
    """Whether an array is one of labels: (N,) or (N, 1) numbers, or texts of at most LABEL_CHARS characters."""
    flat = len(array.shape) == 1 or array.shape[1:] == (1,)
    return flat and array.dtype.kind in "iubfUS" and 0 < array.dtype.itemsize <= 4 * LABEL_CHARS


def read_label_texts(labels: NDArray[np.generic] | None, n: int) -> list[str | None]:
    """The labels of n images as text, None where there are none. Raises ValueError for a number that is not whole."""
    if (
        labels is not None
        and labels.dtype.kind == "U"
        and (labels.view(f"{labels.dtype.str[0]}u4") > sys.maxunicode).any()
    ):
        raise ValueError("its labels are not Unicode")
    given = [] if labels is None else [read_label_text(label) for label in labels.reshape(-1).tolist()]
    return [*given, *[None] * (n - len(given))]


def _open_pairs(path: str, stack: ExitStack) -> tuple[list[tuple[StoredArray, OpenLabels | None]], list[str]]:
    """The images of an array file, at their beginning, each with what opens their labels; and what to note of it.

    What it is, its content tells. Raises StdacError or one of STREAM_ERRORS for what is no such file.
    """
    file = stack.enter_context(open(path, "rb"))  # noqa: SIM115  # the caller's stack closes it
    head = file.read(4)
    file.seek(0)
    if head[:2] == b"PK":
        return _open_npz(stack.enter_context(ZipFile(cast(IO[bytes], GuardedFile(file)))), stack, path)
    if head == b"\x93NUM":
        return [(open_npy(file), None)], []
    if head[:2] in (b"\x1f\x8b", b"\0\0"):
        beside = find_labels(path)
        return [(open_idx(path, stack), None if beside is None else partial(open_idx, beside, stack))], []
    raise StdacError(f"{path} is not a plain NumPy file, nor IDX: its first bytes are {head.hex()}")


def _open_npz(
    archive: ZipFile, stack: ExitStack, path: str
) -> tuple[list[tuple[StoredArray, OpenLabels | None]], list[str]]:
    """What `_open_pairs` gives, of an .npz file. Raises StdacError where there are no images."""
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    chosen = choose_arrays(names)
    if not chosen:
        raise StdacError(f"{path} holds {', '.join(names[:8]) or 'nothing'}, expected {EXPECTED}")

    def member(name: str) -> StoredArray:
        if archive.getinfo(f"{name}.npy").compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # others take any memory
            raise StdacError(f"{path} is compressed as NumPy does not: save it with numpy.savez_compressed")
        return open_npy(cast(ZipExtFile, stack.enter_context(archive.open(f"{name}.npy"))))

    order = ", then ".join(image for image, _ in chosen)
    notes = [f"the images of {escape_name(path)} are {order}"] if len(chosen) > 1 else []
    return [(member(image), None if label is None else partial(member, label)) for image, label in chosen], notes


def open_npy(file: ByteStream) -> StoredArray:
    """The array of an .npy stream. Raises ValueError for another format."""
    shape, fortran, dtype = _read_npy_header(file)
    if dtype.hasobject or any(length < 0 for length in shape) or not shape:
        raise ValueError(f"its header promises an array of shape {shape} and type {dtype}, expected images")
    if fortran and len(shape) > 1:
        return _to_c_order(StoredArray(file, shape[::-1], dtype))
    return StoredArray(file, shape, dtype)


def _read_npy_header(file: ByteStream) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """The shape of an .npy stream's array, whether it is in Fortran order, its type. Raises ValueError."""
    try:
        head = GuardedFile(file)
        version = npy_format.read_magic(head)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        return read(head)
    except Exception as error:  # a parser of Python literals raises anything
        raise ValueError("its header is damaged") from error


def _to_c_order(transposed: StoredArray) -> StoredArray:
    """An array of which the stream holds the transpose. Raises StdacError for one of more than FORTRAN_BYTES."""
    if transposed.row_bytes * transposed.shape[0] > FORTRAN_BYTES:
        raise StdacError("it is a large array in Fortran order, expected C order: save numpy.ascontiguousarray of it")
    array = transposed.take(transposed.shape[0])
    if len(array) < transposed.shape[0]:
        raise _cut_short_error(StoredArray(transposed.file, transposed.shape[::-1], transposed.dtype), 0)
    return StoredArray(BytesIO(np.ascontiguousarray(array.T).tobytes()), transposed.shape[::-1], transposed.dtype)


def open_idx(path: str, stack: ExitStack) -> StoredArray:
    """The array of an IDX file, gzipped or not. Raises StdacError for another format."""
    whole = stack.enter_context(open(path, "rb"))  # noqa: SIM115  # the caller's stack closes it
    packed = whole.peek(2)[:2] == b"\x1f\x8b"
    file = stack.enter_context(gzip.GzipFile(fileobj=whole)) if packed else whole
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 4:
        raise StdacError(f"{path} is not an IDX file: its first bytes are {head.hex()}")
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise StdacError(f"{path} is cut short: its header is not complete")
    return StoredArray(file, tuple(np.frombuffer(sizes, ">u4").tolist()), np.dtype(IDX_TYPES[head[2]]))


def find_labels(path: str) -> str | None:
    """The file of labels beside an IDX file named …images-idx3…, named …labels-idx1…; None where there is none."""
    name = Path(path).name
    beside = Path(path).with_name(name.replace("images-idx3", "labels-idx1"))
    return str(beside) if beside.name != name and beside.is_file() else None

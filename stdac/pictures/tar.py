"""Pictures in tar archives (WebDataset), read in a child process: hostile ones may take any amount of memory."""

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import IO, Any, NamedTuple

from stdac.errors import StdacError
from stdac.pictures.batches import (
    BATCH,
    Batch,
    Content,
    Item,
    batch_items,
    catch_failure,
    end_with_reason,
    read_stat,
    refuse_large,
)
from stdac.pictures.child import iterate_in_child
from stdac.pictures.formats import SUFFIXES
from stdac.text import escape_label, escape_name, find_encoding
from stdac.words import count_noun

MEMORY_BYTES = 1 << 30
BLOCK = 512
SMALL_BYTES = 1 << 16
LABEL_BYTES = 1 << 12
HEADER_BYTES = 1 << 20
TAIL_BYTES = 1 << 20
MOST_BYTES = 1 << 60
BOMB_BYTES, BOMB_RATIO = 1 << 32, 1000
"""A member that ends beyond BOMB_BYTES and BOMB_RATIO times the archive's size is not unpacked."""

REGULAR = (b"0", b"\0", b"7")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
LONG_NAME, PAX, SPARSE = b"L", b"x", b"S"
"""Kinds of members: IEEE Std 1003.1 (pax), and what GNU tar adds."""


class TarFile:
    """The pictures of a tar archive, in its order; gzipped, bzipped, xz or plain.

    Of a WebDataset sample, whose members have names that are equal up to the first dot, the picture is the one with
    the shortest of endings, as .jpg beside .seg.png; others like it are left out.
    """

    def __init__(self, path: str) -> None:
        self.path, self.name = path, escape_name(path)
        self._left_out, self._first = 0, ""

    @property
    def notes(self) -> list[str]:
        """What a person should know of how it was read, after that."""
        if not self._left_out:
            return []
        left_out = count_noun(self._left_out, "picture")
        return [f"{left_out} of {self.name} left out, as they come with the picture of a sample: {self._first} first"]

    def count(self) -> None:
        return None

    def batches(self) -> Iterator[Batch]:
        batches = iterate_in_child("stdac.pictures.tar:read_tar", self.path, memory_bytes=MEMORY_BYTES)
        self._left_out = 0
        for batch in end_with_reason(batches, self.path, read_stat(self.path)):
            if batch.left_out and not self._left_out:
                self._first = batch.left_out[0]
            self._left_out += len(batch.left_out)
            yield batch


def read_tar(path: str) -> Iterator[Batch]:
    """The pictures of a tar archive; for a process of its own. Raises StdacError where it is damaged, or cut short."""
    return batch_items(_read_items(path), escape_name(path), read_stat(path))


def _read_items(path: str) -> Iterator[Item]:
    """The pictures of a tar archive, with the text of the .cls member beside them."""
    failures: list[Exception] = []
    most = BOMB_BYTES + BOMB_RATIO * os.path.getsize(path)  # noqa: PTH202
    with _open_tar(path) as file:
        for _, sample in groupby(catch_failure(_read_members(file, most), failures), key=lambda member: member.key):
            yield from _label_sample(sample)
    if failures:
        raise failures[0]


class _Member(NamedTuple):
    """A picture or label of a tar archive; members of one sample have the same key, their names up to a dot."""

    name: str
    content: Content
    is_label: bool

    @property
    def key(self) -> str:
        return self.name[: len(self.name) - len(self.endings)]

    @property
    def endings(self) -> str:
        """All that follows the first dot of the file's name, with that dot: .seg.png."""
        _, dot, endings = self.name.rpartition("/")[2].partition(".")
        return dot + endings


def _label_sample(sample: Iterator[_Member]) -> Iterator[Item]:
    """The pictures of one sample with its label; of one with more than BATCH pictures, no more wait for it."""
    pictures: list[_Member] = []
    label: str | None = None
    for member in sample:
        if member.is_label and isinstance(member.content, bytes):
            label = _decode_label(member.content)
        elif not member.is_label:
            pictures.append(member)
        if len(pictures) == BATCH:
            yield from _choose_pictures(pictures, label)
            pictures = []
    yield from _choose_pictures(pictures, label)


def _choose_pictures(pictures: list[_Member], label: str | None) -> Iterator[Item]:
    """Those with the fewest endings, as .jpg beside .seg.png; the names of the others go with the first of them."""
    fewest = min((picture.endings.count(".") for picture in pictures), default=0)
    left_out = tuple(picture.name for picture in pictures if picture.endings.count(".") > fewest)
    for picture in pictures:
        if picture.endings.count(".") == fewest:
            yield Item(picture.content, label, picture.name, left_out)
            left_out = ()


def _decode_label(content: bytes) -> str | None:
    """The text of a .cls member, None for none."""
    return escape_label(content.decode(find_encoding(content), "backslashreplace").strip()) or None


def _read_members(file: IO[bytes], most: int) -> Iterator[_Member]:
    """The pictures and labels of a tar archive, hidden ones left out. Raises StdacError beyond so many bytes."""
    for header in _read_headers(file):
        if file.tell() + header.blocks_bytes > most:
            raise StdacError(f"it is cut short, or a bomb: it promises a member of {header.size:,} bytes")
        parts = [part for part in header.name.split("/") if part not in ("", ".")]
        visible = parts and header.kind in REGULAR and not any(part.startswith(".") for part in parts)
        suffix = parts[-1][parts[-1].rfind(".") :].lower() if visible else ""
        is_label = suffix == ".cls" and header.size <= LABEL_BYTES
        if suffix not in SUFFIXES and not is_label:
            _skip_data(file, header)
            continue
        refused = refuse_large(header.size)
        if refused is not None:
            _skip_data(file, header)
        content = refused or _read_data(file, header)
        yield _Member(escape_name("/".join(parts)), content, is_label)


class _Header(NamedTuple):
    """What a tar archive says of a member, whose data follow in whole blocks."""

    name: str
    size: int
    kind: bytes

    @property
    def blocks_bytes(self) -> int:
        return 0 if self.kind in WITHOUT_DATA else -(-self.size // BLOCK) * BLOCK


def _read_headers(file: IO[bytes]) -> Iterator[_Header]:
    """The members of a tar archive, whose data the caller takes or skips. Raises StdacError where it is damaged."""
    extended: dict[bytes, bytes] = {}
    while any(block := file.read(BLOCK)):
        header = _parse_header(block, extended)
        if header.kind in (LONG_NAME, PAX):
            if header.size > HEADER_BYTES:
                raise StdacError(f"it is damaged: a header has {header.size:,} bytes")
            data = _read_data(file, header)
            extended |= _parse_pax(data) if header.kind == PAX else {b"path": data.rstrip(b"\0")}
            continue
        extended = {}
        if header.kind == SPARSE:
            raise StdacError("it has a sparse member, which is not read: write it without --sparse")
        yield header
    if len(block) < BLOCK:
        raise StdacError("it is cut short")
    file.read(TAIL_BYTES)  # to the end of the file, where compressed ones have their checksum


def _parse_header(block: bytes, extended: dict[bytes, bytes]) -> _Header:
    """A header, with what an extended one before it says. Raises StdacError for a block that is none."""
    if len(block) < BLOCK:
        raise StdacError("it is cut short")
    try:
        if sum(block) - sum(block[148:156]) + 256 != int(block[148:156].strip(b" \0"), 8):
            raise ValueError
        size = int(extended[b"size"]) if b"size" in extended else _parse_number(block[124:136])
        if not 0 <= size < MOST_BYTES:
            raise ValueError
    except ValueError as error:
        raise StdacError("it is damaged, or not a tar archive: a header is wrong") from error
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return _Header(extended.get(b"path", name).decode("utf-8", "surrogateescape"), size, block[156:157])


def _parse_number(field: bytes) -> int:
    """A number in octal digits, or in base 256 where the first bit is set. Raises ValueError."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] == 0x80 else -1
    return int(field.strip(b" \0") or b"0", 8)


def _parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Keys and values of a pax header: lines of "length key=value". Raises StdacError where it is damaged."""
    records: dict[bytes, bytes] = {}
    place = 0
    try:
        while place < len(data):
            space = data.index(b" ", place)
            end = place + int(data[place:space])
            if end <= space:
                raise ValueError
            key, _, records[key] = data[space + 1 : end - 1].partition(b"=")
            place = end
    except ValueError as error:
        raise StdacError("it is damaged: an extended header is wrong") from error
    return records


def _read_data(file: IO[bytes], header: _Header) -> bytes:
    """The data of a member. Raises StdacError where the archive ends before they do."""
    data = file.read(header.blocks_bytes)
    if len(data) < header.size:
        raise StdacError("it is cut short")
    return data[: header.size]


def _skip_data(file: IO[bytes], header: _Header) -> None:
    """Pass over the data of a member."""
    if header.blocks_bytes <= SMALL_BYTES:
        file.read(header.blocks_bytes)
    else:
        file.seek(header.blocks_bytes, os.SEEK_CUR)


UNPACK: dict[bytes, Callable[[IO[bytes]], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


@contextmanager
def _open_tar(path: str) -> Iterator[IO[bytes]]:
    """The stream of blocks of a tar archive, unpacked."""
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        unpack = next((unpack for magic, unpack in UNPACK.items() if file.peek(6).startswith(magic)), None)
        yield file if unpack is None else stack.enter_context(unpack(file))

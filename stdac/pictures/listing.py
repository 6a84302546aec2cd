"""Picture files that are listed on stdin."""

import os
import sys
import tempfile
from collections.abc import Iterator
from io import BufferedIOBase
from typing import cast

from stdac.errors import StdacError
from stdac.pictures.batches import BATCH, Batch, Item, Unreadable, explain_error, make_files_batch, split_items
from stdac.pictures.formats import SUFFIXES
from stdac.pictures.image import check_regular
from stdac.pictures.kinds import KIND_NAMES, recognize_kind
from stdac.text import iterate_utf8

LINE_BYTES = 1 << 16


class PictureList:
    """Picture files listed on stdin, one a line, or ended by NUL bytes where there are any.

    What has been read is kept in a temporary file, for a second pass. Raises StdacError where stdin is a terminal.
    """

    name = "-"

    def __init__(self, stream: BufferedIOBase | None = None) -> None:
        if stream is None and (sys.stdin is None or sys.stdin.isatty()):
            raise StdacError("- reads a list of images from stdin, which is a terminal: pipe one, as in find . | …")
        self._stream = stream or cast(BufferedIOBase, sys.stdin.buffer)
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as its owner

    def count(self) -> None:
        return None

    def batches(self) -> Iterator[Batch]:
        for names in split_items(self._names(), BATCH):
            yield make_files_batch([_check_listed(name) for name in names], names)

    def _names(self) -> Iterator[str]:
        """The listed paths; what is longer than LINE_BYTES is cut."""
        separator, rest = b"", b""
        for block in iterate_utf8(self._blocks()):
            separator = separator or (b"\0" if b"\0" in block else b"\n" if b"\n" in block else b"")
            *lines, rest = (rest + block).split(separator) if separator else [rest + block]
            yield from map(os.fsdecode, filter(None, (self._line(line, separator) for line in lines)))
            rest = rest[:LINE_BYTES]
        if line := self._line(rest, separator):
            yield os.fsdecode(line)

    def _line(self, line: bytes, separator: bytes) -> bytes:
        return (line if separator == b"\0" else line.removesuffix(b"\r"))[:LINE_BYTES]

    def _blocks(self) -> Iterator[bytes]:
        """Stdin from its beginning, read as far as it is asked for."""
        place = 0
        while True:
            self._kept.seek(place)
            block = self._kept.read(LINE_BYTES)
            if not block:
                block = self._stream.read1(LINE_BYTES)
                self._kept.seek(0, os.SEEK_END)
                self._kept.write(block)
            if not block:
                return
            place += len(block)
            yield block


def _check_listed(path: str) -> Item:
    """A path of a list: a file to decode, or what is wrong with it."""
    try:
        check_regular(os.stat(path))
        kind = "picture" if path[path.rfind(".") :].lower() in SUFFIXES else recognize_kind(path)
    except (OSError, ValueError, StdacError) as error:
        return Item(Unreadable(explain_error(error, path)), None)
    if kind != "picture":
        return Item(Unreadable(f"this is {KIND_NAMES[kind]}, expected a picture: name it as an INPUT of its own"), None)
    return Item(path, None)

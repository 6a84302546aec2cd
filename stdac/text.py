"""Text from outside: names of files, labels, text files. What has passed here, every file and console takes."""

import codecs
import os
import re
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from stdac.errors import StdacError

LABEL_CHARS = 1 << 12
"""Of a longer label no more is kept."""

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order marks: what Windows' programs begin a text file with. The longer ones come first."""


def escape_name(name: str) -> str:
    r"""A file name as text: bytes that are not UTF-8 become \x escapes. `find_path` turns it back."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file name has, or text that is no name of a file
        return escape_text(name)


def escape_text(text: str) -> str:
    r"""Any text; what UTF-8 cannot hold, halves of surrogate pairs, as \u escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def escape_label(text: str) -> str:
    """A label of at most LABEL_CHARS characters, composed."""
    return compose(escape_text(text[:LABEL_CHARS]))


def compose(text: str) -> str:
    """Text that equals another one where both read alike (NFC): macOS writes é in two characters, others in one."""
    return unicodedata.normalize("NFC", text)


def find_path(text: str) -> str:
    r"""The path that a text means: itself, or what `escape_name` made it of, whichever is there; else itself."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text
    unescaped = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), data)
    return next(filter(os.path.lexists, (text, os.fsdecode(data), os.fsdecode(unescaped))), text)


def find_encoding(head: bytes) -> str:
    """The encoding of a text by its first bytes: of its byte order mark; UTF-16 where every other byte is 0, as in
    Latin letters; else UTF-8."""
    marked = next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None)
    if marked is None and len(head) >= 4 and head.count(0) == len(head) // 2:
        return "utf-16-le" if not any(head[1::2]) else "utf-16-be" if not any(head[::2]) else "utf-8"
    return marked or "utf-8"


def read_text(path: Path) -> str:
    """The text of a file, UTF-8 or what its byte order mark says. Raises OSError, and StdacError for other bytes."""
    data = path.read_bytes()
    try:
        return data.decode(find_encoding(data))
    except UnicodeDecodeError as error:
        raise StdacError(
            f"{path} is not UTF-8 (byte {error.start + 1:,} is {data[error.start : error.start + 1].hex()}): "
            "save it as UTF-8"
        ) from error


def iterate_utf8(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """A text in UTF-8, whatever its byte order mark says that it is in; bytes without a mark pass as they are."""
    head = b""
    while len(head) < max(map(len, MARKS)) and (block := next(blocks, b"")):
        head += block
    encoding = find_encoding(head[:4])
    if encoding.startswith("utf-8"):
        yield head.removeprefix(codecs.BOM_UTF8)
        yield from blocks
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for block in chain([head], blocks):
        yield decoder.decode(block).encode()

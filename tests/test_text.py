"""Text from outside: every name and every encoding comes in, and comes out where it goes."""

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stdac.errors import StdacError
from stdac.text import escape_label, escape_name, find_path, iterate_utf8, read_text

ODD = os.fsdecode(b"b\xeflder g\xc3\xb6")


def test_a_name_that_is_not_utf_8_becomes_text_and_is_found_by_it(tmp_path: Path) -> None:
    path = f"{tmp_path}/{ODD}"
    os.mkdir(path)  # noqa: PTH102
    assert escape_name(path) == rf"{tmp_path}/b\xeflder gö"
    assert find_path(escape_name(path)) == find_path(path) == path
    assert find_path(f"{tmp_path}/none") == f"{tmp_path}/none"
    assert find_path("\ud800") == "\ud800" and find_path("a\0b") == "a\0b"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_stream_is_utf_8_whatever_its_mark_says(encoding: str, size: int) -> None:
    data = "größe/1.png\n\U0001f600.png".encode(encoding)
    blocks: Iterator[bytes] = (data[i : i + size] for i in range(0, len(data), size))
    assert b"".join(iterate_utf8(blocks)).decode() == "größe/1.png\n\U0001f600.png"
    assert b"".join(iterate_utf8(iter([]))) == b""


def test_a_text_file_is_utf_8_or_has_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for data in (b"\xc3\xb6", codecs.BOM_UTF8 + b"\xc3\xb6", codecs.BOM_UTF16_BE + b"\0\xf6", "ö".encode("utf-16")):
        path.write_bytes(data)
        assert read_text(path) == "ö"
    path.write_bytes(b"g\xf6")
    with pytest.raises(StdacError, match=r"a\.txt is not UTF-8 \(byte 2 is f6\): save it as UTF-8$"):
        read_text(path)


def test_labels_that_read_alike_are_equal() -> None:
    assert escape_label("cafe\u0301") == escape_label("caf\xe9") == "café"
    assert escape_label("\udce9") == r"\udce9"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_a_list_of_names_is_read_in_every_encoding_of_unicode(encoding: str) -> None:
    data = "photos/a.png\r\nphotos/ü.png\r\n".encode(encoding)
    assert b"".join(iterate_utf8(iter([data[:5], data[5:]]))).decode() == "photos/a.png\r\nphotos/ü.png\r\n"

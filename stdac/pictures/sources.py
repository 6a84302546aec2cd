"""Where images come from: what an input is, by its name and its content, as a source of batches."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from stdac.errors import StdacError
from stdac.pictures.arrays import ArrayFile
from stdac.pictures.batches import Batch, Source, end_with_reason, explain_error, read_stat
from stdac.pictures.folder import Folder, Picture
from stdac.pictures.kinds import TAR_NAMES, recognize_kind
from stdac.pictures.listing import PictureList
from stdac.pictures.parquet import ParquetFile
from stdac.pictures.tar import TarFile
from stdac.text import escape_name, find_path
from stdac.words import count_noun

KINDS: dict[str, Callable[[str], Source]] = {
    "picture": Picture,
    "array": ArrayFile,
    "parquet": ParquetFile,
    "tar": TarFile,
}

SHARDS = (".parquet", *TAR_NAMES)

EXPECTED = "a folder of images, an image, an .npz, .npy, IDX, Parquet or tar file, or - for a list of images on stdin"


def list_notes(source: Source) -> list[str]:
    """What a person should know of how a source was read, after that; a sentence each."""
    return list(getattr(source, "notes", ()))


def open_source(text: str, named: Mapping[str, Source] | None = None) -> Source:
    """What an INPUT is: -, a name among `named` (./digits is a folder), a folder, or a file, which its content tells.

    Raises StdacError as `open_path` does.
    """
    named = named or {}
    if text == "-":
        return PictureList()
    if text in named:
        return named[text]
    return open_path(text, f"{EXPECTED}, or one of {', '.join(named)}" if named else EXPECTED)


def open_path(text: str, expected: str = EXPECTED) -> Source:
    """A folder or a file as a source; nothing is decoded yet.

    expected: what the errors say that there could be. Raises StdacError for what is not there, a folder without images,
    a Parquet file without a column of images, and what is neither a file nor a folder; a file that is damaged becomes a
    row with an error.
    """
    path = find_path(str(Path(os.path.expanduser(text)))) if text else ""  # noqa: PTH111  # Path.expanduser raises for ~$x.png
    try:
        about = os.stat(path)
    except FileNotFoundError as error:
        raise StdacError(f"{escape_name(path) or 'an empty name'} does not exist: expected {expected}") from error
    except (OSError, ValueError) as error:
        raise StdacError(f"cannot read {escape_name(path)}: {explain_error(error, path)}") from error
    if stat.S_ISDIR(about.st_mode):
        return _open_folder(path)
    if not stat.S_ISREG(about.st_mode):
        raise StdacError(f"{escape_name(path)} is neither a file nor a folder: expected {expected}")
    return KINDS[recognize_kind(path)](path)


class Shards:
    """Parquet or tar files in a folder as one data set, in the order of their names; each is opened in its turn."""

    def __init__(self, path: str, files: Sequence[str]) -> None:
        self.path, self.name, self._files = path, escape_name(path), files
        self._notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """What a person should know of how they were read, after that."""
        return [f"{self.name}: {count_noun(len(self._files), 'file')} read in the order of their names", *self._notes]

    def count(self) -> None:
        return None

    def batches(self) -> Iterator[Batch]:
        self._notes = []
        for path in self._files:
            yield from end_with_reason(self._read(path), path, read_stat(path))

    def _read(self, path: str) -> Iterator[Batch]:
        source = KINDS[recognize_kind(path)](path)
        yield from source.batches()
        self._notes += list_notes(source)


def _open_folder(path: str) -> Source:
    """A folder of images, or where it has none, of Parquet or tar files. Raises StdacError where it has neither."""
    try:
        return Folder(path)
    except StdacError:
        files = sorted(
            os.path.join(folder, name)  # noqa: PTH118
            for folder, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(SHARDS) and name[:1] not in "._"
        )
        if not files:
            raise
    KINDS[recognize_kind(files[0])](files[0])  # raises where it has no column of images
    return Shards(path, files)

"""Picture files: one, or those below a folder, whose first sub-folders may be classes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from stdac.errors import StdacError
from stdac.pictures.batches import BATCH, Batch, Item, Unreadable, make_files_batch, split_items
from stdac.text import escape_label, escape_name

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"})


def walk(folder: str) -> Iterator[str]:
    """The image files below a folder, by suffix, sorted by name within each folder; the names of one are in memory.

    Hidden ones are left out, links to folders not followed. A folder that cannot be listed is yielded with a slash at
    its end.
    """
    waiting = [(folder, _list_reversed(folder))]
    while waiting:
        path, names = waiting[-1]
        if names is None:
            yield path + "/"
        if not names:
            waiting.pop()
            continue
        name = names.pop()
        below = os.path.join(path, name.rstrip("/"))  # noqa: PTH118  # a Path for each of a million would cost
        if name.endswith("/"):
            waiting.append((below, _list_reversed(below)))
        else:
            yield below


def _list_reversed(folder: str) -> list[str] | None:
    """The wanted names in a folder, last one first, sub-folders with a slash at the end; None where it is closed."""
    try:
        with os.scandir(folder) as entries:
            names = [name for name in map(_wanted_name, entries) if name]
    except OSError:
        return None
    names.sort(key=lambda name: name.rstrip("/"), reverse=True)
    return names


def _wanted_name(entry: os.DirEntry[str]) -> str | None:
    """The name of a visible folder, with a slash, or of a visible file, or link to one, with an image's suffix."""
    name = entry.name
    if name.startswith("."):
        return None
    if entry.is_dir(follow_symlinks=False):
        return name + "/"
    if name[name.rfind(".") :].lower() not in SUFFIXES:
        return None
    if entry.is_symlink():
        return name if os.path.isfile(entry.path) else None  # noqa: PTH113  # Path.is_file raises where a folder is closed
    return name if entry.is_file() else None


@dataclass(frozen=True)
class Picture:
    """One picture file."""

    path: str

    @property
    def name(self) -> str:
        return escape_name(self.path)

    def count(self) -> int:
        return 1

    def batches(self) -> Iterator[Batch]:
        yield make_files_batch([Item(self.path, None)], [self.path])


class Survey(NamedTuple):
    """What a walk through a folder found: rows, and whether the first sub-folders' names are labels."""

    rows: int
    has_labels: bool


@dataclass(frozen=True)
class Folder:
    """Picture files below a folder, in the order of `walk`."""

    path: str

    def __post_init__(self) -> None:
        if not self.survey.rows:
            raise StdacError(
                f"{escape_name(self.path)} holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}"
            )

    @property
    def name(self) -> str:
        return escape_name(self.path)

    @cached_property
    def survey(self) -> Survey:
        """One walk ahead; there are labels where each picture lies in a sub-folder, and these are at least two."""
        rows = 0
        classes: set[str] = set()
        for path in walk(self.path):
            rows += 1
            if not path.endswith("/"):
                classes.add(self._class_of(path))
        return Survey(rows, len(classes) > 1 and "" not in classes)

    def _class_of(self, path: str) -> str:
        """The first sub-folder that a picture lies in, "" for none."""
        below = path[len(self.path) :].lstrip("/")
        return below.partition("/")[0] if "/" in below else ""

    def count(self) -> int:
        return self.survey.rows

    def batches(self) -> Iterator[Batch]:
        for paths in split_items(walk(self.path), BATCH):
            yield make_files_batch([self._item_of(path) for path in paths], [path.removesuffix("/") for path in paths])

    def _item_of(self, path: str) -> Item:
        if path.endswith("/"):
            return Item(Unreadable("this folder cannot be listed"), None)
        return Item(path, escape_label(escape_name(self._class_of(path))) if self.survey.has_labels else None)

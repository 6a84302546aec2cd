"""Picture files: one, or those below a folder, whose first sub-folders may be classes."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from stdac.errors import StdacError
from stdac.pictures.batches import BATCH, Batch, Item, Source, Unreadable, make_files_batch, split_items
from stdac.pictures.classes import Classes, Place, find_classes, find_place
from stdac.pictures.formats import SUFFIXES, is_picture
from stdac.pictures.walk import Id, Walk, describe_left_out, is_left_behind
from stdac.text import escape_name


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
    """What a walk through a folder found: rows, and which sub-folders are classes; the others as in `Walk`."""

    rows: int
    classes: Classes
    left_out: Mapping[str, int]
    seen: Set[Id]


@dataclass(frozen=True)
class Folder:
    """Picture files below a folder, in the order of `Walk`. taken: what was there before, see there."""

    path: str
    taken: Set[Id] = frozenset()

    def __post_init__(self) -> None:
        if not self.survey.rows:
            left_out = describe_left_out(self.survey.left_out)
            raise StdacError(
                f"{escape_name(self.path)} holds no images{left_out and f' ({left_out})'}: expected files ending in "
                f"{', '.join(sorted(SUFFIXES))}"
            )

    @property
    def name(self) -> str:
        return escape_name(self.path)

    @cached_property
    def survey(self) -> Survey:
        """One walk ahead; where each picture lies in the folder of a class, this is its label."""
        rows = 0
        places: set[Place] = set()
        walk = Walk(self.path, self.taken)
        for path in walk:
            rows += 1
            if not path.endswith("/"):
                places.add(find_place(self._find_below(path)))
        return Survey(rows, find_classes(places), walk.left_out, walk.seen)

    @property
    def notes(self) -> list[str]:
        """What a person should know of how it is read."""
        note = self.survey.classes.describe()
        return [f"{self.name}: {note}"] if note else []

    def _find_below(self, path: str) -> str:
        """The path of a picture from this folder on."""
        return path[len(self.path) :].lstrip("/")

    def count(self) -> int:
        return self.survey.rows

    def batches(self) -> Iterator[Batch]:
        for paths in split_items(Walk(self.path, self.taken), BATCH):
            yield make_files_batch([self._item_of(path) for path in paths], [path.removesuffix("/") for path in paths])

    def _item_of(self, path: str) -> Item:
        if path.endswith("/"):
            return Item(Unreadable("this folder cannot be listed", ends=True), None)
        return Item(path, self.survey.classes.label(self._find_below(path)))


TWICE = "input{s} that would come twice"


def drop_repeated(sources: Iterable[Source]) -> tuple[list[Source], Counter[str]]:
    """The sources without what one before them holds, so that each picture comes once; and how much was left out.

    An input that is named twice, by whatever path, a picture in a folder that is another input, a folder in a folder.
    """
    kept: list[Source] = []
    left_out: Counter[str] = Counter()
    taken: set[Id] = set()
    parents: set[Id] = set()
    names: set[str] = set()
    for source in sources:
        path = getattr(source, "path", None)
        own, parent = _identify(path), _identify(path and os.path.dirname(os.path.realpath(path)))  # noqa: PTH120
        in_folder = isinstance(source, Picture) and parent in taken and _is_walked(source.path)
        if own in taken or in_folder or (path is None and source.name in names):
            left_out[TWICE] += 1
            continue
        if isinstance(source, Folder):
            if source.survey.seen & (taken | parents):
                rest = _leave_out(source, taken)
                if rest is None:
                    left_out[TWICE] += 1
                    continue
                source = rest  # noqa: PLW2901
            taken |= source.survey.seen
            left_out.update(source.survey.left_out)
        if own is not None:
            taken.add(own)
        if parent is not None and isinstance(source, Picture):
            parents.add(parent)
        names.add(source.name)
        kept.append(source)
    return kept, left_out


def _leave_out(folder: Folder, taken: Set[Id]) -> Folder | None:
    """The folder without what is taken, None where nothing is left."""
    try:
        return replace(folder, taken=frozenset(taken))
    except StdacError:
        return None


def _identify(path: str | None) -> Id | None:
    """(device, inode) of a file or folder, None where there is none."""
    try:
        about = os.stat(path or "")
    except (OSError, ValueError):
        return None
    return about.st_dev, about.st_ino


def _is_walked(path: str) -> bool:
    """Whether a walk through the folder of a file would take it."""
    target = os.path.realpath(path)
    return is_picture(target) and not is_left_behind(os.path.basename(target))  # noqa: PTH119

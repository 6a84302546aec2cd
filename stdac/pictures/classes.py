"""Which folders are classes: the first ones below a data set, or those below its parts train, val and test."""

from collections.abc import Iterable, Set
from typing import NamedTuple

from stdac.pictures.layouts import SPLITS
from stdac.text import escape_label, escape_name
from stdac.words import list_some

PARTS = frozenset(name for names in SPLITS for name in names) | {"eval", "evaluation"}
"""Folders, in small letters, that are parts of a data set and not classes of it."""

Place = tuple[str, str]
"""The first folder that a picture lies in, and where that is one of PARTS the second; "" for none."""


def find_place(below: str) -> Place:
    """Where a picture lies, by its path below the data set."""
    first, _, rest = below.partition("/") if "/" in below else ("", "", "")
    return first, rest.partition("/")[0] if first.lower() in PARTS and "/" in rest else ""


class Classes(NamedTuple):
    """names: of the classes, at least two or none. parts: the first folders where these are PARTS."""

    names: Set[str]
    parts: tuple[str, ...]
    loose: bool = False  # whether folders are no classes because pictures lie beside them

    def label(self, below: str) -> str | None:
        """The class of a picture, by its path below the data set; None where there are none."""
        return escape_label(escape_name(find_place(below)[bool(self.parts)])) if self.names else None

    def describe(self) -> str:
        """What a person should know of how the folders were understood, "" for nothing."""
        if self.loose:
            return "read without labels, as pictures lie beside the sub-folders: move them, and each folder is a class"
        if not self.parts:
            return ""
        what = f"the classes are the {len(self.names)} folders below" if self.names else "there are no classes"
        return f"in parts ({list_some(list(map(escape_name, self.parts)))}), {what}"


def find_classes(places: Iterable[Place]) -> Classes:
    """The classes of a data set whose pictures lie there: none where some lie beside the folders of others."""
    found = set(places)
    firsts = {first for first, _ in found}
    parts = tuple(sorted(firsts)) if all(first.lower() in PARTS for first in firsts) else ()
    names = {place[bool(parts)] for place in found}
    loose = "" in names and len(names) > 2 and not parts
    return Classes(names if len(names) > 1 and "" not in names else frozenset(), parts, loose)

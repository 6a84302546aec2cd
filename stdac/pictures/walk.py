"""A walk through a folder: each picture once, links followed, and everything that is left out counted by reason."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Set

from stdac.pictures.formats import find_suffix, is_picture

Id = tuple[int, int]
"""What a file or a folder is known by, whatever its path: (device, inode)."""

LEFT_BEHIND = frozenset(
    {
        *("@eadir", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot"),
        *("$recycle.bin", "recycler", "system volume information", "found.000", "lost+found", "__macosx"),
    }
)
"""Folders of NAS, Windows and macOS that hold copies, thumbnails and what was thrown away; in small letters."""

MOST_REASONS = 8

LINK_TO_PICTURE = "linked picture{s} that would come twice"
LINK_TO_FOLDER = "linked folder{s} that would come twice"
LOOP = "link{s} to a folder above"
KNOWN_FOLDER = "folder{s} that would come twice"
KNOWN_PICTURE = "picture{s} that would come twice"


class Walk:
    """The pictures below a folder, each once: paths, sorted by name within each folder; iterate over it once.

    Links are followed, but for those to what is walked anyway or lies above. Hidden files and folders are left out, and
    those of LEFT_BEHIND. A folder that cannot be listed is yielded with a slash at its end. The names of one folder are
    in memory at a time.

    taken: files and folders that are left out because they were there before. left_out: how many, by reason; seen: the
    folders that were walked and the targets of links to files. Both are complete after the walk.
    """

    def __init__(self, folder: str, taken: Set[Id] = frozenset()) -> None:
        self.folder = folder
        self.left_out: Counter[str] = Counter()
        self.seen: set[Id] = set()
        self._taken = taken
        self._root = os.path.realpath(folder)

    def __iter__(self) -> Iterator[str]:
        waiting = [(self.folder, self._open_folder(self.folder, KNOWN_FOLDER))]
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
                why = LINK_TO_FOLDER if os.path.islink(below) else KNOWN_FOLDER  # noqa: PTH114
                waiting.append((below, self._open_folder(below, why)))
            else:
                yield below

    def _open_folder(self, path: str, why: str) -> list[str] | None:
        """The wanted names in a folder, last one first, sub-folders with a slash at the end; None where it is closed.

        why: it is left out, where it is known already.
        """
        try:
            about = os.stat(path)
            own = about.st_dev, about.st_ino
            if self._is_known(own):
                self.left_out[why] += 1
                return []
            self.seen.add(own)
            with os.scandir(path) as entries:
                names = [name for entry in entries if (name := self._choose_name(entry, about.st_dev))]
        except OSError:
            return None
        names.sort(key=lambda name: name.rstrip("/"), reverse=True)
        return names

    def _is_known(self, own: Id) -> bool:
        return own in self.seen or own in self._taken

    def _choose_name(self, entry: os.DirEntry[str], device: int) -> str | None:
        """The name of a picture, or of a folder with a slash; None for what is left out, which is counted."""
        name = entry.name
        if is_left_behind(name):
            self._count_left_behind(entry)
        elif entry.is_symlink():
            return self._choose_link(entry)
        elif entry.is_dir():
            return name + "/"
        elif why := _refuse_file(entry.path) if entry.is_file() else "special file{s}":
            self.left_out[why] += 1
        elif self._is_known((device, entry.inode())):
            self.left_out[KNOWN_PICTURE] += 1
        else:
            return name
        return None

    def _choose_link(self, entry: os.DirEntry[str]) -> str | None:
        """As `_choose_name`, of a link."""
        try:
            about = entry.stat()
        except OSError:  # it leads nowhere, or to itself
            self.left_out["broken link{s}"] += 1
            return None
        is_folder = entry.is_dir()
        if not is_folder and not entry.is_file():
            self.left_out["special file{s}"] += 1
            return None
        target = os.path.realpath(entry.path)
        if is_folder:
            here = os.path.realpath(os.path.dirname(entry.path))  # noqa: PTH120
            if not _lies_in(here, target) and not self._comes_anyway(target):
                return entry.name + "/"
            self.left_out[LOOP if _lies_in(here, target) else LINK_TO_FOLDER] += 1
            return None
        own = about.st_dev, about.st_ino
        if why := _refuse_file(entry.path):
            self.left_out[why] += 1
        elif self._is_known(own) or (is_picture(target) and self._comes_anyway(target)):
            self.left_out[LINK_TO_PICTURE] += 1
        else:
            self.seen.add(own)
            return entry.name
        return None

    def _comes_anyway(self, target: str) -> bool:
        """Whether the walk meets a file or folder, given without links, in the folder or in one that it has been to."""
        if _lies_in(target, self._root):
            return not any(map(is_left_behind, target[len(self._root) :].split("/")))
        try:
            about = os.stat(os.path.dirname(target))  # noqa: PTH120
        except OSError:
            return False
        return self._is_known((about.st_dev, about.st_ino)) and not is_left_behind(os.path.basename(target))  # noqa: PTH119

    def _count_left_behind(self, entry: os.DirEntry[str]) -> None:
        """Count a hidden file or folder, or what is in one of LEFT_BEHIND."""
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            self.left_out["hidden folder{s}" if entry.is_dir(follow_symlinks=False) else "hidden file{s}"] += 1
        else:
            self.left_out[f"in {entry.name}"] += sum(len(files) for _, _, files in os.walk(entry.path))


def is_left_behind(name: str) -> bool:
    """Whether a file or folder is hidden, or what a camera, a NAS or a desktop leaves behind."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def _refuse_file(path: str) -> str | None:
    """Why a file is not taken for a picture."""
    return None if is_picture(path) else find_suffix(os.path.basename(path)) or "file{s} without a suffix"  # noqa: PTH119


def _lies_in(path: str, folder: str) -> bool:
    """Whether a path is a folder or below it; both without links."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """What was left out, by reason, in a line: "5 left out: 3 .heic, 2 in @eaDir"; "" for nothing."""
    reasons = sorted(
        (why for why in left_out if left_out[why]), key=lambda why: (why.startswith("."), -left_out[why], why)
    )
    parts = [f"{left_out[why]:,} {pluralise(why, left_out[why])}" for why in reasons[:MOST_REASONS]]
    if rest := sum(left_out[why] for why in reasons[MOST_REASONS:]):
        parts.append(f"{rest:,} others")
    return f"{sum(left_out.values()):,} left out: {', '.join(parts)}" if parts else ""


def pluralise(text: str, n: int) -> str:
    """A reason with its {s} filled in."""
    return text.replace("{s}", "" if n == 1 else "s")

"""How the doctor deletes and changes: only what is ours, and only what still is as it was when it was examined."""

from collections.abc import Callable
from pathlib import Path

from stdac.errors import StdacError
from stdac.files import is_real_folder, remove_folder
from stdac.words import escape_line


def remove(*paths: Path) -> None:
    """Delete files and whole folders."""
    for path in paths:
        if not is_real_folder(path):
            path.unlink(missing_ok=True)
            continue
        remove_folder(path)
        if path.exists():
            raise StdacError(f"cannot delete {path}: it belongs to another user; have them delete it")


def guard_change(path: Path, action: Callable[[], object]) -> Callable[[], None]:
    """The action, refused where `path` is not what it is now: somebody is at work on it."""
    seen = _identify(path)

    def careful() -> None:
        now = _identify(path)
        if now is None and seen is not None:
            return  # mended by somebody else
        if now != seen:
            raise StdacError(f"{escape_line(path)} has changed since it was examined: examine the run again")
        action()

    return careful


def _identify(path: Path) -> tuple[int, int, int] | None:
    """What differs once a file was replaced or changed, or something in a folder was made or removed."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size

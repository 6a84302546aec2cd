"""Files that are there whole or not at all, on a local disk or NFS."""

import errno
import fcntl
import glob
import json
import os
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stdac.errors import DiskFull, StdacError

MOST_JSON = 16 * 2**20  # bytes: no JSON of ours comes near it
MOST_SMALL = 2**16  # bytes: nearly all files that we read are smaller
NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What `link()` says in a folder that we may write to, where the file system has no hard links."""

CLOCK_S = 20.0  # how long a reading of the file system's clock serves
_clocks: dict[int, tuple[float, float]] = {}  # device -> (when it was read, its time then), both in seconds


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when it is complete and on the disk.

    Writes to a temporary name in the same folder, fsync, then `os.replace`. On any error the temporary file is removed
    and what was at `path` stays. Raises StdacError when the disk is full, the folder is missing or not writable.
    """
    with open_temporary(path) as (file, name):
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(name, path)


def link_once(path: Path, content: bytes) -> bool:
    """Make a file exactly once: True if this call made it, False if it was there already. Atomic on NFS too.

    Where the file system has no hard links (exFAT, some FUSE) it is so among the processes of one machine only, see
    `require_links`.
    """
    with open_temporary(path) as (file, name):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _rename_once(name, path)
    return True


def _rename_once(name: str, path: Path) -> bool:
    """Give a file its name unless that is taken; one process of this machine at a time."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.lexists(path):
            return False
        Path(name).rename(path)
    finally:
        os.close(folder)
    return True


def require_links(folder: Path) -> None:
    """Raise StdacError where the file system of a folder has no hard links: several workers cannot share it."""
    with suppress(FileExistsError), open_temporary(folder / "probe") as (_, name):
        try:
            other = Path(name).with_name(Path(name).name.replace("probe", "link", 1))
            os.link(name, other)
            other.unlink()
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise StdacError(
                f"the file system of {folder} has no hard links, by which several workers share a run: give --workers "
                "1 (and --backend local), or choose a folder on another disk"
            ) from error


@contextmanager
def open_temporary(path: Path) -> Iterator[tuple[IO[bytes], str]]:
    """A temporary file beside `path`, gone afterwards unless it was renamed; OS errors become one sentence."""
    name = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # for sweep_temporary
            os.fchmod(descriptor, 0o666 & ~_read_umask())
            yield file, name
    except OSError as error:
        raise explain_refusal(error, path) from error
    except RuntimeError as error:  # torch.save closes its archive after the disk has refused a write, and fails anew
        if isinstance(error.__context__, OSError):
            raise explain_refusal(error.__context__, path) from error
        raise
    finally:
        if name is not None:
            with suppress(OSError):
                os.unlink(name)


def sweep_temporary(path: Path) -> None:
    """Remove what processes that were killed left of `path` while they wrote it: temporary files that nobody holds."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def check_suffix(path: Path, allowed: tuple[str, ...]) -> None:
    """Raise StdacError for a file to be written whose name promises another format than it would have."""
    if path.suffix.lower() not in allowed:
        *others, last = allowed
        expected = f"{', '.join(others)} or {last}" if others else last
        raise StdacError(f"cannot write {path}: expected a name that ends in {expected}, which says what is written")


def _read_umask() -> int:
    """The process's umask, read the only way there is."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def explain_refusal(error: OSError, path: Path) -> StdacError:
    """One sentence for an OS error while writing `path`: what happened, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"no space left for {path}: nothing was half-written and earlier results are untouched; "
            "free some space and run the same command again"
        )
    if isinstance(error, FileNotFoundError):
        return StdacError(f"cannot write {path}: there is no folder {path.parent}; create it or choose another place")
    if isinstance(error, PermissionError):
        return StdacError(f"cannot write {path}: permission denied; choose a folder that you may write to")
    return StdacError(f"cannot write {path}: {error.strerror or error}")


def read_file_time(folder: Path) -> float:
    """Now, in seconds since the epoch, by the clock that stamps files in `folder`.

    On a network file system that is the server's, not ours: hosts whose clocks differ agree on it. Read by touching a
    probe now and then; where that cannot be done, our own clock.
    """
    try:
        device = folder.stat().st_dev
        read, then = _clocks.get(device, (float("-inf"), 0.0))
        if time.monotonic() - read >= CLOCK_S:
            descriptor, probe = tempfile.mkstemp(dir=folder, prefix=".now-")
            try:
                then = os.fstat(descriptor).st_mtime
                read = time.monotonic()
                _clocks[device] = (read, then)
            finally:
                os.close(descriptor)
                Path(probe).unlink()
    except OSError:
        return time.time()
    return then + time.monotonic() - read


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with atomic_write(path) as file:
        file.write(encode_json(value))


def encode_json(value: Any) -> bytes:
    """Indented, sorted JSON as UTF-8."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises StdacError where it is not JSON, and as `read_plain` does."""
    try:
        return json.loads(read_plain(path, MOST_JSON))
    except (ValueError, RecursionError) as error:
        raise StdacError(f"{path} is not JSON ({error}): it was not written by stdac; move it away") from error


MOST_NUMBER = 2**63
"""Numbers in our records are smaller."""

NUMBERS = (int, float)


def read_record(path: Path, needed: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object, with values of these types under the needed names, and under the others where it has them.

    Raises StdacError where it is anything else, and as `read_json` does.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise StdacError(f"{path} is not a JSON object: it was not written by stdac; move it away")
    for name, kind in {**more, **needed}.items():
        if name not in record and name not in needed:
            continue
        value = record.get(name)
        of_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if isinstance(value, NUMBERS) and not abs(value) < MOST_NUMBER:  # NaN is not either
            of_kind = False
        if not of_kind:
            raise StdacError(f"{path} does not say {name} as stdac writes it: it was changed outside; move it away")
    return record


def read_plain(path: Path, most: int | None = None, *, follow: bool = False) -> bytes:
    """The bytes of a file. Raises FileNotFoundError, StdacError for more than `most` bytes, and as `open_plain`."""
    with open_plain(path, follow=follow) as file:
        content = file.read() if most is None else file.read(min(MOST_SMALL, most + 1))
        if most is not None and len(content) == MOST_SMALL:  # to ask for `most` at once takes memory for all of it
            content += file.read(most + 1 - len(content))
    if most is not None and len(content) > most:
        raise StdacError(f"{path} has more than {most} bytes: it was not written by stdac; move it away")
    return content


def open_plain(path: Path, *, follow: bool = False) -> IO[bytes]:
    """Open a regular file for reading. Raises StdacError for anything else, such as a link or a pipe: whoever put it
    there decides what it leads to, or when it answers. follow: whether a link may lead to the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, or a socket
            raise StdacError(f"{path} is not a plain file: it was not written by stdac; move it away") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StdacError(f"{path} is not a plain file: it was not written by stdac; move it away")
    return open(descriptor, "rb")


def is_real_folder(path: Path) -> bool:
    """Whether a folder is there, and no link to one."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return False


def remove_folder(path: Path) -> None:
    """Remove a folder that is ours with all that is in it; a link, or another user's folder, stays as it is."""
    with suppress(OSError):
        about = path.lstat()
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)


def _is_folder(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a folder, or has the mark of one, for which torch reads nothing."""
    return member.is_dir() or bool(member.external_attr & 0x10)


def check_archive(file: IO[bytes]) -> None:
    """Raise StdacError where a zip archive, as torch and numpy write them, is not whole: they would not notice."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if members and not any(map(_is_folder, members)) and archive.testzip() is None:
                return
    except Exception as error:  # a damaged archive makes zipfile stumble over anything
        raise StdacError("it is damaged or cut short") from error
    raise StdacError("it has a member that is empty or damaged")

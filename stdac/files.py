"""Files that are there whole or not at all, on a local disk or NFS."""

import errno
import fcntl
import glob
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stdac.errors import DiskFull, StdacError

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
    """Make a file exactly once: True if this call made it, False if it was there already. Atomic on NFS too."""
    with open_temporary(path) as (file, name):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return False
    return True


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
            probe = folder / f".now-{socket.gethostname()}-{threading.get_native_id()}"
            try:
                probe.touch()
                then = probe.stat().st_mtime
                read = time.monotonic()
                _clocks[device] = (read, then)
            finally:
                probe.unlink(missing_ok=True)
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
    """The value in a JSON file. Raises StdacError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise StdacError(f"{path} is not JSON ({error}): it was not written by stdac; move it away") from error

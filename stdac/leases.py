"""Leases: by which an attempt is held, and whether it still is.

STDAC_LEASE_S in the environment, the same for every process of a run, sets LEASE_S for tests and unusual file systems.
"""

import os
import socket
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from stdac.errors import StdacError
from stdac.files import read_file_time, read_record
from stdac.processes import read_namespace, read_process_start

LEASE_S = float(os.environ.get("STDAC_LEASE_S", "60"))  # a lease not renewed for this long may be superseded
RENEW_S = LEASE_S / 12

MORE: dict[str, Any] = {"log": str | None, "job": str | None, "lost_before": int | float, "commit": str | None}
MORE |= {"versions": dict, "python": str, "cpu": str, "cpus": int | None}
"""What a lease may say beside who holds it."""

_watched: dict[Path, tuple[float, float]] = {}  # leases ahead of time -> (mtime, when this process first saw it so)


def read_lease(path: Path) -> dict[str, Any]:
    """Who made an attempt, and where. Raises FileNotFoundError, and StdacError where it does not say."""
    needed = {"host": str, "began": str, "pid": int, "process_start": int | None}
    lease = read_record(path, needed, MORE)
    try:
        datetime.fromisoformat(lease["began"])
    except ValueError as error:
        raise StdacError(f"{path} does not say since when it holds: it was changed outside; move it away") from error
    return lease


def give_back(path: Path) -> None:
    """Mark a lease as one that nobody holds."""
    os.utime(path, (0, 0), follow_symlinks=False)


def measure_silence(path: Path) -> float:
    """Seconds since a lease was last renewed; infinite once it was given back, or is gone.

    One that lies ahead of the file system's clock, which was wrong when it was renewed, has been silent since this
    process first saw it as it is.
    """
    try:
        renewed = path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")
    if renewed == 0:
        return float("inf")
    now = read_file_time(path.parent)
    if renewed - now <= LEASE_S:
        return now - renewed
    seen, since = _watched.get(path, (None, 0.0))
    if seen != renewed:
        since = time.monotonic()
        _watched[path] = (renewed, since)
    return time.monotonic() - since


def measure_ahead(path: Path) -> float:
    """Seconds that a lease lies ahead of the file system's clock; 0 for less than a lease, or where it is gone."""
    try:
        ahead = path.lstat().st_mtime - read_file_time(path.parent)
    except FileNotFoundError:
        return 0.0
    return ahead if ahead > LEASE_S else 0.0


def has_process(lease: Mapping[str, Any]) -> bool:
    """Whether the process that made a lease still runs; of another host's, or another container's, we cannot tell."""
    here = lease["host"] == socket.gethostname() and lease.get("namespace") == read_namespace()
    return not here or read_process_start(lease["pid"]) == lease["process_start"]

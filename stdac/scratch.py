"""Temporary files, in the folder that TMPDIR names, and what is said where they cannot be written."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stdac.errors import DiskFull, StdacError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def open_scratch() -> Iterator[Path]:
    """A folder that is gone afterwards. Raises StdacError that names TMPDIR where it cannot be made, or gets full."""
    try:
        with tempfile.TemporaryDirectory(prefix="stdac-") as folder:
            yield Path(folder)
    except (OSError, DiskFull) as error:
        raise explain_scratch(error) from error


def explain_scratch(error: Exception) -> StdacError:
    """One sentence for an error while writing temporary files."""
    where = os.environ.get("TMPDIR") or tempfile.tempdir or "/tmp"
    if isinstance(error, DiskFull) or getattr(error, "errno", None) in NO_SPACE:
        return DiskFull(
            f"no space left for temporary files in {where}: free some, or set TMPDIR to a folder on another disk"
        )
    why = getattr(error, "strerror", None) or error
    return StdacError(f"cannot write temporary files in {where} ({why}): set TMPDIR to a folder that you may write to")

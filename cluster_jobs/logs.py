"""What the workers said about one trial: the sections of its attempts, wherever they ran.

A worker's log has many trials in it. The section of an attempt begins with the line "trial ID attempt N on HOST at
TIME: …" and ends with "trial ID attempt N done …" (or failed, stopped, superseded), or where the next one begins.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cluster_jobs.ledger import Ledger, Status
from stdac.errors import StdacError
from stdac.files import explain_refusal, is_real_folder, open_plain
from stdac.folder import TrialFolder
from stdac.words import escape_line

POLL_S = 0.5
LAST_WORDS_S = 5.0  # how long a worker may take from done.json to the last line of its section
NAMED = 8

LOG = re.compile(r"logs/[^/]+")  # as a lease names it
MARK = re.compile(rb"trial ([0-9a-f]{16}) attempt ([0-9]+) (.*)", re.DOTALL)


def open_log(path: Path) -> IO[bytes]:
    """A log to append to, in a folder of the run that is made if missing; no link is followed. Raises StdacError."""
    try:
        path.parent.mkdir(exist_ok=True)
        if not is_real_folder(path.parent):
            raise StdacError(f"{path.parent} is a link, which is not followed: move it away, or choose another --out")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(path, flags, 0o666), "ab")
    except OSError as error:
        raise explain_refusal(error, path) from error


def resolve(ledger: Ledger, prefix: str) -> str:
    """The id of the planned trial that begins with `prefix`. Raises StdacError where none or several do."""
    ids = ledger.ids()
    matches = [trial_id for trial_id in ids if trial_id.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise StdacError(f"{ledger.path} has no trial {prefix!r}: it has {_list_some(ids)}")
    raise StdacError(
        f"got {prefix!r}, with which {len(matches)} trials begin: {_list_some(matches)}; add a digit or more"
    )


def _list_some(ids: list[str]) -> str:
    """Some ids in a sentence."""
    rest = f" and {len(ids) - NAMED} more, see stdac-grid status" if len(ids) > NAMED else ""
    return (" ".join(ids[:NAMED]) or "none") + rest


def read(ledger: Ledger, trial_id: str) -> Iterator[str]:
    """The lines of a trial's attempts, in order, then the error where it failed; all of them fit for a terminal."""
    return map(_make_printable, _read_sections(ledger, trial_id, wait=False))


def follow(ledger: Ledger, trial_id: str) -> Iterator[str]:
    """What `read` gives, then every new line, on whatever node the trial goes on, until it is done or failed."""
    return map(_make_printable, _read_sections(ledger, trial_id, wait=True))


def _make_printable(line: str) -> str:
    """A line without what a terminal would obey."""
    return escape_line(line.expandtabs())


def _read_sections(ledger: Ledger, trial_id: str, *, wait: bool) -> Iterator[str]:
    """See `read` and `follow`."""
    folder = ledger.folder(trial_id)
    section: Section | None = None
    deadline: float | None = None
    waits = f"trial {trial_id} waits for a worker"
    status = ledger.status(trial_id)
    if wait and status.state != "failed" and not folder.leases():
        yield waits
    while True:
        status = ledger.status(trial_id)
        state = status.state
        idle = state == "waiting" and (not wait or ledger.cancelled())
        # what the newest attempt has said since the last look; an attempt that took over begins a section of its own
        for number in _list_attempts(folder):
            if section is None or number > section.number:
                yield from section.close() if section is not None else ()
                section = Section(ledger, trial_id, number)
            if number == section.number:
                yield from section.read_lines()
        # whether there is more to come: a worker's last words may follow the end of its trial
        if state in ("done", "failed"):
            deadline = deadline or time.monotonic() + LAST_WORDS_S
        heard = deadline is not None and (section is None or section.ended or time.monotonic() > deadline)
        if heard or idle or not wait:
            break
        time.sleep(POLL_S)
    yield from section.close() if section is not None else ()
    if state == "failed":
        yield from _read_error(folder, status)
    elif idle:
        yield f"{waits}: stdac-grid launch, or retry where the run was cancelled"


def _list_attempts(folder: TrialFolder) -> list[int]:
    """The attempts at a trial; none where its folder cannot be looked at, which its state says."""
    with suppress(StdacError, OSError):
        return folder.leases()
    return []


def _read_error(folder: TrialFolder, status: Status) -> list[str]:
    """Why a trial failed, as far as it can be read."""
    with suppress(StdacError, OSError):
        if (error := folder.error()) is not None:
            return error.splitlines()
    return [status.detail["reason"]]


class Section:
    """One attempt's part of a worker's log, read as it grows."""

    def __init__(self, ledger: Ledger, trial_id: str, number: int) -> None:
        log: Any = None
        self._said: set[str] = set()
        self._lost = ""
        try:
            log = ledger.folder(trial_id).lease(number).get("log")
        except FileNotFoundError:
            self._lost = "has no lease any more, which would name its log"
        except (StdacError, OSError) as error:
            self._lost = f"has a lease that cannot be read: {error}"
        if log is not None and not (isinstance(log, str) and LOG.fullmatch(log)):
            log, self._lost = None, f"names a log that is not in {ledger.path / 'logs'}: {log}"
        self.path = ledger.path / log if log is not None else None
        self.mark, self.number = (trial_id.encode(), str(number).encode()), number
        self.name = f"trial {trial_id} attempt {number}"
        self.ended = self.path is None
        self._inside = self._seen = False
        self._offset = 0
        self._rest = b""

    def read_lines(self) -> Iterator[str]:
        """The whole lines that were written since the last call."""
        if self.path is None:
            yield from self._say(self._lost or "ran in a worker started by hand: what it said was not kept")
            return
        try:
            with open_plain(self.path) as file:
                if file.seek(0, 2) < self._offset:
                    yield from self._say(f"ran with a log that was cut short: {self.path}")
                    self._offset, self._rest, self._inside = 0, b"", False
                file.seek(self._offset)
                for line in file:
                    self._offset += len(line)
                    self._rest += line
                    if line.endswith(b"\n"):
                        yield from self._take()
        except (FileNotFoundError, StdacError):
            yield from self._say(f"ran with a log that is not here: {self.path}")
        except OSError as error:
            yield from self._say(f"ran with a log that cannot be read ({error.strerror}): {self.path}")

    def close(self) -> Iterator[str]:
        """The last line, where it has no end, and a word where there was none at all."""
        if self._rest:
            yield from self._take()
        if not self._seen:
            yield from self._say(f"is not in its worker's log: {self.path}")

    def _take(self) -> Iterator[str]:
        """The line that was read, if it is this section's."""
        line, self._rest = self._rest.rstrip(b"\r\n"), b""
        mark = MARK.fullmatch(line)
        if mark:
            self._inside = mark.group(1, 2) == self.mark
        if self._inside:
            self._seen = True
            yield line.decode(errors="replace")
        if mark and self._inside and not mark[3].startswith(b"on "):
            self.ended, self._inside = True, False

    def _say(self, what: str) -> Iterator[str]:
        """A line of our own, once."""
        if what not in self._said:
            self._said.add(what)
            self._seen = True
            yield f"{self.name} {what}"

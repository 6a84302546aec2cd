"""The folder of one trial as its processes write it: its attempts, their checkpoints, and the done.json made once.

Clusters do run the same job twice at once. So every attempt takes the next number with `link()`, which fences; it
writes only below its own number, into a folder that it has made; and the first to `link()` done.json wins. Readers
follow done.json alone.
"""

import hashlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stdac.errors import StdacError
from stdac.files import (
    atomic_write,
    encode_json,
    explain_refusal,
    link_once,
    read_file_time,
    remove_folder,
    sync_folder,
    write_json,
)
from stdac.layout import CHECKPOINT, PROGRESS, TrialFiles, read_mtime
from stdac.leases import LEASE_S, RENEW_S, give_back
from stdac.processes import read_namespace, read_process_start
from stdac.record import PARTS
from stdac.words import format_time

CRASHES = 5  # a trial whose process died this often in a row, without an epoch in between, has failed


class Superseded(StdacError):
    """Another attempt has taken over this trial."""


class TrialFolder(TrialFiles):
    """The folder of one trial. Nothing is created until `create` or `claim`."""

    def create(self, trial_json: Mapping[str, Any]) -> None:
        """Write trial.json once. Raises StdacError where another trial or another schema version lives there."""
        self._make()
        if not link_once(self.trial_path, encode_json(trial_json)) and self.trial() != dict(trial_json):
            raise StdacError(f"{self.path} holds another trial: choose another folder")

    def _make(self) -> None:
        """Make the folder, unless it is there."""
        self.check_place()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_refusal(error, self.path) from error

    def fail(self, text: str) -> None:
        """Write error.txt: the trial is not tried again before `forgive`. The first line is the reason."""
        self._make()
        with atomic_write(self.error_path) as file:
            file.write(f"{text}\n".encode(errors="backslashreplace"))

    def clear_error(self) -> None:
        """Forget the failure, so that the trial is tried again."""
        self.check_place()
        try:
            self.error_path.unlink(missing_ok=True)
        except OSError as error:
            raise explain_refusal(error, self.error_path) from error

    def forgive(self) -> None:
        """Forget the failure and the crashes, so that the trial is tried again."""
        for number in self.crashes():
            path = self.lease_path(number)
            try:
                give_back(path)
            except OSError as error:
                raise explain_refusal(error, path) from error
        self.clear_error()

    def _measure_lost(self, lease: Mapping[str, Any]) -> float:
        """Seconds of work that the attempt of a lease did after its last checkpoint: what its end has cost."""
        number = lease["attempt"]
        signs = [read_mtime(self.progress_path(number)), read_mtime(self.lease_path(number))]
        last = min(max(sign or 0.0 for sign in signs), read_file_time(self.path) + LEASE_S)
        saved = read_mtime(self.checkpoint_path(number)) or datetime.fromisoformat(lease["began"]).timestamp()
        return max(0.0, last - saved)

    def claim(self, about: Mapping[str, Any]) -> "Attempt | None":
        """Take the next attempt's number, or None where the trial is done or another attempt is running.

        about: what the lease records besides the process: commit, versions, device. A trial whose process has died
        CRASHES times in a row without finishing an epoch is marked as failed instead, so that it cannot hold up a grid.
        """
        newest = (self.leases() or [0])[
            -1
        ]  # looked at once: if another takes the next number meanwhile, our link fails
        if self.done() is not None or self.find_holder(newest) is not None:
            return None
        number = newest + 1
        before = next(reversed(self.known_leases()), None)
        if before is not None and len(self.crashes()) >= CRASHES:
            log = before.get("log") or "its worker's output"
            self.fail(f"its process died {CRASHES} times in a row within an epoch (out of memory?): see {log}")
            return None
        said = None if before is None else self.read_progress(before["attempt"])
        lease = {
            **about,
            "attempt": number,
            "host": socket.gethostname(),
            "namespace": read_namespace(),
            "pid": os.getpid(),
            "process_start": read_process_start(os.getpid()),
            "job": os.environ.get("STDAC_JOB") or None,
            "log": os.environ.get("STDAC_LOG"),
            "began": format_time(read_file_time(self.path)),
            "lost_before": 0.0 if before is None else round(self._measure_lost(before), 1),
        } | ({"after_pause": True} if said is not None and said.get("paused") else {})
        path = self.lease_path(number)
        if not link_once(path, encode_json(lease)):
            return None
        try:
            if self.done() is None:  # else finished by another between the look and the link
                return Attempt(self, number)
        except FileExistsError:  # nothing is written into a folder that we have not made: the next claim takes another
            pass
        except OSError as error:
            give_back(path)
            raise explain_refusal(error, path) from error
        give_back(path)
        return None


class Attempt:
    """One attempt at a trial: alone in writing below attempt-<n>. As a context manager it renews its lease.

    paused: whether it is left on purpose, so that the next one counts no interruption. Raises FileExistsError where its
    folder is there already.
    """

    def __init__(self, folder: TrialFolder, number: int) -> None:
        self.folder, self.number, self.paused = folder, number, False
        self.path = folder.attempt_path(number)
        self.path.mkdir()
        self._lease = folder.lease_path(number)
        self._ended = threading.Event()
        self._progress: dict[str, Any] | None = None
        self._written: dict[str, Any] | None = None
        self._checked = time.monotonic()
        self._thread = threading.Thread(target=self._renew, name=f"lease-{number}", daemon=True)

    def __enter__(self) -> "Attempt":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop_renewing()
        if self.paused:
            self._progress = {**(self._progress or {}), "paused": True}
        with suppress(OSError, StdacError):
            self._write_progress()
        with suppress(OSError):
            give_back(self._lease)

    def _stop_renewing(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S if self._written else 0.5):
            with suppress(OSError):  # a full disk must not end a trial that could still go on
                os.utime(self._lease)
            with suppress(OSError, StdacError):
                self._write_progress()

    def _write_progress(self) -> None:
        progress = self._progress
        if progress is not None and progress != self._written and self.path.exists():
            write_json(self.path / PROGRESS, progress)
            self._written = progress

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Remember where the trial is; the lease's thread writes it down now and then. Raises as `check` does."""
        self._progress = dict(progress)
        if time.monotonic() - self._checked > RENEW_S:
            self._checked = time.monotonic()
            self.check()

    def check(self) -> None:
        """Raise Superseded where a later attempt exists or the trial is done: this one must stop writing."""
        if not self.current():
            raise Superseded(f"attempt {self.number} of {self.folder.path.name} was superseded while it ran")

    def current(self) -> bool:
        """Whether this is still the newest attempt at a trial that is not done."""
        return (self.folder.leases() or [0])[-1] <= self.number and self.folder.done() is None

    def save_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Write this attempt's checkpoint; the earlier attempts' are no longer needed then."""
        import torch

        self.check()
        with atomic_write(self.path / CHECKPOINT) as file:
            torch.save(dict(checkpoint), file)
        for number in self.folder.leases():
            if number < self.number and self.folder.has_checkpoint(number):
                self.folder.checkpoint_path(number).unlink(missing_ok=True)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file of the result."""
        with atomic_write(self.path / name) as file:
            pq.write_table(table, file, compression="zstd")

    def finish(self, summary: Mapping[str, Any]) -> bool:
        """Make done.json, naming this attempt: True if it won. Then sweep what only a resume needs."""
        finished = format_time(read_file_time(self.folder.path))
        digests = {name: _hash_file(self.path / name) for name in PARTS if (self.path / name).exists()}
        done = {"attempt": self.number, "finished": finished, "sha256": digests, **self.folder.history(), **summary}
        with suppress(FileNotFoundError):  # the winner has swept it
            sync_folder(self.path)
        won = link_once(self.folder.done_path, encode_json(done))
        if won:
            sync_folder(self.folder.path)  # done before anything it replaces is gone
            self._stop_renewing()
            self._progress = None
            self.folder.clear_error()
            for name in (CHECKPOINT, PROGRESS):
                (self.path / name).unlink(missing_ok=True)
            for number in self.folder.leases():
                if number != self.number:
                    remove_folder(self.folder.attempt_path(number))
        else:
            self._stop_renewing()
            remove_folder(self.path)
        return won

    def fail(self, error: BaseException, trial_json: Mapping[str, Any]) -> None:
        """Write error.txt: the reason in its first line, then attempt, host, trial and traceback.

        An attempt that was superseded has no say in it.
        """
        reason = str(error) if isinstance(error, StdacError) else f"{type(error).__name__}: {error}"
        trace = "" if isinstance(error, StdacError) else "".join(traceback.format_exception(error))
        lines = [
            reason.replace("\n", " "),
            f"attempt {self.number} on {socket.gethostname()} at {format_time(read_file_time(self.folder.path))}",
            json.dumps(dict(trial_json), sort_keys=True),
            trace,
        ]
        with suppress(StdacError, OSError):
            if self.current():
                self.folder.fail("\n".join(lines))


def _hash_file(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

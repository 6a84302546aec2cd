"""The folder of one trial: its files, its attempts, its checkpoints, and the done.json that is made once.

Clusters do run the same job twice at once. So every attempt takes the next number with `link()`, which fences; it
writes only below its own number; and the first to `link()` done.json wins. Readers follow done.json alone.

STDAC_LEASE_S in the environment, the same for every process of a run, sets LEASE_S for tests and unusual file systems.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stdac.errors import StdacError
from stdac.files import atomic_write, encode_json, link_once, read_file_time, read_json, sync_folder, write_json
from stdac.processes import read_namespace, read_process_start
from stdac.record import PARTS
from stdac.trial import SCHEMA_VERSION
from stdac.words import format_time

LEASE_S = float(os.environ.get("STDAC_LEASE_S", "60"))  # a lease not renewed for this long may be superseded
RENEW_S = LEASE_S / 12
CRASHES = 5  # a trial whose process died this often in a row, without an epoch in between, has failed

TRIAL_JSON, DONE_JSON, ERROR_TXT = "trial.json", "done.json", "error.txt"
"""Files of a trial's folder: what it is; its result, made once; why it failed."""

CHECKPOINT, PROGRESS = "checkpoint.pt", "progress.json"
"""Files of an attempt's folder that its result does not need: where it goes on, and where it is."""

LEASE, ATTEMPT = re.compile(r"lease-([1-9][0-9]{0,8})\.json"), re.compile(r"attempt-([1-9][0-9]{0,8})")
"""The names of an attempt's lease and of its folder, by its number."""

CHECKPOINTS = f"trials/*/attempt-*/{CHECKPOINT}"
"""The checkpoints of a run, as `glob` finds them in its folder."""


class Superseded(StdacError):
    """Another attempt has taken over this trial."""


class TrialFolder:
    """The folder of one trial. Nothing is created until `create` or `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def trial_path(self) -> Path:
        """The file that says what the trial is."""
        return self.path / TRIAL_JSON

    @property
    def done_path(self) -> Path:
        """The file that is made once: which attempt has the result."""
        return self.path / DONE_JSON

    @property
    def error_path(self) -> Path:
        """The file that says why the trial failed."""
        return self.path / ERROR_TXT

    def attempt_path(self, number: int) -> Path:
        """The folder that attempt `number` writes in."""
        return self.path / f"attempt-{number}"

    def lease_path(self, number: int) -> Path:
        """The file by which attempt `number` was taken and is held."""
        return self.path / f"lease-{number}.json"

    def checkpoint_path(self, number: int) -> Path:
        """Where attempt `number` goes on."""
        return self.attempt_path(number) / CHECKPOINT

    def progress_path(self, number: int) -> Path:
        """Where attempt `number` says how far it is."""
        return self.attempt_path(number) / PROGRESS

    def create(self, trial_json: Mapping[str, Any]) -> None:
        """Write trial.json once. Raises StdacError where another trial or another schema version lives there."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not link_once(self.trial_path, encode_json(trial_json)) and self.trial() != dict(trial_json):
            raise StdacError(f"{self.path} holds another trial: choose another folder")

    def trial(self) -> dict[str, Any]:
        """trial.json. Raises StdacError where it is missing, not ours, or of another schema version."""
        path = self.trial_path
        if not path.exists():
            raise StdacError(f"{self.path} is not a trial's folder: it has no trial.json")
        trial = read_json(path)
        version = trial.get("schema_version") if isinstance(trial, dict) else None
        if version != SCHEMA_VERSION:
            raise StdacError(
                f"{path} has schema version {version}, this stdac reads {SCHEMA_VERSION}: "
                "use the stdac that wrote it, or start a new run folder"
            )
        return dict(trial)

    def done(self) -> dict[str, Any] | None:
        """done.json, or None."""
        return read_json(self.done_path) if self.done_path.exists() else None

    def result(self) -> Path | None:
        """The folder of the attempt that done.json names, or None."""
        done = self.done()
        return None if done is None else self.attempt_path(done["attempt"])

    def error(self) -> str | None:
        """error.txt of the last failed attempt, or None."""
        return self.error_path.read_text("utf-8", errors="replace") if self.error_path.exists() else None

    def fail(self, text: str) -> None:
        """Write error.txt: the trial is not tried again before `forgive`. The first line is the reason."""
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.error_path) as file:
            file.write(f"{text}\n".encode())

    def clear_error(self) -> None:
        """Forget the failure, so that the trial is tried again."""
        self.error_path.unlink(missing_ok=True)

    def leases(self) -> list[int]:
        """The numbers of the attempts made so far, ascending."""
        matches = (LEASE.fullmatch(path.name) for path in self.path.glob("lease-*.json"))
        return sorted(int(match[1]) for match in matches if match)

    def lease(self, number: int) -> dict[str, Any]:
        """Who made attempt `number`, and where."""
        return dict(read_json(self.lease_path(number)))

    def holder(self) -> dict[str, Any] | None:
        """The lease of the attempt that is running now, or None.

        An attempt runs as long as it renews its lease; a process of this host that is gone does not.
        """
        return self._find_holder(self.leases())

    def _find_holder(self, numbers: Sequence[int]) -> dict[str, Any] | None:
        if not numbers or self.done_path.exists():
            return None
        lease = self.lease(numbers[-1])
        return lease if self._alive(numbers[-1], lease) else None

    def silence(self, number: int) -> float:
        """Seconds since attempt `number` last renewed its lease; infinite once it was given back."""
        renewed = self.lease_path(number).stat().st_mtime
        return float("inf") if renewed == 0 else read_file_time(self.path) - renewed

    def _alive(self, number: int, lease: Mapping[str, Any]) -> bool:
        if self.silence(number) >= LEASE_S:  # frozen, cut off, dead or given back
            return False
        here = lease["host"] == socket.gethostname() and lease.get("namespace") == read_namespace()
        return not here or read_process_start(lease["pid"]) == lease["process_start"]

    def progress(self) -> dict[str, Any] | None:
        """Where the newest attempt is, as it last said, or None."""
        numbers = self.leases()
        path = self.progress_path(numbers[-1]) if numbers else None
        return read_json(path) if path is not None and path.exists() else None

    def checkpoints(self) -> list[Path]:
        """The checkpoints there are, of the newest attempt first."""
        paths = map(self.checkpoint_path, reversed(self.leases()))
        return [path for path in paths if path.exists()]

    def crashes(self) -> list[int]:
        """The attempts that died since the last checkpoint: neither running, nor given back."""
        crashed: list[int] = []
        for number in reversed(self.leases()):
            if self.checkpoint_path(number).exists():
                break
            if self.silence(number) < float("inf") and not self._alive(number, self.lease(number)):
                crashed.append(number)
        return crashed

    def forgive(self) -> None:
        """Forget the failure and the crashes, so that the trial is tried again."""
        for number in self.crashes():
            os.utime(self.lease_path(number), (0, 0))
        self.clear_error()

    def history(self) -> dict[str, Any]:
        """Who has been at this trial: the number of attempts, their hosts, the seconds of work lost between them."""
        leases = [self.lease(number) for number in self.leases()]
        lost = sum(lease.get("lost_before", 0.0) for lease in leases)
        return {
            "attempts": len(leases),
            "hosts": [lease["host"] for lease in leases],
            "lost_seconds": round(lost, 1),
        }

    def _measure_lost(self) -> float:
        """Seconds of work that the newest attempt did after its last checkpoint: what its end has cost."""
        numbers = self.leases()
        if not numbers:
            return 0.0
        newest = numbers[-1]
        signs = [self.progress_path(newest), self.lease_path(newest)]
        last = max(sign.stat().st_mtime for sign in signs if sign.exists())
        saved = datetime.fromisoformat(self.lease(newest)["began"]).timestamp()
        if self.checkpoint_path(newest).exists():
            saved = self.checkpoint_path(newest).stat().st_mtime
        return max(0.0, last - saved)

    def claim(self, about: Mapping[str, Any]) -> "Attempt | None":
        """Take the next attempt's number, or None where the trial is done or another attempt is running.

        about: what the lease records besides the process: commit, versions, device. A trial whose process has died
        CRASHES times in a row without finishing an epoch is marked as failed instead, so that it cannot hold up a grid.
        """
        numbers = self.leases()  # looked at once: whoever takes the next number from here on makes our link fail
        if self.done() is not None or self._find_holder(numbers) is not None:
            return None
        number = (numbers or [0])[-1] + 1
        if len(self.crashes()) >= CRASHES:
            log = self.lease(numbers[-1]).get("log") or "its worker's output"
            self.fail(f"its process died {CRASHES} times in a row within an epoch (out of memory?): see {log}")
            return None
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
            "lost_before": round(self._measure_lost(), 1),
        }
        path = self.lease_path(number)
        if not link_once(path, encode_json(lease)):
            return None
        if self.done() is not None:  # finished by another between the look and the link
            os.utime(path, (0, 0))
            return None
        return Attempt(self, number)


class Attempt:
    """One attempt at a trial: alone in writing below attempt-<n>. As a context manager it renews its lease."""

    def __init__(self, folder: TrialFolder, number: int) -> None:
        self.folder, self.number = folder, number
        self.path = folder.attempt_path(number)
        self.path.mkdir(exist_ok=True)
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
        with suppress(OSError, StdacError):
            self._write_progress()
        with suppress(OSError):
            os.utime(self._lease, (0, 0))

    def _stop_renewing(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S if self._written else 0.5):
            with suppress(OSError, StdacError):  # a full disk must not end a trial that could still go on
                os.utime(self._lease)
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
            if number < self.number:
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
                    shutil.rmtree(self.folder.attempt_path(number), ignore_errors=True)
        else:
            self._stop_renewing()
            shutil.rmtree(self.path, ignore_errors=True)
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

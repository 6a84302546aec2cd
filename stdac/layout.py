"""What lies in the folder of one trial, as everybody reads it.

Whoever else may write to a run folder is trusted with no more than that: what is read is checked, and no link below
trials/ is followed.
"""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from stdac.errors import StdacError
from stdac.files import is_real_folder, open_plain, read_json, read_record
from stdac.leases import LEASE_S, has_process, measure_silence, read_lease
from stdac.trial import SCHEMA_VERSION, make_id

MOST_ERROR = 2**20  # bytes of error.txt that are read
MOST_ATTEMPTS = 10**6  # at one trial: nobody makes as many

TRIAL_JSON, DONE_JSON, ERROR_TXT = "trial.json", "done.json", "error.txt"
"""Files of a trial's folder: what it is; its result, made once; why it failed."""

CHECKPOINT, PROGRESS = "checkpoint.pt", "progress.json"
"""Files of an attempt's folder that its result does not need: where it goes on, and where it is."""

TRIAL_ID = re.compile(r"[0-9a-f]{16}")
"""A trial's id, and so the name of its folder in trials/."""

LEASE, ATTEMPT = re.compile(r"lease-([1-9][0-9]{0,8})\.json"), re.compile(r"attempt-([1-9][0-9]{0,8})")
"""The names of an attempt's lease and of its folder, by its number."""

CHECKPOINTS = f"trials/*/attempt-*/{CHECKPOINT}"
"""The checkpoints of a run, as `glob` finds them in its folder."""

NUMBER = int | float
DONE: dict[str, Any] = {"seconds": NUMBER, "device": str, "hosts": list, "attempts": int, "lost_seconds": NUMBER}
DONE |= {"sha256": dict, "trial_id": str, "finished": str, "fingerprint": str, "pauses": int}
DONE |= {"images": int, "labels": str | None, "files": str | None}
WHERE: dict[str, Any] = {"phase": str, "epoch": int, "epochs": int, "images_per_s": NUMBER, "saved": int}
WHERE |= {"paused": bool, "step": int, "steps": int, "main": bool, "epoch_s": NUMBER}
"""What done.json may say beside its attempt, and what progress.json may say."""

TRIAL: dict[str, Any] = {"method": str, "dataset": str, "seed": int, "n_clusters": int, "epochs": int, "params": dict}
TRIAL |= {"limit": int | None, "image_size": int | None, "schema_version": int}
LATER: dict[str, Any] = {"source": str | None, "background": str, "needs": list}
"""What trial.json says, and what it may say."""


class TrialFiles:
    """What there is of one trial, at `path`. Nothing is written; any of it may be missing, or change at any moment."""

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

    def check_place(self) -> None:
        """Raise StdacError where a link stands in the place of this folder, or of trials/: it may lead anywhere."""
        for place in [self.path.parent, self.path] if self.path.parent.name == "trials" else [self.path]:
            if place.is_symlink():
                raise StdacError(f"{place} is a link, which is not followed: put the folder itself there")

    def trial(self) -> dict[str, Any]:
        """trial.json. Raises StdacError where it is missing, not ours, or of another schema version."""
        self.check_place()
        path = self.trial_path
        try:
            trial = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            raise StdacError(f"{self.path} is not a trial's folder: it has no trial.json") from None
        version = trial.get("schema_version") if isinstance(trial, dict) else None
        if version != SCHEMA_VERSION:
            raise StdacError(
                f"{path} has schema version {version}, this stdac reads {SCHEMA_VERSION}: "
                "use the stdac that wrote it, or start a new run folder"
            )
        trial = read_record(path, TRIAL, LATER)
        if TRIAL_ID.fullmatch(self.path.name) and make_id(trial) != self.path.name:
            raise StdacError(f"{path} is another trial's, or was changed: stdac-grid doctor RUN --mend writes it anew")
        return trial

    def done(self) -> dict[str, Any] | None:
        """done.json, or None. Raises StdacError where it is not ours."""
        self.check_place()
        try:
            return read_record(self.done_path, {"attempt": int}, DONE)
        except FileNotFoundError:
            return None

    def result(self) -> Path | None:
        """The folder of the attempt that done.json names, or None."""
        done = self.done()
        return None if done is None else self.attempt_path(done["attempt"])

    def error(self) -> str | None:
        """error.txt of the last failed attempt, or None."""
        self.check_place()
        try:
            with open_plain(self.error_path) as file:
                return file.read(MOST_ERROR).decode(errors="replace")
        except FileNotFoundError:
            return None

    def leases(self) -> list[int]:
        """The numbers of the attempts made so far, ascending: of each there is the lease, or the folder."""
        self.check_place()
        try:
            names = [path.name for path in self.path.iterdir()]
        except FileNotFoundError:
            return []
        matches = (pattern.fullmatch(name) for name in names for pattern in (LEASE, ATTEMPT))
        numbers = sorted({int(match[1]) for match in matches if match})
        if numbers and numbers[-1] > MOST_ATTEMPTS:
            raise StdacError(f"{self.path} has an attempt {numbers[-1]}: it was made outside; move it away")
        return numbers

    def lease(self, number: int) -> dict[str, Any]:
        """Who made attempt `number`, and where. Raises FileNotFoundError, and StdacError where it does not say."""
        return read_lease(self.lease_path(number)) | {"attempt": number}

    def known_leases(self) -> list[dict[str, Any]]:
        """The leases that can be read, ascending."""
        leases = []
        for number in self.leases():
            with suppress(StdacError, FileNotFoundError):
                leases.append(self.lease(number))
        return leases

    def holder(self) -> dict[str, Any] | None:
        """The lease of the attempt that is running now, or None.

        An attempt runs as long as it renews its lease; a process of this host that is gone does not.
        """
        numbers = self.leases()
        return self.find_holder(numbers[-1]) if numbers else None

    def find_holder(self, newest: int) -> dict[str, Any] | None:
        """The same, where that was the newest attempt."""
        return None if os.path.lexists(self.done_path) or not self.is_held(newest) else self.lease(newest)

    def is_held(self, number: int) -> bool:
        """Whether attempt `number` still runs. Raises StdacError where its lease was renewed, but cannot be read."""
        if self.silence(number) >= LEASE_S:  # frozen, cut off, dead, given back or gone
            return False
        with suppress(FileNotFoundError):
            return has_process(self.lease(number))
        return False

    def silence(self, number: int) -> float:
        """Seconds since attempt `number` last renewed its lease, see `measure_silence`."""
        return measure_silence(self.lease_path(number))

    def progress(self) -> dict[str, Any] | None:
        """Where the newest attempt is, as it last said, or None."""
        numbers = self.leases()
        return self.read_progress(numbers[-1]) if numbers else None

    def read_progress(self, number: int) -> dict[str, Any] | None:
        """Where attempt `number` is, or was, as it last said, or None where it did not, or not in our words."""
        with suppress(StdacError, FileNotFoundError, NotADirectoryError):
            if is_real_folder(self.attempt_path(number)):
                return read_record(self.progress_path(number), {}, WHERE)
        return None

    def checkpoints(self) -> list[Path]:
        """The checkpoints there are, of the newest attempt first."""
        return [self.checkpoint_path(number) for number in reversed(self.leases()) if self.has_checkpoint(number)]

    def has_checkpoint(self, number: int) -> bool:
        """Whether attempt `number` has left a checkpoint."""
        return is_real_folder(self.attempt_path(number)) and read_mtime(self.checkpoint_path(number)) is not None

    def crashes(self) -> list[int]:
        """The attempts that died since the last checkpoint: neither running, nor given back."""
        crashed: list[int] = []
        for number in reversed(self.leases()):
            if self.has_checkpoint(number):
                break
            if self.silence(number) < float("inf") and not self.is_held(number):
                crashed.append(number)
        return crashed

    def history(self) -> dict[str, Any]:
        """Who has been at this trial: the number of attempts, their hosts, the seconds of work lost between them, and
        how often it was only paused in between, if at all."""
        leases = self.known_leases()
        lost = sum(lease.get("lost_before", 0.0) for lease in leases)
        pauses = sum(lease.get("after_pause") is True for lease in leases)
        hosts = [lease["host"] for lease in leases]
        history = {"attempts": len(leases), "hosts": hosts, "lost_seconds": round(lost, 1)}
        return history | ({"pauses": pauses} if pauses else {})


def read_mtime(path: Path) -> float | None:
    """When a plain file was last written; None where there is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        about = path.lstat()
        return about.st_mtime if stat.S_ISREG(about.st_mode) else None
    return None

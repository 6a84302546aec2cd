"""The folder of one trial: its schema, its attempts, its checkpoints, and the done.json that is made once.

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
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stdac.errors import StdacError
from stdac.files import file_system_time, json_bytes, link_once, read_json, sync_folder, whole, write_json
from stdac.trial import SCHEMA_VERSION

LEASE_S = float(os.environ.get("STDAC_LEASE_S", "60"))  # a lease not renewed for this long may be superseded
RENEW_S = LEASE_S / 12
CRASHES = 5  # a trial whose process died this often in a row, without an epoch in between, has failed

METRICS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        ("phase", pa.string()),
        ("epoch", pa.int32()),
        ("acc", pa.float64()),
        ("nmi", pa.float64()),
        ("ari", pa.float64()),
        ("purity", pa.float64()),
        ("nmi_geometric", pa.float64()),
        ("clusters_used", pa.int32()),
        ("loss", pa.float64()),
        ("loss_pair", pa.float64()),
        ("loss_auxiliary", pa.float64()),
        ("loss_reconstruction", pa.float64()),
        ("loss_clustering", pa.float64()),
        ("threshold", pa.float64()),
        ("positive_fraction", pa.float64()),
        ("selected_fraction", pa.float64()),
        ("mean_confidence", pa.float64()),
        ("images_seen", pa.int64()),
        ("seconds", pa.float64()),
        ("images_per_s", pa.float64()),
        ("device", pa.string()),
        ("params", pa.string()),
        ("schema_version", pa.int32()),
        ("noise", pa.float64()),
        ("main", pa.bool_()),
    ]
)
"""One row a (trial_id, phase, epoch); absent values are null. acc … nmi_geometric in [0, 1]; seconds: of the epoch;
noise: the share of images in no cluster; main: whether the row is of the phase whose epochs the trial counts.

A method may log further terms, columns of float64 after these: see OPEN. Of files of other versions, past or to come,
CORE is what a reader needs; what else is missing is null, what else is there is left out (`conform_metrics`).
"""

OPEN = re.compile(r"(loss|term)_[a-z0-9_]+")
"""The names of the columns that a method may add."""

LOGGED = (
    *("loss", "threshold", "positive_fraction", "selected_fraction"),
    *("images_seen", "seconds", "images_per_s"),
)
"""The columns of METRICS that a phase fills, besides those that OPEN matches."""

LATER = ("noise", "main")
"""The columns that later versions added."""

CORE = tuple(name for name in METRICS.names if not OPEN.fullmatch(name) and name not in LATER)

FIRST_MAIN = "cluster"
"""What every main phase was called before rows marked it, and what the score of a method without phases is called."""

TIMINGS = ("seconds", "images_per_s", "device")
"""The columns of METRICS that differ between two runs of one trial; all others are equal bit for bit (on one CPU)."""

ASSIGNMENTS = pa.schema(
    [
        ("index", pa.int64()),
        ("cluster", pa.int32()),
        ("protocol_cluster", pa.int32()),
        ("protocol_confidence", pa.float32()),
        ("label", pa.int32()),
    ]
)
"""One row an image: the deployed model's cluster, the protocol's, and the ground truth where there is one."""


FIGURES = "stn.npz"
"""The arrays that pictures of a trial are drawn from, named after the first method that had some."""

PARTS = ("metrics.parquet", "assignments.parquet", "model.pt", FIGURES)
"""What a result is made of; `done.json` has the SHA-256 of each."""

LEASE = re.compile(r"lease-([1-9][0-9]{0,8})\.json")


class Superseded(StdacError):
    """Another attempt has taken over this trial."""


class TrialFolder:
    """The folder of one trial. Nothing is created until `create` or `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, trial_json: Mapping[str, Any]) -> None:
        """Write trial.json once. Raises StdacError where another trial or another schema version lives there."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not link_once(self.path / "trial.json", json_bytes(trial_json)) and self.trial() != dict(trial_json):
            raise StdacError(f"{self.path} holds another trial: choose another folder")

    def trial(self) -> dict[str, Any]:
        """trial.json. Raises StdacError where it is missing, not ours, or of another schema version."""
        path = self.path / "trial.json"
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
        path = self.path / "done.json"
        return read_json(path) if path.exists() else None

    def error(self) -> str | None:
        """error.txt of the last failed attempt, or None."""
        path = self.path / "error.txt"
        return path.read_text(errors="replace") if path.exists() else None

    def fail(self, text: str) -> None:
        """Write error.txt: the trial is not tried again before `forgive`. The first line is the reason."""
        self.path.mkdir(parents=True, exist_ok=True)
        with whole(self.path / "error.txt") as file:
            file.write(f"{text}\n".encode())

    def clear_error(self) -> None:
        """Forget the failure, so that the trial is tried again."""
        (self.path / "error.txt").unlink(missing_ok=True)

    def leases(self) -> list[int]:
        """The numbers of the attempts made so far, ascending."""
        matches = (LEASE.fullmatch(path.name) for path in self.path.glob("lease-*.json"))
        return sorted(int(match[1]) for match in matches if match)

    def lease(self, number: int) -> dict[str, Any]:
        """Who made attempt `number`, and where."""
        return dict(read_json(self.path / f"lease-{number}.json"))

    def holder(self) -> dict[str, Any] | None:
        """The lease of the attempt that is running now, or None.

        An attempt runs as long as it renews its lease; a process of this host that is gone does not.
        """
        numbers = self.leases()
        if not numbers or (self.path / "done.json").exists():
            return None
        lease = self.lease(numbers[-1])
        return lease if self._alive(numbers[-1], lease) else None

    def silence(self, number: int) -> float:
        """Seconds since attempt `number` last renewed its lease; infinite once it was given back."""
        renewed = (self.path / f"lease-{number}.json").stat().st_mtime
        return float("inf") if renewed == 0 else file_system_time(self.path) - renewed

    def _alive(self, number: int, lease: Mapping[str, Any]) -> bool:
        if self.silence(number) >= LEASE_S:  # frozen, cut off, dead or given back
            return False
        here = lease["host"] == socket.gethostname() and lease.get("namespace") == process_namespace()
        return not here or process_start(lease["pid"]) == lease["process_start"]

    def progress(self) -> dict[str, Any] | None:
        """Where the newest attempt is, as it last said, or None."""
        numbers = self.leases()
        path = self.path / f"attempt-{numbers[-1]}" / "progress.json" if numbers else None
        return read_json(path) if path is not None and path.exists() else None

    def checkpoints(self) -> list[Path]:
        """The checkpoints there are, of the newest attempt first."""
        paths = (self.path / f"attempt-{n}" / "checkpoint.pt" for n in reversed(self.leases()))
        return [path for path in paths if path.exists()]

    def crashes(self) -> list[int]:
        """The attempts that died since the last checkpoint: neither running, nor given back."""
        crashed: list[int] = []
        for number in reversed(self.leases()):
            if (self.path / f"attempt-{number}" / "checkpoint.pt").exists():
                break
            if self.silence(number) < float("inf") and not self._alive(number, self.lease(number)):
                crashed.append(number)
        return crashed

    def forgive(self) -> None:
        """Forget the failure and the crashes, so that the trial is tried again."""
        for number in self.crashes():
            os.utime(self.path / f"lease-{number}.json", (0, 0))
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

    def lost(self) -> float:
        """Seconds of work that the newest attempt did after its last checkpoint: what its end has cost."""
        numbers = self.leases()
        if not numbers:
            return 0.0
        path = self.path / f"attempt-{numbers[-1]}"
        signs = [path / "progress.json", self.path / f"lease-{numbers[-1]}.json"]
        last = max(sign.stat().st_mtime for sign in signs if sign.exists())
        saved = datetime.fromisoformat(self.lease(numbers[-1])["began"]).timestamp()
        if (path / "checkpoint.pt").exists():
            saved = (path / "checkpoint.pt").stat().st_mtime
        return max(0.0, last - saved)

    def claim(self, about: Mapping[str, Any]) -> "Attempt | None":
        """Take the next attempt's number, or None where the trial is done or another attempt is running.

        about: what the lease records besides the process: commit, versions, device. A trial whose process has died
        CRASHES times in a row without finishing an epoch is marked as failed instead, so that it cannot hold up a grid.
        """
        if self.done() is not None or self.holder() is not None:
            return None
        numbers = self.leases()
        number = (numbers or [0])[-1] + 1
        if len(self.crashes()) >= CRASHES:
            log = self.lease(numbers[-1]).get("log") or "its worker's output"
            self.fail(f"its process died {CRASHES} times in a row within an epoch (out of memory?): see {log}")
            return None
        lease = {
            **about,
            "attempt": number,
            "host": socket.gethostname(),
            "namespace": process_namespace(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "job": os.environ.get("STDAC_JOB") or None,
            "log": os.environ.get("STDAC_LOG"),
            "began": timestamp(file_system_time(self.path)),
            "lost_before": round(self.lost(), 1),
        }
        path = self.path / f"lease-{number}.json"
        if not link_once(path, json_bytes(lease)):
            return None
        if self.done() is not None:  # finished by another between the look and the link
            os.utime(path, (0, 0))
            return None
        return Attempt(self, number)


class Attempt:
    """One attempt at a trial: alone in writing below attempt-<n>. As a context manager it renews its lease."""

    def __init__(self, folder: TrialFolder, number: int) -> None:
        self.folder, self.number = folder, number
        self.path = folder.path / f"attempt-{number}"
        self.path.mkdir(exist_ok=True)
        self._lease = folder.path / f"lease-{number}.json"
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
            write_json(self.path / "progress.json", progress)
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
        with whole(self.path / "checkpoint.pt") as file:
            torch.save(dict(checkpoint), file)
        for number in self.folder.leases():
            if number < self.number:
                (self.folder.path / f"attempt-{number}" / "checkpoint.pt").unlink(missing_ok=True)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file of the result."""
        with whole(self.path / name) as file:
            pq.write_table(table, file, compression="zstd")

    def finish(self, summary: Mapping[str, Any]) -> bool:
        """Make done.json, naming this attempt: True if it won. Then sweep what only a resume needs."""
        finished = timestamp(file_system_time(self.folder.path))
        digests = {name: file_digest(self.path / name) for name in PARTS if (self.path / name).exists()}
        done = {"attempt": self.number, "finished": finished, "sha256": digests, **self.folder.history(), **summary}
        with suppress(FileNotFoundError):  # the winner has swept it
            sync_folder(self.path)
        won = link_once(self.folder.path / "done.json", json_bytes(done))
        if won:
            sync_folder(self.folder.path)  # done before anything it replaces is gone
            self._stop_renewing()
            self._progress = None
            (self.folder.path / "error.txt").unlink(missing_ok=True)
            for name in ("checkpoint.pt", "progress.json"):
                (self.path / name).unlink(missing_ok=True)
            for number in self.folder.leases():
                if number != self.number:
                    shutil.rmtree(self.folder.path / f"attempt-{number}", ignore_errors=True)
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
            f"attempt {self.number} on {socket.gethostname()} at {timestamp(file_system_time(self.folder.path))}",
            json.dumps(dict(trial_json), sort_keys=True),
            trace,
        ]
        with suppress(StdacError, OSError):
            if self.current():
                self.folder.fail("\n".join(lines))


def check_log(log: Mapping[str, float]) -> None:
    """Raise StdacError for a name that a phase may not log."""
    for name in log:
        if name not in LOGGED and not OPEN.fullmatch(name):
            raise StdacError(
                f"got a logged term named {name!r}, expected loss_… or term_… in small letters, digits and _, "
                f"or one of {', '.join(LOGGED)}: rename it in the loss"
            )


def metrics_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a METRICS table, with the columns of OPEN that they have; what a row lacks is null."""
    names = {name for row in rows for name in row}
    unknown = {name for name in names - set(METRICS.names) if not OPEN.fullmatch(name)}
    if unknown:
        raise ValueError(f"rows have columns {sorted(unknown)} that the schema does not")
    schema = pa.schema([*METRICS, *((name, pa.float64()) for name in sorted(names - set(METRICS.names)))])
    return pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)


def conform_metrics(table: pa.Table) -> pa.Table:
    """A table of any version as a METRICS table with its columns of OPEN. Raises StdacError where a column of CORE is
    missing, or a column has values of another type."""
    names = table.column_names
    missing = [name for name in CORE if name not in names]
    if missing:
        raise StdacError(f"it lacks the columns {', '.join(missing)}: expected a file that stdac wrote")
    more = sorted(name for name in names if name not in METRICS.names and OPEN.fullmatch(name))
    schema = pa.schema([*METRICS, *((name, pa.float64()) for name in more)])
    columns = {f.name: table[f.name] if f.name in names else pa.nulls(len(table), f.type) for f in schema}
    columns["main"] = pc.coalesce(columns["main"], pc.equal(table["phase"], FIRST_MAIN))
    try:
        return pa.table(columns).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise StdacError(f"it has values of another type ({str(error).splitlines()[0]})") from error


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def process_namespace() -> str:
    """Names what a process id means something in: this boot of this machine, and the container we are in."""
    words = []
    with suppress(OSError):
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        words.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(words)


def process_start(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since boot: names it together with the pid. None if gone."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def timestamp(seconds: float) -> str:
    """A time in seconds since the epoch as UTC in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

"""The folder of one trial: its schema, its attempts, its checkpoints, and the done.json that is made once.

Clusters do run the same job twice at once. So every attempt takes the next number with `link()`, which fences; it
writes only below its own number; and the first to `link()` done.json wins. Readers follow done.json alone.
"""

import json
import os
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stdac.errors import StdacError
from stdac.files import json_bytes, link_once, read_json, whole, write_json
from stdac.trial import SCHEMA_VERSION

LEASE_S = 60.0  # a lease not renewed for this long may be superseded
RENEW_S = 5.0

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
    ]
)
"""One row a (trial_id, phase, epoch); absent values are null. acc … nmi_geometric in [0, 1]; seconds: of the epoch."""

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

    def clear_error(self) -> None:
        """Forget the failure, so that the trial is tried again."""
        (self.path / "error.txt").unlink(missing_ok=True)

    def leases(self) -> list[int]:
        """The numbers of the attempts made so far, ascending."""
        names = [p.name for p in self.path.glob("lease-*.json")]
        return sorted(int(n[6:-5]) for n in names if n[6:-5].isdigit())

    def lease(self, number: int) -> dict[str, Any]:
        """Who made attempt `number`, and where."""
        return dict(read_json(self.path / f"lease-{number}.json"))

    def holder(self) -> dict[str, Any] | None:
        """The lease of the attempt that is running now, or None."""
        numbers = self.leases()
        if not numbers or (self.path / "done.json").exists():
            return None
        lease = self.lease(numbers[-1])
        return lease if self._alive(numbers[-1], lease) else None

    def progress(self) -> dict[str, Any] | None:
        """Where the newest attempt is, as it last said, or None."""
        numbers = self.leases()
        path = self.path / f"attempt-{numbers[-1]}" / "progress.json" if numbers else None
        return read_json(path) if path is not None and path.exists() else None

    def _alive(self, number: int, lease: Mapping[str, Any]) -> bool:
        renewed = (self.path / f"lease-{number}.json").stat().st_mtime
        if renewed == 0:  # given back
            return False
        if lease["host"] == socket.gethostname() and lease["boot"] == boot_id():
            return bool(process_start(lease["pid"]) == lease["process_start"])
        return bool(file_system_time(self.path) - renewed < LEASE_S)

    def claim(self, about: Mapping[str, Any]) -> "Attempt | None":
        """Take the next attempt's number, or None where the trial is done or another attempt is running.

        about: what the lease records besides the process: commit, versions, device.
        """
        if self.done() is not None or self.holder() is not None:
            return None
        number = (self.leases() or [0])[-1] + 1
        lease = {
            **about,
            "attempt": number,
            "host": socket.gethostname(),
            "boot": boot_id(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID"),
            "began": timestamp(),
        }
        if not link_once(self.path / f"lease-{number}.json", json_bytes(lease)):
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
        self._thread = threading.Thread(target=self._renew, name=f"lease-{number}", daemon=True)

    def __enter__(self) -> "Attempt":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            os.utime(self._lease, (0, 0))

    def _renew(self) -> None:
        written = None
        while not self._ended.wait(RENEW_S if written else 0.5):
            progress = self._progress
            with suppress(OSError, StdacError):  # a full disk must not end a trial that could still go on
                os.utime(self._lease)
                if progress is not None and progress != written:
                    write_json(self.path / "progress.json", progress)
                    written = progress

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Remember where the trial is; the lease's thread writes it down now and then."""
        self._progress = dict(progress)

    def check(self) -> None:
        """Raise Superseded where a later attempt exists or the trial is done: this one must stop writing."""
        if self.folder.leases()[-1] != self.number or self.folder.done() is not None:
            raise Superseded(f"attempt {self.number} of {self.folder.path.name} was superseded while it ran")

    def newest_checkpoint(self) -> Path | None:
        """The newest attempt's checkpoint, from which this one goes on."""
        paths = (self.folder.path / f"attempt-{n}" / "checkpoint.pt" for n in reversed(self.folder.leases()))
        return next((p for p in paths if p.exists()), None)

    def save_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Write this attempt's checkpoint; the earlier attempts' are no longer needed then."""
        import torch

        self.check()
        with whole(self.path / "checkpoint.pt") as file:
            torch.save(dict(checkpoint), file)
        for number in self.folder.leases()[:-1]:
            (self.folder.path / f"attempt-{number}" / "checkpoint.pt").unlink(missing_ok=True)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file of the result."""
        with whole(self.path / name) as file:
            pq.write_table(table, file, compression="zstd")

    def finish(self, summary: Mapping[str, Any]) -> bool:
        """Make done.json, naming this attempt: True if it won. Then sweep what only a resume needs."""
        done = {"attempt": self.number, "finished": timestamp(), **summary}
        won = link_once(self.folder.path / "done.json", json_bytes(done))
        if won:
            (self.folder.path / "error.txt").unlink(missing_ok=True)
            for name in ("checkpoint.pt", "progress.json"):
                (self.path / name).unlink(missing_ok=True)
            for number in self.folder.leases():
                if number != self.number:
                    shutil.rmtree(self.folder.path / f"attempt-{number}", ignore_errors=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        return won

    def fail(self, error: BaseException, trial_json: Mapping[str, Any]) -> None:
        """Write error.txt: the reason in its first line, then attempt, host, trial and traceback."""
        reason = str(error) if isinstance(error, StdacError) else f"{type(error).__name__}: {error}"
        trace = "" if isinstance(error, StdacError) else "".join(traceback.format_exception(error))
        lines = [
            reason.replace("\n", " "),
            f"attempt {self.number} on {socket.gethostname()} at {timestamp()}",
            json.dumps(dict(trial_json), sort_keys=True),
            trace,
        ]
        with suppress(StdacError), whole(self.folder.path / "error.txt") as file:
            file.write("\n".join(lines).encode())


def metrics_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a METRICS table; missing columns are null, unknown ones an error."""
    unknown = {key for row in rows for key in row} - set(METRICS.names)
    if unknown:
        raise ValueError(f"rows have columns {sorted(unknown)} that the schema does not")
    return pa.table({name: [row.get(name) for row in rows] for name in METRICS.names}, schema=METRICS)


def boot_id() -> str | None:
    """Names this boot of this machine: process ids mean nothing across boots."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def process_start(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since boot: names it together with the pid. None if gone."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def file_system_time(folder: Path) -> float:
    """Now by the clock that stamps files in `folder`: on a network file system that is the server's, not ours."""
    probe = folder / f".now-{socket.gethostname()}-{os.getpid()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def timestamp() -> str:
    """Now, as UTC in ISO 8601 with seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

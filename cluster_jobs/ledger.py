"""The run folder: what was asked for, and what of it is done, running, failed or waiting. Read from the files alone.

What was asked for only grows: trials.parquet, and for every later launch that adds trials trials-2.parquet and so on,
each made once by `link()`, so that two launches at the same time lose nothing of each other's.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stdac.errors import StdacError
from stdac.files import file_system_time, link_once, whole
from stdac.record import METRICS, TrialFolder
from stdac.trial import SCHEMA_VERSION, Trial, canonical_json

State = Literal["done", "running", "failed", "waiting"]

TRIALS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        ("trial", pa.string()),
        ("schema_version", pa.int32()),
    ]
)
"""trials*.parquet: one row a planned trial, in the grid's order; `trial` is its JSON."""

PART = re.compile(r"trials(?:-(\d+))?\.parquet")


class Status(NamedTuple):
    """Where one trial stands. detail: done.json, the running attempt's lease and progress, or the failure's reason."""

    trial_id: str
    state: State
    detail: dict[str, Any]


class Ledger:
    """The run folder at `path`. Any number of processes may have one open: it remembers only what is final."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done: dict[str, Status] = {}
        self._planned: dict[Path, dict[str, dict[str, Any]]] = {}

    def exists(self) -> bool:
        """Whether a run was planned here."""
        return bool(self.parts())

    def folder(self, trial_id: str) -> TrialFolder:
        """A trial's folder."""
        return TrialFolder(self.path / "trials" / trial_id)

    def plan(self, trials: Sequence[Trial], grid_text: str) -> list[str]:
        """Write down what is asked for and was not before; returns the ids of the earlier trials that `trials` lacks.

        Any number of processes may plan at once. Raises StdacError where the folder cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StdacError(
                f"cannot make the run folder {self.path}: {error.strerror}; choose another --out"
            ) from error
        planned = {trial.id: trial.to_json() for trial in trials}
        while True:
            earlier = self.trials() if self.exists() else {}
            new = {trial_id: trial for trial_id, trial in planned.items() if trial_id not in earlier}
            if not new:
                return [trial_id for trial_id in earlier if trial_id not in planned]
            number = max(self.parts(), default=0) + 1
            suffix = f"-{number}" if number > 1 else ""
            if link_once(self.path / f"trials{suffix}.parquet", trials_parquet(new)):
                link_once(self.path / f"grid{suffix}.toml", grid_text.encode())

    def parts(self) -> dict[int, Path]:
        """The files that say what was asked for, by their number, ascending."""
        found = ((PART.fullmatch(path.name), path) for path in self.path.glob("trials*.parquet"))
        return dict(sorted((int(match[1] or 1), path) for match, path in found if match))

    def trials(self) -> dict[str, dict[str, Any]]:
        """Planned trials: id -> its JSON, in order. Raises StdacError for a folder that is no run of this version."""
        if not self.exists():
            raise StdacError(f"{self.path} is not a run folder: it has no trials.parquet; stdac-grid launch makes one")
        for path in self.parts().values():
            if path not in self._planned:
                self._planned[path] = {row["trial_id"]: json.loads(row["trial"]) for row in read_part(path)}
        return {trial_id: trial for part in self._planned.values() for trial_id, trial in part.items()}

    def status(self, trial_id: str) -> Status:
        """Where one trial stands."""
        if trial_id in self._done:
            return self._done[trial_id]
        folder = self.folder(trial_id)
        done = folder.done()
        if done is not None:
            self._done[trial_id] = Status(trial_id, "done", done)
            return self._done[trial_id]
        holder = folder.holder()
        if holder is not None:
            clock = {"now": file_system_time(self.path), "silence": folder.silence(holder["attempt"])}
            return Status(trial_id, "running", holder | folder.history() | clock | {"progress": folder.progress()})
        error = folder.error()
        if error is not None:
            reason = error.partition("\n")[0]
            return Status(trial_id, "failed", {"reason": reason, "log": str(folder.path / "error.txt")})
        return Status(trial_id, "waiting", {})

    def statuses(self) -> list[Status]:
        """Where every trial stands, in order."""
        return [self.status(trial_id) for trial_id in self.trials()]

    def retry(self) -> list[str]:
        """Forget all failures; returns the ids of the trials that will run again."""
        failed = [s.trial_id for s in self.statuses() if s.state == "failed"]
        for trial_id in failed:
            self.folder(trial_id).forgive()
        return failed

    def cancel(self) -> None:
        """Ask every worker of this run to stop, wherever it is; `resume` takes it back."""
        link_once(self.path / "cancel", b"")

    def cancelled(self) -> bool:
        """Whether this run's workers are to stop."""
        return (self.path / "cancel").exists()

    def resume(self) -> None:
        """Let workers take trials again."""
        (self.path / "cancel").unlink(missing_ok=True)

    def best_model(self, method: str) -> Path:
        """The model.pt of the method's done trial with the lowest last loss. Raises StdacError where there is none."""
        losses: dict[Path, float] = {}
        for trial_id, trial in self.trials().items():
            done = self.folder(trial_id).done()
            if done is not None and trial["method"] == method:
                path = self.folder(trial_id).path / f"attempt-{done['attempt']}"
                rows = pq.read_table(path / "metrics.parquet", columns=["phase", "epoch", "loss"]).to_pylist()
                last = max((r for r in rows if r["phase"] == "cluster"), key=lambda r: r["epoch"])
                if last["loss"] is not None and (path / "model.pt").exists():
                    losses[path / "model.pt"] = last["loss"]
        if not losses:
            raise StdacError(f"{self.path} has no done {method} trial with a loss and a model: launch its grid first")
        return min(losses, key=losses.__getitem__)

    def collect(self) -> Path:
        """Write RUN/metrics.parquet: the rows of all done trials, sorted by trial, phase and epoch."""
        tables = [METRICS.empty_table()]
        for trial_id in sorted(self.trials()):
            done = self.folder(trial_id).done()
            if done is not None:
                path = self.folder(trial_id).path / f"attempt-{done['attempt']}" / "metrics.parquet"
                tables.append(pq.read_table(path, schema=METRICS))
        out = self.path / "metrics.parquet"
        with whole(out) as file:
            pq.write_table(pa.concat_tables(tables), file, compression="zstd")
        return out


def trials_parquet(trials: dict[str, dict[str, Any]]) -> bytes:
    """Trials as the bytes of a TRIALS Parquet file."""
    rows = [
        {"trial_id": trial_id, **{k: t[k] for k in ("method", "dataset", "seed")}, "trial": canonical_json(t)}
        for trial_id, t in trials.items()
    ]
    table = pa.Table.from_pylist([row | {"schema_version": SCHEMA_VERSION} for row in rows], schema=TRIALS)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_part(path: Path) -> list[dict[str, Any]]:
    """The rows of a TRIALS file. Raises StdacError where it is damaged or of another schema version."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise StdacError(f"{path} is damaged ({error}): move it away and launch its grid again") from error
    versions = {row.get("schema_version") for row in rows} - {SCHEMA_VERSION}
    if versions:
        raise StdacError(
            f"{path.parent} has schema version {versions.pop()}, this stdac reads {SCHEMA_VERSION}: "
            "use the stdac that wrote it, or choose another --out"
        )
    return rows

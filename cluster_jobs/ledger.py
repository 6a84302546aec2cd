"""The run folder: what was asked for, and what of it is done, running, failed or waiting. Read from the files alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stdac.errors import StdacError
from stdac.files import whole
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
"""trials.parquet: one row a planned trial, in the grid's order; `trial` is its JSON."""


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
        self._planned: tuple[int, dict[str, dict[str, Any]]] | None = None

    def exists(self) -> bool:
        """Whether a run was planned here."""
        return (self.path / "trials.parquet").exists()

    def folder(self, trial_id: str) -> TrialFolder:
        """A trial's folder."""
        return TrialFolder(self.path / "trials" / trial_id)

    def plan(self, trials: Sequence[Trial], grid_text: str) -> list[str]:
        """Write down what is asked for. A run that has other trials already keeps them; their ids are returned."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StdacError(
                f"cannot make the run folder {self.path}: {error.strerror}; choose another --out"
            ) from error
        planned = {trial.id: trial.to_json() for trial in trials}
        earlier = {row["trial_id"]: json.loads(row["trial"]) for row in self.rows()} if self.exists() else {}
        vanished = [trial_id for trial_id in earlier if trial_id not in planned]
        if set(planned) - set(earlier) or not self.exists():
            write_trials(self.path / "trials.parquet", planned | earlier)
        with whole(self.path / "grid.toml") as file:
            file.write(grid_text.encode())
        return vanished

    def rows(self) -> list[dict[str, Any]]:
        """The rows of trials.parquet. Raises StdacError for a folder without, or of another schema version."""
        if not self.exists():
            raise StdacError(f"{self.path} is not a run folder: it has no trials.parquet; stdac-grid launch makes one")
        try:
            rows: list[dict[str, Any]] = pq.read_table(self.path / "trials.parquet").to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise StdacError(f"{self.path / 'trials.parquet'} is damaged ({error}): launch its grid again") from error
        version = next((r.get("schema_version") for r in rows if r.get("schema_version") != SCHEMA_VERSION), None)
        if rows and (version is not None or "schema_version" not in rows[0]):
            raise StdacError(
                f"{self.path} has schema version {version}, this stdac reads {SCHEMA_VERSION}: "
                "use the stdac that wrote it, or choose another --out"
            )
        return rows

    def trials(self) -> dict[str, dict[str, Any]]:
        """Planned trials: id -> its JSON, in order."""
        written = self.path / "trials.parquet"
        stamp = written.stat().st_mtime_ns if written.exists() else 0
        if self._planned is None or self._planned[0] != stamp:
            self._planned = (stamp, {row["trial_id"]: json.loads(row["trial"]) for row in self.rows()})
        return self._planned[1]

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
            return Status(trial_id, "running", holder | {"progress": folder.progress()})
        error = folder.error()
        if error is not None:
            return Status(trial_id, "failed", {"reason": error.splitlines()[0], "log": str(folder.path / "error.txt")})
        return Status(trial_id, "waiting", {})

    def statuses(self) -> list[Status]:
        """Where every trial stands, in order."""
        return [self.status(trial_id) for trial_id in self.trials()]

    def retry(self) -> list[str]:
        """Forget all failures; returns the ids of the trials that will run again."""
        failed = [s.trial_id for s in self.statuses() if s.state == "failed"]
        for trial_id in failed:
            self.folder(trial_id).clear_error()
        return failed

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


def write_trials(path: Path, trials: dict[str, dict[str, Any]]) -> None:
    """Write trials.parquet, whole or not at all."""
    rows = [
        {"trial_id": trial_id, **{k: t[k] for k in ("method", "dataset", "seed")}, "trial": canonical_json(t)}
        for trial_id, t in trials.items()
    ]
    table = pa.Table.from_pylist([row | {"schema_version": SCHEMA_VERSION} for row in rows], schema=TRIALS)
    with whole(path) as file:
        pq.write_table(table, file, compression="zstd")

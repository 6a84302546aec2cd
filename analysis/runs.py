"""The rows of a run: from a run folder, one trial's folder or a collected metrics.parquet to one table."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stdac.errors import StdacError
from stdac.record import METRICS, TrialFolder
from stdac.trial import SCHEMA_VERSION, canonical_json

SETTINGS = ("n_clusters", "epochs", "limit", "image_size")
"""What of a Trial is not a column of METRICS."""

ROWS = pa.schema([*METRICS, *((name, pa.int64()) for name in SETTINGS)])
"""METRICS and SETTINGS; limit and image_size are null where the trial has none, n_clusters is null where unknown."""


def read_metrics(path: Path) -> pa.Table:
    """All rows of the finished trials at `path`, a ROWS table; unfinished trials and losing attempts are left out.

    path: a run folder, the folder of one trial, a folder with a collected metrics.parquet, or such a file. Raises
    StdacError where it is none of these, no trial is finished, or the rows are of another schema version.
    """
    if path.is_file():
        return read_collected(path)
    folders = trial_folders(path)
    if not folders and (path / "metrics.parquet").is_file():
        return read_collected(path / "metrics.parquet")
    if not folders and not (path / "trials").is_dir():
        raise StdacError(f"{path} is not a run: expected a folder with trials/ or metrics.parquet; check the path")
    tables = [table for folder in folders if (table := read_trial(folder)) is not None]
    if not tables:
        raise StdacError(
            f"{path} has no finished trial among its {len(folders)}: launch the run and wait for the first"
        )
    return pa.concat_tables(tables)


def trial_folders(path: Path) -> list[TrialFolder]:
    """The trials' folders of a run, by name; `path` itself where it is one trial's folder."""
    paths = [path] if (path / "trial.json").is_file() else sorted((path / "trials").glob("*"))
    return [TrialFolder(p) for p in paths if (p / "trial.json").is_file()]


def finished(path: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """(trial.json, folder of the attempt that counts) of every finished trial at `path`."""
    for folder in trial_folders(path):
        done = folder.done()
        if done is not None:
            yield folder.trial(), folder.path / f"attempt-{done['attempt']}"


def read_trial(folder: TrialFolder) -> pa.Table | None:
    """The rows of one trial, a ROWS table, or None where it is not finished."""
    for trial, attempt in finished(folder.path):
        return with_settings(read_rows(attempt / "metrics.parquet"), [trial[name] for name in SETTINGS])
    return None


def read_rows(path: Path) -> pa.Table:
    """A METRICS table from a Parquet file. Raises StdacError where it is missing, not ours or of another version."""
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise StdacError(
            f"cannot read {path} as Parquet ({reason}): run that trial again, or check the path"
        ) from error
    versions = set(table["schema_version"].to_pylist()) if "schema_version" in table.column_names else {None}
    if versions - {SCHEMA_VERSION}:
        got = ", ".join(sorted(map(str, versions)))
        raise StdacError(
            f"{path} has rows of schema version {got}, expected {SCHEMA_VERSION}: use the stdac that wrote it"
        )
    missing = [name for name in METRICS.names if name not in table.column_names]
    if missing:
        raise StdacError(f"{path} lacks the columns {', '.join(missing)}: expected a file that stdac wrote")
    extra = [name for name in SETTINGS if name in table.column_names]
    return table.select([*METRICS.names, *extra]).cast(pa.schema([ROWS.field(n) for n in (*METRICS.names, *extra)]))


def read_collected(path: Path) -> pa.Table:
    """A ROWS table from a collected file, with the settings restored where the file has only METRICS."""
    table = read_rows(path)
    if set(SETTINGS) <= set(table.column_names):
        return table.select(ROWS.names)
    rows = table.select(METRICS.names).to_pylist()
    trials: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        trials.setdefault(row["trial_id"], []).append(row)
    restored = {name: restore_settings(of_trial) for name, of_trial in trials.items()}
    return pa.Table.from_pylist([row | restored[row["trial_id"]] for row in rows], schema=ROWS)


def restore_settings(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """SETTINGS of a trial from its rows: the usual ones where the trial's id, a hash, confirms them; else unknown."""
    epochs = max((row["epoch"] for row in rows if row["phase"] == "cluster"), default=0)
    settings = {"n_clusters": 10, "epochs": epochs, "limit": None, "image_size": None}
    trial = {name: rows[0][name] for name in ("method", "dataset", "seed", "schema_version")} | settings
    if trial_id(trial | {"params": json.loads(rows[0]["params"])}) == rows[0]["trial_id"]:
        return settings
    return settings | {"n_clusters": None}


def trial_id(trial: Mapping[str, Any]) -> str:
    """The id of a trial from its trial.json, as `stdac.trial.Trial.id`."""
    return hashlib.sha256(canonical_json(trial).encode()).hexdigest()[:16]


def with_settings(table: pa.Table, settings: list[int | None]) -> pa.Table:
    """The table with SETTINGS as constant columns."""
    for name, value in zip(SETTINGS, settings, strict=True):
        table = table.append_column(ROWS.field(name), pa.array([value] * len(table), pa.int64()))
    return table

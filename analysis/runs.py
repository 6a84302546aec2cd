"""The rows of a run: from a run folder, one trial's folder or a collected metrics.parquet to one table."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stdac.errors import StdacError
from stdac.folder import TRIAL_JSON, TrialFolder
from stdac.record import METRICS, conform_metrics, make_metrics
from stdac.trial import SCHEMA_VERSION, make_id

SETTINGS = ("n_clusters", "epochs", "limit", "image_size")
"""What of a Trial is not a column of METRICS."""

TEXT_SETTINGS = {"source": None, "background": "black"}
"""Such that are texts, which trials had not from the start; with what those before had."""

ROWS = pa.schema(
    [
        *METRICS,
        *((name, pa.int64()) for name in SETTINGS),
        ("finished", pa.bool_()),
        *((name, pa.string()) for name in TEXT_SETTINGS),
    ]
)
"""METRICS, SETTINGS (limit and image_size are null where the trial has none, n_clusters is null where unknown), whether
the row's trial is finished, its labelled data set and what transparency is laid on. A table has the further terms of
its methods after them."""


def read_metrics(path: Path, *, unfinished: bool = False) -> pa.Table:
    """All rows of the finished trials at `path`, a ROWS table; losing attempts are left out.

    path: a run folder, the folder of one trial, a folder with a collected metrics.parquet, or such a file. unfinished:
    also the rows so far of trials that are not finished, from their checkpoints. Raises StdacError where it is none of
    these, there are no such rows, or they are of another schema version.

    >>> read_metrics(Path("one")).select(["method", "phase", "main"]).to_pylist()[0]
    {'method': 'kmeans', 'phase': 'cluster', 'main': True}
    """
    collected = path if path.is_file() else path / "metrics.parquet"
    folders = [] if path.is_file() else list_trial_folders(path)
    if folders:
        tables = (read_trial(folder, folder.trial(), unfinished=unfinished) for folder in folders)
        table = concat_rows(rows for rows in tables if rows is not None)
    elif collected.is_file():
        table = _read_collected(collected)
        table = table if unfinished else table.filter(table["finished"])
    elif (path / "trials").is_dir():
        table = ROWS.empty_table()
    else:
        raise StdacError(f"{path} is not a run: expected a folder with trials/ or metrics.parquet; check the path")
    if not len(table):
        lacking = "no trial with a scored epoch" if unfinished else "no finished trial"
        hint = "" if unfinished else ", or take the epochs so far (--unfinished)"
        raise StdacError(f"{path} has {lacking}: launch the run and wait for the first{hint}")
    return table


def list_trial_folders(path: Path) -> list[TrialFolder]:
    """The trials' folders of a run, by name; `path` itself where it is one trial's folder."""
    paths = [path] if (path / TRIAL_JSON).is_file() else sorted((path / "trials").glob("*"))
    return [TrialFolder(p) for p in paths if (p / TRIAL_JSON).is_file()]


def list_finished(path: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """(trial.json, folder of the attempt that counts) of every finished trial at `path`."""
    for folder in list_trial_folders(path):
        result = folder.result()
        if result is not None:
            yield folder.trial(), result


def read_trial(folder: TrialFolder, trial: Mapping[str, Any], *, unfinished: bool = False) -> pa.Table | None:
    """The rows of one trial, a ROWS table; of one that is not finished those so far if asked for, else None.

    trial: its trial.json.
    """
    rows = _read_checkpoint_rows(folder) if unfinished and folder.done() is None else []
    result = folder.result()  # looked at last: a trial that ends meanwhile has no checkpoint any more
    if result is not None:
        return _add_settings(read_rows(result / "metrics.parquet"), trial, True)
    return _add_settings(conform_metrics(make_metrics(rows)), trial, False) if rows else None


def _read_checkpoint_rows(folder: TrialFolder) -> list[dict[str, Any]]:
    """The rows in a trial's newest checkpoint that can be read, METRICS as plain values; its tensors are not read."""
    import torch

    for path in folder.checkpoints():
        with suppress(Exception):  # torch raises whatever a damaged archive makes it stumble over
            return list(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["rows"])
    return []


def concat_rows(tables: Iterable[pa.Table]) -> pa.Table:
    """ROWS tables as one; a term that only some of them have is null in the others."""
    return pa.concat_tables([ROWS.empty_table(), *tables], promote_options="default")


def read_rows(path: Path) -> pa.Table:
    """A METRICS table from a Parquet file, with the columns of ROWS that it has.

    Files of other versions are read too, see `conform_metrics`. Raises StdacError where it is missing, not ours or of
    another schema version.
    """
    try:
        with path.open("rb") as file:  # a name that is not UTF-8 is nothing for Arrow
            table = pq.ParquetFile(file).read(use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise StdacError(
            f"cannot read {path} as Parquet ({reason}): run that trial again, or check the path"
        ) from error
    names = set(table.column_names)
    versions = set(table["schema_version"].unique().to_pylist()) if "schema_version" in names else {None}
    if versions - {SCHEMA_VERSION}:
        got = ", ".join(sorted(map(str, versions)))
        raise StdacError(
            f"{path} has rows of schema version {got}, expected {SCHEMA_VERSION}: use the stdac that wrote it"
        )
    try:
        rows = conform_metrics(table)
    except StdacError as error:
        raise StdacError(f"cannot use {path}, as {error}") from error
    for field in ROWS:
        if field.name in names and field.name not in METRICS.names:
            rows = rows.append_column(field, table[field.name].cast(field.type))
    return rows


def read_main_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a trial's main phase from its metrics.parquet, by epoch. Raises StdacError as `read_rows` does."""
    rows = read_rows(path)
    return sorted(rows.filter(rows["main"]).to_pylist(), key=lambda row: row["epoch"])


def _read_collected(path: Path) -> pa.Table:
    """A ROWS table from a collected file; one of METRICS alone is of finished trials, whose settings are restored."""
    table = read_rows(path)
    for name in [name for name in TEXT_SETTINGS if name not in table.column_names]:
        before = pa.array([TEXT_SETTINGS[name]] * len(table), pa.string())
        table = table.append_column(ROWS.field(name), before)
    if "finished" not in table.column_names:
        table = table.append_column(ROWS.field("finished"), pa.array([True] * len(table), pa.bool_()))
    if set(SETTINGS) <= set(table.column_names):
        return concat_rows([table])
    trials: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        trials.setdefault(row["trial_id"], []).append(row)
    restored = {name: _restore_settings(of_trial) for name, of_trial in trials.items()}
    ids = table["trial_id"].to_pylist()
    for name in SETTINGS:
        table = table.append_column(ROWS.field(name), pa.array([restored[i][name] for i in ids], pa.int64()))
    return concat_rows([table])


def _restore_settings(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """SETTINGS of a trial from its rows: the usual ones where the trial's id, a hash, confirms them; else unknown."""
    epochs = max((row["epoch"] for row in rows if row["main"]), default=0)
    settings = {"n_clusters": 10, "epochs": epochs, "limit": None, "image_size": None}
    trial = {name: rows[0][name] for name in ("method", "dataset", "seed", "schema_version")} | settings
    if make_id(trial | {"params": json.loads(rows[0]["params"])}) == rows[0]["trial_id"]:
        return settings
    return settings | {"n_clusters": None}


def _add_settings(table: pa.Table, trial: Mapping[str, Any], finished: bool) -> pa.Table:
    """A METRICS table of one trial as a ROWS table."""
    values = {name: trial[name] for name in SETTINGS} | {"finished": finished}
    values |= {name: trial.get(name, before) for name, before in TEXT_SETTINGS.items()}
    for name, value in values.items():
        table = table.append_column(ROWS.field(name), pa.array([value] * len(table), ROWS.field(name).type))
    return table

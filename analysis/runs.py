"""The rows of a run: from a run folder, one trial's folder or a collected metrics.parquet to one table."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stdac.checkpoints import load_checkpoint
from stdac.errors import StdacError
from stdac.files import atomic_write, read_plain, read_record, write_json
from stdac.layout import TRIAL_ID, TRIAL_JSON, TrialFiles
from stdac.record import METRICS, conform_metrics, make_metrics
from stdac.results import read_part
from stdac.trial import SCHEMA_VERSION, make_id
from stdac.words import escape_line

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
        ("images", pa.int64()),
        ("data", pa.string()),
    ]
)
"""METRICS, SETTINGS (limit and image_size are null where the trial has none, n_clusters is null where unknown), whether
the row's trial is finished, TEXT_SETTINGS, the number of its images, and what they are known by: the first 16 digits of
their fingerprint, a slash and those of their labels' SHA-256, as far as known. A table has the further terms of its
methods after them."""

COLLECTED = "collected.json"
"""Beside a collected metrics.parquet: the SHA-256 of that, and of the file that each finished trial's rows are from."""

AT_ONCE = 500  # trials whose files are in memory at the same time

ADDED: dict[str, str | None] = {**TEXT_SETTINGS, "images": None, "data": None}
"""The columns of ROWS that later versions added, and what is in them where a collected file has none."""


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
        table = gather_rows(folders, read_collected(path), unfinished=unfinished).rows
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


def list_trial_folders(path: Path) -> list[TrialFiles]:
    """The trials' folders of a run, by name; `path` itself where it is one trial's folder."""
    if os.path.lexists(path / TRIAL_JSON):
        return [TrialFiles(path)]
    try:
        paths = sorted(folder for folder in (path / "trials").iterdir() if TRIAL_ID.fullmatch(folder.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return list(map(TrialFiles, paths))


def list_finished(path: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """(trial.json, folder of the attempt that counts) of every finished trial at `path`."""
    for folder in list_trial_folders(path):
        seen = look_at(folder)
        if seen is not None and seen.done is not None and seen.trial is not None:
            yield seen.trial, folder.attempt_path(seen.done["attempt"])


class Seen(NamedTuple):
    """A trial's done.json and trial.json, None where it has none, or where its trial.json is not needed."""

    done: dict[str, Any] | None
    trial: dict[str, Any] | None


def look_at(folder: TrialFiles, *, with_trial: bool = True) -> Seen | None:
    """What a trial's folder holds; None of one that cannot be looked at: it is said on stderr, and left out as one that
    failed. with_trial: whether its trial.json is needed, too; a finished trial must have one then."""
    try:
        done, trial = folder.done(), None
        if done is None:
            folder.leases()
        if with_trial and (done is not None or os.path.lexists(folder.trial_path)):
            trial = folder.trial()
        return Seen(done, trial)
    except StdacError as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    print(escape_line(f"{folder.path} is left out, as it cannot be looked at: {reason}"), file=sys.stderr)
    return None


class Collected(NamedTuple):
    """What was collected of a run before: a ROWS table, and by trial the SHA-256 of its rows' file."""

    rows: pa.Table
    digests: dict[str, str]


def read_collected(run: Path) -> Collected:
    """RUN/metrics.parquet, which saves reading thousands of small files; empty where it is not as it was written."""
    with suppress(StdacError, OSError, ValueError, TypeError, pa.ArrowException):
        about = read_record(run / COLLECTED, {"sha256": str, "trials": dict}, {})
        content = read_plain(run / "metrics.parquet")
        if hashlib.sha256(content).hexdigest() == about["sha256"]:
            return Collected(pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False), about["trials"])
    return Collected(ROWS.empty_table(), {})


def write_collected(run: Path, collected: Collected) -> Path:
    """Write RUN/metrics.parquet, and what it is known by. Raises StdacError as `atomic_write` does."""
    out = run / "metrics.parquet"
    buffer = pa.BufferOutputStream()
    pq.write_table(collected.rows, buffer, compression="zstd", write_page_checksum=True)
    content = buffer.getvalue().to_pybytes()
    with atomic_write(out) as file:
        file.write(content)
    with suppress(StdacError):  # it only saves time
        write_json(run / COLLECTED, {"sha256": hashlib.sha256(content).hexdigest(), "trials": collected.digests})
    return out


def gather_rows(
    folders: Iterable[TrialFiles],
    known: Collected,
    plan: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    unfinished: bool = False,
) -> Collected:
    """The rows of trials by id, then as they were written.

    known: what need not be read again. plan: the trials by id; what their folders say if not given. unfinished: also
    the rows so far of trials that are not finished. A folder that cannot be looked at is said on stderr. Raises
    StdacError where the rows of a finished trial are not what was written.
    """
    digests: dict[str, str] = {}
    taken: list[str] = []
    tables: list[pa.Table] = []
    fresh: list[Finished] = []
    for folder in folders:
        trial_id = folder.path.name
        seen = look_at(folder, with_trial=plan is None and trial_id not in known.digests)
        if seen is None:
            continue
        done, rows = seen.done, None
        if done is None and unfinished:
            rows = _read_checkpoint_rows(folder)
            done = folder.done()  # looked at last: a trial that ends meanwhile has no checkpoint any more
        if done is not None:
            path = folder.attempt_path(done["attempt"]) / "metrics.parquet"
            digests[trial_id] = str(done.get("sha256", {}).get(path.name, ""))
            if digests[trial_id] and known.digests.get(trial_id) == digests[trial_id]:
                read_part(path, done)
                taken.append(trial_id)
                continue
            fresh.append(Finished(path, _find_trial(folder, seen, plan), done))
        elif rows is not None:
            tables.append(_add_settings(rows, [(len(rows), _find_trial(folder, seen, plan), None)]))
        if len(fresh) == AT_ONCE:
            tables += _read_finished(fresh)
            fresh = []
    tables += _read_finished(fresh)
    chosen = known.rows.filter(pc.is_in(known.rows["trial_id"], pa.array(taken, pa.string())))
    table = concat_rows([chosen.filter(chosen["finished"]), *tables]).combine_chunks()
    order = pc.sort_indices(table, [("trial_id", "ascending")])  # which leaves equal ones in their order
    return Collected(table.take(order), digests)


def _find_trial(folder: TrialFiles, seen: Seen, plan: Mapping[str, Mapping[str, Any]] | None) -> Mapping[str, Any]:
    """A trial's JSON: as it was planned, or what was seen in its folder, or is read there now."""
    return plan[folder.path.name] if plan is not None else seen.trial or folder.trial()


class Finished(NamedTuple):
    """A finished trial: the file with its rows, its trial.json and done.json."""

    path: Path
    trial: Mapping[str, Any]
    done: Mapping[str, Any]


def _read_finished(trials: Sequence[Finished]) -> list[pa.Table]:
    """The rows of finished trials, ROWS tables: those with equal columns are put together before they are changed."""
    groups: dict[tuple[str, ...], list[tuple[pa.Table, Finished]]] = {}
    for trial in trials:
        table = _read_parquet(trial.path, trial.done)
        groups.setdefault(tuple(map(str, table.schema)), []).append((table, trial))
    tables = []
    for group in groups.values():
        try:
            rows = _conform(pa.concat_tables([table for table, _ in group]).combine_chunks())
        except StdacError:
            for table, trial in group:
                _check_columns(table, trial.path)
            raise
        tables.append(_add_settings(rows, [(len(table), trial.trial, trial.done) for table, trial in group]))
    return tables


def _read_checkpoint_rows(folder: TrialFiles) -> pa.Table | None:
    """The rows in a trial's newest checkpoint that is whole, a METRICS table; None where there are none."""
    for path in folder.checkpoints():
        with suppress(StdacError, ValueError, TypeError, AttributeError, pa.ArrowException):  # the last four: not ours
            rows = load_checkpoint(path, ["rows"])["rows"]
            return conform_metrics(make_metrics(rows)) if rows else None
    return None


def concat_rows(tables: Iterable[pa.Table]) -> pa.Table:
    """ROWS tables as one; a term that only some of them have is null in the others."""
    return pa.concat_tables([ROWS.empty_table(), *tables], promote_options="default")


def read_rows(path: Path) -> pa.Table:
    """A METRICS table from a Parquet file, with the columns of ROWS that it has.

    Files of other versions are read too, see `conform_metrics`. Raises StdacError where it is missing, not ours, of
    another schema version, or not what was written, see `read_part`.
    """
    return _check_columns(_read_parquet(path), path)


def _read_parquet(path: Path, done: Mapping[str, Any] | None = None) -> pa.Table:
    """The table in a Parquet file. Raises StdacError where it is none, or not what was written. done: of its trial."""
    try:
        content = pa.BufferReader(read_part(path, done))
        table = pq.ParquetFile(content, page_checksum_verification=True).read(use_threads=False)
        table.validate(full=True)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StdacError(
            f"cannot read {path} as Parquet ({reason}): run that trial again, or check the path"
        ) from error
    return table


def _check_columns(table: pa.Table, path: Path) -> pa.Table:
    """The same as `_conform`; the errors name the file."""
    try:
        return _conform(table)
    except StdacError as error:
        raise StdacError(f"cannot use {path}, as {error}") from error


def _conform(table: pa.Table) -> pa.Table:
    """A METRICS table, with the columns of ROWS that a table has. Raises StdacError where it is of another version."""
    names = set(table.column_names)
    versions = set(table["schema_version"].unique().to_pylist()) if "schema_version" in names else {None}
    if versions - {SCHEMA_VERSION}:
        got = ", ".join(sorted(map(str, versions)))
        raise StdacError(f"it has schema version {got}, expected {SCHEMA_VERSION}: use the stdac that wrote it")
    rows = conform_metrics(table)
    try:
        for field in ROWS:
            if field.name in names and field.name not in METRICS.names:
                rows = rows.append_column(field, table[field.name].cast(field.type))
    except pa.ArrowException as error:
        raise StdacError(str(error).splitlines()[0]) from error
    return rows


def read_main_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a trial's main phase from its metrics.parquet, by epoch.

    Raises StdacError as `read_rows` does, and where there is none.
    """
    rows = read_rows(path)
    main = sorted(rows.filter(rows["main"]).to_pylist(), key=lambda row: row["epoch"])
    if not main:
        raise StdacError(f"{path} has no row of a main phase: run that trial again")
    return main


def _read_collected(path: Path) -> pa.Table:
    """A ROWS table from a collected file; one of METRICS alone is of finished trials, whose settings are restored."""
    table = read_rows(path)
    for name in [name for name in ADDED if name not in table.column_names]:
        before = pa.array([ADDED[name]] * len(table), ROWS.field(name).type)
        table = table.append_column(ROWS.field(name), before)
    if "finished" not in table.column_names:
        table = table.append_column(ROWS.field("finished"), pa.array([True] * len(table), pa.bool_()))
    missing = [name for name in SETTINGS if name not in table.column_names]
    if not missing:
        return concat_rows([table])
    if len(missing) < len(SETTINGS):
        raise StdacError(
            f"cannot use {path}, as it lacks the columns {', '.join(missing)}: expected a file that stdac wrote"
        )
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


def _add_settings(
    table: pa.Table, trials: Sequence[tuple[int, Mapping[str, Any], Mapping[str, Any] | None]]
) -> pa.Table:
    """A METRICS table as a ROWS table. trials: of each trial, in the table's order, the number of its rows, its
    trial.json and its done.json, None of one that is not finished."""
    columns: dict[str, list[Any]] = {field.name: [] for field in ROWS if field.name not in METRICS.names}
    for n, trial, done in trials:
        about = done or {}
        values = {name: trial[name] for name in SETTINGS} | {"finished": done is not None}
        values |= {name: trial.get(name, before) for name, before in TEXT_SETTINGS.items()}
        values |= {"images": about.get("images"), "data": _name_data(about)}
        for name, value in values.items():
            columns[name] += [value] * n
    for name, column in columns.items():
        table = table.append_column(ROWS.field(name), pa.array(column, ROWS.field(name).type))
    return table


def _name_data(done: Mapping[str, Any]) -> str | None:
    """What a finished trial's data are known by, see ROWS; of an earlier stdac's without their labels."""
    digests = [done.get("fingerprint", ""), done.get("labels") or "0" * 64]
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests):
        return None
    return f"{done['fingerprint'][:16]}" + (f"/{str(done['labels'] or '')[:16]}" if "labels" in done else "")

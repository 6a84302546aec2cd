"""What the files of a run must be. Each check raises Damaged, or OSError where a file cannot be read at all."""

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.runs import ROWS
from cluster_jobs.plan import TRIALS
from stdac.errors import StdacError
from stdac.files import check_archive, is_real_folder, read_plain
from stdac.layout import DONE_JSON, TRIAL_JSON
from stdac.record import LATER, METRICS, drop_terms
from stdac.trial import SCHEMA_VERSION, write_canonical
from stdac.words import escape_line

T = TypeVar("T")


class Damaged(Exception):
    """What is wrong with a file: a clause that follows its name."""


class Foreign(Damaged):
    """The file is whole, but another trial's or another version's."""


def read_content(path: Path) -> bytes:
    """The bytes of a regular file, and no link to one."""
    try:
        return read_plain(path)
    except StdacError as error:
        raise Damaged("is not a file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged("is missing") from error


def parse_file(path: Path, parse: Callable[[bytes], T], kind: str) -> T:
    """What `parse` makes of a file."""
    data = read_content(path)
    try:
        return parse(data)
    except Damaged:
        raise
    except Exception as error:  # parsers raise whatever random bytes make them stumble over
        raise Damaged(f"is not {kind}, or only part of one") from error


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object."""
    value = parse_file(path, json.loads, "JSON")
    if not isinstance(value, dict):
        raise Damaged("is not a JSON object")
    return value


def read_trial(folder: Path) -> dict[str, Any]:
    """trial.json of the trial that its folder is named after. Raises Foreign for another's, or another version's."""
    trial = _read_object(folder / TRIAL_JSON)
    if _compute_id(trial) != folder.name:
        raise Foreign("trial.json is another trial's")
    if trial.get("schema_version") != SCHEMA_VERSION:
        version = escape_line(str(trial.get("schema_version")))
        raise Foreign(f"trial.json has schema version {version}, this stdac reads {SCHEMA_VERSION}")
    return trial


def _compute_id(trial: Mapping[str, Any]) -> str | None:
    """The id of a trial's JSON, as `stdac.trial.Trial.id`; None where it is no trial's."""
    try:
        return sha256(write_canonical(trial).encode()).hexdigest()[:16]
    except (ValueError, RecursionError):  # numbers that are not finite, or too deep
        return None


def read_plan(data: bytes) -> dict[str, dict[str, Any]]:
    """The trials of a TRIALS file. Raises Foreign for another version's."""
    table = read_table(data)
    rows = table.to_pylist()
    trials = {row["trial_id"]: json.loads(row["trial"]) for row in rows}
    if any(_compute_id(trial) != trial_id for trial_id, trial in trials.items()):
        raise Damaged("has trials whose ids are not theirs")
    versions = {trial.get("schema_version") for trial in trials.values()} - {SCHEMA_VERSION}
    if versions:
        raise Foreign(f"has schema version {versions.pop()}, this stdac reads {SCHEMA_VERSION}")
    if not table.schema.equals(TRIALS) or any(row["schema_version"] != SCHEMA_VERSION for row in rows):
        raise Damaged("has columns of another schema")
    return trials


def read_table(data: bytes) -> pa.Table:
    """A Parquet file, every page of it checked."""
    table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    table.validate(full=True)
    return table


def check_rows(path: Path, trial_id: str | None = None) -> None:
    """A file with at most one row a key: of METRICS and all of `trial_id` if that is given, else a collected one."""
    table = parse_file(path, read_table, "a Parquet file")
    allowed = [METRICS] if trial_id is not None else [METRICS, ROWS]
    got = set(drop_terms(table.schema))
    if not any({f for f in schema if f.name not in LATER} <= got <= set(schema) for schema in allowed):
        raise Damaged("has columns of another schema")
    columns = ("trial_id", "phase", "epoch", "schema_version")
    keys = list(zip(*(table[name].to_pylist() for name in columns), strict=True))
    if any(version != SCHEMA_VERSION for *_, version in keys):
        raise Damaged("has rows of another schema version")
    if len(set(keys)) != len(keys):
        raise Damaged("has several rows of one trial, phase and epoch")
    if trial_id is not None and {key[0] for key in keys} != {trial_id}:
        raise Damaged("has no rows of its trial, or another's")


def check_zip(path: Path) -> None:
    """A zip archive, as torch and numpy write them, with every checksum right."""

    def test(data: bytes) -> None:
        try:
            check_archive(io.BytesIO(data))
        except StdacError as error:
            raise Damaged("is not a zip archive, or a damaged one") from error

    parse_file(path, test, "a zip archive")


def check_lease(path: Path) -> dict[str, Any]:
    """A lease with all that other attempts look at."""
    lease = _read_object(path)
    try:
        datetime.fromisoformat(lease["began"])
        numbers = all(type(lease[name]) is int for name in ("attempt", "pid"))
        if isinstance(lease["host"], str) and numbers and type(lease["process_start"]) in (int, type(None)):
            return lease
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("does not say since when it holds") from error
    raise Damaged("does not say who holds it")


def check_result(folder: Path, attempts: Mapping[int, Path]) -> int:
    """done.json, and every file of the attempt that it names; returns that attempt's number."""
    done = _name_damage(folder / DONE_JSON, _read_object)
    done = {"sha256": {}} | done  # a trial of an earlier stdac has none
    if done.get("trial_id") != folder.name or not all(isinstance(done.get(k), kind) for k, kind in DONE.items()):
        raise Damaged("done.json is not this trial's, or lacks what others read in it")
    number, digests = done["attempt"], done["sha256"]
    if type(number) is not int or number not in attempts or not is_real_folder(attempts[number]):
        raise Damaged("done.json names an attempt that is missing")
    parts = {path.name: path for path in list_folder(attempts[number])}
    for name, path in ({"metrics.parquet": attempts[number] / "metrics.parquet"} | parts).items():
        if name in digests:  # what was written needs no other look
            if _name_damage(path, lambda path: sha256(read_content(path)).hexdigest()) != digests[name]:
                raise Damaged(f"{name} is not what its attempt wrote")
        elif name == "metrics.parquet":
            _name_damage(path, partial(check_rows, trial_id=folder.name))
        elif name in _PART_CHECKS:
            _name_damage(path, _PART_CHECKS[name])
    return number


def _check_table(path: Path) -> None:
    """A Parquet file."""
    parse_file(path, read_table, "a Parquet file")


_PART_CHECKS = {"assignments.parquet": _check_table, "model.pt": check_zip, "stn.npz": check_zip}
"""What a result may have beside its metrics.parquet. Users delete some of it to save space."""

DONE: dict[str, Any] = {"attempt": int, "attempts": int, "seconds": int | float, "device": str, "sha256": dict}
"""What others read in done.json."""


def _name_damage(path: Path, check: Callable[[Path], T]) -> T:
    """What a check returns; where a file is damaged, its name is said."""
    try:
        return check(path)
    except Damaged as damage:
        raise Damaged(f"{escape_line(path.name)} {damage}") from damage


def list_folder(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing where it is gone, or a link."""
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name) if is_real_folder(folder) else []
    except (FileNotFoundError, NotADirectoryError):
        return []


def number_paths(paths: Iterable[Path], pattern: re.Pattern[str]) -> dict[int, Path]:
    """Those of the paths whose names match, by the number in them."""
    matches = [(pattern.fullmatch(path.name), path) for path in paths]
    return {int(match[1]): path for match, path in matches if match}

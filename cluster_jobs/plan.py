"""The plan of a run, trials*.parquet: what was asked for, as it was written down, and as it is read."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stdac.errors import StdacError
from stdac.files import read_plain
from stdac.layout import TRIAL_ID
from stdac.trial import SCHEMA_VERSION, make_id, write_canonical

AT_ONCE = 500  # trials that are written at a time

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
TEXTS = ("method", "dataset")  # of a trial's JSON


class Planned(Mapping[str, dict[str, Any]]):
    """The planned trials in order, id -> JSON, kept as text and parsed when asked for: a grid may have thousands."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def __getitem__(self, trial_id: str) -> dict[str, Any]:
        trial: dict[str, Any] = json.loads(self.texts[trial_id])
        return trial

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


def encode_trials(trials: Iterable[tuple[str, Mapping[str, Any]]]) -> bytes:
    """Trials, ids and JSON, as the bytes of a TRIALS Parquet file."""
    rows = (
        {"trial_id": trial_id, **{k: t[k] for k in ("method", "dataset", "seed")}, "trial": write_canonical(t)}
        for trial_id, t in trials
    )
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, TRIALS, compression="zstd") as writer:
        while group := [row | {"schema_version": SCHEMA_VERSION} for row in islice(rows, AT_ONCE)]:
            writer.write_table(pa.Table.from_pylist(group, schema=TRIALS))
    return buffer.getvalue()


def read_trials(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The trials of a TRIALS file: id -> its JSON and the trials that it needs. This is where ids enter: each is the
    hash of its trial, so that it is nothing but a name in trials/.

    Raises StdacError where the file is damaged, was changed, or is of another schema version.
    """
    columns = ["trial_id", "trial", "schema_version"]
    try:
        table = pq.ParquetFile(pa.BufferReader(read_plain(path))).read(columns, use_threads=False)
        ids, texts, versions = (table[name].to_pylist() for name in columns)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise StdacError(f"{path} is damaged ({reason}): move it away and launch its grid again") from error
    if set(versions) - {SCHEMA_VERSION}:
        raise StdacError(
            f"{path.parent} has schema version {(set(versions) - {SCHEMA_VERSION}).pop()}, this stdac reads "
            f"{SCHEMA_VERSION}: use the stdac that wrote it, or choose another --out"
        )
    return {trial_id: (text, _read_needs(path, trial_id, text)) for trial_id, text in zip(ids, texts, strict=True)}


def _read_needs(path: Path, trial_id: object, text: object) -> tuple[str, ...]:
    """The trials that a planned one needs. Raises StdacError where the id is not that of the trial, or it is none."""
    try:
        if not (isinstance(trial_id, str) and isinstance(text, str) and TRIAL_ID.fullmatch(trial_id)):
            raise ValueError
        trial = json.loads(text)
        if hashlib.sha256(text.encode()).hexdigest()[:16] != trial_id and make_id(trial) != trial_id:
            raise ValueError
        needs = trial.get("needs", [])
        of_kind = all(isinstance(trial[key], str) for key in TEXTS) and isinstance(trial["params"], dict)
        if not of_kind or not all(TRIAL_ID.fullmatch(needed) for needed in needs):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StdacError(
            f"{path} has a trial {str(trial_id)[:80]!r} that no grid has planned: the file was damaged or changed "
            "outside; move it away and launch its grid again"
        ) from error
    return tuple(needs)

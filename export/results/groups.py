"""Sorted pictures laid out in folders, one a cluster: copies of them or links to them, never they themselves."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from export.results.rows import open_rows
from stdac.errors import StdacError
from stdac.files import explain_refusal, remove_folder
from stdac.text import find_path
from stdac.words import count_noun, escape_line

UNSURE = "unsure"
MARK = ".stdac-groups"
"""A file in what `lay_out` made, by which it knows what it may replace."""


class Placed(NamedTuple):
    """A picture and the folder and name that it gets."""

    picture: str
    group: str
    name: str


def check_pictures(pictures: Path) -> None:
    """Raise StdacError where the pictures are no files of their own, of which there could be copies."""
    if not pictures.is_dir():
        raise StdacError(f"{pictures} is not a folder: --into copies or links the picture files of one")


def lay_out(rows: Path, out: Path, *, links: bool, sure: float = 0.0) -> str:
    """Make OUT with a folder for each cluster, of copies or links of its pictures, and say what is there.

    rows: clusters.parquet. sure: pictures with less confidence go to the folder UNSURE. What an earlier call has made
    is replaced. Raises StdacError where OUT holds anything else, or cannot be written.
    """
    if os.path.lexists(out) and not (out / MARK).is_file():
        raise StdacError(f"{out} is there and was not made by this: move it away, or choose another folder (-o)")
    fresh = out.with_name(f"{out.name}.new")
    try:
        remove_folder(fresh)
        fresh.mkdir(parents=True)
        counts: Counter[str] = Counter()
        gone = 0
        for placed in place_pictures(rows, sure):
            folder = fresh / placed.group
            folder.mkdir(exist_ok=True)
            try:
                if links:
                    (folder / placed.name).symlink_to(Path(placed.picture).resolve(strict=True))
                else:
                    shutil.copy2(placed.picture, folder / placed.name)
                counts[placed.group] += 1
            except FileNotFoundError:
                gone += 1
        (fresh / MARK).touch()
        remove_folder(out)
        fresh.rename(out)
    except OSError as error:
        raise explain_refusal(error, out) from error
    text = f"{escape_line(out)}: {'links to' if links else 'copies of'} {count_noun(sum(counts.values()), 'picture')}"
    groups = len(counts) - (UNSURE in counts)
    text += f" in {count_noun(groups, 'group')}"
    text += f", {counts[UNSURE]:,} unsure" if counts[UNSURE] else ""
    return text + (f"; {gone:,} are not there any more" if gone else "")


def place_pictures(rows: Path, sure: float) -> Iterator[Placed]:
    """The folder and the name of each picture that was sorted; of equal names those after the first get a number."""
    taken: Counter[tuple[str, str]] = Counter()
    with open_rows(rows) as file:
        wide = len(str(max(1, _count_clusters(file) - 1)))
        for batch in file.iter_batches(columns=["source", "cluster", "name", "confidence", "error"]):
            for row in batch.to_pylist():
                if row["error"] is not None or row["cluster"] is None:
                    continue
                group = UNSURE if row["confidence"] < sure else name_group(row["cluster"], row["name"], wide)
                picture = find_path(row["source"])
                name = Path(picture).name
                taken[group, name.casefold()] += 1
                count = taken[group, name.casefold()]
                yield Placed(picture, group, name if count == 1 else f"{Path(name).stem} ({count}){Path(name).suffix}")


def name_group(cluster: int, name: str | None, wide: int) -> str:
    """The folder of a cluster: its number, so that folders are in order and never clash, and its name if it has one."""
    clean = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in name or "").strip(" .")[:60]
    return f"{cluster:0{wide}d} {clean}".strip()


def _count_clusters(file: "pq.ParquetFile") -> int:
    metadata: dict[bytes, Any] = file.schema_arrow.metadata or {}
    return int(metadata.get(b"stdac.k", b"1"))

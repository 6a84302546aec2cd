"""clusters.parquet as one HTML file that a person can look through, offline: clusters, duplicates, errors, scores.

The page holds a sample: `selection` chooses rows, `pictures` decodes them once, `sprites` lays the thumbnails of each
cluster on one sheet. All else is JSON, which the scripts in this folder turn into the page. Its content security
policy allows these scripts by their hash and no request at all, so text from file names, labels and errors can be
neither run nor sent.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.gallery.duplicates import Candidates, Rows, are_alike, find_near_pairs, join
from export.gallery.selection import (
    Columns,
    View,
    choose,
    choose_groups,
    find_copies,
    find_first_copies,
    find_largest_groups,
    open_table,
    read_columns,
    read_details,
    read_errors,
)
from export.gallery.sprites import Sheet, Thumbnail, make_sheet
from export.results.truth import Truth, score
from stdac.errors import StdacError
from stdac.files import atomic_write, sweep_temporary
from stdac.words import count_noun, escape_line, format_score

Pictures = Callable[[Collection[tuple[str, int]], int], Iterator[tuple[tuple[str, int], NDArray[np.uint8]]]]
"""(wanted images by source and index, longest side) -> those that can be read, (H, W) or (H, W, 3) uint8, any order."""

PIXELS = 24e6
"""Pixels of all thumbnails together; pictures come to some 0.3 bytes a pixel in the page."""

SIDES = (32, 128)
COMPARED = 1000
"""Candidates for near duplicates, the nearest ones, that are looked at."""

MOST_MEMBERS = 12
MOST_ERRORS = 1000
MOST_LABELS = 200
BINS = 25
SCRIPTS = ("page.js", "grid.js", "zoom.js", "truth.js", "names.js", "main.js")


class GallerySummary(NamedTuple):
    """What `write_gallery` wrote.

    images: rows of the table, clustered and errors together. exact: images beyond the first of each group with equal
    content. near: images in verified groups of near duplicates. shown: images in the page. bytes: of the page. truth:
    the scores, None without labels.
    """

    path: Path
    images: int
    errors: int
    exact: int
    near: int
    shown: int
    bytes: int
    truth: Truth | None


class Exact(NamedTuple):
    """Exact duplicates, by row of the table.

    first: (N,) int64 the row that each is a copy of, itself where it is the first, -1 for errors. copies: (N,) int64
    how many there are, at the first. groups: for each cluster the first rows of its largest groups.
    """

    first: Rows
    copies: Rows
    groups: list[Rows]


class Near(NamedTuple):
    """candidates: pairs of near fingerprints. groups: rows of the pictures that are alike."""

    candidates: Candidates
    groups: list[list[int]]


def write_gallery(
    path: Path,
    clusters: Path,
    pictures: Pictures,
    *,
    title: str,
    names: tuple[str | None, ...],
    model_id: str,
    k: int,
) -> GallerySummary:
    """Write the page for a clusters.parquet; equal tables and pictures give equal pages.

    names: K names, None or "" for a cluster without one. model_id: goes into the names.toml that the page saves. A
    million rows need some 500 MB. Raises StdacError for a table that is not of this model, or a page that cannot be
    written.
    """
    # which rows are copies of each other, exactly or nearly, and which are worth a picture
    file = open_table(clusters)
    columns = read_columns(file, k)
    exact = _find_exact(columns, k)
    candidates = _find_near(columns, exact.first)
    views = choose(columns, k, exact.first)

    # their thumbnails, by which near duplicates are told from pictures that are alike in outline only
    always = np.unique(np.concatenate([*(rows for view in views for rows in view), *exact.groups]))
    thumbnails = fetch(pictures, file, np.union1d(always, candidates.pairs))
    near = Near(candidates, join(_find_alike_pairs(candidates.pairs, thumbnails)))

    # sheets of the thumbnails that are shown, and all the page knows of the rows
    near_shown = _show_near(near.groups, columns.cluster, k)
    shown = np.union1d(always, np.array([row for groups in near_shown for group in groups for row in group], np.int64))
    sheets = _make_sheets(shown, columns.cluster, thumbnails, views)
    truth, note = _read_truth(file, k)
    number = count_values(columns, exact, near, len(shown))
    data = {
        "title": title,
        "model": model_id,
        "names": [name or "" for name in names],
        "labels": columns.labels,
        "counts": number,
        "truth": truth and make_truth_data(truth),
        "note": note,
        "errors": _make_errors_data(file),
        "rows": _make_rows_data(file, columns, exact.copies, shown, thumbnails),
        "copies": _make_copies_data(file, exact, shown),
        "clusters": _make_clusters_data(columns, views, exact, near_shown, shown, k),
        "sheets": {name: {"columns": sheet.columns, "tile": sheet.tile} for name, sheet in sheets.items()},
    }
    page = _build_page(title, data, sheets)
    sweep_temporary(path)
    with atomic_write(path) as out:
        out.write(page)
    return GallerySummary(
        path, number["images"], number["errors"], number["copies"], number["near"], len(shown), len(page), truth
    )


def describe_gallery(summary: GallerySummary) -> str:
    """What was written, in a line for the terminal."""
    copies = f"{count_noun(summary.exact, 'exact duplicate')}, {count_noun(summary.near, 'near one')} seen"
    shows = f"shows {summary.shown:,} of {count_noun(summary.images, 'image')}"
    return f"wrote {escape_line(summary.path)}: {shows}, {copies} ({summary.bytes / 1e6:.1f} MB)"


def _find_exact(columns: Columns, k: int) -> Exact:
    """The exact duplicates of all images that could be read."""
    first, copies = find_first_copies(columns)
    return Exact(first, copies, find_largest_groups(first, copies, columns.cluster, k))


def _find_near(columns: Columns, first: Rows) -> Candidates:
    """Pairs of rows with near fingerprints; copies left out, and pictures of one colour, which have none."""
    heads = np.flatnonzero((first == np.arange(len(first))) & columns.fingerprint.any(1))
    pairs, found = find_near_pairs(columns.fingerprint[heads], COMPARED)
    return Candidates(heads[pairs], found)


def fetch(pictures: Pictures, file: pq.ParquetFile, rows: Rows) -> dict[int, Thumbnail]:
    """The thumbnails of rows, by row; those that cannot be read any more are left out."""
    details = read_details(file, rows, ("source", "index"))
    rows_of: dict[tuple[str, int], list[int]] = {}
    for row, source, index in zip(rows.tolist(), details["source"], details["index"], strict=True):
        rows_of.setdefault((source, index), []).append(row)
    side = int(np.clip((PIXELS / max(len(rows), 1)) ** 0.5 // 16 * 16, *SIDES))
    return {row: pixels for key, pixels in pictures(rows_of.keys(), side) for row in rows_of.get(key, ())}


def _find_alike_pairs(pairs: Rows, thumbnails: Mapping[int, Thumbnail]) -> Iterator[tuple[int, int]]:
    """Those pairs of rows whose thumbnails show the same picture."""
    for a, b in pairs.tolist():
        if a in thumbnails and b in thumbnails and are_alike(thumbnails[a], thumbnails[b]):
            yield a, b


def _show_near(groups: list[list[int]], cluster: Rows, k: int) -> list[list[list[int]]]:
    """The largest groups of each cluster, at most MOST_MEMBERS rows of each; a group belongs to its first row's."""
    shown: list[list[list[int]]] = [[] for _ in range(k)]
    for group in sorted(groups, key=len, reverse=True):
        here = shown[cluster[group[0]]]
        if len(here) < choose_groups(k):
            here.append(group[:MOST_MEMBERS])
    return shown


def _make_sheets(
    shown: Rows, cluster: Rows, thumbnails: Mapping[int, Thumbnail], views: list[View]
) -> dict[str, Sheet]:
    """The thumbnails of each cluster on one sheet, by its number, in the order of the rows; those that have any.

    "faces": the most confident image of each cluster, so that the page need not decode all sheets to show these.
    """
    parts = {str(c): shown[cluster[shown] == c].tolist() for c in range(len(views))}
    parts["faces"] = [row for view in views for row in view.most[:1].tolist()]
    pictures = {name: [thumbnails[row] for row in rows if row in thumbnails] for name, rows in parts.items()}
    return {name: make_sheet(part) for name, part in pictures.items() if part}


def _read_truth(file: pq.ParquetFile, k: int) -> tuple[Truth | None, str]:
    """The scores, or None and the reason where what they need is not installed."""
    try:
        return score(file.read(["cluster", "label"], use_threads=False), k), ""
    except StdacError as error:
        return None, str(error)


def count_values(columns: Columns, exact: Exact, near: Near, shown: int) -> dict[str, int]:
    """Numbers for the head of the page: images = clustered + errors, clustered = distinct + copies."""
    images, clustered = len(columns.cluster), int((columns.cluster >= 0).sum())
    distinct = int((exact.copies > 0).sum())
    return {
        "images": images,
        "errors": images - clustered,
        "clustered": clustered,
        "distinct": distinct,
        "copies": clustered - distinct,
        "copied": int((exact.copies > 1).sum()),
        "near": sum(map(len, near.groups)),
        "nearGroups": len(near.groups),
        "compared": len(near.candidates.pairs),
        "candidates": near.candidates.found,
        "shown": shown,
    }


def make_truth_data(truth: Truth) -> dict[str, Any]:
    """The scores and the confusion matrix of the MOST_LABELS most frequent labels."""
    kept = np.sort(np.argsort(-truth.confusion.sum(0), kind="stable")[:MOST_LABELS])
    place = {int(label): i for i, label in enumerate(kept)}
    return {
        "images": truth.images,
        "scores": {key.upper(): format_score(getattr(truth, key)) for key in ("acc", "nmi", "ari")},
        "labels": [truth.labels[i] for i in kept],
        "left": len(truth.labels) - len(kept),
        "confusion": truth.confusion[:, kept].tolist(),
        "matching": [place.get(int(label), -1) for label in truth.matching],
    }


def _make_errors_data(file: pq.ParquetFile) -> dict[str, Any]:
    """How often each reason is given, the most frequent first, and the first MOST_ERRORS images."""
    reasons, rows = read_errors(file, MOST_ERRORS)
    return {"reasons": sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:MOST_ERRORS], "rows": rows}


def _make_rows_data(
    file: pq.ParquetFile, columns: Columns, copies: Rows, shown: Rows, thumbnails: Mapping[int, Thumbnail]
) -> dict[str, Any]:
    """What the page says of each image that it shows, a list a column; size: width and height, [0, 0] for none."""
    details = read_details(file, shown)
    sources = {source: i for i, source in enumerate(dict.fromkeys(details["source"]))}
    sizes = [thumbnails[row].shape[1::-1] if row in thumbnails else (0, 0) for row in shown.tolist()]
    return {
        "sources": list(sources),
        "source": [sources[source] for source in details["source"]],
        "index": details["index"],
        "cluster": columns.cluster[shown].tolist(),
        "confidence": round_values(columns.confidence[shown]),
        "runnerUp": details["runner_up"],
        "margin": [margin and round(margin, 4) for margin in details["margin"]],
        "label": columns.label[shown].tolist(),
        "copies": copies[shown].tolist(),
        "size": sizes,
    }


def round_values(values: NDArray[np.float32]) -> list[float]:
    """The values with four decimals."""
    return [round(float(value), 4) for value in values]


def _make_copies_data(file: pq.ParquetFile, exact: Exact, shown: Rows) -> dict[int, list[tuple[str, int]]]:
    """For the groups of exact duplicates: the shown one, and source and index of the first MOST_MEMBERS others."""
    rows = find_copies(exact.first, np.concatenate(exact.groups), MOST_MEMBERS)
    details = read_details(file, rows, ("source", "index"))
    others: dict[int, list[tuple[str, int]]] = {}
    where = zip(details["source"], details["index"], strict=True)
    for place, other in zip(find_places(shown, exact.first[rows]), where, strict=True):
        others.setdefault(place, []).append(other)
    return others


def _make_clusters_data(
    columns: Columns, views: list[View], exact: Exact, near: list[list[list[int]]], shown: Rows, k: int
) -> list[dict[str, Any]]:
    """Each cluster: its numbers, and the places among the shown rows of what its views hold."""
    read = columns.cluster >= 0
    cluster, confidence = columns.cluster[read], columns.confidence[read]
    sizes = np.bincount(cluster, minlength=k)
    means = np.bincount(cluster, confidence, minlength=k) / np.maximum(sizes, 1)
    bins = (confidence * BINS).astype(np.int64).clip(0, BINS - 1)
    histograms = np.bincount(cluster * BINS + bins, minlength=k * BINS).reshape(k, BINS)
    groups = np.bincount(columns.cluster[exact.copies > 1], minlength=k)
    return [
        {
            "size": int(sizes[c]),
            "mean": round(float(means[c]), 4) if sizes[c] else None,
            "histogram": histograms[c].tolist(),
            "sample": find_places(shown, views[c].sample),
            "most": find_places(shown, views[c].most),
            "least": find_places(shown, views[c].least),
            "exact": find_places(shown, exact.groups[c]),
            "exactGroups": int(groups[c]),
            "near": [find_places(shown, group) for group in near[c]],
        }
        for c in range(k)
    ]


def find_places(shown: Rows, rows: Iterable[int] | Rows) -> list[int]:
    """Where rows of the table are among the shown ones."""
    found: list[int] = np.searchsorted(shown, np.asarray(rows, np.int64)).tolist()
    return found


def _build_page(title: str, data: Mapping[str, Any], sheets: Mapping[str, Sheet]) -> bytes:
    """The HTML, its scripts allowed by their hash."""
    folder = files("export.gallery")
    style = (folder / "gallery.css").read_text("utf-8")
    script = "\n".join((folder / name).read_text("utf-8") for name in SCRIPTS)
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; img-src data:; style-src {hash_text(style)}; script-src {hash_text(script)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": _embed_json(data),
        "sheets": "\n".join(
            f'<script type="text/plain" id="sheet-{name}">{sheet.uri}</script>' for name, sheet in sheets.items()
        ),
    }
    template = (folder / "gallery.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole[1]], template).encode("utf-8", "backslashreplace")


def hash_text(text: str) -> str:
    """The source expression of a content security policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embed_json(value: Any) -> str:
    """JSON that no text inside can end: <, > and & are escaped, and all beyond ASCII."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

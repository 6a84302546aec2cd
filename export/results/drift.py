"""Have the images changed since an earlier run? Cluster shares, confidences and outliers, then and now."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.results.names import (
    LEAST_SHARED,
    Matching,
    cluster_count,
    explain_unreadable,
    match_clusters,
    read_columns,
    read_model_id,
)
from export.results.rows import open_rows
from export.results.two_samples import (
    ALPHA,
    SIZES,
    Difference,
    Excess,
    Floats,
    Mask,
    compare_beyond_quantile,
    correct_values,
    import_stats,
    ks_test,
    measure_effect,
    share_changes,
    shares_test,
)
from stdac.errors import StdacError
from stdac.files import atomic_write
from stdac.words import count_noun

LOW_CONFIDENCE, FAR = 0.01, 0.001  # the share of the earlier images that lies beyond each threshold
BATCH = 16_384
COLUMNS = ("source", "index", "cluster", "confidence", "content_hash", "modified_ns")

OUTLIERS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("cluster", pa.int32()),
        pa.field("confidence", pa.float32()),
        pa.field("distance", pa.float32()),
        pa.field("why", pa.string(), nullable=False),
    ]
)
"""One row an outlier, in the order of the run. distance: Euclidean, of its embedding from its cluster's mean then; null
without embeddings, or where that cluster had no image. why: "low confidence", "far from its cluster", or both."""


class Outliers(NamedTuple):
    """The outliers among the rows of the new run. low, far: (N,) bool, why. distance: (N,) float32, NaN where unknown;
    None without embeddings."""

    low: Mask
    far: Mask
    distance: Floats | None


class Drift(NamedTuple):
    """How a run differs from an earlier one.

    new: the run's file. then, now: how many images are compared, see `compare`; known: how many of the new run are
    left out of `now`, as they are the earlier ones. matching: of the clusters, where the model is another one, else
    None. counts: (2, K) int64 images then and now. change, low, high: (K,) share now less share then, and an interval
    that holds the true changes of all clusters at once with 95 %. mean_confidence: (2, K), NaN for an empty cluster.
    shares: chi-squared, with Cramér's V. confidence: Kolmogorov–Smirnov's D, its own effect size; by_cluster: the same
    in each cluster, None where there are no images. low_confidence, far: outliers. None where nothing can be tested.
    """

    new: Path
    then: int
    now: int
    known: int
    matching: Matching | None
    counts: NDArray[np.int64]
    change: Floats
    low: Floats
    high: Floats
    mean_confidence: Floats
    shares: Difference | None
    confidence: Difference | None
    by_cluster: tuple[Difference | None, ...]
    low_confidence: Excess | None
    far: Excess | None
    outliers: Outliers

    @property
    def moved(self) -> float:
        """Share of the images that would have to be in other clusters for the shares to be as then, in [0, 1]."""
        return float(np.abs(self.change).sum() / 2)

    @property
    def size(self) -> str:
        """The verdict in a word: none, negligible (significant, but too small to matter), small, medium or large."""
        found: list[Difference | Excess] = [
            x for x in (self.shares, self.confidence, self.low_confidence, self.far) if x is not None
        ]
        if not any(x.notable for x in found):
            return "negligible" if any(x.p < ALPHA for x in found) else "none"
        return measure_effect(max(x.effect if isinstance(x, Difference) and x.notable else SIZES[-1][0] for x in found))


class Rows(NamedTuple):
    """Some rows of a file. chosen: (N,) bool, of all its rows; cluster: (n,) int64 and confidence: (n,) float64, of the
    chosen ones."""

    path: Path
    chosen: Mask
    cluster: NDArray[np.int64]
    confidence: NDArray[np.float64]


def compare(old: Path, new: Path) -> Drift:
    """Compare two clusters.parquet: the images of `old` with those of `new` that are not the same ones again.

    Tests want two samples that have nothing in common, so an image that was there already (see `_is_known`) counts as
    then only. Of the same model, the clusters are compared as they are. Of another one, all is told by the new model:
    then are the images whose content the old run has too, now are the others, and the clusters are matched by
    `match_clusters` to say how far the models agree. Tests are two-sided, but for outliers; those of the whole run are
    corrected by Holm together, those of single clusters too. Raises StdacError where a file cannot be read, scipy is
    missing, or the models differ and the runs have too few images in common.
    """
    stats = import_stats()
    tables = [read_columns(path, list(COLUMNS)) for path in (old, new)]
    same_model = read_model_id(old) == read_model_id(new)
    k = max(cluster_count(table, table["cluster"]) for table in tables[not same_model :])
    known = _is_known(*tables, by_content=not same_model)
    matching = None if same_model else match_clusters(old, new)
    if matching is not None and matching.images < LEAST_SHARED:
        raise StdacError(
            f"{old} is of another model, and has {count_noun(matching.images, 'image')} in common with {new}: they "
            "cannot be compared; cluster the earlier images with this model too, and compare with that"
        )
    then = read_rows(old, tables[0], None) if same_model else read_rows(new, tables[1], known)
    now = read_rows(new, tables[1], ~known)
    del tables
    return judge_differences(stats, new, then, now, int(known.sum()), matching, k)


def _is_known(old: pa.Table, new: pa.Table, *, by_content: bool) -> Mask:
    """(N,) bool, which images of `new` are in `old` too.

    The same content, and unless only that is asked for, also the same index in a source of the same name or of the same
    time: folders are moved and archives grow, but the black frames of a camera, all equal, were each taken anew.
    """
    keys = [("content_hash",)] if by_content else [("content_hash", "index", n) for n in ("source", "modified_ns")]
    usable = pc.and_(new["content_hash"].is_valid(), new["cluster"].is_valid())
    found = np.zeros(len(new), bool)
    for names in keys:
        found |= np.asarray(pc.is_in(join_rows(new, names), value_set=join_rows(old, names)), dtype=bool)
    found &= np.asarray(usable, dtype=bool)
    return found


def join_rows(table: pa.Table, names: tuple[str, ...]) -> pa.ChunkedArray:
    """Some columns as one of strings; a null is an empty string."""
    columns = [table[name].cast(pa.string()) for name in names]
    return pc.binary_join_element_wise(*columns, "-", null_handling="replace")


def read_rows(path: Path, table: pa.Table, chosen: Mask | None) -> Rows:
    """The chosen rows of a file (None: all), of those that have a cluster. table: the whole file's COLUMNS."""
    chosen = table["cluster"].is_valid().to_numpy() & (True if chosen is None else chosen)
    part = table.select(["cluster", "confidence"]).filter(pa.array(chosen))
    return Rows(path, chosen, part["cluster"].to_numpy().astype(np.int64), part["confidence"].to_numpy().astype(float))


def judge_differences(
    stats: Any, new: Path, then: Rows, now: Rows, known: int, matching: Matching | None, k: int
) -> Drift:
    """All tests of the rows `then` against the rows `now`."""
    # over all clusters: four tests, corrected together
    counts = np.stack([np.bincount(rows.cluster, minlength=k) for rows in (then, now)])
    totals = np.stack([np.bincount(rows.cluster, rows.confidence, minlength=k) for rows in (then, now)])
    low_rows, low_confidence = _find_low_confidences(stats, then.confidence, now.confidence)
    distance, far_rows, far = _find_far_embeddings(stats, then, now, k)
    overall = (shares_test(stats, counts), ks_test(stats, then.confidence, now.confidence), low_confidence, far)
    shares, confidence, low_confidence, far = correct_values(overall)

    # within each cluster
    by_cluster = [ks_test(stats, *(rows.confidence[rows.cluster == i] for rows in (then, now))) for i in range(k)]
    change, low, high = share_changes(counts)
    with np.errstate(invalid="ignore"):
        means = totals / counts
    return Drift(
        new=new,
        then=len(then.cluster),
        now=len(now.cluster),
        known=known,
        matching=matching,
        counts=counts,
        change=change,
        low=low,
        high=high,
        mean_confidence=means,
        shares=shares,
        confidence=confidence,
        by_cluster=tuple(correct_values(by_cluster)),
        low_confidence=low_confidence,
        far=far,
        outliers=Outliers(
            _find_scattered(low_rows, now.chosen, False),
            _find_scattered(far_rows, now.chosen, False),
            None if distance is None else _find_scattered(distance, now.chosen, np.nan),
        ),
    )


def _find_scattered(values: NDArray[Any], chosen: Mask, rest: Any) -> NDArray[Any]:
    """The values of the chosen rows in an array for all rows."""
    everywhere = np.full(len(chosen), rest, values.dtype)
    everywhere[chosen] = values
    return everywhere


def _find_low_confidences(stats: Any, then: Floats, now: Floats) -> tuple[Mask, Excess | None]:
    """Which confidences now are below the LOW_CONFIDENCE quantile of then, and whether they are too many."""
    beyond, excess = compare_beyond_quantile(stats, -then, -now, LOW_CONFIDENCE)
    return beyond, None if excess is None else excess._replace(threshold=-excess.threshold)


def _find_far_embeddings(stats: Any, then: Rows, now: Rows, k: int) -> tuple[Floats | None, Mask, Excess | None]:
    """Distances (n,) of the embeddings now from their clusters' means then, which are beyond those of then, and whether
    they are too many. An image of then is not measured against itself: its mean leaves it out."""
    sizes = [_find_embedding_size(rows.path) for rows in (then, now)]
    if not sizes[0] or sizes[0] != sizes[1] or not len(then.cluster):
        return None, np.zeros(len(now.cluster), bool), None
    count, mean = np.zeros(k), np.zeros((k, sizes[0]))
    for cluster, z in read_embeddings(then):
        ok = np.isfinite(z).all(1)
        count += np.bincount(cluster[ok], minlength=k)
        np.add.at(mean, cluster[ok], z[ok])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean /= count[:, None]
        before = measure_distances(then, mean) * (count / (count - 1))[then.cluster]
    after = measure_distances(now, mean)
    return after, *compare_beyond_quantile(stats, before, after, FAR)


def _find_embedding_size(path: Path) -> int:
    """The number of dimensions of a file's embeddings, 0 where it has none."""
    with open_rows(path) as file:
        schema = file.schema_arrow
    index = schema.get_field_index("embedding")
    return schema.field(index).type.list_size if index >= 0 and pa.types.is_fixed_size_list(schema.types[index]) else 0


def read_embeddings(rows: Rows) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """(clusters (n,), embeddings (n, D) float32) of the rows, a batch at a time; an embedding that is null is NaN."""
    start = 0
    for batch in read_batches(rows.path, ["cluster", "embedding"]):
        chosen = rows.chosen[start : start + len(batch)]
        start += len(batch)
        part = batch.filter(pa.array(chosen))
        column = part["embedding"]
        z = np.full((len(part), column.type.list_size), np.nan, np.float32)
        flat = column.flatten().to_numpy(zero_copy_only=False)
        z[column.is_valid().to_numpy(zero_copy_only=False)] = flat.reshape(-1, column.type.list_size)
        yield part["cluster"].to_numpy(zero_copy_only=False).astype(np.int64), z


def measure_distances(rows: Rows, mean: Floats) -> Floats:
    """Euclidean distance (n,) float32 of the rows' embeddings from their clusters' means (K, D); NaN where unknown."""
    found = [np.linalg.norm(z - mean[cluster], axis=1).astype(np.float32) for cluster, z in read_embeddings(rows)]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def write_outliers(path: Path, drift: Drift) -> int:
    """Write the outliers of the new run as an OUTLIERS Parquet file, whole or not at all; returns how many."""
    low, far, distance = drift.outliers
    written = start = 0
    with atomic_write(path) as file, pq.ParquetWriter(file, OUTLIERS, compression="zstd") as writer:
        for batch in read_batches(drift.new, ["source", "index", "cluster", "confidence"]):
            here = slice(start, start + len(batch))
            start += len(batch)
            chosen = (low | far)[here]
            if chosen.any():
                part = batch.filter(pa.array(chosen))
                why = WHY[low[here][chosen] + 2 * far[here][chosen]]
                away = None if distance is None else distance[here][chosen]
                away = pa.nulls(len(part)) if away is None else pa.array(away, mask=np.isnan(away))
                columns = dict(zip(part.schema.names, part.columns, strict=True)) | {"distance": away, "why": why}
                writer.write_table(pa.table(columns).select(OUTLIERS.names).cast(OUTLIERS))
                written += len(part)
    return written


WHY = np.array(["", "low confidence", "far from its cluster", "low confidence; far from its cluster"], dtype=object)


def read_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a file, a batch at a time. Raises StdacError where it cannot be read."""
    try:
        with open_rows(path) as file:
            yield from file.iter_batches(BATCH, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise explain_unreadable(path, error) from error

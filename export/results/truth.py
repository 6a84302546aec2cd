"""Clusters against ground truth: scores, the confusion matrix and which cluster stands for which label."""

import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.words import count_noun, escape_line, format_score, list_some


class Truth(NamedTuple):
    """How well clusters fit the labels of the images that have both.

    images: their number. acc, nmi, ari: in [0, 1] (ARI may be negative), as `stdac.metrics` defines them. labels: the L
    labels, numbers by value, then texts by alphabet. confusion: (K, L) int64 images by cluster and label. matching:
    (K,) int64 the label that the Hungarian method gives to each cluster, -1 for none.
    """

    images: int
    acc: float
    nmi: float
    ari: float
    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    matching: NDArray[np.int64]


def score(table: pa.Table, k: int) -> Truth | None:
    """Score clusters against labels; None where no image has both.

    table: with the columns `cluster` and `label` of clusters.parquet; k: number of clusters. Raises StdacError where
    scipy or scikit-learn is missing.
    """
    labels, truth = encode_labels(table["label"])
    clusters = table["cluster"].fill_null(-1).to_numpy().astype(np.int64)
    both = (truth >= 0) & (clusters >= 0)
    truth, clusters = truth[both], clusters[both]
    if not len(truth):
        return None
    metrics, assign = _import_metrics()
    scores = metrics.score_clusters(truth, clusters)
    confusion = np.bincount(clusters * len(labels) + truth, minlength=k * len(labels)).reshape(k, len(labels))
    present: NDArray[np.bool_] = confusion.sum(0) > 0
    named = tuple(label for label, there in zip(labels, present, strict=True) if there)
    confusion = confusion[:, present]
    return Truth(
        len(truth), scores["acc"], scores["nmi"], scores["ari"], named, confusion, _match_clusters(confusion, assign)
    )


def encode_labels(column: pa.ChunkedArray) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The labels in the column, sorted, and (N,) int64 which of them each row has, -1 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    found: list[str] = encoded.dictionary.to_pylist()
    order = sorted(range(len(found)), key=lambda i: _sort_naturally(found[i]))
    rank = np.empty(len(found) + 1, np.int64)
    rank[order], rank[-1] = np.arange(len(found)), -1
    return tuple(found[i] for i in order), rank[encoded.indices.fill_null(-1).to_numpy()]


def _sort_naturally(text: str) -> tuple[Any, ...]:
    """A sort key by which "2" is before "10" and "dog 2" before "dog 10"."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part)


def _match_clusters(confusion: NDArray[np.int64], assign: Any) -> NDArray[np.int64]:
    """(K,) int64 the label of each cluster under the best one-to-one map; -1 where there is none, or no image of it."""
    matching = np.full(len(confusion), -1, np.int64)
    clusters, labels = assign(-confusion)
    shared = confusion[clusters, labels] > 0
    matching[clusters[shared]] = labels[shared]
    return matching


def _import_metrics() -> tuple[Any, Any]:
    """`stdac.metrics` and scipy's assignment. Raises StdacError where scipy or scikit-learn is missing."""
    try:
        from scipy.optimize import linear_sum_assignment

        from stdac import metrics
    except ImportError as error:
        raise StdacError(
            "to score clusters against labels needs scikit-learn, which is not installed: "
            "pip install 'stdac[train]', or scikit-learn alone"
        ) from error
    return metrics, linear_sum_assignment


def describe_truth(truth: Truth, names: tuple[str | None, ...]) -> str:
    """The scores and the largest mistakes, a few lines for the terminal. names: K, None for a cluster without one."""
    labels = list(map(escape_line, truth.labels))
    scores = (f"{key.upper()} {format_score(getattr(truth, key))}" for key in ("acc", "nmi", "ari"))
    against = f"the {count_noun(len(labels), 'label')} {list_some(labels)} of {count_noun(truth.images, 'image')}"
    lines = [f"scored against {against}: {', '.join(scores)}"]
    for cluster, label in list_mistakes(truth):
        meant = truth.matching[cluster]
        stands = "no label" if meant < 0 else labels[meant]
        name = "" if names[cluster] is None else f" ({escape_line(names[cluster] or '')})"
        n = truth.confusion[cluster, label]
        lines.append(
            f"  {n:,} of label {labels[label]} {'is' if n == 1 else 'are'} in cluster {cluster}{name}, "
            f"which stands for {stands}"
        )
    return "\n".join(lines)


def list_mistakes(truth: Truth, most: int = 3) -> list[tuple[int, int]]:
    """The (cluster, label) with the most images that are not matched, the largest first."""
    off = truth.confusion.copy()
    matched = np.flatnonzero(truth.matching >= 0)
    off[matched, truth.matching[matched]] = 0
    largest = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = [divmod(int(i), off.shape[1]) for i in largest]
    return [(cluster, label) for cluster, label in pairs if off[cluster, label]]

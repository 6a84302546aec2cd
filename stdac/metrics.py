"""Scores of a clustering against ground truth. Labels are only ever used here, never in training."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdac.nearest import Nearest

Labels = NDArray[np.int64]

REPRESENTATIVES = 10  # random images of a cluster that name it, in `majority_accuracy`
NEIGHBOURS = 5
BATCH = 4096
QUERIES = 5000  # images, at random, whose neighbours are looked for


def contingency(truth: Labels, clusters: Labels) -> NDArray[np.int64]:
    """Counts (classes, clusters) of images; noise (cluster -1) gets no column.

    truth, clusters: (N,) int64. Raises ValueError when the lengths differ.
    """
    if truth.shape != clusters.shape:
        raise ValueError(f"got {truth.shape} labels and {clusters.shape} clusters, expected the same length")
    _, rows = np.unique(truth, return_inverse=True)
    kept = clusters >= 0
    _, columns = np.unique(clusters[kept], return_inverse=True)
    table = np.zeros((rows.max(initial=-1) + 1, columns.max(initial=-1) + 1), dtype=np.int64)
    np.add.at(table, (rows[kept], columns), 1)
    return table


def accuracy(truth: Labels, clusters: Labels) -> float:
    """Share of images right under the best one-to-one map of clusters to classes (Hungarian), in [0, 1].

    Images in clusters left without a class, and noise, count as wrong.
    """
    from scipy.optimize import linear_sum_assignment

    table = contingency(truth, clusters)
    return float(table[linear_sum_assignment(-table)].sum() / len(truth))


def purity(truth: Labels, clusters: Labels) -> float:
    """Share of images that belong to the majority class of their cluster (many-to-one), in [0, 1]."""
    table = contingency(truth, clusters)
    return float(table.max(axis=0, initial=0).sum() / len(truth))


def majority_accuracy(truth: Labels, clusters: Labels) -> float:
    """Share of images of the class that most of ten random images of their cluster have, in [0, 1] (S3).

    The ten are the same every time, and whatever the clusters are called; of classes that are equally frequent among
    them the lowest. Noise is wrong. Clusters may share a class: beside ACC it says how pure clusters are, as purity
    does, and grows with their number.
    """
    if not (clusters >= 0).any():
        return 0.0
    table = contingency(truth, clusters)
    order = np.random.default_rng(0).permutation(len(truth))
    order = order[clusters[order] >= 0]
    order = order[np.argsort(clusters[order], kind="stable")]  # by cluster, at random in each
    start = np.concatenate([[0], np.cumsum(table.sum(0))[:-1]]).astype(np.int64)
    chosen = np.arange(len(order)) - np.repeat(start, table.sum(0)) < REPRESENTATIVES
    names = contingency(truth, np.where(np.isin(np.arange(len(truth)), order[chosen]), clusters, -1)).argmax(0)
    return float(table[names, np.arange(len(names))].sum() / len(truth))


def relabelled_accuracy(truth: Labels, clusters: Labels) -> float:
    """ACC where the clusters that the best map leaves without a class stand for the lowest one, in [0, 1] (S2).

    It is ACC where there are no more clusters than classes.
    """
    from scipy.optimize import linear_sum_assignment

    table = contingency(truth, clusters)
    rows, columns = linear_sum_assignment(-table)
    names = np.zeros(table.shape[1], np.int64)
    names[columns] = rows
    return float(table[names, np.arange(len(names))].sum() / len(truth))


def measure_precision(truth: Labels, points: NDArray[Any]) -> float:
    """Share of the NEIGHBOURS nearest images of each image (itself left out) that have its class, in [0, 1].

    points: (N, D), where images lie. Of many images QUERIES at random, the same every time, are asked for. 0 where
    there is one image alone.
    """
    asked = np.random.default_rng(0).permutation(len(points))[:QUERIES]
    n = min(NEIGHBOURS, len(points) - 1)
    if n < 1:
        return 0.0
    nearest = Nearest(points[asked].astype(np.float32), n, known=asked)
    for rows in np.array_split(np.arange(len(points)), -(-len(points) // BATCH)):
        nearest.add(points[rows].astype(np.float32), rows)
    return float((truth[nearest.row] == truth[asked][:, None]).mean())


def score_clusters(truth: Labels | None, clusters: Labels) -> dict[str, float | int | None]:
    """ACC, NMI (arithmetic and geometric), ARI, purity, the clusters in use, the share of noise, and the accuracies of
    two other papers.

    truth: (N,) int64, or None: no scores. clusters: (N,) int64, -1 = noise. Noise is wrong for ACC and purity; NMI and
    ARI, which compare partitions, take it as one more cluster. NMI: Souza 2019 Eq. 4.2 has the arithmetic mean.

    >>> score_clusters(np.array([0, 0, 1, 1]), np.array([5, 5, 7, -1]))["acc"]
    0.75
    """
    used: dict[str, float | int | None] = {"clusters_used": len(np.unique(clusters[clusters >= 0]))}
    used["noise"] = float((clusters < 0).mean()) if len(clusters) else None
    if truth is None:
        return used | dict.fromkeys(("acc", "nmi", "ari", "purity", "nmi_geometric", "acc_majority", "acc_relabelled"))
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return used | {
        "acc": accuracy(truth, clusters),
        "nmi": float(normalized_mutual_info_score(truth, clusters, average_method="arithmetic")),
        "ari": float(adjusted_rand_score(truth, clusters)),
        "purity": purity(truth, clusters),
        "nmi_geometric": float(normalized_mutual_info_score(truth, clusters, average_method="geometric")),
        "acc_majority": majority_accuracy(truth, clusters),
        "acc_relabelled": relabelled_accuracy(truth, clusters),
    }

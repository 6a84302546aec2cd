"""Scores of a clustering against ground truth. Labels are only ever used here, never in training."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]

RELABELLED = "term_acc_relabelled"
"""`relabelled_accuracy`, of a clustering with more clusters than classes; of others it is ACC, and left out."""


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


def relabelled_accuracy(truth: Labels, clusters: Labels) -> float:
    """ACC where clusters that are left without a class count as the first class, in [0, 1]: a report on Deep K-Means
    scores more clusters than classes so. Equal to `accuracy` where there are no more."""
    from scipy.optimize import linear_sum_assignment

    table = contingency(truth, clusters)
    classes, chosen = linear_sum_assignment(-table)
    left = np.setdiff1d(np.arange(table.shape[1]), chosen)
    return float((table[classes, chosen].sum() + table[0, left].sum()) / len(truth))


def purity(truth: Labels, clusters: Labels) -> float:
    """Share of images that belong to the majority class of their cluster (many-to-one), in [0, 1]."""
    table = contingency(truth, clusters)
    return float(table.max(axis=0, initial=0).sum() / len(truth))


def score_clusters(truth: Labels | None, clusters: Labels) -> dict[str, float | int | None]:
    """ACC, NMI (arithmetic and geometric), ARI, purity, the clusters in use, the share of noise, perhaps RELABELLED.

    truth: (N,) int64, or None: no scores. clusters: (N,) int64, -1 = noise. Noise is wrong for ACC and purity; NMI and
    ARI, which compare partitions, take it as one more cluster. NMI: Souza 2019 Eq. 4.2 has the arithmetic mean.

    >>> score_clusters(np.array([0, 0, 1, 1]), np.array([5, 5, 7, -1]))["acc"]
    0.75
    """
    used: dict[str, float | int | None] = {"clusters_used": len(np.unique(clusters[clusters >= 0]))}
    used["noise"] = float((clusters < 0).mean()) if len(clusters) else None
    if truth is None:
        return used | dict.fromkeys(("acc", "nmi", "ari", "purity", "nmi_geometric"))
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    if int(used["clusters_used"] or 0) > len(np.unique(truth)):
        used[RELABELLED] = relabelled_accuracy(truth, clusters)
    return used | {
        "acc": accuracy(truth, clusters),
        "nmi": float(normalized_mutual_info_score(truth, clusters, average_method="arithmetic")),
        "ari": float(adjusted_rand_score(truth, clusters)),
        "purity": purity(truth, clusters),
        "nmi_geometric": float(normalized_mutual_info_score(truth, clusters, average_method="geometric")),
    }

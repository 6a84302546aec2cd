"""Clusters against labels: the scores are those of the metrics, and the matching is the best one."""

import sys

import numpy as np
import pyarrow as pa
import pytest

from export.results.truth import describe_truth, score
from stdac import metrics
from stdac.errors import StdacError


def table(clusters: list[int | None], labels: list[str | None]) -> pa.Table:
    """The two columns of clusters.parquet."""
    return pa.table({"cluster": pa.array(clusters, pa.int32()), "label": pa.array(labels, pa.string())})


def test_scores_are_those_of_the_metrics_on_the_rows_that_have_both() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 12, 500), rng.integers(0, 9, 500)
    rows = table([*clusters.tolist(), None, 3], [*(f"dog {x}" for x in labels), "dog 1", None])
    truth = score(rows, 10)
    assert truth is not None
    expected = metrics.score_clusters(labels, clusters)
    assert (truth.images, truth.acc, truth.nmi, truth.ari) == (500, expected["acc"], expected["nmi"], expected["ari"])
    assert truth.confusion.shape == (10, 12)
    assert truth.confusion.sum() == 500
    assert truth.labels == tuple(f"dog {i}" for i in range(12))
    matched = truth.matching >= 0
    assert truth.confusion[matched, truth.matching[matched]].sum() / 500 == truth.acc
    assert truth.matching[9] == -1


def test_a_perfect_clustering_scores_one_and_names_its_labels() -> None:
    truth = score(table([2, 2, 0, 0, 1], ["a", "a", "10", "10", "9"]), 3)
    assert truth is not None
    assert (truth.acc, truth.nmi, truth.ari) == (1, 1, 1)
    assert truth.labels == ("9", "10", "a")
    assert truth.matching.tolist() == [1, 0, 2]
    assert describe_truth(truth, (None,) * 3) == (
        "scored against the 3 labels 9, 10, a of 5 images: ACC 1.000, NMI 1.000, ARI 1.000"
    )


def test_the_largest_mistakes_are_told_in_a_few_lines_without_control_characters() -> None:
    truth = score(table([0] * 6 + [1] * 3 + [1], ["a"] * 4 + ["b\n"] * 2 + ["b\n"] * 3 + ["a"]), 2)
    assert truth is not None
    assert describe_truth(truth, ("good\tname", None)).splitlines()[1:] == [
        "  2 of label b\\n are in cluster 0 (good\\tname), which stands for a",
        "  1 of label a is in cluster 1, which stands for b\\n",
    ]


def test_more_clusters_than_labels_leave_some_without_one() -> None:
    truth = score(table([0, 1, 2], ["x", "x", "x"]), 3)
    assert truth is not None
    assert sorted(truth.matching.tolist()) == [-1, -1, 0]
    assert "which stands for no label" in describe_truth(truth, (None,) * 3)


@pytest.mark.parametrize("labels", [[None, None], []])
def test_without_labels_there_is_no_truth(labels: list[str | None]) -> None:
    assert score(table([0] * len(labels), labels), 2) is None


def test_without_scipy_the_reason_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(StdacError, match="or scikit-learn alone"):
        score(table([0], ["x"]), 1)

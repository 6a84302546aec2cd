"""Each score against brute force, scikit-learn or a number worked out by hand."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from stdac.metrics import accuracy, contingency, purity, score_clusters

Labels = NDArray[np.int64]


def random_labels(classes: int, clusters: int, n: int = 60) -> tuple[Labels, Labels]:
    """n labels and clusters that agree more often than chance has it."""
    rng = np.random.default_rng(classes * 10 + clusters)
    truth = rng.integers(0, classes, n)
    return truth, np.where(rng.random(n) < 0.6, truth % clusters, rng.integers(0, clusters, n))


def brute_force_accuracy(truth: Labels, clusters: Labels) -> float:
    """The best over all one-to-one maps of clusters to classes; clusters too many map to a class that is not there."""
    targets = range(max(truth.max(), clusters.max()) + 1)
    maps = permutations(targets, int(clusters.max()) + 1)
    return max(float(np.mean(np.array(m)[clusters] == truth)) for m in maps)


@pytest.mark.parametrize(("classes", "clusters"), [(4, 4), (3, 6), (6, 3), (5, 1), (1, 5)])
def test_accuracy_is_the_best_one_to_one_map(classes: int, clusters: int) -> None:
    truth, found = random_labels(classes, clusters)
    assert accuracy(truth, found) == pytest.approx(brute_force_accuracy(truth, found), abs=1e-12)


def test_accuracy_and_purity_by_hand() -> None:
    """Classes 0 0 0 1 1 2 in clusters 5 5 7 7 7 9: 5->0, 7->1, 9->2 is right 5 times of 6, as the majority is."""
    truth, found = np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, 7, 7, 7, 9])
    assert contingency(truth, found).tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 1]]
    assert accuracy(truth, found) == purity(truth, found) == 5 / 6


def test_purity_lets_clusters_share_a_class() -> None:
    truth, found = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2, 2])
    assert purity(truth, found) == 1.0
    assert accuracy(truth, found) == 4 / 6


def test_noise_counts_as_wrong_and_as_no_cluster() -> None:
    truth, found = np.array([0, 0, 1, 1]), np.array([3, -1, 8, -1])
    result = score_clusters(truth, found)
    assert (result["acc"], result["purity"], result["clusters_used"]) == (0.5, 0.5, 2)


def test_all_noise_scores_zero() -> None:
    truth, found = np.array([0, 1, 1]), np.full(3, -1)
    assert (accuracy(truth, found), purity(truth, found), score_clusters(truth, found)["clusters_used"]) == (
        0.0,
        0.0,
        0,
    )


@pytest.mark.parametrize(("classes", "clusters"), [(4, 4), (3, 7), (7, 2)])
def test_nmi_and_ari_are_those_of_scikit_learn(classes: int, clusters: int) -> None:
    truth, found = random_labels(classes, clusters)
    result = score_clusters(truth, found)
    assert result["nmi"] == normalized_mutual_info_score(truth, found, average_method="arithmetic")
    assert result["nmi_geometric"] == normalized_mutual_info_score(truth, found, average_method="geometric")
    assert result["ari"] == adjusted_rand_score(truth, found)


def test_scores_do_not_depend_on_the_clusters_names() -> None:
    truth, found = random_labels(5, 5)
    assert score_clusters(truth, found) == pytest.approx(score_clusters(truth, np.array([40, 3, 17, 0, 9])[found]))


def test_without_ground_truth_only_the_clusters_in_use_are_known() -> None:
    result = score_clusters(None, np.array([0, 4, 4]))
    assert result.pop("clusters_used") == 2
    assert result.pop("noise") == 0 and set(result) == {"acc", "nmi", "ari", "purity", "nmi_geometric"}
    assert all(value is None for value in result.values())


def test_lengths_that_differ_are_an_error() -> None:
    with pytest.raises(ValueError, match="same length"):
        accuracy(np.zeros(3, dtype=np.int64), np.zeros(4, dtype=np.int64))

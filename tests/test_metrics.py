"""Each score against brute force, scikit-learn or a number worked out by hand."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from stdac.metrics import (
    accuracy,
    contingency,
    majority_accuracy,
    measure_precision,
    purity,
    relabelled_accuracy,
    score_clusters,
)

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
    assert result.pop("noise") == 0 and set(result) == {
        *("acc", "nmi", "ari", "purity", "nmi_geometric", "acc_majority", "acc_relabelled")
    }
    assert all(value is None for value in result.values())


def test_lengths_that_differ_are_an_error() -> None:
    with pytest.raises(ValueError, match="same length"):
        accuracy(np.zeros(3, dtype=np.int64), np.zeros(4, dtype=np.int64))


def test_the_majority_names_each_cluster_and_noise_is_wrong() -> None:
    """Clusters 0 0 | 0 0 1 | 1 1 of classes, with one image of noise: all but one and the noise are right."""
    truth, found = np.array([0, 0, 0, 0, 1, 1, 1, 0]), np.array([4, 4, 6, 6, 6, 9, 9, -1])
    assert majority_accuracy(truth, found) == 6 / 8  # two clusters share class 0
    assert accuracy(truth, found) == 4 / 8
    assert majority_accuracy(truth, np.full(8, -1)) == 0


def test_ten_images_at_random_name_a_cluster_the_same_every_time() -> None:
    """Of 10,000 images 45 % are of class 1: with ten representatives it may win or not, but never by luck twice."""
    truth = (np.arange(10_000) % 20 < 9).astype(np.int64)
    found = np.arange(10_000) // 500  # twenty clusters alike
    scores = {majority_accuracy(truth, found) for _ in range(3)}
    assert len(scores) == 1 and 0.45 < scores.pop() < 0.55
    assert majority_accuracy(truth, found) == majority_accuracy(truth, 50 - found)
    assert purity(truth, found) == 0.55


def test_ties_among_representatives_go_to_the_lowest_class() -> None:
    assert majority_accuracy(np.array([3, 2]), np.array([0, 0])) == 0.5
    assert majority_accuracy(np.array([3, 2, 2, 3]), np.array([0, 0, 1, 1])) == 0.5


def test_clusters_that_are_left_over_stand_for_the_first_class() -> None:
    """Three classes, five clusters: 1 -> 7, 2 -> 8, 3 -> 9; of the two left over one is of class 1, one of class 2."""
    truth = np.array([1, 1, 1, 2, 2, 2, 3, 3, 1, 2])
    found = np.array([7, 7, 7, 8, 8, 8, 9, 9, 0, 4])
    assert accuracy(truth, found) == 8 / 10
    assert relabelled_accuracy(truth, found) == 9 / 10
    assert relabelled_accuracy(truth, np.where(found == 4, -1, found)) == 9 / 10


@pytest.mark.parametrize(("classes", "clusters"), [(4, 4), (6, 3), (5, 1)])
def test_relabelled_is_acc_where_no_cluster_is_left_over(classes: int, clusters: int) -> None:
    truth, found = random_labels(classes, clusters)
    assert relabelled_accuracy(truth, found) == accuracy(truth, found)


def test_precision_counts_the_classes_of_the_nearest() -> None:
    """On a line 0 1 2 3 4 5 | 100: the five nearest of each are the other five of six, or of 100 the nearest five."""
    points, truth = np.array([[0], [1], [2], [3], [4], [5], [100]]), np.array([0, 0, 0, 1, 1, 1, 0])
    by_hand = [2, 2, 2, 2, 2, 2, 2]  # 100's are 5 4 3 2 1, of which two are of class 0
    assert measure_precision(truth, points) == pytest.approx(sum(by_hand) / 35)
    assert measure_precision(truth[:1], points[:1]) == 0
    assert measure_precision(np.zeros(3, np.int64), np.zeros((3, 4), np.uint8)) == 1

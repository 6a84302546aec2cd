"""Consensus of clusterings, against cases worked out by hand and scikit-learn."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score

from stdac.consensus import (
    CONSENSUS,
    MOST_PAIRED,
    compare_members,
    count_votes,
    find_consensus,
    measure_agreement,
    measure_confidence,
)
from stdac.errors import StdacError
from stdac.metrics import Labels, accuracy

A = np.array([0, 0, 0, 1, 1, 1])
B = np.array([0, 0, 0, 0, 1, 1])
C = np.array([2, 2, 0, 1, 1, -1])


def make_members(n: int, k: int, wrong: float, members: int, seed: int = 0) -> tuple[Labels, list[Labels]]:
    """A truth, and clusterings that have a share of its images elsewhere."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, k, n)
    return truth, [np.where(random.random(n) < wrong, random.integers(0, k + i, n), truth) for i in range(members)]


def shuffle(members: list[Labels]) -> list[Labels]:
    """The members in another order, their clusters under other names."""
    random = np.random.default_rng(5)
    names = [random.permutation(50) for _ in members]
    return [np.where(member < 0, -1, name[member]) for member, name in zip(members[::-1], names, strict=True)]


def test_the_share_that_agrees_is_counted() -> None:
    votes = count_votes([A, B, C])
    np.testing.assert_array_equal(votes.counts, [3, 3, 3, 3, 3, 2])
    # B has image 3 elsewhere; C's cluster of image 2 alone is part of the first, and of image 5 it has no opinion
    np.testing.assert_allclose(measure_confidence(votes, A), [1, 1, 1, 2 / 3, 1, 1], rtol=1e-6)
    lost = np.where(np.arange(6) == 5, -1, A)
    assert measure_confidence(votes, lost)[5] == 0


def test_agreement_is_the_mean_information_shared_with_the_others() -> None:
    nmi = normalized_mutual_info_score
    ab, ac, bc = nmi(A, B), nmi(A[:5], C[:5]), nmi(B[:5], C[:5])
    wanted = [(ab + ac) / 2, (ab + bc) / 2, (ac + bc) / 2]
    np.testing.assert_allclose(measure_agreement(count_votes([A, B, C])), wanted, rtol=1e-12)
    _, members = make_members(300, 5, 0.3, 6)
    table = [[nmi(a, b) for b in members] for a in members]
    np.testing.assert_allclose(compare_members(count_votes(members)), table, atol=1e-12)


@pytest.mark.parametrize("how", CONSENSUS)
def test_names_and_order_change_nothing(how: str) -> None:
    truth, members = make_members(300, 4, 0.15, 5)
    members[2] = np.where(np.arange(300) % 7 == 0, -1, members[2])
    found = find_consensus(members, 4, how)
    np.testing.assert_array_equal(found, find_consensus(shuffle(members), 4, how))
    assert how == "complete" or accuracy(truth, found) > max(accuracy(truth, member) for member in members)
    assert list(dict.fromkeys(found)) == sorted(set(found)), "clusters are numbered by their first image"
    sure, other = (measure_confidence(count_votes(m), found) for m in (members, shuffle(members)))
    np.testing.assert_array_equal(sure, other)


@pytest.mark.parametrize("how", CONSENSUS)
@pytest.mark.parametrize("k", [2, 3, 6])
def test_few_and_odd_images_have_a_consensus(how: str, k: int) -> None:
    found = find_consensus([A, B, np.zeros(6, int), np.where(A == 1, -1, A)], k, how)
    assert found.shape == (6,) and found.min() == 0 and len(set(found)) <= k
    assert k > 2 or list(found[[0, 1, 2, 4, 5]]) == [0, 0, 0, 1, 1], "only image 3 is in doubt"
    nothing = [np.where(np.arange(6) == 2, -1, member) for member in (A, B)]
    assert (find_consensus(nothing, 2, how) == -1).tolist() == [False, False, True, False, False, False]


def test_many_clusters_are_found_by_lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, members = make_members(400, 4, 0.2, 5)
    dense = find_consensus(members, 4)
    monkeypatch.setattr("stdac.consensus.MOST_DENSE", 10)
    np.testing.assert_array_equal(find_consensus(members, 4), dense)
    assert accuracy(truth, dense) > 0.95


@pytest.mark.parametrize(
    ("members", "k", "how", "said"),
    [
        ([A], 2, "spectral", "got 1 clustering for a consensus, expected at least two"),
        ([A, A[:4]], 2, "spectral", "got clusterings of [4, 6] images, expected the same images"),
        ([A, -np.ones(6, int)], 2, "spectral", "has no image in a cluster: leave it out"),
        ([A, np.arange(6)], 2, "spectral", "has a cluster for each of 6 images, which says nothing of what belongs"),
        ([A, B], 2, "magic", "got consensus = 'magic', expected one of spectral, average, complete, vote"),
        ([np.arange(MOST_PAIRED) % 2] * 2, 2, "average", "for average linkage, expected fewer than 5,000: take spectr"),
    ],
)
def test_what_has_no_consensus_is_told(members: list[NDArray[np.int64]], k: int, how: str, said: str) -> None:
    with pytest.raises(StdacError) as caught:
        find_consensus(members, k, how)
    assert said in str(caught.value)

"""Consensus of clusterings: what many of them put together, how much each agrees with the others, and how sure they
are of each image. No ground truth, and nothing but numpy, SciPy and scikit-learn.

All of it rests on one sparse table, images × all clusters of all members. A clustering is (N,) int64; -1 is noise, of
which a member has no opinion: it abstains. What the clusters are called, and the order of the members, changes nothing.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.metrics import Labels

Floats = NDArray[np.float64]

RESTARTS = 20  # of k-means on the rows of the spectral solution
MOST_DENSE = 2000  # clusters in all: above, the singular vectors are found by Lanczos' method
MOST_PAIRED = 5000  # images whose N × N co-association is made


class Votes(NamedTuple):
    """The clusterings of M members. table: (N, ΣK) sparse float64, 1 where an image is in a cluster, a column for each
    cluster of each member. owner: (ΣK,) the member of each column. voted: (N, M) float64, 0 where it abstains."""

    table: Any
    owner: NDArray[np.intp]
    voted: Floats

    @property
    def counts(self) -> NDArray[np.intp]:
        """(N,) the members that have an opinion of an image."""
        counts: NDArray[np.intp] = np.diff(self.table.indptr)
        return counts


def count_votes(members: Sequence[Labels]) -> Votes:
    """The table of members' clusterings, each (N,) int64. Raises StdacError where their lengths differ, or for one
    without a cluster or with a cluster for every image, which says nothing of what belongs together."""
    from scipy.sparse import csr_matrix

    names = [_rename(member) for member in members]
    if len({len(name) for name in names}) != 1:
        raise StdacError(f"got clusterings of {sorted({len(m) for m in members})} images, expected the same images")
    for number, name in enumerate(names, 1):
        if (fault := find_fault(name)) is not None:
            raise StdacError(f"member {number} {fault}: leave it out")
    sizes = [int(name.max()) + 1 for name in names]
    columns = np.stack(names, 1) + (np.cumsum(sizes) - sizes)  # (N, M)
    voted = np.stack(names, 1) >= 0
    ends = np.concatenate([[0], np.cumsum(voted.sum(1))])
    shape = (len(columns), sum(sizes))
    table = csr_matrix((np.ones(ends[-1]), columns[voted], ends), shape=shape)
    return Votes(table, np.repeat(np.arange(len(sizes)), sizes), voted.astype(np.float64))


def find_fault(clusters: Labels) -> str | None:
    """What keeps a clustering (N,) from having a say, as the end of a sentence; None where nothing does."""
    used = len(np.unique(clusters[clusters >= 0]))
    if not used:
        return "has no image in a cluster"
    if used == len(clusters):
        return f"has a cluster for each of {used:,} images, which says nothing of what belongs together"
    return None


def find_consensus(members: Sequence[Labels], k: int, how: str = "spectral", seed: int = 0) -> Labels:
    """The clustering in at most K clusters that members agree on, (N,) int64; -1 where all abstain.

    members: at least two, each (N,) int64. how: of CONSENSUS. seed: of k-means; equal seeds give equal clusters, on any
    number of threads. Raises StdacError as `count_votes` does, for another `how`, and for too many images for it.

    >>> a, b = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 1, 1, 0, 0, 2])
    >>> find_consensus([a, a, b], 2)
    array([0, 0, 0, 1, 1, 1])
    """
    if how not in CONSENSUS:
        raise StdacError(f"got consensus = {how!r}, expected one of {', '.join(CONSENSUS)}")
    if len(members) < 2:
        raise StdacError(f"got {len(members)} clustering for a consensus, expected at least two")
    ordered = sorted(map(_rename, members), key=lambda names: names.tobytes())
    votes = count_votes(ordered)
    known = votes.counts > 0
    clusters = np.full(len(known), -1, np.int64)
    clusters[known] = CONSENSUS[how](votes._replace(table=votes.table[known], voted=votes.voted[known]), k, seed)
    return _rename(clusters)


def _rename(clusters: Labels) -> Labels:
    """The clusters numbered by their first image; noise stays -1."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    first[np.unique(clusters) < 0] = -1
    noise = int((first < 0).sum())
    names = np.empty(len(first), np.int64)
    names[np.argsort(first, kind="stable")] = np.arange(len(first)) - noise
    names[first < 0] = -1
    renamed: Labels = names[inverse.reshape(-1)]
    return renamed


# how a consensus is found: (votes, k, seed) -> (N,) int64


def find_spectral(votes: Votes, k: int, seed: int) -> Labels:
    """k-means on the first K eigenvectors of the normalised co-association (Ng et al. 2001). Those are the singular
    vectors of the images' side of the table, so that time and memory grow with N × M, not with N × N."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums in another order may give other clusters
        return _run_kmeans(_embed(votes.table, k), k, seed)


def _embed(table: Any, k: int) -> Floats:
    """The rows of the best approximation of rank K to the normalised co-association, D^-½ A D^-½ with A = table tableᵀ
    and its row sums D: (N, ≤ K) float64 of length 1.

    Bipartite (Fern & Brodley 2004): a cluster counts the less the larger it is. Here: not, which finds more, see
    docs/consensus.md.
    """
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import svds

    degrees = table @ np.asarray(table.sum(0)).reshape(-1)  # (N,)
    scaled = diags_array(degrees**-0.5) @ table
    if scaled.shape[1] <= MOST_DENSE:
        right = np.linalg.eigh((scaled.T @ scaled).toarray())[1][:, -k:]  # (ΣK, ≤ K), of the small side
    else:
        right = svds(scaled, min(k, min(scaled.shape) - 1), v0=np.ones(min(scaled.shape)), tol=1e-9)[2].T
    left: Floats = scaled @ right
    left *= np.where(left[np.abs(left).argmax(0), np.arange(left.shape[1])] < 0, -1, 1)
    rows: Floats = left / np.linalg.norm(left, axis=1, keepdims=True)
    return rows


def _run_kmeans(x: Floats, k: int, seed: int) -> Labels:
    """k-means on rows x (N, d), equal ones taken together."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points, inverse, weights = np.unique(x.round(9), axis=0, return_inverse=True, return_counts=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer different rows than clusters
        fitted = KMeans(min(k, len(points)), n_init=RESTARTS, random_state=seed).fit(points, sample_weight=weights)
    labels: Labels = fitted.labels_.astype(np.int64)[inverse.reshape(-1)]
    return labels


def find_average(votes: Votes, k: int, _seed: int) -> Labels:
    """Average linkage of the co-association."""
    return _link(votes, k, "average")


def find_complete(votes: Votes, k: int, _seed: int) -> Labels:
    """Complete linkage of the co-association."""
    return _link(votes, k, "complete")


def _link(votes: Votes, k: int, linkage: str) -> Labels:
    """Hierarchical clustering of the share of members, of those that know both, that put two images together."""
    from scipy.cluster.hierarchy import cut_tree
    from scipy.cluster.hierarchy import linkage as link
    from scipy.spatial.distance import squareform

    n = len(votes.counts)
    if n >= MOST_PAIRED:
        raise StdacError(f"got {n:,} images for {linkage} linkage, expected fewer than {MOST_PAIRED:,}: take spectral")
    both = votes.voted @ votes.voted.T
    distances = 1 - (votes.table @ votes.table.T).toarray() / np.maximum(both, 1)  # (N, N)
    tree = link(squareform(distances, checks=False), linkage)
    labels: Labels = cut_tree(tree, n_clusters=min(k, n))[:, 0].astype(
        np.int64
    )  # K of them, even where many are as far
    return labels


def find_vote(votes: Votes, k: int, seed: int) -> Labels:
    """The majority of members whose clusters are mapped onto the spectral consensus, and again until none changes."""
    labels = find_spectral(votes, k, seed)
    for _ in range(100):
        targets = np.eye(k)[map_clusters(votes, labels)]  # (ΣK, K)
        tally = votes.table @ targets + 1e-6 * np.eye(k)[labels]  # a tie changes nothing
        new = tally.argmax(1)
        if (new == labels).all():
            break
        labels = new
    return labels


CONSENSUS: dict[str, Callable[[Votes, int, int], Labels]] = {
    "spectral": find_spectral,
    "average": find_average,
    "complete": find_complete,
    "vote": find_vote,
}


# how sure one may be of it


def map_clusters(votes: Votes, labels: Labels) -> NDArray[np.intp]:
    """The consensus cluster that each cluster of each member shares most images with: (ΣK,). labels: (N,)."""
    known = labels >= 0
    shared = votes.table[known].T @ np.eye(labels.max(initial=0) + 1)[labels[known]]  # (ΣK, K)
    mapped: NDArray[np.intp] = shared.argmax(1)
    return mapped


def measure_confidence(votes: Votes, labels: Labels) -> NDArray[np.float32]:
    """The share of members, of those that do not abstain, whose cluster of an image is part of its consensus cluster:
    (N,) float32; 0 where there is none. labels: (N,) the consensus."""
    agree = map_clusters(votes, labels)[votes.table.indices] == np.repeat(labels, votes.counts)
    of_image = np.repeat(np.arange(len(labels)), votes.counts)
    share = np.bincount(of_image, agree, len(labels)) / np.maximum(votes.counts, 1)
    return share.astype(np.float32)


def compare_members(votes: Votes) -> Floats:
    """The NMI (arithmetic) of every two members over the images that both know: (M, M) float64, 0 where there are none.

    One product of the table with itself holds all their contingency tables.
    """
    crossed = (votes.table.T @ votes.table).tocoo()
    sizes = votes.table.T @ votes.voted  # (ΣK, M): images of a cluster that a member knows
    common = np.maximum(votes.voted.T @ votes.voted, 1)  # (M, M)
    i, j = votes.owner[crossed.row], votes.owner[crossed.col]
    share = crossed.data / common[i, j]
    information = share * np.log(crossed.data * common[i, j] / (sizes[crossed.row, j] * sizes[crossed.col, i]))
    mutual = np.zeros_like(common)
    np.add.at(mutual, (i, j), information)
    p = sizes / common[votes.owner]
    entropy = np.zeros_like(common)  # of the row's member over the images that the column's knows
    np.add.at(entropy, votes.owner, -p * np.log(np.where(p > 0, p, 1)))
    total = entropy + entropy.T
    alike = (total < 1e-12) & (votes.voted.T @ votes.voted > 0)  # both have one cluster
    nmi: Floats = np.where(alike, 1.0, 2 * mutual / np.where(total < 1e-12, 1, total)).clip(0, 1)
    return nmi


def measure_agreement(votes: Votes) -> Floats:
    """Of each member its mean NMI to the others: (M,) float64. Needs at least two."""
    nmi = compare_members(votes)
    np.fill_diagonal(nmi, 0)
    agreement: Floats = nmi.sum(1) / (len(nmi) - 1)
    return agreement

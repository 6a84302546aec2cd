"""UMAP + GMM: images are laid out by their nearest neighbours, and a mixture of Gaussians is fitted to the layout.

`embed` has the first half, `cluster` the second. All of it is on one thread of the CPU, so that the number of cores
changes no bit: UMAP with a seed has one thread anyway.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stdac.autoencoders import encode_all
from stdac.errors import StdacError
from stdac.methods.features import read_features
from stdac.methods.method import Cost, Fitted, Method, Task
from stdac.train import Needed, Trainer
from stdac.trial import Params, check_choices, check_ranges, make_id, names_trials
from stdac.words import count_noun

STEPS = 6  # until a mixture has converged: 4 to 7 on MNIST (32 starts)
SHOVES = 5  # of an image away from others, for each pull to a neighbour
COMPILING = 6.1e9  # 15 s, as multiply-adds
EFFICIENCY = 0.0145  # 104 s for MNIST on a core that does nothing else
CLUSTERERS = ("gmm", "kmeans")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class UMAPParams(Params):
    """Hyperparameters: UMAP's for clustering as its authors advise (many neighbours, no least distance, 10 dimensions)
    on principal components, as in N2D (McConville et al. 2019)."""

    clusterer: str = "gmm"  # or "kmeans"
    on: str = names_trials("")  # the trial whose embedding is laid out; "": pixels
    neighbours: int = 20  # of each image, itself among them
    dimensions: int = 10  # of the layout
    min_distance: float = 0.0  # between images in it
    components: int = 50  # principal components, fewer where images have fewer values
    # of the clusterer, the best by likelihood (GMM) or inertia (k-means) is kept: on MNIST 13 of 32 starts found the
    # likeliest mixture (ACC .974, the others at most .85), which with 5 starts one seed of four missed
    starts: int = 20

    def resolved(self, dataset: str) -> Self:
        """Check the ranges. Raises StdacError for a value out of its range."""
        check_choices(self, {"clusterer": CLUSTERERS})
        check_ranges(self, {"neighbours": 2, "dimensions": 1, "components": 1, "starts": 1}, ())
        if not 0 <= self.min_distance <= 1:  # UMAP's spread
            raise StdacError(f"got min_distance = {self.min_distance}, expected a number from 0 to 1")
        return self


class Clustering(NamedTuple):
    """labels: (N,) int64; confidence: (N,) float32 in [0, 1]; terms: how well the clusterer fits, by its name."""

    labels: NDArray[np.int64]
    confidence: Floats
    terms: dict[str, float]


def fit(images: Tensor, k: int, params: UMAPParams, trainer: Trainer) -> Fitted:
    """Lay out the images, or a trial's embedding of them, and cluster the layout."""
    from threadpoolctl import threadpool_limits

    x = describe_images(images, trainer.needed)
    first, copy_of = find_copies(x)
    x = x[first]  # copies would be each other's neighbours, and cut off from all the rest
    if len(x) < k:
        raise StdacError(f"got {k} clusters for {count_noun(len(x), 'different image')}: expected at most as many")
    with threadpool_limits(1):
        z = embed(x, params, trainer.seed)
        found = cluster(z, k, params, trainer.seed)
    labels = torch.from_numpy(found.labels[copy_of]).to(trainer.device)
    confidence = torch.from_numpy(found.confidence[copy_of])
    return Fitted(labels, confidence=confidence, terms=found.terms, figures={"embedding": z[copy_of]})


@torch.no_grad()
def describe_images(images: Tensor, needed: Sequence[Needed]) -> Floats:
    """What is laid out, (N, D) float32: a needed trial's embedding, or pixels in [0, 1]."""
    if not needed:
        return images.flatten(1).cpu().numpy().astype(np.float32) / np.float32(255)
    _check_side(needed[0].trial, images)
    kept = read_features(needed[0], images)
    if kept is not None:
        return kept
    model = needed[0].load_model().to(images.device).eval()
    try:
        z = encode_all(model, images)  # (N, D)
    except RuntimeError as error:
        shape = "×".join(map(str, images.shape[1:]))
        raise StdacError(
            f"the model of trial {make_id(needed[0].trial)} takes other images than these of {shape}"
        ) from error
    return z.float().cpu().numpy()


def _check_side(trial: Mapping[str, Any], images: Tensor) -> None:
    """Raise StdacError where a trial of features has seen images of another size: its network takes any, and describes
    them differently."""
    side = trial.get("image_size")
    if trial["method"] == "features" and side is not None and images.shape[2:] != (side, side):
        raise StdacError(
            f"trial {make_id(trial)} has the features of images of {side}x{side} pixels, these have "
            f"{images.shape[3]}x{images.shape[2]}: set image_size = {side} here too"
        )


def find_copies(x: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that are the first of their kind, (M,), and of each row which of those it equals, (N,) in [0, M)."""
    known: dict[bytes, int] = {}
    keys = (blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(x))
    copy_of = np.array([known.setdefault(key, len(known)) for key in keys])
    return np.unique(copy_of, return_index=True)[1], copy_of


def embed(x: Floats, params: UMAPParams, seed: int) -> Floats:
    """PCA, then UMAP: (N, D) -> (N, dimensions) float32; of images too few for a layout the principal components."""
    from sklearn.decomposition import PCA  # which takes longer to import than torch

    z: Floats = PCA(min(params.components, *x.shape), random_state=seed).fit_transform(x).astype(np.float32)
    if len(z) < params.dimensions + 2:  # fewer than the eigenvectors that UMAP starts from
        return z[:, : params.dimensions]
    from umap import UMAP

    layout = UMAP(
        min(params.neighbours, len(z) - 1),
        params.dimensions,
        min_dist=params.min_distance,
        random_state=seed,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(layout.fit_transform(z), np.float32)


def cluster(z: Floats, k: int, params: UMAPParams, seed: int) -> Clustering:
    """Cluster a layout (N, d)."""
    return (fit_mixture if params.clusterer == "gmm" else fit_kmeans)(z.astype(np.float64), k, params.starts, seed)


def fit_mixture(z: NDArray[np.float64], k: int, starts: int, seed: int) -> Clustering:
    """A mixture of Gaussians with full covariances, the likeliest of several starts.

    confidence: the posterior of an image's component, times 1 / (1 + m² / d), where m is its Mahalanobis distance
    from the middle of it. In a layout clusters lie so far apart that the posterior alone is 1 for nearly all images,
    on MNIST for 99.7 %: the surest 70 % of each cluster are no purer by it than all (.974), by this they are (.991).
    """
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(k, n_init=starts, random_state=seed).fit(z)
    posterior = mixture.predict_proba(z)  # (N, K)
    labels = posterior.argmax(1)
    whitened = np.einsum("nd,nde->ne", z - mixture.means_[labels], mixture.precisions_cholesky_[labels])  # (N, d)
    confidence = posterior.max(1) / (1 + np.square(whitened).mean(1))
    terms = {"term_likelihood": float(mixture.lower_bound_)}  # mean log-likelihood of an image
    return Clustering(labels, confidence.astype(np.float32), terms)


def fit_kmeans(z: NDArray[np.float64], k: int, starts: int, seed: int) -> Clustering:
    """k-means, the best of several starts; confidence: how much nearer its own centre is than the next one."""
    from sklearn.cluster import KMeans

    centres = KMeans(k, n_init=starts, random_state=seed).fit(z)
    distance = np.sort(centres.transform(z))[:, :2]  # (N, 2)
    confidence = 1 - distance[:, 0] / np.maximum(distance[:, 1], np.finfo(np.float64).tiny)
    terms = {"term_inertia": float(centres.inertia_) / len(z)}  # mean squared distance of an image
    return Clustering(centres.labels_.astype(np.int64), confidence.astype(np.float32), terms)


def count_work(task: Task) -> Cost:
    """What a trial computes: the layout's steps along its edges, and the clusterer's; UMAP compiles itself first."""
    rounds = 200 if task.n > 10_000 else 500  # UMAP's own
    layout = rounds * task.params.neighbours * (1 + SHOVES) * task.params.dimensions
    clusterer = task.params.starts * STEPS * task.k * task.params.dimensions**2
    return Cost(COMPILING + float(task.n) * (layout + clusterer), efficiency=EFFICIENCY)


UMAP_GMM = Method(title="UMAP + {clusterer}", params=UMAPParams, fit=fit, cost=count_work, small={})

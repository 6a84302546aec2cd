"""VAE + t-SNE + DBSCAN: the codes of a VAE laid out in two dimensions, and clusters where the layout is dense.

`lay_out` has the first half, `cluster` the second. DBSCAN finds the number of clusters itself, and leaves images out as
noise. All but the codes is on one thread of the CPU, so that the number of cores changes no bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stdac.autoencoders import encode_all
from stdac.methods.method import PUBLISHED, Cost, Fitted, Method, Task
from stdac.methods.vae import EPOCHS, VAEParams
from stdac.train import Trainer
from stdac.trial import Params, Trial, check_choices, check_ranges

LAYOUTS = ("t-SNE", "PCA", "none")
CHOICES = ("clusters", "silhouette")
SAMPLE = 5000  # images that the source clusters
TSNE_GRID = np.linspace(1.0, 4.0, 31)  # values of eps that are tried in t-SNE's layout
CORE_GRID = np.linspace(0.40, 0.99, 31)  # elsewhere: shares of images that are core points
LEAST_SHARE = 0.02  # of the images, in a cluster that counts where eps is chosen
COMPARED = 5000  # images that a silhouette is taken of

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class VAEDBSCANParams(Params):
    """Hyperparameters."""

    dimensions: int = 10  # of the VAE's code
    layout: str = "t-SNE"  # of LAYOUTS
    budget: str = PUBLISHED  # or "cpu": the VAE has fewer epochs
    network: str = "dense"  # of the VAE; or "conv"
    width: float = 1.0  # multiplier of its hidden layers' units or channels
    vae_epochs: int | None = None  # None: as the budget has it
    perplexity: float = 30.0  # of t-SNE
    min_samples: int = 10  # images within eps of a core point, itself among them
    eps: float | None = None  # radius of a neighbourhood in the layout; None: one of a grid is chosen
    choose_eps: str = "clusters"  # by the number of large clusters; or "silhouette"

    def resolved(self, dataset: str) -> Self:
        """Fill in the VAE's epochs. Raises StdacError for a value out of its range."""
        check_choices(self, {"layout": LAYOUTS, "choose_eps": CHOICES})
        vae = self.make_vae(dataset)
        epochs = vae.choose_epochs(EPOCHS) if self.vae_epochs is None else self.vae_epochs
        filled = replace(self, vae_epochs=epochs)
        positive = ("perplexity",) if self.eps is None else ("perplexity", "eps")
        check_ranges(filled, {"vae_epochs": 1, "min_samples": 1}, positive)
        return filled

    def make_vae(self, dataset: str) -> VAEParams:
        """The parameters of the VAE."""
        return VAEParams(self.network, self.dimensions, self.budget, self.width).resolved(dataset)


class Clustering(NamedTuple):
    """labels: (N,) int64, -1 = noise. confidence: (N,) float32, see `cluster`. eps: the radius."""

    labels: Labels
    confidence: NDArray[np.float32]
    eps: float


def name_vae(trial: Trial) -> list[Trial]:
    """The VAE that a trial needs, of all images of its data set: those that are clustered are a subset of them."""
    params: VAEDBSCANParams = trial.params  # type: ignore[assignment]  # it is of this method
    assert params.vae_epochs is not None, "resolved has filled it"
    own = params.make_vae(trial.dataset)
    return [replace(trial, method="vae", epochs=params.vae_epochs, params=own, limit=None, needs=())]


def fit(images: Tensor, k: int, params: VAEDBSCANParams, trainer: Trainer) -> Fitted:
    """Encode, lay out, cluster. k is of no account: the clusters are as many as are found."""
    from threadpoolctl import threadpool_limits

    codes = encode_all(trainer.needed[0].load_model().to(trainer.device).eval(), images).float().cpu().numpy()
    with threadpool_limits(1):
        z = lay_out(codes, params, trainer.seed)
        found = cluster(z, params)
    return Fitted(
        torch.from_numpy(found.labels).to(trainer.device),
        confidence=torch.from_numpy(found.confidence),
        terms={"term_eps": found.eps},
        figures={"embedding": z, "clusters": found.labels},
        spaces={"codes": codes} | ({} if params.layout == "none" else {"layout": z}),
    )


def lay_out(codes: NDArray[np.float32], params: VAEDBSCANParams, seed: int) -> NDArray[np.float32]:
    """Codes (N, d) in two dimensions, or as they are: (N, 2) or (N, d) float32."""
    if params.layout == "none":
        return codes
    if params.layout == "PCA":
        from sklearn.decomposition import PCA

        return np.asarray(PCA(min(2, *codes.shape), random_state=seed).fit_transform(codes), np.float32)
    from sklearn.manifold import TSNE

    # scikit-learn's defaults of 2018, which the paper used; they have changed since
    perplexity = min(params.perplexity, (len(codes) - 1) / 3)  # of fewer images less, as it counts neighbours
    layout = TSNE(
        2,
        perplexity=perplexity,
        early_exaggeration=12.0,
        learning_rate=200.0,
        max_iter=1000,
        init="random",
        random_state=seed,
        n_jobs=1,
    )
    return np.asarray(layout.fit_transform(codes), np.float32)


def cluster(z: Floats, params: VAEDBSCANParams) -> Clustering:
    """DBSCAN of a layout (N, d), with the given eps or the best of a grid, see `rate`.

    confidence: eps / (eps + the distance to the image's min_samples-th neighbour, itself the first): .5 and more of a
    core point, the more the denser it lies; less of an image at the edge of a cluster, and 0 of noise.
    """
    reach = measure_reach(z, params.min_samples)
    tried = [params.eps] if params.eps is not None else list_radii(reach, params.layout)
    found = [run_dbscan(z, eps, params.min_samples) for eps in tried]
    ratings = [rate(z, labels, params.choose_eps) for labels in found] if len(found) > 1 else [(0.0,)]
    best = max(range(len(found)), key=ratings.__getitem__)  # the first, which has the smallest eps, of equal ones
    eps, labels = float(tried[best]), found[best]
    confidence = np.where(labels < 0, 0, eps / (eps + reach))
    return Clustering(labels, confidence.astype(np.float32), eps)


def measure_reach(z: Floats, min_samples: int) -> Floats:
    """The eps from which on each image is a core point: the distance to its min_samples-th neighbour, itself the
    first, (N,)."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(min_samples, len(z))).fit(z)
    reach: Floats = nearest.kneighbors(z)[0][:, -1]
    return reach


def list_radii(reach: Floats, layout: str) -> Sequence[float]:
    """The values of eps that are tried, ascending.

    t-SNE's layouts have a scale of their own, in which 1 to 4 suits 5,000 images. Codes have none: there each value
    makes a given share of the images core points, 40 to 99 %: with fewer most images are noise, and groups fall
    apart.
    """
    if layout == "t-SNE":
        return [float(eps) for eps in TSNE_GRID]
    return [max(float(eps), 1e-9) for eps in np.unique(np.quantile(reach, CORE_GRID))]


def run_dbscan(z: Floats, eps: float, min_samples: int) -> Labels:
    """The cluster of each image of a layout (N, d), -1 = noise: (N,) int64."""
    from sklearn.cluster import DBSCAN

    labels: Labels = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(z).astype(np.int64)
    return labels


def rate(z: Floats, labels: Labels, by: str) -> tuple[float, ...]:
    """How good a clustering is, by no ground truth; tuples compare.

    by: "clusters": the number of clusters of at least 2 % of the images, of equal ones the one with less noise;
    "silhouette": the mean over all images, of which noise counts 0.
    """
    kept = labels[labels >= 0]
    if by == "clusters":
        return int((np.bincount(kept) >= LEAST_SHARE * len(labels)).sum()), len(kept)
    from sklearn.metrics import silhouette_samples

    index = np.random.default_rng(0).permutation(len(labels))[:COMPARED]
    index = index[labels[index] >= 0]
    used = len(np.unique(labels[index]))
    if not 1 < used < len(index):
        return (-1.0,)
    return (float(silhouette_samples(z[index], labels[index]).sum() / min(len(labels), COMPARED)),)


def count_work(task: Task) -> Cost:
    """What a trial computes beside its VAE: t-SNE's 1,000 steps, and the tried DBSCANs, which in two dimensions have a
    tree to find neighbours by and in more compare all pairs. As measured for 3,000 images."""
    layout = 1.8e8 if task.params.layout == "t-SNE" else 0.0
    tried = 31 if task.params.eps is None else 1
    return Cost(float(task.n) * (layout + tried * (570 * task.n if task.params.layout == "none" else 1.4e5)))


VAE_DBSCAN = Method(
    title="VAE({dimensions}-d) + {layout} + DBSCAN",
    params=VAEDBSCANParams,
    fit=fit,
    cost=count_work,
    needs=name_vae,
    limit=SAMPLE,
    readings=("budget", "dimensions", "layout"),
    small={"width": 0.25, "vae_epochs": 10},
    takes_k=False,
)

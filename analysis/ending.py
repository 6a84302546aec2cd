"""What can be said of a trial that has ended, without labels: whether it had settled, and how well its clusters are
separated where it has put them.

The silhouette is taken in the embedding, of the trial's clusters and of those that k-means finds there: one space, one
K, the same images. Where k-means does much better, the clusters do not follow what the network has learned. In pixels a
silhouette says which images look alike there, of which k-means on pixels makes the most by construction; and between
two trials neither number may be compared, as each has an embedding of its own.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.k_study import SAMPLE, measure_silhouette
from stdac.methods.method import Fitted
from stdac.words import format_score

SETTLED = 0.01  # of the images; a trial that moves more of them in its last epoch would find other clusters with more
BATCH, RESTARTS = 500, 5


def describe_settling(moved: float, epochs: int) -> str:
    """Whether a trial had settled, by the share of images that moved in its last epoch."""
    share = f"{moved:.1%} of the images moved in the last epoch"
    return f"settled: {share}" if moved <= SETTLED else f"not settled yet: {share}; --epochs {2 * epochs} may find more"


def describe_sizes(clusters: NDArray[np.int64], k: int) -> str:
    """The sizes of K clusters (N,), -1 = noise, in a few words."""
    sizes = np.bincount(clusters[clusters >= 0], minlength=max(k, 1))
    return f"clusters of {sizes.min():,} to {sizes.max():,} images, median {np.median(sizes):,.0f}"


def describe_separation(fitted: Fitted, images: NDArray[np.uint8], k: int) -> str | None:
    """The silhouettes of a trial's clusters and of k-means' in a sentence; None where there are none to compare."""
    index = np.sort(np.random.default_rng(0).permutation(len(images))[:SAMPLE])
    if fitted.model is None or fitted.labels is None or k >= len(index):
        return None
    points = embed_images(fitted.model, images[index], fitted.labels.device)
    if not np.isfinite(points).all():
        return None
    own, other = compare_with_kmeans(points, fitted.labels.cpu().numpy()[index], k)
    if np.isnan(own):
        return "all images are in one cluster"
    return f"silhouette in the embedding {format_score(own)}, of k-means there {format_score(other)}"


@torch.no_grad()
def embed_images(model: Any, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """Embeddings (n, D) of images (n, C, H, W) uint8."""
    parts = [torch.from_numpy(images[i : i + BATCH]).to(device) for i in range(0, len(images), BATCH)]
    return torch.cat([model.embed(x.float() / 255).flatten(1).float().cpu() for x in parts]).numpy()


def compare_with_kmeans(points: NDArray[Any], clusters: NDArray[np.int64], k: int) -> tuple[float, float]:
    """Silhouettes of clusters (n,) of points (n, D), and of those that k-means finds: the best of RESTARTS runs."""
    from sklearn.cluster import KMeans

    found = KMeans(k, n_init=RESTARTS, random_state=0).fit_predict(points)
    return measure_silhouette(points, clusters), measure_silhouette(points, found.astype(np.int64))

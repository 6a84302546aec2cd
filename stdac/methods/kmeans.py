"""k-means on pixels, and on their principal components: the floor that every learned method has to beat."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stdac.errors import StdacError
from stdac.methods.method import Cost, Fitted, Method, Shape, Task
from stdac.networks import SoftAssignment
from stdac.train import Trainer
from stdac.trial import Params, check_ranges

BATCH = 1000
ITERATIONS = 50  # until k-means converges: 45 to 55 on MNIST, 17 to 26 on digits (three runs each)
EFFICIENCY = 0.07  # 15 s for one run on MNIST on a Zen 3 core beside other work: 1.9e9 multiply-adds a second


@dataclass(frozen=True)
class KMeansParams(Params):
    """k-means++ on pixels in [0, 1]."""

    restarts: int = 20
    max_iterations: int = 300

    def resolved(self, dataset: str) -> Self:
        """Check the ranges. Raises StdacError for a value out of its range."""
        check_ranges(self, {"restarts": 1, "max_iterations": 1}, ())
        return self


@dataclass(frozen=True)
class PCAKMeansParams(KMeansParams):
    """k-means on principal components, not whitened; components below 1 is the share of variance to keep."""

    components: float = 50.0

    def resolved(self, dataset: str) -> Self:
        """Check the number of components. Raises StdacError where it is neither a share nor a whole number."""
        if self.components <= 0 or (self.components >= 1 and self.components % 1):
            raise StdacError(f"got components = {self.components}, expected a whole number, or a share in (0, 1)")
        return super().resolved(dataset)


class NearestCentre(nn.Module):
    """Flatten, project where there are components, nearest centre: (B, C, H, W) float32 in [0, 1] -> (B, K)."""

    def __init__(self, k: int, pixels: int, components: int | None) -> None:
        super().__init__()
        self.project = None if components is None else nn.Linear(pixels, components)
        self.assign = SoftAssignment(k, components or pixels)

    def embed(self, x: Tensor) -> Tensor:
        """Pixels, or their principal components: (B, C, H, W) -> (B, d) float32."""
        x = x.flatten(1)
        return x if self.project is None else self.project(x)

    def classify(self, z: Tensor) -> Tensor:
        """Soft assignments of embeddings z (B, d): (B, K) float32."""
        q: Tensor = self.assign(z)
        return q

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embed(x))


def build(k: int, shape: Shape, params: KMeansParams) -> NearestCentre:
    """The unfitted model."""
    pixels = shape[0] * shape[1] * shape[2]
    if not isinstance(params, PCAKMeansParams):
        return NearestCentre(k, pixels, None)
    # a share of variance decides the number of components only when fitted: unused rows stay 0 and add no distance
    return NearestCentre(k, pixels, int(params.components) if params.components >= 1 else pixels)


@torch.no_grad()
def fit(images: Tensor, k: int, params: KMeansParams, trainer: Trainer) -> Fitted:
    """Fit on all images at once, on the CPU."""
    pixels: NDArray[Any] = images.flatten(1).cpu().numpy().astype(np.float32) / 255
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params)
    if model.project is not None and isinstance(params, PCAKMeansParams):
        pixels = project(pixels, params, model.project, trainer.seed)
    centres = find_centres(pixels, k, trainer.seed, params.restarts, params.max_iterations)
    model.assign.centres.zero_()
    model.assign.centres[:, : centres.shape[1]] = torch.from_numpy(centres)
    model = model.to(trainer.device).eval()
    labels = torch.cat([model(x.float() / 255).argmax(1) for x in images.split(BATCH)])
    return Fitted(labels, model)


def project(pixels: NDArray[Any], params: PCAKMeansParams, layer: nn.Linear, seed: int) -> NDArray[Any]:
    """Fit PCA, put it into the layer, and return the components (N, d) float32."""
    components = int(params.components) if params.components >= 1 else params.components
    if components > min(pixels.shape):
        raise StdacError(
            f"got components = {components}, expected at most {min(pixels.shape)} for {pixels.shape[0]} images "
            f"of {pixels.shape[1]} values"
        )
    from sklearn.decomposition import PCA  # which takes longer to import than torch

    pca = PCA(components, random_state=seed)
    projected: NDArray[Any] = pca.fit_transform(pixels).astype(np.float32)
    rows = torch.from_numpy(pca.components_)
    layer.weight.zero_()
    layer.bias.zero_()
    layer.weight[: len(rows)] = rows
    layer.bias[: len(rows)] = -(rows @ torch.from_numpy(pca.mean_))
    return projected


def find_centres(x: NDArray[Any], k: int, seed: int, restarts: int, max_iterations: int = 300) -> NDArray[np.float32]:
    """Centres (K, d) float32 of the best of `restarts` k-means++ runs on x (N, d)."""
    from sklearn.cluster import KMeans

    found = KMeans(k, n_init=restarts, max_iter=max_iterations, random_state=seed).fit(x)
    centres: NDArray[np.float32] = found.cluster_centers_.astype(np.float32)
    return centres


def count_kmeans(task: Task, values: int, restarts: int) -> float:
    """Multiply-adds, at the rate of training a network, of k-means on so many values an image."""
    return task.n * restarts * ITERATIONS * task.k * values / EFFICIENCY


def count_work(task: Task) -> Cost:
    """What a trial computes: each image against each centre, ITERATIONS times a restart, and its projection once."""
    pixels = task.shape[0] * task.shape[1] * task.shape[2]
    components = getattr(task.params, "components", pixels)
    kept = min(pixels, int(components)) if components >= 1 else pixels
    iterations = task.params.restarts * min(ITERATIONS, task.params.max_iterations)
    return Cost(float(task.n) * (iterations * kept * task.k + pixels * kept), efficiency=EFFICIENCY)


KMEANS = Method(title="k-means", params=KMeansParams, build=build, fit=fit, cost=count_work, is_floor=True)
PCA_KMEANS = Method(title="PCA + k-means", params=PCAKMeansParams, build=build, fit=fit, cost=count_work, is_floor=True)

"""What the DAC family shares: label features, pair targets, macro-batches and the deployed model.

Deep Adaptive Clustering (Chang et al. 2017) trains a network on whether two images look alike, by its own opinion:
two images are a positive pair where the cosine of their label features exceeds a threshold.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdac.methods.method import Cost, Shape, Task, count_forward
from stdac.networks import Standardize, calibrate
from stdac.train import Assignment, Trainer

CALIBRATION_BATCH = 1000
NARROW = 0.65
"""A narrow network has a lower rate: .4 of the full one's at width .25 (MNIST, one core, 11 to 17 minutes)."""


class Deployed(nn.Module):
    """A network behind its own mean subtraction: (B, C, H, W) float32 in [0, 1] -> (B, K) label features."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.standardize = Standardize()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(self.standardize(x))
        return y

    def embed(self, x: Tensor) -> Tensor:
        """What enters the network's last dense layer: (B, C, H, W) -> (B, D) float32."""
        z: Tensor = self.net.embed(self.standardize(x))  # type: ignore[operator]  # every network of the family has it
        return z

    def classify(self, z: Tensor) -> Tensor:
        """Label features of embeddings z (B, D): (B, K) float32."""
        y: Tensor = self.net.classify(z)  # type: ignore[operator]
        return y

    def prepare(self, mean: float, device: torch.device) -> nn.Module:
        """Set the mean, move to the device in channels-last layout, and return the network, which is what trains."""
        self.standardize.mean.fill_(mean)
        self.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        return self.net


def mean_pixel(images: Tensor) -> float:
    """The one scalar that the DAC family subtracts: the mean over all pixels, in [0, 1]. images: uint8."""
    return images.sum(dtype=torch.int64).item() / images.numel() / 255


def standardize(images: Tensor, mean: float) -> Tensor:
    """(B, C, H, W) uint8 -> float32 minus the mean, channels last."""
    return images.to(dtype=torch.float32, memory_format=torch.channels_last).div_(255).sub_(mean)


def normalize(y: Tensor) -> Tensor:
    """Rows of y (B, K) scaled to unit L2 norm; a softmax is never zero."""
    return F.normalize(y, dim=1)


def compare_all(z: Tensor) -> Tensor:
    """Cosines of all pairs of unit rows z (B, K): (B, B). No matrix product, which a GPU may round to ten bits."""
    return (z[:, None] * z).sum(2)


def fall_threshold(epoch: int, epochs: int, start: float, end: float) -> float:
    """Threshold of epoch 1..epochs: from `start`, down by (start - end) / epochs after each epoch."""
    return start - (epoch - 1) * (start - end) / epochs


def predict_in_groups(predict: Callable[[Tensor, int], Tensor], x: Tensor, group: int) -> Tensor:
    """Predict x (B, ...) with batch statistics of `group` consecutive images; the last group may be shorter.

    One image alone has no batch statistics: a single left-over image joins the group before it.
    """
    whole = len(x) // group * group
    if len(x) - whole == 1 and whole:
        whole -= group
    parts = [predict(x[:whole], group)] if whole else []
    if whole < len(x):
        parts.append(predict(x[whole:], len(x) - whole))
    return torch.cat(parts)


def _predict_features(net: nn.Module, x: Tensor, group: int) -> Tensor:
    """Label features of x (B, C, H, W) with batch statistics of `group` consecutive images: (B, K)."""
    y: Tensor = net(x, group)
    return y


class CleanPass:
    """Label features of clean images by the protocol: no augmentation or dropout, batch statistics of `group`."""

    def __init__(self, net: nn.Module, group: int, trainer: Trainer) -> None:
        self.net, self.group = net, group
        self.compiled = trainer.compiled(partial(_predict_features, net))
        self.steady: int | None = None

    def _predict(self, x: Tensor, group: int) -> Tensor:
        # Only the first shape is compiled: the odd sizes at the end of a pass cost less eagerly than a compilation.
        self.steady = self.steady or len(x)
        y: Tensor = self.compiled(x, group) if len(x) == self.steady else _predict_features(self.net, x, group)
        return y

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) float32, standardised -> (B, K) float32, a softmax."""
        self.net.eval()
        return predict_in_groups(self._predict, x, self.group).clone()


def pair_batches(
    images: Tensor,
    mean: float,
    clean_pass: CleanPass,
    order: Tensor,
    threshold: float,
    *,
    macro_batch: int,
    passes: int,
    batch: int,
    drop_last: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """One epoch of mini-batches: label features once a macro-batch, then `passes` shuffled passes over its images.

    images: (N, C, H, W) uint8. order: (N,) int64. Yields a mini-batch's places in the macro-batch (b,) int64, the
    macro-batch (M, C, H, W) float32 standardised, its label features (M, K) and the threshold, a 0-d tensor.
    `drop_last` skips a pass's shorter last batch, 1 image always.
    """
    tau = torch.tensor(threshold, device=images.device)
    for chunk in _split_order(order, macro_batch):
        clean = standardize(images[chunk], mean)
        y_clean = clean_pass(clean)  # (M, K)
        clean_pass.net.train()
        for _ in range(passes):
            for index in torch.randperm(len(chunk), device=images.device).split(batch):
                if len(index) < (min(batch, len(images)) if drop_last else 2):
                    continue
                yield index, clean, y_clean, tau


def pair_targets(y: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Pair targets r (b, b) float32, 1 where two label features are alike, and the share of positive pairs i != j."""
    r = (compare_all(normalize(y)) > threshold).float()
    b = len(y)
    return r, (r.sum() - r.diagonal().sum()) / (b * (b - 1))


def assign_by_protocol(clean_pass: CleanPass, images: Tensor, mean: float, order: Tensor, chunk: int) -> Assignment:
    """Clusters of all images by the protocol: argmax of label features with batch statistics, in a fixed order.

    order: (N,) int64 permutation: class-sorted batches would destroy the statistics. chunk: images a forward pass.
    """
    chunk = max(chunk // clean_pass.group, 1) * clean_pass.group
    parts = [clean_pass(standardize(images[index], mean)) for index in _split_order(order, chunk)]
    confidence, clusters = torch.cat(parts).max(1)
    of_images, sureness = torch.empty_like(clusters), torch.empty_like(confidence)
    of_images[order], sureness[order] = clusters, confidence
    return Assignment(of_images, sureness)


def _split_order(order: Tensor, chunk: int) -> list[Tensor]:
    """`order` in chunks, a last chunk of one image joined to the chunk before it."""
    parts = list(order.split(chunk))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def count_family_work(build: Callable[[int, Shape, Any], nn.Module], task: Task) -> Cost:
    """What a trial of the family computes, whose model `build` makes: each image three forward passes' worth a training
    pass (one forward, two back), one in the clean pass, one in the evaluation."""
    forward, passes = count_forward(build(task.k, task.shape, task.params), task.shape), task.params.passes
    images = float(task.n * task.epochs)
    efficiency = min(1.0, task.params.width) ** NARROW
    return Cost(forward * images * (3 * passes + 2), steps=images * passes / task.params.batch, efficiency=efficiency)


@torch.no_grad()
def calibrate_and_assign(model: nn.Module, images: Tensor) -> Tensor:
    """Fill in the population statistics from all clean images, then cluster them as deployed: (N,) int64."""
    parts = torch.randperm(len(images), device=images.device)
    calibrate(model, (images[index].float() / 255 for index in _split_order(parts, CALIBRATION_BATCH)))
    model.eval()
    return torch.cat([model(x.float() / 255).argmax(1) for x in images.split(CALIBRATION_BATCH)])

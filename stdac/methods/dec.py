"""DEC, Deep Embedded Clustering (Xie et al. 2016), and IDEC, which keeps the reconstruction (Guo et al. 2017).

Both start from an autoencoder that was pre-trained end to end, as FcDEC of Guo et al. 2018 is, or layer by layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from stdac.augment import AUGMENTATIONS, augment
from stdac.autoencoders import Autoencoder, EncoderWithCentres
from stdac.errors import StdacError
from stdac.methods.ae_kmeans import assign_all, place_centres
from stdac.methods.autoencoder import (
    EPOCHS,
    PretrainedParams,
    load_autoencoder,
    measure_reconstruction,
    name_autoencoder,
)
from stdac.methods.method import Cost, Fitted, Method, Shape, Task, count_forward
from stdac.train import Assignment, Trainer, phase
from stdac.trial import Trial, check_ranges

PRETRAIN_EPOCHS = 500  # Guo et al. 2018
STEPS = 20_000  # of clustering, at most


@dataclass(frozen=True)
class DECParams(PretrainedParams):
    """Hyperparameters. An epoch of the clustering phase is one target update: `update_interval` mini-batches.

    batch: images a mini-batch. restarts: of k-means on the codes. optimizer: "sgd", with momentum .9, or "adam". lr:
    its learning rate. update_interval: mini-batches between two updates of the target distribution. tolerance: training
    ends when a smaller share of images changes cluster between two updates. reconstruction: weight of the
    reconstruction's mean squared error, which IDEC keeps.
    """

    batch: int = 256
    restarts: int = 20
    optimizer: str = "sgd"
    lr: float = 0.01
    update_interval: int = 160
    tolerance: float = 0.001
    reconstruction: float = 0.0

    network: ClassVar[str] = "dense"
    augmentation: ClassVar[str] = "none"  # of what is trained on, in both phases
    published: ClassVar[tuple[str, int]] = ("sgd", PRETRAIN_EPOCHS)  # how the autoencoder is trained, see `RECIPES`
    cpu_epochs: ClassVar[int] = EPOCHS

    def resolved(self, dataset: str) -> Self:
        """Check the ranges, fill in the budget. Raises StdacError for a value out of its range."""
        check_ranges(self, dict.fromkeys(("dimensions", "batch", "restarts", "update_interval"), 1), ("width", "lr"))
        check_ranges(self, {"tolerance": 0, "reconstruction": 0}, ())
        if self.optimizer not in ("sgd", "adam"):
            raise StdacError(f"got optimizer = {self.optimizer!r}, expected sgd or adam")
        return self.fill_budget(*self.published, self.cpu_epochs)


@dataclass(frozen=True)
class IDECParams(DECParams):
    """Hyperparameters. The loss is γ KL + reconstruction with γ = .1 in the paper, which is ten times this one."""

    optimizer: str = "adam"
    lr: float = 1e-3
    update_interval: int = 140
    reconstruction: float = 10.0  # relative to the KL divergence


def name_needed(trial: Trial) -> list[Trial]:
    """The autoencoder that a trial of the family starts from."""
    params: DECParams = trial.params  # type: ignore[assignment]  # it is of this family
    return name_autoencoder(trial, network=params.network, augmentation=params.augmentation)


def build(k: int, shape: Shape, params: DECParams) -> EncoderWithCentres:
    """The untrained deployed model."""
    return EncoderWithCentres(k, shape, params.network, params.width, params.dimensions, params.factor)


def sharpen_targets(q: Tensor) -> Tensor:
    """p (N, K) from soft assignments q (N, K): squared, over cluster frequency, rows summing to 1 (Eq. 3)."""
    weight = q.square() / q.sum(0)
    return weight / weight.sum(1, keepdim=True)


def clustering_loss(p: Tensor, q: Tensor) -> Tensor:
    """KL(P || Q), summed over clusters, mean over images (Eq. 2)."""
    return (p * (p.clamp_min(1e-12) / q).log()).sum(1).mean()


class Previous(nn.Module):
    """The clusters at the last target update, kept as a buffer so that they survive a restart."""

    labels: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.full((n,), -1))
        self.register_buffer("changed", torch.tensor(1.0))

    def update(self, clusters: Tensor) -> None:
        """Take the new clusters, noting the share that changed."""
        self.changed = (clusters != self.labels).float().mean()
        self.labels = clusters


def fit(images: Tensor, k: int, params: DECParams, trainer: Trainer) -> Fitted:
    """Place centres by k-means on the autoencoder's codes, then train encoder and centres, and the decoder where the
    reconstruction is kept."""
    autoencoder = load_autoencoder(trainer)
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params).to(trainer.device)
    model.take_encoder(autoencoder)
    place_centres(model, images, k, params.restarts, trainer)
    cluster(model, autoencoder, images, params, trainer)
    return Fitted(assign_all(model, images).argmax(1), model.eval())


def cluster(
    model: EncoderWithCentres, autoencoder: Autoencoder, images: Tensor, params: DECParams, trainer: Trainer
) -> None:
    """Phase "cluster": self-training on the target distribution, mini-batches in a fixed order that wraps around."""
    learned = nn.ModuleDict({"encoder": model.encoder, "assign": model.assign})
    if params.reconstruction:
        learned["decoder"] = autoencoder.decoder
    if params.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(learned.parameters(), lr=params.lr, fused=True)
    else:
        optimizer = torch.optim.SGD(learned.parameters(), lr=params.lr, momentum=0.9)
    previous = Previous(len(images)).to(images.device)
    order = torch.randperm(len(images), device=images.device)
    evaluated: list[Tensor] = []  # the last soft assignments, of which the next targets are; computed anew on resuming

    def batches(epoch: int) -> Iterator[tuple[Tensor, ...]]:
        p = sharpen_targets(evaluated.pop() if evaluated else assign_all(model, images))
        offsets = torch.arange(params.batch, device=images.device)
        for step in range((epoch - 1) * params.update_interval, epoch * params.update_interval):
            index = order[(step * params.batch + offsets) % len(images)]
            yield images[index].float() / 255, p[index]

    def evaluate(_epoch: int) -> Assignment:
        evaluated[:] = [assign_all(model, images)]
        confidence, clusters = evaluated[0].max(1)
        previous.update(clusters)
        return Assignment(clusters, confidence)

    phase(
        trainer,
        "cluster",
        nn.ModuleDict({"learned": learned, "previous": previous}),
        optimizer,
        epochs=trainer.epochs,
        batches=batches,
        loss=partial(divergence_loss, model, autoencoder, params.augmentation, params.reconstruction),
        evaluate=evaluate,
        finished=lambda: float(previous.changed) < params.tolerance,
        main=True,
    )


def divergence_loss(
    model: EncoderWithCentres, autoencoder: Autoencoder, augmentation: str, reconstruction: float, x: Tensor, p: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """`clustering_loss` of images x (B, C, H, W) in [0, 1], augmented where that is asked for, against the targets
    p (B, K) of the clean ones; and the weighted reconstruction."""
    if augmentation != "none":
        x = augment(x, AUGMENTATIONS[augmentation])
    z = model.embed(x)
    divergence = clustering_loss(p, model.classify(z))
    if not reconstruction:
        return divergence, {"loss_clustering": divergence}
    error = measure_reconstruction(autoencoder, z, x)
    return divergence + reconstruction * error, {"loss_clustering": divergence, "loss_reconstruction": error}


def count_work(task: Task) -> Cost:
    """What a trial computes beside its autoencoder's: each epoch its mini-batches, and all images through the
    encoder for the evaluation, of which the next targets are."""
    params, encoder = task.params, count_forward(build(task.k, task.shape, task.params), task.shape)
    trained = 3.0 * (2 if params.reconstruction else 1) * params.update_interval * params.batch
    return Cost(encoder * task.epochs * (trained + task.n), steps=task.epochs * params.update_interval)


DEC = Method(
    title="DEC",
    params=DECParams,
    build=build,
    fit=fit,
    epochs=STEPS // 160,
    cost=count_work,
    needs=name_needed,
    readings=("budget",),
    colours={"DEC": "#997700"},
    small={"width": 0.25, "pretrain_epochs": 50},
)
IDEC = Method(
    title="IDEC",
    params=IDECParams,
    build=build,
    fit=fit,
    epochs=-(-STEPS // 140),
    cost=count_work,
    needs=name_needed,
    readings=("budget",),
    colours={"IDEC": "#666600"},
    small={"width": 0.25, "pretrain_epochs": 50},
)

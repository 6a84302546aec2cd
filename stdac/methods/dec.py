"""DEC: Deep Embedded Clustering (Xie et al. 2016), pre-trained end to end (as FcDEC of Guo et al. 2018)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from stdac.methods.kmeans import find_centres
from stdac.methods.method import Cost, Fitted, Method, Shape, Task, count_forward
from stdac.networks import SoftAssignment, Standardize, mlp, scale_channels
from stdac.train import Assignment, Trainer, phase
from stdac.trial import Params, check_ranges

EVAL_BATCH = 1000


@dataclass(frozen=True)
class DECParams(Params):
    """Hyperparameters. An epoch of the clustering phase is one target update: `update_interval` mini-batches."""

    width: float = 1.0  # multiplier of the hidden layers' 500-500-2000 units
    dimensions: int = 10  # of the code
    # paper: pixels 0-255 times .02 for its layer-wise recipe; here: [0, 1], which the end-to-end recipe's lr 1 is for
    scale: float = 1.0
    pretrain_epochs: int = 500
    pretrain_lr: float = 1.0  # SGD, momentum .9, mean squared error over pixels
    batch: int = 256
    restarts: int = 20  # of k-means on the codes
    lr: float = 0.01  # SGD, momentum .9
    update_interval: int = 160  # mini-batches between two updates of the target distribution
    tolerance: float = 0.001  # ends when a smaller share of images changes cluster between two updates

    def resolved(self, dataset: str) -> Self:
        """Check the ranges. Raises StdacError for a value out of its range."""
        least = dict.fromkeys(("dimensions", "pretrain_epochs", "batch", "restarts", "update_interval"), 1)
        check_ranges(self, least | {"tolerance": 0}, ("width", "lr", "pretrain_lr", "scale"))
        return self


class DECModel(nn.Module):
    """Scale, encode, soft assignment: (B, C, H, W) float32 in [0, 1] -> q (B, K)."""

    def __init__(self, k: int, pixels: int, params: DECParams) -> None:
        super().__init__()
        self.standardize = Standardize(0.0, params.scale)
        self.encoder = mlp([pixels, *list_hidden(params), params.dimensions])
        self.assign = SoftAssignment(k, params.dimensions)

    def scaled(self, x: Tensor) -> Tensor:
        """What the autoencoder reconstructs: (B, C, H, W) -> (B, CHW)."""
        y: Tensor = self.standardize(x).flatten(1)
        return y

    def embed(self, x: Tensor) -> Tensor:
        """The codes: (B, C, H, W) -> (B, d) float32."""
        z: Tensor = self.encoder(self.scaled(x))
        return z

    def classify(self, z: Tensor) -> Tensor:
        """Soft assignments of codes z (B, d): (B, K) float32."""
        q: Tensor = self.assign(z)
        return q

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embed(x))


def build(k: int, shape: Shape, params: DECParams) -> DECModel:
    """The untrained deployed model."""
    return DECModel(k, shape[0] * shape[1] * shape[2], params)


def list_hidden(params: DECParams) -> list[int]:
    """Units of the encoder's hidden layers."""
    return [scale_channels(units, params.width) for units in (500, 500, 2000)]


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
    """Pre-train an autoencoder, place centres by k-means on its codes, then train encoder and centres on KL(P || Q)."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    model = build(k, shape, params).to(trainer.device)
    decoder = mlp([params.dimensions, *reversed(list_hidden(params)), shape[0] * shape[1] * shape[2]]).to(
        trainer.device
    )
    pretrain(model, decoder, images, params, trainer)
    model.assign.centres.data.copy_(_find_initial_centres(model, images, k, params, trainer))
    cluster(model, images, params, trainer)
    return Fitted(assign_softly(model, images).argmax(1), model.eval())


def pretrain(model: DECModel, decoder: nn.Module, images: Tensor, params: DECParams, trainer: Trainer) -> None:
    """Phase "pretrain": mean squared reconstruction error, shuffled mini-batches."""
    layers = nn.ModuleDict({"encoder": model.encoder, "decoder": decoder})
    optimizer = torch.optim.SGD(layers.parameters(), lr=params.pretrain_lr, momentum=0.9)

    def batches(_epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for index in torch.randperm(len(images), device=images.device).split(params.batch):
            yield (images[index].float() / 255,)

    loss = partial(_reconstruction_loss, model, decoder)
    phase(trainer, "pretrain", layers, optimizer, epochs=params.pretrain_epochs, batches=batches, loss=loss)


def _reconstruction_loss(model: DECModel, decoder: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of what the decoder makes of the codes of x (B, C, H, W) in [0, 1]."""
    reconstruction = (decoder(model.embed(x)) - model.scaled(x)).square().mean()
    return reconstruction, {"loss_reconstruction": reconstruction}


@torch.no_grad()
def _find_initial_centres(model: DECModel, images: Tensor, k: int, params: DECParams, trainer: Trainer) -> Tensor:
    """k-means on the codes of all images: (K, d)."""
    codes = torch.cat([model.embed(x.float() / 255) for x in images.split(EVAL_BATCH)])
    return torch.from_numpy(find_centres(codes.cpu().numpy(), k, trainer.seed, params.restarts))


@torch.no_grad()
def assign_softly(model: nn.Module, images: Tensor) -> Tensor:
    """q of all images: (N, K)."""
    return torch.cat([model(x.float() / 255) for x in images.split(EVAL_BATCH)])


def cluster(model: DECModel, images: Tensor, params: DECParams, trainer: Trainer) -> None:
    """Phase "cluster": self-training on the target distribution, mini-batches in a fixed order that wraps around."""
    learned = nn.ModuleDict({"encoder": model.encoder, "assign": model.assign})
    optimizer = torch.optim.SGD(learned.parameters(), lr=params.lr, momentum=0.9)
    previous = Previous(len(images)).to(images.device)
    order = torch.randperm(len(images), device=images.device)

    def batches(epoch: int) -> Iterator[tuple[Tensor, ...]]:
        p = sharpen_targets(assign_softly(model, images))
        offsets = torch.arange(params.batch, device=images.device)
        for step in range((epoch - 1) * params.update_interval, epoch * params.update_interval):
            index = order[(step * params.batch + offsets) % len(images)]
            yield images[index].float() / 255, p[index]

    def evaluate(_epoch: int) -> Assignment:
        confidence, clusters = assign_softly(model, images).max(1)
        previous.update(clusters)
        return Assignment(clusters, confidence)

    phase(
        trainer,
        "cluster",
        nn.ModuleDict({"learned": learned, "previous": previous}),
        optimizer,
        epochs=trainer.epochs,
        batches=batches,
        loss=partial(_divergence_loss, model),
        evaluate=evaluate,
        finished=lambda: float(previous.changed) < params.tolerance,
        main=True,
    )


def _divergence_loss(model: DECModel, x: Tensor, p: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """`clustering_loss` of images x (B, C, H, W) in [0, 1] against their targets p (B, K)."""
    divergence = clustering_loss(p, model(x))
    return divergence, {"loss_clustering": divergence}


def count_work(task: Task) -> Cost:
    """What a trial computes: pre-training passes through encoder and decoder, which has as many weights; then each
    epoch its mini-batches, and all images through the encoder for the targets and for the evaluation."""
    params, encoder = task.params, count_forward(build(task.k, task.shape, task.params), task.shape)
    pretraining = 3.0 * 2 * encoder * task.n * params.pretrain_epochs
    trained = params.update_interval * params.batch
    steps = params.pretrain_epochs * task.n / params.batch + task.epochs * params.update_interval
    return Cost(encoder * task.epochs * (3.0 * trained + 2 * task.n), pretraining, steps)


DEC = Method(
    title="DEC",
    params=DECParams,
    build=build,
    fit=fit,
    epochs=125,  # at most 20,000 mini-batches, as in Guo et al.
    cost=count_work,
    colours={"DEC": "#997700"},
    small={"width": 0.25, "pretrain_epochs": 50},
)

"""DCN, Deep Clustering Network (Yang et al. 2017): an autoencoder whose codes are drawn to the centres of k-means,
which follow them mini-batch by mini-batch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdac.autoencoders import Autoencoder, EncoderWithCentres
from stdac.errors import StdacError
from stdac.methods.ae_kmeans import assign_all, build, place_centres
from stdac.methods.autoencoder import (
    EPOCHS,
    RECIPES,
    PretrainedParams,
    load_autoencoder,
    make_optimizer,
    measure_reconstruction,
    name_autoencoder,
)
from stdac.methods.kmeans import count_kmeans
from stdac.methods.method import PUBLISHED, Cost, Fitted, Method, Task, count_forward
from stdac.train import Assignment, Trainer, phase
from stdac.trial import check_ranges

START_COUNT = 100  # images that each centre counts as the mean of, at first: authors' code


@dataclass(frozen=True)
class DCNParams(PretrainedParams):
    """Hyperparameters.

    beta: weight of the squared distance to the centre. batch: images a mini-batch. restarts: of k-means on the codes.
    optimizer: "adam", or "nesterov" as the authors' code, with momentum .9 and biases at twice the rate. lr: its
    learning rate.
    """

    beta: float = 0.1
    batch: int = 256
    restarts: int = 10
    optimizer: str = "adam"
    lr: float = 1e-3

    def resolved(self, dataset: str) -> Self:
        """Check the ranges, fill in the budget. Raises StdacError for a value out of its range."""
        check_ranges(self, dict.fromkeys(("dimensions", "batch", "restarts"), 1), ("width", "lr"))
        check_ranges(self, {"beta": 0}, ())
        if self.optimizer not in ("adam", "nesterov"):
            raise StdacError(f"got optimizer = {self.optimizer!r}, expected adam or nesterov")
        # the authors' recipe trains 250 epochs a layer, and as many all together
        if self.recipe == "dcn":
            return self.fill_budget("adam", RECIPES["dcn"].layer_epochs)
        return replace(self.fill_budget("adam", EPOCHS), budget=PUBLISHED)  # which a CPU can do, too


class Members(nn.Module):
    """Which centre each image is assigned to, and how many images a centre is the mean of; buffers, so that they
    survive a restart. clusters: (N,) int64. counts: (K,) float32."""

    clusters: Tensor
    counts: Tensor

    def __init__(self, clusters: Tensor, k: int) -> None:
        super().__init__()
        self.register_buffer("clusters", clusters)
        self.register_buffer("counts", torch.full((k,), float(START_COUNT), device=clusters.device))


def fit(images: Tensor, k: int, params: DCNParams, trainer: Trainer) -> Fitted:
    """Place centres by k-means on the autoencoder's codes, then train the autoencoder while the centres follow."""
    autoencoder = load_autoencoder(trainer)
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params).to(trainer.device)
    model.take_encoder(autoencoder)
    place_centres(model, images, k, params.restarts, trainer)
    model.assign.centres.requires_grad_(False)
    cluster(model, autoencoder, images, params, trainer)
    return Fitted(assign_all(model, images).argmax(1), model.eval())


def cluster(
    model: EncoderWithCentres, autoencoder: Autoencoder, images: Tensor, params: DCNParams, trainer: Trainer
) -> None:
    """Phase "cluster": a step with centres and assignments fixed; then the mini-batch is assigned anew, and its centres
    move (Algorithm 1)."""
    recipe = RECIPES["adam" if params.optimizer == "adam" else "dcn"]._replace(lr=params.lr)
    optimizer = make_optimizer(autoencoder, recipe)
    centres = model.assign.centres
    members = Members(assign_all(model, images).argmax(1), len(centres))

    def batches(_epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for index in torch.randperm(len(images), device=images.device).split(params.batch):
            x = images[index].float() / 255
            yield x, centres[members.clusters[index]]
            with torch.no_grad():  # the step has been taken
                z = model.embed(x)
                members.clusters[index] = clusters = model.classify(z).argmax(1)
                moved, members.counts = move_centres(centres, members.counts, z, clusters)
                centres.copy_(moved)

    def evaluate(_epoch: int) -> Assignment:
        confidence, clusters = assign_all(model, images).max(1)
        return Assignment(clusters, confidence)

    phase(
        trainer,
        "cluster",
        nn.ModuleDict({"autoencoder": autoencoder, "assign": model.assign, "members": members}),
        optimizer,
        epochs=trainer.epochs,
        batches=batches,
        loss=partial(network_loss, model, autoencoder, params.beta),
        evaluate=evaluate,
        main=True,
    )


def move_centres(centres: Tensor, counts: Tensor, z: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """The centres (K, d) after codes z (B, d) that are assigned to clusters (B,), and the counts (K,) then.

    One image after another each adds 1 to the count n of its centre c, and c += (z - c) / n. That keeps c the
    mean of what it has counted, so all of them at once, in whatever order, are equal to it but for rounding.
    """
    one_hot = F.one_hot(clusters, len(centres)).to(z.dtype)  # (B, K)
    after = counts + one_hot.sum(0)
    return (counts[:, None] * centres + one_hot.T @ z) / after[:, None], after


def network_loss(
    model: EncoderWithCentres, autoencoder: Autoencoder, beta: float, x: Tensor, centre: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over images x (B, C, H, W) in [0, 1] of the squared error, summed over pixels, and of beta times the squared
    distance to the image's centre (B, d)."""
    z = model.embed(x)
    error = measure_reconstruction(autoencoder, z, x) * x[0].numel()
    distance = (z - centre).square().sum(1).mean()
    return error + beta * distance, {"loss_reconstruction": error, "loss_clustering": distance}


def count_work(task: Task) -> Cost:
    """What a trial computes beside its autoencoder's: three passes' worth through encoder and decoder, one of the
    encoder to assign anew and one to evaluate; and k-means on the codes."""
    params, encoder = task.params, count_forward(build(task.k, task.shape, task.params), task.shape)
    before = 2.0 * encoder * task.n + count_kmeans(task, params.dimensions, params.restarts)
    steps = task.epochs * task.n / params.batch
    return Cost(8.0 * encoder * task.n * task.epochs, before, steps)


DCN = Method(
    title="DCN",
    params=DCNParams,
    build=build,
    fit=fit,
    epochs=50,
    cost=count_work,
    needs=name_autoencoder,
    readings=("budget",),
    colours={"DCN": "#332288"},
    small={"width": 0.25, "pretrain_epochs": 50},
)

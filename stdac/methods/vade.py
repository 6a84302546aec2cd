"""VaDE, Variational Deep Embedding (Jiang et al. 2017): a variational autoencoder with a mixture of Gaussians as its
prior, started from a plain autoencoder and a mixture that is fitted to its codes."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from stdac.autoencoders import Autoencoder, EncoderWithCentres, encode_all
from stdac.errors import StdacError
from stdac.methods.ae_kmeans import assign_all
from stdac.methods.autoencoder import (
    EPOCHS,
    RECIPES,
    PretrainedParams,
    draw_batches,
    initialize,
    list_linear,
    load_autoencoder,
    measure_reconstruction,
    name_autoencoder,
)
from stdac.methods.kmeans import count_kmeans
from stdac.methods.method import PUBLISHED, Cost, Fitted, Method, Shape, Task, count_forward
from stdac.train import Assignment, Trainer, phase
from stdac.trial import Trial, check_ranges

PRETRAIN_EPOCHS = 100
CPU_EPOCHS = 30
EPSILON = 1e-4  # of Adam
DECAY, DECAY_EPOCHS, FLOOR = 0.9, 10, 0.1  # of the learning rate, and the least share of it: authors' code
OUTPUT = "sigmoid"


@dataclass(frozen=True)
class VaDEParams(PretrainedParams):
    """Hyperparameters. On a CPU's budget 30 epochs.

    starts: of the mixture on the codes, of which the likeliest is kept. batch: images a mini-batch. lr: Adam's learning
    rate, × .9 every ten epochs, a tenth at least.
    """

    starts: int = 10
    batch: int = 100
    lr: float = 2e-3

    def resolved(self, dataset: str) -> Self:
        """Check the ranges, fill in the budget. Raises StdacError for a value out of its range."""
        check_ranges(self, dict.fromkeys(("dimensions", "batch", "starts"), 1), ("width", "lr"))
        if self.recipe in RECIPES and RECIPES[self.recipe].factor != 1:
            raise StdacError(f"got recipe = {self.recipe!r}, expected one that leaves pixels in [0, 1], such as adam")
        return self.fill_budget("adam", PRETRAIN_EPOCHS, EPOCHS)

    def choose_epochs(self, usual: int) -> int:
        """As the budget has it."""
        return usual if self.budget == PUBLISHED else CPU_EPOCHS


def name_needed(trial: Trial) -> list[Trial]:
    """The autoencoder that a trial starts from, the output of which is a sigmoid."""
    return name_autoencoder(trial, output=OUTPUT)


class MixtureAssignment(nn.Module):
    """A mixture of K Gaussians with diagonal covariances: codes z (B, d) -> posteriors γ (B, K), rows summing to 1.

    Its weights are a softmax of `logits`, its variances exponentials, so that a step leaves both what they must be.
    """

    def __init__(self, k: int, dimensions: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(k))  # uniform
        self.means = nn.Parameter(torch.zeros(k, dimensions))
        self.log_variances = nn.Parameter(torch.zeros(k, dimensions))

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(z, c) of codes z (B, d): (B, K)."""
        distance = (z[:, None] - self.means).square() * (-self.log_variances).exp()  # (B, K, d)
        log_density = -0.5 * (math.log(2 * math.pi) + self.log_variances + distance).sum(2)
        return self.logits.log_softmax(0) + log_density

    def forward(self, z: Tensor) -> Tensor:
        # paper's code: adds 1e-10 to each p(z, c); here: not, because a softmax of logarithms needs no guard
        return self.log_joint(z).softmax(1)


class EncoderWithMixture(EncoderWithCentres):
    """Encode, posteriors of the mixture: (B, C, H, W) float32 in [0, 1] -> (B, K). The code is the mean of q(z | x)."""

    assign: MixtureAssignment  # type: ignore[assignment]  # in place of the other's centres

    def __init__(self, k: int, shape: Shape, width: float, dimensions: int, factor: float) -> None:
        super().__init__(k, shape, width=width, dimensions=dimensions, factor=factor)
        self.assign = MixtureAssignment(k, dimensions)


def build(k: int, shape: Shape, params: VaDEParams) -> EncoderWithMixture:
    """The untrained deployed model."""
    return EncoderWithMixture(k, shape, params.width, params.dimensions, params.factor)


def fit(images: Tensor, k: int, params: VaDEParams, trainer: Trainer) -> Fitted:
    """Fit the mixture to the autoencoder's codes, then train all of it."""
    autoencoder = load_autoencoder(trainer)
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params).to(trainer.device)
    model.take_encoder(autoencoder)
    place_mixture(model, images, k, params.starts, trainer)
    spread = nn.Linear(list_linear(model.encoder)[-1].in_features, params.dimensions)
    initialize(spread, "glorot")
    train(model, autoencoder, spread.to(trainer.device), images, params, trainer)
    return Fitted(assign_all(model, images).argmax(1), model.eval())


def place_mixture(model: EncoderWithMixture, images: Tensor, k: int, starts: int, trainer: Trainer) -> None:
    """Means and variances of the likeliest of several mixtures on the codes of all images; its weights stay uniform."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    codes = encode_all(model, images).cpu().numpy().astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is where training starts
        found = GaussianMixture(k, covariance_type="diag", n_init=starts, random_state=trainer.seed).fit(codes)
    model.assign.means.data.copy_(torch.from_numpy(found.means_))
    model.assign.log_variances.data.copy_(torch.from_numpy(np.log(found.covariances_)))


def train(
    model: EncoderWithMixture,
    autoencoder: Autoencoder,
    spread: nn.Linear,
    images: Tensor,
    params: VaDEParams,
    trainer: Trainer,
) -> None:
    """Phase "cluster": encoder, decoder and mixture. spread: the head of the network for the codes' log-variances."""
    learned = nn.ModuleDict({"autoencoder": autoencoder, "spread": spread, "mixture": model.assign})
    # the authors have an Adam for the network and one for the mixture, with equal settings: that is one for both
    optimizer = torch.optim.Adam(learned.parameters(), lr=params.lr, eps=EPSILON, fused=True)

    def batches(epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for group in optimizer.param_groups:
            group["lr"] = params.lr * max(DECAY ** ((epoch - 1) // DECAY_EPOCHS), FLOOR)
        for x in draw_batches(images, params.batch):
            yield (x,)

    def evaluate(_epoch: int) -> Assignment:
        # paper's code: a code drawn from q(z | x); here: its mean, so that an image's cluster is no matter of chance
        confidence, clusters = assign_all(model, images).max(1)
        return Assignment(clusters, confidence)

    phase(
        trainer,
        "cluster",
        learned,
        optimizer,
        epochs=trainer.epochs,
        batches=batches,
        loss=partial(evidence_loss, model, autoencoder, spread),
        evaluate=evaluate,
        main=True,
    )


def evidence_loss(
    model: EncoderWithMixture, autoencoder: Autoencoder, spread: nn.Linear, x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative evidence lower bound of images x (B, C, H, W) in [0, 1], one sample each, mean over images: the
    cross-entropy, summed over pixels, and `measure_divergence`."""
    mean, log_variance = encode(model, spread, x)
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    error = measure_reconstruction(autoencoder, z, x, OUTPUT) * x[0].numel()
    divergence = measure_divergence(model.assign, z, mean, log_variance).mean()
    return error + divergence, {"loss_reconstruction": error, "loss_clustering": divergence}


def encode(model: EncoderWithMixture, spread: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (B, d) of q(z | x), images x (B, C, H, W) in [0, 1]: two heads of one network."""
    *hidden, head = model.encoder.children()
    x = model.standardize(x).flatten(1)
    for layer in hidden:
        x = layer(x)
    return head(x), spread(x)


def measure_divergence(mixture: MixtureAssignment, z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q(z, c | x) || p(z, c)) of each image (B,), in which q(c | x) is the posterior γ of the sampled code z (B, d);
    q(z | x) has that mean and log-variance (B, d)."""
    log_posterior = mixture.log_joint(z).log_softmax(1)  # (B, K)
    posterior = log_posterior.exp()
    inverse = (-mixture.log_variances).exp()  # (K, d)
    expected = log_variance.exp()[:, None] * inverse + (mean[:, None] - mixture.means).square() * inverse  # (B, K, d)
    cross = 0.5 * (math.log(2 * math.pi) + mixture.log_variances + expected).sum(2) - mixture.logits.log_softmax(0)
    return (posterior * (cross + log_posterior)).sum(1) - 0.5 * (1 + log_variance).sum(1)


def count_work(task: Task) -> Cost:
    """What a trial computes beside its autoencoder's: three passes' worth through encoder and decoder, and one of the
    encoder to evaluate; and the mixture on the codes."""
    params, encoder = task.params, count_forward(build(task.k, task.shape, task.params), task.shape)
    before = float(encoder * task.n) + count_kmeans(task, params.dimensions, params.starts)
    steps = task.epochs * task.n / params.batch
    return Cost(7.0 * encoder * task.n * task.epochs, before, steps)


VADE = Method(
    title="VaDE",
    params=VaDEParams,
    build=build,
    fit=fit,
    epochs=300,
    cost=count_work,
    needs=name_needed,
    readings=("budget",),
    colours={"VaDE": "#CC6677"},
    small={"width": 0.25, "budget": "cpu", "pretrain_epochs": 50},
)

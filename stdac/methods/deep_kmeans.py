"""Deep K-Means (Fard et al. 2018): an autoencoder trained together with the representatives of its codes' clusters, by
a softmax assignment that hardens as its inverse temperature α grows (DKM_a), or is hard from the start (DKM_p)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from stdac.autoencoders import Autoencoder, EncoderWithCentres
from stdac.methods.ae_kmeans import assign_all, place_centres
from stdac.methods.autoencoder import (
    EPOCHS,
    PretrainedParams,
    draw_batches,
    initialize,
    load_autoencoder,
    measure_reconstruction,
    name_autoencoder,
)
from stdac.methods.kmeans import count_kmeans
from stdac.methods.method import BUDGETS, PUBLISHED, Cost, Fitted, Method, Shape, Task, count_forward
from stdac.train import Assignment, Trainer, phase
from stdac.trial import Params, check_choices, check_ranges

EPOCHS_PER_ALPHA = 5  # authors' code; the notebook of the report on it has 1


@dataclass(frozen=True)
class DKMAParams(Params):
    """Hyperparameters of DKM_a, which begins untrained. None: as the budget has it.

    alpha: the inverse temperature, of DKM_a the first one, α₀. budget: "published", or "cpu": one epoch for each value
    of α. epochs_per_alpha: epochs for each. alpha_values: their number. clustering: weight of the distance to the
    representatives, λ. width: multiplier of the hidden layers' units. dimensions: of the code. batch: images a
    mini-batch. lr: Adam's learning rate.
    """

    alpha: float = 0.1
    budget: str = PUBLISHED
    epochs_per_alpha: int | None = None
    alpha_values: int = 40
    clustering: float = 1.0
    width: float = 1.0
    dimensions: int = 10
    batch: int = 256
    lr: float = 1e-3

    def resolved(self, dataset: str) -> Self:
        """Check the ranges, fill in the budget. Raises StdacError for a value out of its range."""
        check_choices(self, {"budget": BUDGETS})
        epochs = EPOCHS_PER_ALPHA if self.budget == PUBLISHED else 1
        filled = self if self.epochs_per_alpha is not None else replace(self, epochs_per_alpha=epochs)
        least = ("epochs_per_alpha", "alpha_values", "dimensions", "batch")
        check_ranges(filled, dict.fromkeys(least, 1), ("width", "lr", "alpha"))
        check_ranges(filled, {"clustering": 0}, ())
        return filled

    def choose_epochs(self, usual: int) -> int:
        """So many for each value of α."""
        return self.alpha_values * self._epochs_per_alpha

    @property
    def _epochs_per_alpha(self) -> int:
        assert self.epochs_per_alpha is not None, "resolved has filled it"
        return self.epochs_per_alpha

    @property
    def factor(self) -> float:
        """Of the pixels in [0, 1]."""
        return 1.0

    def list_alphas(self) -> list[float]:
        """The values of α: each is the one before times 2^(1 / ln(n + 1)²), n counting from 1."""
        alphas = [self.alpha]
        for n in range(1, self.alpha_values):
            alphas.append(alphas[-1] * 2 ** (1 / math.log(n + 1) ** 2))
        return alphas

    def find_alpha(self, epoch: int) -> float:
        """α in an epoch, counted from 1; a trial of more epochs than the schedule has goes on with the last value."""
        return self.list_alphas()[min((epoch - 1) // self._epochs_per_alpha, self.alpha_values - 1)]


@dataclass(frozen=True)
class DKMPParams(PretrainedParams, DKMAParams):
    """Hyperparameters of DKM_p, which begins at an autoencoder and k-means. α stays what it is.

    restarts: of k-means on the codes.
    """

    alpha: float = 1000.0
    alpha_values: int = 20
    restarts: int = 10

    def resolved(self, dataset: str) -> Self:
        """Check the ranges, fill in the budget. Raises StdacError for a value out of its range."""
        check_ranges(self, {"restarts": 1}, ())
        return super().resolved(dataset).fill_budget("adam", EPOCHS)

    def list_alphas(self) -> list[float]:
        """The same value again and again."""
        return [self.alpha] * self.alpha_values


def build(k: int, shape: Shape, params: DKMAParams) -> EncoderWithCentres:
    """The untrained deployed model."""
    return EncoderWithCentres(k, shape, width=params.width, dimensions=params.dimensions, factor=params.factor)


def fit_annealed(images: Tensor, k: int, params: DKMAParams, trainer: Trainer) -> Fitted:
    """Start at random weights and representatives."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    autoencoder = Autoencoder(shape, width=params.width, dimensions=params.dimensions)
    initialize(autoencoder, "glorot")
    model = build(k, shape, params)
    model.take_encoder(autoencoder)
    nn.init.uniform_(model.assign.centres, -1, 1)
    return train(model.to(trainer.device), autoencoder.to(trainer.device), images, params, trainer)


def fit_pretrained(images: Tensor, k: int, params: DKMPParams, trainer: Trainer) -> Fitted:
    """Start at a pre-trained autoencoder, and k-means on its codes."""
    autoencoder = load_autoencoder(trainer)
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params).to(trainer.device)
    model.take_encoder(autoencoder)
    place_centres(model, images, k, params.restarts, trainer)
    return train(model, autoencoder, images, params, trainer)


def train(
    model: EncoderWithCentres, autoencoder: Autoencoder, images: Tensor, params: DKMAParams, trainer: Trainer
) -> Fitted:
    """Phase "cluster": autoencoder and representatives together, by one optimiser, whatever α is."""
    learned = nn.ModuleDict({"autoencoder": autoencoder, "assign": model.assign})
    optimizer = torch.optim.Adam(learned.parameters(), lr=params.lr, fused=True)

    def batches(epoch: int) -> Iterator[tuple[Tensor, ...]]:
        # paper's code: batches drawn with repetition; here: each image once an epoch, as a notebook on it has it
        alpha = torch.tensor(params.find_alpha(epoch), device=images.device)
        for x in draw_batches(images, params.batch):
            yield x, alpha

    def evaluate(_epoch: int) -> Assignment:
        confidence, clusters = assign_all(model, images).max(1)
        return Assignment(clusters, confidence)

    phase(
        trainer,
        "cluster",
        learned,
        optimizer,
        epochs=trainer.epochs,
        batches=batches,
        loss=partial(joint_loss, model, autoencoder, params.clustering),
        evaluate=evaluate,
        main=True,
    )
    # paper's code: the distances when an image was last drawn; here: those to the final representatives
    return Fitted(assign_all(model, images).argmax(1), model.eval())


def soften_assignment(distance: Tensor, alpha: Tensor) -> Tensor:
    """G (B, K), rows summing to 1, of squared distances (B, K) to the representatives: a softmax, which the
    least distance of a row, taken off for the sake of its exponentials, does not change."""
    return (-alpha * (distance - distance.amin(1, keepdim=True).detach())).softmax(1)


def joint_loss(
    model: EncoderWithCentres, autoencoder: Autoencoder, clustering: float, x: Tensor, alpha: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over images x (B, C, H, W) in [0, 1] of the squared error, summed over pixels, and of the squared distances
    to the representatives, weighted by G. alpha: (), float32. Gradients flow through G."""
    z = model.embed(x)
    error = measure_reconstruction(autoencoder, z, x) * x[0].numel()
    distance = (z[:, None] - model.assign.centres).square().sum(2)  # (B, K)
    spread = (soften_assignment(distance, alpha) * distance).sum(1).mean()
    log = {"loss_reconstruction": error, "loss_clustering": spread, "term_alpha": alpha}
    return error + clustering * spread, log


def count_work(task: Task) -> Cost:
    """What a trial computes beside an autoencoder's trial: three passes' worth through encoder and decoder, and one of
    the encoder to evaluate; where it begins with k-means, that on the codes."""
    params, encoder = task.params, count_forward(build(task.k, task.shape, task.params), task.shape)
    kmeans = count_kmeans(task, params.dimensions, params.restarts if isinstance(params, DKMPParams) else 0)
    return Cost(7.0 * encoder * task.n * task.epochs, kmeans, task.epochs * task.n / params.batch)


READINGS = ("budget", "alpha", "epochs_per_alpha")  # the configurations of a report, with one epoch per value of α

DKM_A = Method(
    title="DKM_a, α₀ {alpha:g}",
    params=DKMAParams,
    build=build,
    fit=fit_annealed,
    epochs=40 * EPOCHS_PER_ALPHA,
    cost=count_work,
    readings=READINGS,
    colours={
        "DKM_a, α₀ 0.01": "#77AADD",
        "DKM_a, α₀ 0.1": "#4477AA",
        "DKM_a, α₀ 0.5": "#225588",
        "DKM_a, α₀ 1": "#003366",
    },
    small={"width": 0.25, "budget": "cpu"},
)
DKM_P = Method(
    title="DKM_p, α {alpha:g}",
    params=DKMPParams,
    build=build,
    fit=fit_pretrained,
    epochs=20 * EPOCHS_PER_ALPHA,
    cost=count_work,
    needs=name_autoencoder,
    readings=READINGS,
    colours={
        "DKM_p, α 3": "#DD9977",
        "DKM_p, α 30": "#CC7755",
        "DKM_p, α 150": "#AA5533",
        "DKM_p, α 300": "#773311",
        "DKM_p, α 1000": "#441100",
    },
    small={"width": 0.25, "budget": "cpu", "pretrain_epochs": 50},
)

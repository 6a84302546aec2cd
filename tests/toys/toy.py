"""A method of thirty lines, as docs/contributing.md has it: a dense net, warmed up by reconstruction, then sharpened."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from stdac.methods.method import Fitted, Method, Shape
from stdac.networks import mlp
from stdac.train import Assignment, Trainer, phase
from stdac.trial import Params


@dataclass(frozen=True)
class ToyParams(Params):
    """Hyperparameters."""

    hidden: tuple[int, ...] = (64, 16)  # units of the encoder's layers
    warm_up: int = 5  # epochs
    lr: float = 1e-2


class Toy(nn.Module):
    """Encoder and softmax: (B, C, H, W) float32 in [0, 1] -> (B, K)."""

    def __init__(self, k: int, pixels: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([pixels, *hidden]), mlp([*reversed(hidden), pixels])
        self.head = nn.Linear(hidden[-1], k)

    def embed(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(x.flatten(1))
        return z

    def classify(self, z: Tensor) -> Tensor:
        y: Tensor = self.head(z).softmax(1)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embed(x))


def build(k: int, shape: Shape, params: ToyParams) -> Toy:
    """The untrained model."""
    return Toy(k, prod(shape), params.hidden)


def rebuild_loss(model: Toy, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the reconstruction."""
    error = (model.decoder(model.embed(x)) - x.flatten(1)).square().mean()
    return error, {"loss_reconstruction": error}


def sharpen_loss(model: Toy, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Sure of each image, unsure of all together."""
    y = model(x)
    entropy, spread = -(y * y.log()).sum(1).mean(), -(y.mean(0) * y.mean(0).log()).sum()
    return entropy - spread, {"term_entropy": entropy, "term_spread": spread}


def fit(images: Tensor, k: int, params: ToyParams, trainer: Trainer) -> Fitted:
    """Warm up, then sharpen."""
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params).to(trainer.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=params.lr)
    refined = torch.optim.Adam(model.parameters(), lr=params.lr)

    def batches(_epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for index in torch.randperm(len(images), device=images.device).split(50):
            yield (images[index].float() / 255,)

    def evaluate(_epoch: int) -> Assignment:
        with torch.no_grad():
            confidence, clusters = model(images.float() / 255).max(1)
        return Assignment(clusters, confidence)

    warm = partial(rebuild_loss, model)
    phase(trainer, "warm-up", model, optimizer, epochs=params.warm_up, batches=batches, loss=warm)
    sharp = partial(sharpen_loss, model)
    phase(trainer, "refine", model, refined, epochs=trainer.epochs, batches=batches, loss=sharp, evaluate=evaluate, main=True)
    return Fitted(evaluate(0).clusters, model.eval())


TOY = Method(title="Toy", params=ToyParams, build=build, fit=fit, epochs=4, small={"hidden": (16, 8), "warm_up": 3})

"""A method that needs another trial: it takes over the toy's clusters, and its encoder as an embedding model.

Where $STDAC_TOYS names a folder: it says there that it has begun; its trials fail while there is a file "broken", and
wait while there is a file "wait".
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stdac.errors import StdacError
from stdac.methods import resolve
from stdac.methods.method import Fitted, Method, Shape
from stdac.train import Trainer
from stdac.trial import Params, Trial
from tests.toys.toy import TOY, Toy, ToyParams
from tests.toys.toy import fit as fit_toy


@dataclass(frozen=True)
class FollowerParams(Params):
    """Hyperparameters."""

    hidden: tuple[int, ...] = (16, 8)
    warm_up: int = 3
    share: float = 0.5  # of the images that keep their cluster; the others are noise


class Encoder(nn.Module):
    """The toy's embedding alone."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy

    def forward(self, x: Tensor) -> Tensor:
        return self.toy.embed(x)


def build(k: int, shape: Shape, params: FollowerParams) -> Encoder:
    """The untrained encoder."""
    return Encoder(Toy(k, shape[0] * shape[1] * shape[2], params.hidden))


def list_needs(trial: Trial) -> list[Trial]:
    """The toy on the same images, with the same seed."""
    params = trial.params
    assert isinstance(params, FollowerParams)
    spec = {name: getattr(trial, name) for name in ("dataset", "seed", "n_clusters", "limit", "image_size")}
    return [resolve(spec | {"method": "slow-toy", "params": {"hidden": params.hidden, "warm_up": params.warm_up}})]


def fit(images: Tensor, k: int, params: FollowerParams, trainer: Trainer) -> Fitted:
    """Most sure images keep the toy's cluster."""
    (toy,) = trainer.needed
    clusters, confidence = torch.from_numpy(toy.read_clusters()), toy.read_confidence()
    clusters[np.argsort(confidence)[: round(len(images) * (1 - params.share))].copy()] = -1
    figures = {"confidence": confidence}
    return Fitted(clusters.to(images.device), encoder=Encoder(toy.load_model()).eval(), figures=figures)


def fit_slowly(images: Tensor, k: int, params: ToyParams, trainer: Trainer) -> Fitted:
    """The toy, which the test may hold up or break."""
    folder = Path(os.environ.get("STDAC_TOYS", "/nonexistent"))
    if folder.is_dir():
        (folder / f"begun-{os.getpid()}").touch()
        while (folder / "wait").exists():
            time.sleep(0.1)
        if (folder / "broken").exists():
            raise StdacError("the toy is broken")
    return fit_toy(images, k, params, trainer)


SLOW_TOY = Method(title="Slow toy", params=ToyParams, build=TOY.build, fit=fit_slowly, epochs=4)
FOLLOWER = Method(title="Follower", params=FollowerParams, build=build, fit=fit, needs=list_needs)

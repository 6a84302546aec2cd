"""AE + k-means: k-means on the codes of a pre-trained autoencoder, the baseline of Fard et al. 2018."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from stdac.autoencoders import EncoderWithCentres, encode_all
from stdac.methods.autoencoder import EPOCHS, PretrainedParams, load_autoencoder, name_autoencoder
from stdac.methods.kmeans import count_kmeans, find_centres
from stdac.methods.method import PUBLISHED, Cost, Fitted, Method, Shape, Task, count_forward
from stdac.train import Trainer
from stdac.trial import check_ranges


@dataclass(frozen=True)
class AEKMeansParams(PretrainedParams):
    """Hyperparameters.

    restarts: of k-means, of which the best is kept.
    """

    restarts: int = 20

    def resolved(self, dataset: str) -> Self:
        """Fill in the budget. Raises StdacError for a value out of its range."""
        check_ranges(self, {"restarts": 1}, ("width",))
        return replace(self.fill_budget("adam", EPOCHS), budget=PUBLISHED)  # which a CPU can do, too


def build(k: int, shape: Shape, params: PretrainedParams) -> EncoderWithCentres:
    """The untrained model."""
    return EncoderWithCentres(k, shape, width=params.width, dimensions=params.dimensions, factor=params.factor)


def fit(images: Tensor, k: int, params: AEKMeansParams, trainer: Trainer) -> Fitted:
    """Encode all images, and find the centres on the CPU."""
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params).to(trainer.device)
    model.take_encoder(load_autoencoder(trainer))
    place_centres(model, images, k, params.restarts, trainer)
    return Fitted(assign_all(model, images).argmax(1), model.eval())


def place_centres(model: EncoderWithCentres, images: Tensor, k: int, restarts: int, trainer: Trainer) -> None:
    """Put the centres where k-means on the codes of all images has them."""
    codes = encode_all(model, images).cpu().numpy()
    model.assign.centres.data.copy_(torch.from_numpy(find_centres(codes, k, trainer.seed, restarts)))


@torch.no_grad()
def assign_all(model: EncoderWithCentres, images: Tensor) -> Tensor:
    """Soft assignments of all images (N, C, H, W) uint8: (N, K)."""
    return model.classify(encode_all(model, images))


def count_work(task: Task) -> Cost:
    """What a trial computes beside its autoencoder's: all images through the encoder, and k-means on the codes."""
    encoder = count_forward(build(task.k, task.shape, task.params), task.shape)
    return Cost(2.0 * encoder * task.n + count_kmeans(task, task.params.dimensions, task.params.restarts))


AE_KMEANS = Method(
    title="AE + k-means",
    params=AEKMeansParams,
    build=build,
    fit=fit,
    cost=count_work,
    needs=name_autoencoder,
    readings=("budget",),
    colours={"AE + k-means": "#AA4499"},
    small={"width": 0.1, "pretrain_epochs": 10},
)

"""Features of a pretrained backbone, and k-means on them.

`features` is a trial of its own that clusters nothing: it runs the backbone once over all images, and what it found is
there for every number of clusters, every seed and every method that names it. `features-kmeans` is made of it.
"""

import time
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stdac.autoencoders import encode_all
from stdac.backbones import DEFAULT, DEFAULT_CARD, Card, find_card, find_id, read_file
from stdac.data import Dataset
from stdac.efficientnet import FEATURES, EfficientNetLite0
from stdac.errors import StdacError
from stdac.methods.kmeans import EFFICIENCY, ITERATIONS, find_centres
from stdac.methods.method import Cost, Fitted, Method, Shape, Task
from stdac.onnx_network import OnnxNetwork, Outputs
from stdac.train import Needed, Progress, Trainer
from stdac.trial import Params, Trial, check_choices, check_ranges

POOLINGS = ("average", "norm", "cam")
BATCH = 32  # images of 224 pixels: the widest layer takes 154 MB
SAVED_EVERY = 32  # batches, after which what is done may be saved
TEMPERATURE = 0.1  # of squared distances of vectors of length 1, which lie .2 to .5 apart: scores are no posteriors
FORWARD = 3.9e8  # multiply-adds of EfficientNet-Lite0 for 224x224 pixels; of others it is a guess
SLOWNESS = 0.2  # the rate of depthwise convolutions: .2 s an image on one core that others use too
EPSILON = 1e-6
KEPT = "features"
"""The figure that holds what a trial has found, (N, D)."""


@dataclass(frozen=True)
class FeaturesParams(Params):
    """Hyperparameters.

    backbone: the id of one, or the name that `stdac backbone list` gives it, which becomes its id when the trial is
    made. pooling: of the last map: its average; "norm", weighted by the squared length of what is at each place; "cam",
    by how much the place speaks for the classes that the network sees (Zhou et al. 2016).
    """

    backbone: str = DEFAULT
    pooling: str = "average"

    def resolved(self, dataset: str) -> Self:
        """The backbone's id in place of its name. Raises StdacError for an unknown one, or an unknown pooling."""
        check_choices(self, {"pooling": POOLINGS})
        return replace(self, backbone=find_id(self.backbone))


@dataclass(frozen=True)
class FeaturesKMeansParams(FeaturesParams):
    """The same, and

    restarts: of k-means, of which the best is kept.
    """

    restarts: int = 20

    def resolved(self, dataset: str) -> Self:
        """The same, with the range checked."""
        check_ranges(self, {"restarts": 1}, ())
        return super().resolved(dataset)


class Features(nn.Module):
    """Normalise, run the backbone, pool, centre, scale to length 1: (B, 1 or 3, H, W) float32 in [0, 1] -> (B, D).

    Without weights until `open` is called or a state_dict loaded.
    """

    mean: Tensor
    std: Tensor
    centre: Tensor

    def __init__(self, params: FeaturesParams) -> None:
        super().__init__()
        self.pooling = params.pooling
        is_default = params.backbone == DEFAULT_CARD.id
        network = EfficientNetLite0(has_classifier=params.pooling == "cam") if is_default else OnnxNetwork()
        self.network: EfficientNetLite0 | OnnxNetwork = network
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))
        self.register_buffer("centre", torch.zeros(FEATURES if is_default else 0))
        self.requires_grad_(False)

    def open(self, content: bytes, card: Card) -> None:
        """Take a backbone's file. Raises StdacError where the pooling asks for what the backbone has not."""
        self.mean, self.std = torch.tensor(card.mean), torch.tensor(card.std)
        if isinstance(self.network, EfficientNetLite0):
            self.network.load_published(torch.load(BytesIO(content), map_location="cpu", weights_only=True))
            return
        lacking = {"norm": not card.map, "cam": not (card.map and card.classifier)}
        if lacking.get(self.pooling):
            raise StdacError(
                f"pooling = {self.pooling!r} needs a backbone whose card names its last map"
                f"{' and classifier' if self.pooling == 'cam' else ''}: take pooling = 'average'"
            )
        self.network.open(content, Outputs(card.features, card.map, card.classifier))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
        self.centre = torch.empty_like(state.get(f"{prefix}centre", self.centre))  # D is the file's
        super()._load_from_state_dict(state, prefix, *others)

    def describe(self, x: Tensor) -> Tensor:
        """The pooled map (B, D), neither centred nor scaled."""
        x = x if x.shape[1] == 3 else torch.cat([x, x, x], 1)
        x = (255 * x - self.mean[:, None, None]) / self.std[:, None, None]  # before the zeros of any padding
        features, map_ = self.network(x)
        if self.pooling == "average":
            z: Tensor = features
            return z
        weights = map_.square().sum(1, keepdim=True) if self.pooling == "norm" else self.attend(features, map_)
        weights = weights + EPSILON  # (B, 1, h, w)
        pooled: Tensor = (map_ * weights).sum((2, 3)) / weights.sum((2, 3))
        return pooled

    def attend(self, features: Tensor, map_: Tensor) -> Tensor:
        """Class activation map (B, 1, h, w), not below 0.

        paper: of the likeliest class. here: of all, by their probabilities, as the likeliest jumps from one class to
        another where two are as likely, and two runtimes would give different features.
        """
        if isinstance(self.network, EfficientNetLite0):
            assert self.network.classifier is not None, "it has one for this pooling"
            weight, scores = self.network.classifier.weight, self.network.classifier(features)
        else:
            weight = self.network.class_weights  # type: ignore[assignment]  # `open` has seen to it
            weight = weight if weight.shape[1] == features.shape[1] else weight.T
            scores = features @ weight.T
        direction = scores.softmax(1) @ weight  # (B, D)
        return F.relu((map_ * direction[:, :, None, None]).sum(1, keepdim=True))

    def finish(self, z: Tensor) -> Tensor:
        """Centred and of length 1: (B, D) -> (B, D)."""
        z = z - self.centre
        return z / (z.square().sum(1, keepdim=True) + EPSILON).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.describe(x))


class FeaturesKMeans(nn.Module):
    """Features, nearest centre: (B, 1 or 3, H, W) float32 in [0, 1] -> (B, K)."""

    centres: Tensor

    def __init__(self, k: int, features: Features) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("centres", torch.zeros(k, len(features.centre)))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
        self.centres = torch.empty_like(state.get(f"{prefix}centres", self.centres))
        super()._load_from_state_dict(state, prefix, *others)

    def embed(self, x: Tensor) -> Tensor:
        """The features, centred and of length 1: (B, D)."""
        z: Tensor = self.features(x)
        return z

    def classify(self, z: Tensor) -> Tensor:
        """Scores of features z (B, D), by squared distance: (B, K) float32."""
        return (-(z[:, None] - self.centres).square().sum(2) / TEMPERATURE).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embed(x))


def build_features(k: int, shape: Shape, params: FeaturesParams) -> Features:
    """The encoder without weights. k is of no account: it clusters nothing."""
    return Features(params)


def build(k: int, shape: Shape, params: FeaturesParams) -> FeaturesKMeans:
    """The model without weights."""
    return FeaturesKMeans(k, Features(params))


def ask(params: FeaturesParams) -> dict[str, Any]:
    """What trials have where nobody says otherwise: images as the backbone's card has them."""
    card = find_card(params.backbone)[1]
    return {"image_size": card.size, "background": card.background}


@torch.no_grad()
def fit_features(images: Tensor, k: int, params: FeaturesParams, trainer: Trainer) -> Fitted:
    """Run the backbone over all images."""
    name, card = find_card(params.backbone)
    model = Features(params)
    model.open(read_file(name, card), card)
    model = model.to(trainer.device).eval()
    z = describe_all(model, images, trainer)
    model.centre = z.mean(0)
    return Fitted(None, encoder=model, figures={KEPT: model.finish(z).cpu().numpy()})


def describe_all(model: Features, images: Tensor, trainer: Trainer) -> Tensor:
    """The pooled maps of all images (N, D), from where a checkpoint stands on."""
    saved = trainer.saved.get(KEPT)
    parts: list[Tensor] = [] if saved is None else [saved["features"].to(trainer.device)]
    begun = done = sum(map(len, parts))
    batches, began = images[begun:].split(BATCH) if begun < len(images) else (), time.perf_counter()
    for number, x in enumerate(batches, 1):
        parts.append(model.describe(x.float() / 255))
        done += len(x)
        rate = (done - begun) / (time.perf_counter() - began)
        trainer.recorder.progress(Progress(KEPT, 1, 1, number, len(batches), rate))
        if number % SAVED_EVERY == 0:
            parts = [torch.cat(parts)]
            trainer.saved[KEPT] = {"epoch": 0, "main": False, "features": parts[0].cpu()}
            trainer.recorder.checkpoint(trainer.saved)
    trainer.recorder.score(KEPT, 0, None, {"images_seen": done, "seconds": time.perf_counter() - began}, main=True)
    return torch.cat(parts)


def name_features(trial: Trial) -> list[Trial]:
    """The trial of the features that a trial with FeaturesParams needs: the same one for every K and seed."""
    own = FeaturesParams(trial.params.backbone, trial.params.pooling)  # type: ignore[attr-defined]
    return [replace(trial, method="features", seed=0, n_clusters=0, epochs=0, params=own, needs=(), source=None)]


def read_features(needed: Needed, images: Tensor) -> NDArray[np.float32] | None:
    """What a needed trial has kept of these images (N, C, H, W) uint8: (N, D); None where it kept nothing, or saw
    others."""
    kept = needed.read_figure(KEPT)
    if kept is None or needed.fingerprint != Dataset(images.cpu().numpy(), None).fingerprint:
        return None
    return kept.astype(np.float32)


@torch.no_grad()
def fit(images: Tensor, k: int, params: FeaturesKMeansParams, trainer: Trainer) -> Fitted:
    """Find the centres on the CPU; the features are those of the needed trial."""
    encoder = trainer.needed[0].load_model()
    assert isinstance(encoder, Features), "name_features names one"
    encoder = encoder.to(trainer.device)
    kept = read_features(trainer.needed[0], images)
    z = encode_all(encoder, images, BATCH) if kept is None else torch.from_numpy(kept).to(trainer.device)
    model = FeaturesKMeans(k, encoder).eval()
    model.centres = torch.from_numpy(find_centres(z.cpu().numpy(), k, trainer.seed, params.restarts)).to(z.device)
    return Fitted(torch.cat([model.classify(part).argmax(1) for part in z.split(BATCH)]), model)


def count_features(task: Task) -> Cost:
    """What the features cost: all images through the backbone once."""
    return Cost(FORWARD * task.shape[1] * task.shape[2] / 224**2 * task.n, efficiency=SLOWNESS)


def count_work(task: Task) -> Cost:
    """What a trial computes beside its features': k-means."""
    return Cost(float(task.n) * task.params.restarts * ITERATIONS * task.k * FEATURES, efficiency=EFFICIENCY)


FEATURES_METHOD = Method(
    title="features, {pooling} pooling",
    params=FeaturesParams,
    build=build_features,
    fit=fit_features,
    cost=count_features,
    takes_k=False,
    asks=ask,
    pretrained=True,
)
FEATURES_KMEANS = Method(
    title="features + k-means, {pooling} pooling",
    params=FeaturesKMeansParams,
    build=build,
    fit=fit,
    cost=count_work,
    needs=name_features,
    asks=ask,
    pretrained=True,
)

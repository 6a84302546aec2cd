"""What a clustering method is: a file of this folder describes one system in one `Method`, and nothing else does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stdac.errors import StdacError
from stdac.trial import Params, Trial, list_named_trials, list_naming_fields

Shape = tuple[int, int, int]
CHECKED = 64  # images that a fitted model is tried on
PUBLISHED = "published"
PRETRAINED = "(pretrained)"
"""The mark, in tables, of what was trained before on other images."""

BUDGETS = (PUBLISHED, "cpu")
"""How long a method with the parameter `budget` trains: as its source says, or what CPU cores can do in an hour."""


class Fitted(NamedTuple):
    """What a method returns.

    labels: (N,) int64, the cluster of each image, -1 = noise, in no cluster; where there is a model, its argmax in eval
    mode; None where nothing is clustered, and there is an encoder. model: (B, C, H, W) float32 in [0, 1] -> (B, K)
    float32 scores whose rows sum to 1, with embed: (B, C, H, W) -> (B, D) and classify: (B, D) -> (B, K), which one
    after the other are the model; None where new images cannot be clustered. encoder: (B, C, H, W) -> (B, D) float32,
    an embedding model, of a method that has one and no model. figures: named small arrays that pictures of the trial
    are drawn from. Of a method without a main phase, whose one row they are for: confidence: (N,) float32 in [0, 1],
    how sure the clustering is of each image; terms: as a phase logs them, loss_… or term_…; spaces: (N, D) by name, in
    each of which it is scored how often an image's nearest neighbours have its label, see `stdac.metrics`.
    """

    labels: Tensor | None
    model: nn.Module | None = None
    encoder: nn.Module | None = None
    figures: Mapping[str, NDArray[np.generic]] = {}
    confidence: Tensor | None = None
    terms: Mapping[str, float] = {}
    spaces: Mapping[str, NDArray[np.floating[Any]]] = {}


class Cost(NamedTuple):
    """What a trial computes. training: multiply-adds of its main phase; pretraining: of all before it; steps: the
    mini-batches of both. efficiency: the rate of its multiply-adds on a CPU, as a share of that of training ST-DAC."""

    training: float
    pretraining: float = 0.0
    steps: float = 0.0
    efficiency: float = 1.0

    @property
    def macs(self) -> float:
        """Multiply-adds in all."""
        return self.training + self.pretraining


class Task(NamedTuple):
    """What the cost of a trial depends on. shape: (C, H, W) of its images; n: their number."""

    k: int
    shape: Shape
    n: int
    params: Any
    epochs: int


def need_named_trials(trial: Trial) -> Sequence[Trial | str]:
    """The trials that the parameters name by their ids, see `stdac.trial.names_trials`; most methods name none."""
    return list_named_trials(trial.params)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A clustering system: all that the rest of the project knows of it.

    title: its name in tables, with parameters in braces: "ST-DAC, {stn} STN". params: its frozen dataclass, in which
    what tells two variants apart comes first. fit: (images, k, params, trainer) -> Fitted, with images (N, C, H, W)
    uint8 on the device; it never sees ground truth. build: (k, image shape (C, H, W), params) -> the untrained model,
    or encoder, whose state_dict a model file holds; None where there is neither.

    epochs: default length of the main phase, which `fit` marks by main=True; 0 where there is none. cost: of a Task; a
    guess from `build` if not given. colours: of curves, by filled-in title. small: parameters of a trial of seconds,
    for suggest-k and tests. images_seen: what the main phase needs to see of pictures of one's own, 0 where its epochs
    are no passes, and on_pictures: parameters there, see `stdac.sizing`. readings: parameters that may differ from
    their defaults in a trial that still follows the published one: readings of an unclear text. needs: the trials whose
    results the trainer is to have, those that its parameters name if not given; the grid adds them, but for those named
    by their ids alone, which it must have. is_floor: one of those that every learned method has to beat. takes_source:
    it reads the labels of a second data set, Trial.source. limit: the images that its source clusters, a random subset,
    where a trial does not say how many; None: all. takes_k: its trials are given the number of clusters; one that
    clusters nothing, or finds that number, has n_clusters 0 in them. asks: of resolved parameters, the image_size and
    background of trials that do not say theirs, of a method whose network was trained before. pretrained: it starts
    from what was trained on other images. follows: its clusters are made of those of the trials that it names, so that
    it is no voice of its own beside them.
    """

    title: str
    params: type[Params]
    fit: Callable[[Tensor, int, Any, Any], Fitted]
    build: Callable[[int, Shape, Any], nn.Module] | None = None
    epochs: int = 0
    cost: Callable[[Task], Cost] | None = None
    colours: Mapping[str, str] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)
    images_seen: int = 0
    on_pictures: Mapping[str, Any] = field(default_factory=dict)
    readings: tuple[str, ...] = ()
    needs: Callable[[Trial], Sequence[Trial | str]] = need_named_trials
    is_floor: bool = False
    takes_source: bool = False
    limit: int | None = None
    takes_k: bool = True
    asks: Callable[[Any], Mapping[str, Any]] | None = None
    follows: bool = False
    pretrained: bool = False

    def fill_title(self, params: Mapping[str, Any]) -> str:
        """The title with a trial's parameters, {name: value}, filled in, PRETRAINED where that holds, and the budget
        where that is not the published one; what they lack has its default. Of several trials that a parameter names
        it has the number."""
        budget = params.get("budget", PUBLISHED)
        mark = f" {PRETRAINED}" if self.pretrained else ""
        return self.name_system(params) + mark + ("" if budget == PUBLISHED else f", {budget} budget")

    def name_system(self, params: Mapping[str, Any]) -> str:
        """The title without the budget, of the published system that a trial is one of; no step that is none."""
        values = {name: params.get(name, getattr(self.params(), name)) for name in self.title_params}
        named = list_naming_fields(self.params)
        shown = {n: len(v) if n in named and isinstance(v, list | tuple) else v for n, v in values.items()}
        return self.title.format(**shown).replace(" + none", "")

    @property
    def title_params(self) -> tuple[str, ...]:
        """The parameters that the title names."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.title) if name)

    def estimate(self, task: Task) -> Cost:
        """What a trial computes: by `cost`, else three forward passes' worth an image and epoch, and an evaluation."""
        if self.cost is not None:
            return self.cost(task)
        if self.build is None:
            return Cost(0.0)
        macs = count_forward(self.build(task.k, task.shape, task.params), task.shape)
        return Cost(4.0 * macs * task.n * task.epochs)


def count_forward(model: nn.Module, shape: Shape) -> int:
    """Multiply-adds of one image (C, H, W) through a model's convolutions and dense layers."""
    total = 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d | nn.Linear):
            total += module.weight.numel() * (output[0, 0].numel() if output.ndim == 4 else 1)

    hooks = [module.register_forward_hook(count) for module in model.eval().modules()]
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total


@torch.no_grad()
def check_fitted(fitted: Fitted, images: Tensor, k: int, method: str) -> None:
    """Raise StdacError where a method did not return what `Fitted` promises, tried on some of the images."""
    labels = fitted.labels
    if labels is None and (fitted.encoder is None or fitted.model is not None):
        raise StdacError(f"method {method} returned no labels: expected some, or an encoder and no model")
    if labels is None:
        labels = torch.zeros(len(images), dtype=torch.int64)
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64 or bool((labels < -1).any()):
        got = f"{tuple(labels.shape)} {labels.dtype}, the least {labels.min().item()}"
        raise StdacError(f"method {method} returned labels {got}: expected ({len(images)},) int64 of at least -1")
    sure = fitted.confidence
    if sure is not None and not (sure.shape == labels.shape and bool(((sure >= 0) & (sure <= 1)).all())):
        got = f"{tuple(sure.shape)}, from {sure.min().item():g} to {sure.max().item():g}"
        raise StdacError(f"method {method} returned confidence {got}: expected ({len(images)},) in [0, 1]")
    index = torch.linspace(0, len(images) - 1, min(CHECKED, len(images))).round().long().to(images.device)
    x = images[index].float() / 255
    if fitted.model is not None:
        _check_model(fitted.model.eval(), x, labels[index], k, method)
    if fitted.encoder is not None:
        z = fitted.encoder.eval()(x)
        if z.ndim != 2 or len(z) != len(x):
            raise StdacError(f"the encoder of method {method} returned {tuple(z.shape)}, expected ({len(x)}, D)")


def _check_model(model: Any, x: Tensor, labels: Tensor, k: int, method: str) -> None:
    scores = model(x)
    if scores.shape != (len(x), k):
        raise StdacError(f"the model of method {method} returned {tuple(scores.shape)}, expected ({len(x)}, {k})")
    if not torch.allclose(scores.sum(1), torch.ones_like(scores[:, 0]), atol=1e-3):
        raise StdacError(f"the scores of method {method} do not sum to 1 in every row: end its model in a softmax")
    if not (hasattr(model, "embed") and hasattr(model, "classify")):
        raise StdacError(f"the model of method {method} lacks embed or classify: expected both, see Fitted")
    if not torch.allclose(model.classify(model.embed(x)), scores, atol=1e-3):
        raise StdacError(f"classify(embed(x)) of method {method} differs from its model(x): expected the same scores")
    chosen = scores.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    if bool((labels < 0).any()) or bool((chosen < scores.amax(1) - 1e-3).any()):
        raise StdacError(f"the labels of method {method} are not the argmax of its model: expected those in eval mode")

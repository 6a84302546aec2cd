"""Methods under scikit-learn's estimator contract: a class each, made of the method's own parameters by `estimator_of`.

The classes stand at the end; `stdac` hands them out.
"""

# ruff: noqa: N803  # X is what scikit-learn calls it, by keyword too

import copy
import math
import re
import textwrap
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from stdac.data import IN_MEMORY, Dataset
from stdac.errors import StdacError
from stdac.in_memory import train_in_memory
from stdac.machine import Machine
from stdac.methods import METHODS, resolve
from stdac.methods.method import Method
from stdac.pictures.pixels import Pixels, to_pixels
from stdac.record import LOGGED, OPEN
from stdac.sizing import choose_epochs
from stdac.torch_state import fix_state
from stdac.trial import Params, Trial

PREDICT_BATCH = 1000
MOST_EXACT = 2**53  # of whole numbers in float64
SCALED_BATCH = 1000
CLUSTERS = 10
HISTORY = ("method", "phase", "epoch", "mean_confidence", "clusters_used", *LOGGED)
"""What `history_` has of the rows of METRICS, beside the terms that OPEN matches: nothing of ground truth."""

ABOUT = """\
X: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3, or flattened (N, H*W*C), row by row, the channels of a
pixel side by side. Other numbers are scaled to 0..255 from the smallest and largest of those that `fit` saw, so that
uint8 images and the same divided by 255 are one thing. N >= 2, K <= N, H and W >= {side}.

n_clusters: K >= 2. {epochs}image_shape: (H, W) or (H, W, C) of flattened images; None takes the smallest square that
holds a row. device: "auto", "cpu", "cuda", "cuda:1". random_state: int, RandomState or None."""

AFTER_FIT = """\
After `fit`: labels_ (N,) int64 in [0, K), history_ (a dict for every epoch{before}, epoch 0 untrained), n_iter_
(epochs of the main phase), n_features_in_ (H*W*C), image_shape_ (H, W, C), value_range_, model_ (torch module on the
last device used)."""

EXAMPLE = """\
>>> from stdac import {name}, load_dataset
>>> images = load_dataset("digits", limit=100).images
>>> {name}(n_clusters=10, {quick}, random_state=0).fit_predict(images).shape
(100,)"""

QUICK = {"epochs": 1, "width": 0.05, "pretrain_epochs": 1}


class MethodEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """A method that clusters images and has a model, see `estimator_of`, which gives a class of this its parameters."""

    _method: ClassVar[str]
    _smallest_side: ClassVar[int]
    n_clusters: int
    epochs: int | None
    image_shape: tuple[int, ...] | None
    device: str
    random_state: int | np.random.RandomState | None

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Train on X and cluster it; y is ignored. Raises ValueError.

        What the process has set in torch does not matter, and stays as it is. Fits of several threads wait for each
        other. In a child that was forked, fit and predict run on one thread.
        """
        array = self._checked(X, reset=True)
        self.value_range_ = None if array.dtype == np.uint8 else (array.min().item(), array.max().item())
        images = self._pixels(array, self._row_shape(array.shape[1]) if array.ndim == 2 else None)
        try:
            trained = train_in_memory(self._trial(len(images)), Dataset(images, None), Machine(device=self.device))
        except StdacError as error:
            raise ValueError(str(error)) from error
        model, labels = trained.fitted.model, trained.fitted.labels
        assert model is not None and labels is not None, "a method without them has no estimator"
        self.model_: nn.Module = model.eval()
        self.labels_: NDArray[np.int64] = labels.cpu().numpy()
        self.image_shape_ = (*images.shape[2:], images.shape[1])
        self.history_ = [
            {name: value for name, value in row.items() if name in HISTORY or OPEN.fullmatch(name)}
            for row in trained.rows
        ]
        self.n_iter_ = trained.scorer.last_epoch
        self._n_features_out = trained.source.n_clusters
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """The cluster of each image, (N,) int64: on the training images, labels_. Raises ValueError, NotFittedError."""
        clusters: NDArray[np.int64] = self._scores(X).argmax(1)
        return clusters

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Each image's scores for the K clusters, (N, K) float32, rows sum to 1. Raises ValueError, NotFittedError."""
        return self._scores(X)

    def _scores(self, X: ArrayLike) -> NDArray[np.float32]:
        check_is_fitted(self, "model_")
        name = type(self).__name__
        array = self._checked(X, reset=False)
        if (array.dtype == np.uint8) != (self.value_range_ is None):
            fitted_on = (
                "uint8 images" if self.value_range_ is None else "values in [{:g}, {:g}]".format(*self.value_range_)
            )
            raise ValueError(f"{name} was fitted on {fitted_on} and got {array.dtype}: pass images of the same scale")
        images = self._pixels(array, self.image_shape_)
        shape = (*images.shape[2:], images.shape[1])
        if shape != self.image_shape_:
            raise ValueError(f"{name} was fitted on images of shape (H, W, C) = {self.image_shape_} and got {shape}")
        return predict_scores(self.model_, images, Machine(device=self.device).torch_device())

    def _checked(self, X: ArrayLike, reset: bool) -> NDArray[Any]:
        """X as a numeric array of at least 2 dimensions without NaN; one image's values are its features, counted."""
        given = _to_numpy(X)
        array: NDArray[Any] = check_array(
            given, allow_nd=True, ensure_min_samples=2 if reset else 1, estimator=self, input_name="X"
        )
        validate_data(
            self, given if array.ndim == 2 else array.reshape(len(array), -1), reset=reset, skip_check_array=True
        )
        return array

    def _pixels(self, array: NDArray[Any], shape: tuple[int, ...] | None) -> Pixels:
        """(N, C, H, W) uint8 from what `_checked` gave; shape: of the rows of a 2-D array, black where they end."""
        if self.value_range_ is not None:
            array = scale(array, *self.value_range_)
        if array.ndim == 2 and shape is not None:
            missing = math.prod(shape) - array.shape[1]
            array = np.pad(array, ((0, 0), (0, missing))).reshape(len(array), *shape)
            if array.ndim == 4 and shape[2] in (1, 3):  # of both orders that `to_pixels` takes the one that it prefers
                array = array.transpose(0, 3, 1, 2)
        try:
            return np.require(to_pixels(array, "X"), requirements="W")  # torch warns of read-only arrays
        except StdacError as error:
            raise ValueError(str(error)) from error

    def _row_shape(self, features: int) -> tuple[int, ...]:
        """The image that a row of so many values is: image_shape, else the smallest square that holds it.

        Raises ValueError where image_shape holds another number of values; warns where the square does.
        """
        shape = self.image_shape
        if shape is not None:
            if len(shape) not in (2, 3) or math.prod(shape) != features:
                raise ValueError(
                    f"got rows of {features} values and image_shape={shape}, expected (H, W) or (H, W, C) of as many"
                )
            return tuple(shape)
        side = max(math.isqrt(features - 1) + 1, self._smallest_side)
        if side**2 != features:
            warnings.warn(
                f"rows of {features} values are laid out on {side}x{side} pixels, the rest black: "
                "pass image_shape=(H, W) or (H, W, C) if they are flattened images",
                stacklevel=3,
            )
        return side, side

    def _trial(self, n: int) -> Trial:
        """The trial that this is on n images, its seed drawn from random_state."""
        method = METHODS[self._method]
        params = {f.name: to_plain(getattr(self, f.name)) for f in fields(method.params)}
        spec = {"method": self._method, "dataset": IN_MEMORY, "n_clusters": to_plain(self.n_clusters), "params": params}
        if method.epochs:
            chosen = choose_epochs(method, n, params.get("passes", 1)) if method.images_seen else None
            spec["epochs"] = chosen if self.epochs is None else to_plain(self.epochs)
        return resolve(spec | {"seed": int(check_random_state(self.random_state).randint(2**31 - 1))})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []  # always float32
        return tags

    def __getstate__(self) -> Mapping[str, Any]:
        """A pickle holds the model on the CPU: it opens where there is no GPU."""
        state = dict(super().__getstate__())
        if "model_" in state:
            state["model_"] = copy.deepcopy(self.model_).cpu()
        return state


@fix_state()
@torch.no_grad()
def predict_scores(model: nn.Module, images: Pixels, device: torch.device) -> NDArray[np.float32]:
    """The deployed model's scores (N, K) float32 of images (N, C, H, W) uint8; moves the model to the device."""
    model = model.to(device)
    parts = [images[i : i + PREDICT_BATCH] for i in range(0, len(images), PREDICT_BATCH)]
    return torch.cat([model(torch.from_numpy(x).to(device).float() / 255).cpu() for x in parts]).numpy()


def _to_numpy(values: Any) -> Any:
    """A tensor of torch, or an array of bfloat16, as numpy takes it; anything else as it is."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return values.astype(np.float32) if str(getattr(values, "dtype", "")) == "bfloat16" else values


def scale(array: NDArray[Any], low: float, high: float) -> Pixels:
    """[low, high] -> 0..255 uint8, rounded, values outside clipped; in float64, as shorter types overflow.

    Where float64 does not hold the range, its reciprocal or the values, in long doubles.
    """
    kind: Any = np.float64
    with np.errstate(all="ignore"):
        factor = kind(255) / (kind(high) - kind(low)) if high > low else kind(0)
    if (high > low and not 0 < factor < np.inf) or (isinstance(low, int) and max(-low, high) > MOST_EXACT):
        kind = np.longdouble
        factor = kind(255) / (kind(high) - kind(low)) if high > low else kind(0)
    pixels = np.empty(array.shape, np.uint8)
    for i in range(0, len(array), SCALED_BATCH):
        part = array[i : i + SCALED_BATCH].astype(kind)
        pixels[i : i + SCALED_BATCH] = np.rint((part.clip(kind(low), kind(high)) - kind(low)) * factor)
    return pixels


def to_plain(value: Any) -> Any:
    """numpy's numbers, as parameter grids yield them, as Python's."""
    return value.item() if isinstance(value, np.generic) else value


E = TypeVar("E", bound=MethodEstimator)


def estimator_of(method: str, smallest_side: int = 1) -> Callable[[type[E]], type[E]]:
    """Make a class with a docstring the estimator of a method: a decorator, the one place where that is done.

    Its constructor takes n_clusters, the fields of the method's parameters with their defaults, epochs where the method
    has some, image_shape, device and random_state, all but the first by keyword. Its docstring goes on with what these
    are, in the words of the parameters' own docstrings, and an example. method: of METHODS, with a model; it may need
    trials, which `fit` trains first, but none that somebody has to choose. smallest_side: of its images, in pixels.
    """

    def make(kind: type[E]) -> type[E]:
        kind._method, kind._smallest_side = method, smallest_side
        kind.__doc__ = write_docstring(kind.__name__, kind.__doc__ or "", METHODS[method], smallest_side)
        kind.__annotations__ = {name: hint for name, hint, _ in list_parameters(METHODS[method])}
        for name, _, default in list_parameters(METHODS[method]):
            setattr(kind, name, default)
        return dataclass(eq=False, repr=False)(kind)  # for its __init__ alone

    return make


def list_parameters(method: Method) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and dataclass field of an estimator's parameters."""
    hints = typing.get_type_hints(method.params)
    yield "n_clusters", int, field(default=CLUSTERS)
    for own in fields(method.params):
        yield own.name, hints[own.name], field(default=own.default, kw_only=True)
    if method.epochs:
        yield "epochs", int | None, field(default=None if has_schedule(method) else method.epochs, kw_only=True)
    yield "image_shape", tuple[int, ...] | None, field(default=None, kw_only=True)
    yield "device", str, field(default="auto", kw_only=True)
    yield "random_state", int | np.random.RandomState | None, field(default=None, kw_only=True)


def has_schedule(method: Method) -> bool:
    """Whether a method's epochs follow from its other parameters."""
    return method.params.choose_epochs is not Params.choose_epochs


def write_docstring(name: str, about: str, method: Method, side: int) -> str:
    """What an estimator is, takes and leaves; the parameters as the docstrings of their dataclass have them."""
    usual = "as many as by default" if not has_schedule(method) else "those of the budget or the schedule"
    none = "more of them where images are few, see `stdac.sizing`" if method.images_seen else usual
    epochs = f"epochs: of the main phase; None takes {none}. " if method.epochs else ""
    names = [parameter for parameter, _, _ in list_parameters(method)]
    quick = ", ".join(f"{key}={value}" for key, value in QUICK.items() if key in names)
    parts = [
        about.strip(),
        *ABOUT.format(side=side, epochs=epochs).split("\n\n"),
        *read_docstrings(method.params),
        AFTER_FIT.format(before=", those of the autoencoder first" if "pretrain_epochs" in names else ""),
    ]
    wrapped = [textwrap.fill(" ".join(part.split()), 110, break_on_hyphens=False) for part in parts]
    return "\n\n".join([*wrapped, EXAMPLE.format(name=name, quick=quick)]) + "\n"


def read_docstrings(params: type[Params]) -> Iterator[str]:
    """The paragraphs on the parameters of a dataclass, and of those that it derives from, without their heading."""
    for kind in params.__mro__:
        text = (vars(kind).get("__doc__") or "") if issubclass(kind, Params) and kind is not Params else ""
        paragraphs = re.split(r"\n\s*\n", re.sub(r"^Hyperparameters\W*", "", text.strip()))
        for part in filter(None, map(str.strip, paragraphs)):
            yield part if re.match(r"\w+(, \w+)*:", part) else part[0].upper() + part[1:]


@estimator_of("ae-kmeans")
class AEKMeans(MethodEstimator):
    """Clusters images by k-means on the codes of an autoencoder, trained before (Fard et al. 2018)."""


@estimator_of("dcn")
class DCN(MethodEstimator):
    """Clusters images by Deep Clustering Network (Yang et al. 2017): codes are drawn to the centres of k-means."""


@estimator_of("dec")
class DEC(MethodEstimator):
    """Clusters images by Deep Embedded Clustering (Xie et al. 2016), on CPU or GPU."""


@estimator_of("idec")
class IDEC(MethodEstimator):
    """Clusters images by DEC with the reconstruction kept (Guo et al. 2017), on CPU or GPU."""


@estimator_of("vade")
class VaDE(MethodEstimator):
    """Clusters images by Variational Deep Embedding (Jiang et al. 2017): a mixture of Gaussians is the codes' prior."""


@estimator_of("dkm-a")
class DeepKMeansA(MethodEstimator):
    """Clusters images by Deep K-Means (Fard et al. 2018) with assignments that harden, begun untrained."""


@estimator_of("dkm-p")
class DeepKMeansP(MethodEstimator):
    """Clusters images by Deep K-Means (Fard et al. 2018) with hard assignments, begun at an autoencoder."""


@estimator_of("fcdec-da")
class FcDECDA(MethodEstimator):
    """Clusters images by DEC with augmented images (Guo et al. 2018), on CPU or GPU."""


@estimator_of("convdec-da", smallest_side=9)
class ConvDECDA(MethodEstimator):
    """Clusters images by DEC with augmented images and a convolutional autoencoder (Guo et al. 2018), on CPU or GPU."""


@estimator_of("dac-star", smallest_side=22)
class DACStar(MethodEstimator):
    """Clusters images by Deep Adaptive Clustering with one falling threshold (Chang et al. 2017), on CPU or GPU."""


@estimator_of("st-dac", smallest_side=8)
class STDAC(MethodEstimator):
    """Clusters images with a convnet and 0 to 3 spatial transformers (Souza & Zanchettin 2019), on CPU or GPU."""

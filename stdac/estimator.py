"""STDAC: the method st-dac under scikit-learn's estimator contract."""

# ruff: noqa: N803  # X is what scikit-learn calls it, by keyword too

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from stdac import run
from stdac.data import IN_MEMORY, Dataset
from stdac.errors import StdacError
from stdac.machine import Machine, describe_device
from stdac.methods import METHODS, resolve
from stdac.methods.st_dac import STDACParams
from stdac.pictures.pixels import Pixels, to_pixels
from stdac.sizing import choose_epochs
from stdac.torch_state import fix_state
from stdac.trial import Trial

PREDICT_BATCH = 1000
MOST_EXACT = 2**53  # of whole numbers in float64
SCALED_BATCH = 1000
SMALLEST_SIDE = 8
"""What st-dac with up to two spatial transformers needs, in pixels."""

PARAMS = ("stn", "preset", "width", "augmentation", "macro_batch", "passes", "batch", "lr")
HISTORY = (
    *("epoch", "loss", "loss_pair", "loss_auxiliary", "threshold", "positive_fraction"),
    *("mean_confidence", "clusters_used", "term_moved", "images_seen", "seconds"),
)


class STDAC(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Clusters images with a convnet and 0 to 3 spatial transformers (Souza & Zanchettin 2019), on CPU or GPU.

    X: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3, or flattened (N, H*W*C), row by row, the channels
    of a pixel side by side. Other numbers are scaled to 0..255 from the smallest and largest of those that `fit` saw,
    so that uint8 images and the same divided by 255 are one thing. N >= 2, K <= N, H and W >= 8 (16 with stn=3).

    n_clusters: K >= 2. stn: number of spatial transformers, 0 to 3. epochs: over all images; the paper's 10 suit
    tens of thousands, None takes as many as fewer images need, see `stdac.sizing`. width: factor on the layers'
    channels, below 1 for speed. preset: "code" (released scripts) or "text" (the paper's words). augmentation: None for
    the preset's, or "none", "dac-mnist", "dac-cifar" (mirrors images), "dec-da". macro_batch: images labelled at once;
    passes: over each macro-batch; batch: images a step; lr: Adam's learning rate. image_shape: (H, W) or (H, W, C) of
    flattened images; None takes the smallest square that holds a row. device: "auto", "cpu", "cuda", "cuda:1".
    random_state: int, RandomState or None.

    After `fit`: labels_ (N,) int64 in [0, K), history_ (a dict for every epoch, epoch 0 untrained), n_iter_,
    n_features_in_ (H*W*C), image_shape_ (H, W, C), value_range_, model_ (torch module on the last device used).

    >>> from sklearn.datasets import load_digits
    >>> STDAC(n_clusters=10, epochs=1, width=0.05, random_state=0).fit_predict(load_digits().images[:100]).shape
    (100,)
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        stn: int = STDACParams.stn,
        epochs: int | None = 10,
        width: float = STDACParams.width,
        preset: str = STDACParams.preset,
        augmentation: str | None = STDACParams.augmentation,
        macro_batch: int = STDACParams.macro_batch,
        passes: int = STDACParams.passes,
        batch: int = STDACParams.batch,
        lr: float = STDACParams.lr,
        image_shape: tuple[int, ...] | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.stn = stn
        self.epochs = epochs
        self.width = width
        self.preset = preset
        self.augmentation = augmentation
        self.macro_batch = macro_batch
        self.passes = passes
        self.batch = batch
        self.lr = lr
        self.image_shape = image_shape
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Train on X and cluster it; y is ignored. Raises ValueError.

        What the process has set in torch does not matter, and stays as it is. Fits of several threads wait for each
        other. In a child that was forked, fit and predict run on one thread.
        """
        array = self._checked(X, reset=True)
        self.value_range_ = None if array.dtype == np.uint8 else (array.min().item(), array.max().item())
        images = self._pixels(array, _find_row_shape(array.shape[1], self.image_shape) if array.ndim == 2 else None)
        try:
            trial, machine = self._trial(len(images)), Machine(device=self.device)
            scorer = run.Scorer(trial, Dataset(images, None), describe_device(machine.torch_device()))
            fitted = run.fit(trial, images, scorer, machine, {})
        except StdacError as error:
            raise ValueError(str(error)) from error
        assert fitted.model is not None and fitted.labels is not None, "st-dac has both"
        self.model_: nn.Module = fitted.model.eval()
        self.labels_: NDArray[np.int64] = fitted.labels.cpu().numpy()
        self.image_shape_ = (*images.shape[2:], images.shape[1])
        self.history_ = [{name: row[name] for name in HISTORY if name in row} for row in scorer.rows]
        self.n_iter_ = trial.epochs
        self._n_features_out = trial.n_clusters
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
        array = self._checked(X, reset=False)
        if (array.dtype == np.uint8) != (self.value_range_ is None):
            fitted_on = (
                "uint8 images" if self.value_range_ is None else "values in [{:g}, {:g}]".format(*self.value_range_)
            )
            raise ValueError(f"STDAC was fitted on {fitted_on} and got {array.dtype}: pass images of the same scale")
        images = self._pixels(array, self.image_shape_)
        shape = (*images.shape[2:], images.shape[1])
        if shape != self.image_shape_:
            raise ValueError(f"STDAC was fitted on images of shape (H, W, C) = {self.image_shape_} and got {shape}")
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
        try:
            return np.require(to_pixels(array, "X"), requirements="W")  # torch warns of read-only arrays
        except StdacError as error:
            raise ValueError(str(error)) from error

    def _trial(self, n: int) -> Trial:
        spec = {"dataset": IN_MEMORY, "seed": int(check_random_state(self.random_state).randint(2**31 - 1))}
        epochs = choose_epochs(METHODS["st-dac"], n, self.passes) if self.epochs is None else to_plain(self.epochs)
        spec |= {"n_clusters": to_plain(self.n_clusters), "epochs": epochs}
        return resolve(spec | {"params": {name: to_plain(getattr(self, name)) for name in PARAMS}})

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


def _find_row_shape(features: int, image_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The image that a row of `features` values is: image_shape, else the smallest square that holds it.

    Raises ValueError where image_shape holds another number of values; warns where the square does.
    """
    if image_shape is not None:
        if len(image_shape) not in (2, 3) or math.prod(image_shape) != features:
            raise ValueError(
                f"got rows of {features} values and image_shape={image_shape}, expected (H, W) or (H, W, C) of as many"
            )
        return tuple(image_shape)
    side = max(math.isqrt(features - 1) + 1, SMALLEST_SIDE)
    if side**2 != features:
        warnings.warn(
            f"rows of {features} values are laid out on {side}x{side} pixels, the rest black: "
            "pass image_shape=(H, W) or (H, W, C) if they are flattened images",
            stacklevel=3,
        )
    return side, side


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

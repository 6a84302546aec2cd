"""What a clustering method is: one parameter dataclass, one function that builds the model, one that fits it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from stdac.trial import Params

Shape = tuple[int, int, int]


class Fitted(NamedTuple):
    """What a method returns.

    labels: (N,) int64, the cluster of each image, -1 = noise; where there is a model, its argmax in eval mode.
    model: (B, C, H, W) float32 in [0, 1] -> (B, K) float32 scores; None for a transductive method.
    stn: what the figures need of the spatial transformers, see `stdac.methods.st_dac.StnTrace`; None without.
    """

    labels: Tensor
    model: nn.Module | None
    stn: Mapping[str, NDArray[np.generic]] | None = None


class Method(NamedTuple):
    """A clustering method of the grid.

    params: its frozen dataclass. build: (k, image shape (C, H, W), params) -> the untrained deployed model, whose
    state_dict a model file holds; None for a transductive method. fit: (images, k, params, run) -> Fitted, with images
    (N, C, H, W) uint8 on the device; it never sees ground truth. epochs: default length of its main phase.
    """

    params: type[Params]
    build: Callable[[int, Shape, Any], nn.Module] | None
    fit: Callable[[Tensor, int, Any, Any], Fitted]
    epochs: int

"""k-means on descriptors that nothing has trained: gradients' orientations, and colours. Floors, as k-means on pixels
is: where they are as good as a learned method, training does not pay."""

from dataclasses import dataclass
from math import pi
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdac.methods.kmeans import BATCH, ITERATIONS, KMeansParams, NearestCentre, find_centres
from stdac.methods.method import Cost, Fitted, Method, Shape, Task, count_forward
from stdac.train import Trainer
from stdac.trial import check_ranges

GRAY = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601
LEVELS = 4  # of each of three colours: 64 bins
EPSILON = 1e-4  # of a gradient in [-1, 1]: what is fainter has no orientation
EFFICIENCY = 0.07  # that of k-means on pixels, which is most of the work


@dataclass(frozen=True)
class HOGParams(KMeansParams):
    """k-means++ on a histogram of oriented gradients (Dalal & Triggs 2005)."""

    cells: int = 7  # along each side of an image, each with a histogram of its own
    bins: int = 9  # of orientations, over 180°

    def resolved(self, dataset: str) -> Self:
        """Check the ranges. Raises StdacError for a value out of its range."""
        check_ranges(self, {"cells": 1, "bins": 3}, ())
        return super().resolved(dataset)


class HOG(nn.Module):
    """Histogram of oriented gradients, of each cell one after another: (B, C, H, W) float32 in [0, 1] -> (B, D).

    An image's gradient votes with its size for the orientations next to its own, in its cell.
    paper: by its distance to two of them; blocks of cells are scaled to length 1. here: by the cosine of twice the
    angle between, as that needs no arc tangent; not scaled, as bare glyphs have no illumination to be made up for.
    """

    kernel: Tensor
    directions: Tensor

    def __init__(self, shape: Shape, cells: int, bins: int) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self.side = [-(-length // cells) for length in shape[1:]]  # of a cell, px
        self.rows, self.columns = (-(-length // side) for length, side in zip(shape[1:], self.side, strict=True))
        gray = torch.tensor(GRAY if channels == 3 else [1 / channels] * channels)
        step = torch.zeros(2, 3, 3)
        step[0, 1, 0], step[0, 1, 2], step[1, 0, 1], step[1, 2, 1] = -1.0, 1.0, -1.0, 1.0
        self.register_buffer("kernel", step[:, None] * gray[:, None, None], persistent=False)  # (2, C, 3, 3)
        angle = 2 * pi * torch.arange(bins) / bins  # of an orientation, doubled: opposite directions are one
        self.least = float(torch.cos(torch.tensor(2 * pi / bins)))  # a vote reaches as far as the next bin
        self.register_buffer(
            "directions", torch.stack([angle.cos(), angle.sin()], 1)[..., None, None], persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        more = [-length % side for length, side in zip((self.height, self.width), self.side, strict=True)]
        x = F.pad(x, (1, 1 + more[1], 1, 1 + more[0]), mode="replicate")  # no gradient beyond the border
        gx, gy = F.conv2d(x, self.kernel).split(1, 1)  # (B, 1, H, W) each
        size = (gx.square() + gy.square()).sqrt()
        doubled = torch.cat([gx.square() - gy.square(), 2 * gx * gy], 1) / (size + EPSILON)
        votes = F.relu(F.conv2d(doubled, self.directions) - self.least * size)  # (B, bins, H, W)
        return F.avg_pool2d(votes, self.side).flatten(1)  # (B, bins * rows * columns)


class ColourHistogram(nn.Module):
    """The share of an image's pixels in each of 4×4×4 colours: (B, C, H, W) float32 in [0, 1] -> (B, 64). Of gray
    images 4 bins are in use."""

    lower: Tensor
    upper: Tensor

    def __init__(self) -> None:
        super().__init__()
        edges = torch.arange(LEVELS + 1) / LEVELS
        edges[0], edges[-1] = -1.0, 2.0
        self.register_buffer("lower", edges[:-1, None], persistent=False)
        self.register_buffer("upper", edges[1:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1).flatten(2)[:, :, None]  # (B, 3, 1, pixels)
        red, green, blue = ((x >= self.lower) & (x < self.upper)).float().unbind(1)  # (B, 4, pixels) each
        pairs = (red[:, :, None] * green[:, None]).flatten(1, 2)  # (B, 16, pixels)
        return (pairs @ (blue / x.shape[-1]).transpose(1, 2)).flatten(1)  # (B, 64)


class NearestDescriptor(NearestCentre):
    """Describe, nearest centre: (B, C, H, W) float32 in [0, 1] -> (B, K)."""

    def __init__(self, k: int, describe: nn.Module, values: int) -> None:
        super().__init__(k, values, None)
        self.describe = describe

    def embed(self, x: Tensor) -> Tensor:
        """The descriptor: (B, C, H, W) -> (B, D) float32."""
        z: Tensor = self.describe(x)
        return z


def build_hog(k: int, shape: Shape, params: HOGParams) -> NearestDescriptor:
    """The unfitted model."""
    describe = HOG(shape, params.cells, params.bins)
    return NearestDescriptor(k, describe, params.bins * describe.rows * describe.columns)


def build_colour(k: int, shape: Shape, params: KMeansParams) -> NearestDescriptor:
    """The unfitted model."""
    return NearestDescriptor(k, ColourHistogram(), LEVELS**3)


def build(k: int, shape: Shape, params: KMeansParams) -> NearestDescriptor:
    """The unfitted model of either method."""
    return build_hog(k, shape, params) if isinstance(params, HOGParams) else build_colour(k, shape, params)


@torch.no_grad()
def fit(images: Tensor, k: int, params: KMeansParams, trainer: Trainer) -> Fitted:
    """Describe all images, and find the centres on the CPU."""
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params).to(trainer.device).eval()
    z = torch.cat([model.embed(x.float() / 255) for x in images.split(BATCH)])  # (N, D)
    centres = find_centres(z.cpu().numpy(), k, trainer.seed, params.restarts, params.max_iterations)
    model.assign.centres.copy_(torch.from_numpy(centres))
    return Fitted(torch.cat([model.classify(part).argmax(1) for part in z.split(BATCH)]), model)


def count_work(task: Task) -> Cost:
    """What a trial computes: each descriptor once, and against each centre ITERATIONS times a restart."""
    model = build(task.k, task.shape, task.params)
    iterations = task.params.restarts * min(ITERATIONS, task.params.max_iterations)
    return Cost(
        float(task.n) * (count_forward(model, task.shape) + iterations * model.assign.centres.numel()),
        efficiency=EFFICIENCY,
    )


HOG_KMEANS = Method(title="HOG + k-means", params=HOGParams, build=build, fit=fit, cost=count_work, is_floor=True)
COLOUR_KMEANS = Method(
    title="colours + k-means", params=KMeansParams, build=build, fit=fit, cost=count_work, is_floor=True
)

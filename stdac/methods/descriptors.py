"""k-means on descriptors that nothing has trained: gradients' orientations, and colours. Floors, as k-means on pixels
is: where they are as good as a learned method, training does not pay."""

from dataclasses import dataclass
from math import cos, pi
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdac.errors import StdacError
from stdac.methods.kmeans import BATCH, ITERATIONS, KMeansParams, NearestCentre, find_centres
from stdac.methods.method import Cost, Fitted, Method, Shape, Task
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

    gray: Tensor
    directions: Tensor
    pool: Tensor

    def __init__(self, shape: Shape, cells: int, bins: int) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < 3:
            raise StdacError(
                f"images are {height}x{width} pixels, but hog-kmeans needs at least 3x3: set an image size of 3 or more"
            )
        gray = torch.tensor(GRAY if channels == 3 else [1 / channels] * channels)
        self.register_buffer("gray", gray[:, None, None], persistent=False)
        angle = 2 * pi * torch.arange(bins) / bins  # of an orientation, doubled: opposite directions are one
        self.least = cos(2 * pi / bins)  # a vote reaches as far as the next bin
        self.register_buffer("directions", torch.stack([angle.cos(), angle.sin()])[..., None, None], persistent=False)
        # one product with a constant on its right: others onnxruntime refuses for no images
        pool = torch.kron(pool_side(height, cells), pool_side(width, cells))
        self.register_buffer("pool", pool, persistent=False)

    @property
    def values(self) -> int:
        """D, the length of a descriptor."""
        return self.directions.shape[1] * self.pool.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        x = (x * self.gray).sum(1, keepdim=True)  # (B, 1, H, W)
        gx = x[:, :, 1:-1, 2:] - x[:, :, 1:-1, :-2]  # (B, 1, H - 2, W - 2): none on the border
        gy = x[:, :, 2:, 1:-1] - x[:, :, :-2, 1:-1]
        size = (gx * gx + gy * gy).sqrt()
        along = (gx * gx - gy * gy) * self.directions[0] + 2 * gx * gy * self.directions[1]  # (B, bins, H - 2, W - 2)
        votes = F.relu(along / (size + EPSILON) - self.least * size)
        return (votes.flatten(2) @ self.pool).flatten(1)  # (B, bins * rows * columns)


def pool_side(length: int, cells: int) -> Tensor:
    """What makes means over cells of the pixels inside a border: (length - 2, at most `cells`)."""
    side = -(-length // cells)
    cell = torch.arange(1, length - 1) // side
    return (cell[:, None] == torch.arange(-(-length // side))) / side


class ColourHistogram(nn.Module):
    """The share of an image's pixels in each of 4×4×4 colours: (B, C, H, W) float32 in [0, 1] -> (B, 64). Of gray
    images 4 bins are in use."""

    def forward(self, x: Tensor) -> Tensor:
        x = (x if x.shape[1] == 3 else torch.cat([x, x, x], 1)).flatten(2)  # (B, 3, pixels)
        # whether a pixel is of the second level at least, of the third, of the fourth: slopes between two 8-bit values
        second, third, fourth = ((255 * x - (256 * i / LEVELS - 1)).clamp(0, 1) for i in range(1, LEVELS))
        member = torch.stack([1 - second, second - third, third - fourth, fourth], 2)  # (B, 3, 4, pixels)
        red, green, blue = (member[:, i : i + 1].flatten(1, 2) for i in range(3))  # (B, 4, pixels) each
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


def build(k: int, shape: Shape, params: KMeansParams) -> NearestDescriptor:
    """The unfitted model of either method."""
    if not isinstance(params, HOGParams):
        return NearestDescriptor(k, ColourHistogram(), LEVELS**3)
    describe = HOG(shape, params.cells, params.bins)
    return NearestDescriptor(k, describe, describe.values)


@torch.no_grad()
def fit(images: Tensor, k: int, params: KMeansParams, trainer: Trainer) -> Fitted:
    """Describe all images, and find the centres on the CPU."""
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params).to(trainer.device).eval()
    z = torch.cat([model.embed(x.float() / 255) for x in images.split(BATCH)])  # (N, D)
    centres = find_centres(z.cpu().numpy(), k, trainer.seed, params.restarts, params.max_iterations)
    model.assign.centres.copy_(torch.from_numpy(centres))
    return Fitted(torch.cat([model.classify(part).argmax(1) for part in z.split(BATCH)]), model)


def count_work(task: Task) -> Cost:
    """What a trial computes: each descriptor against each centre, ITERATIONS times a restart."""
    values = build(task.k, task.shape, task.params).assign.centres.numel()
    iterations = task.params.restarts * min(ITERATIONS, task.params.max_iterations)
    return Cost(float(task.n) * iterations * values, efficiency=EFFICIENCY)


HOG_KMEANS = Method(title="HOG + k-means", params=HOGParams, build=build, fit=fit, cost=count_work, is_floor=True)
COLOUR_KMEANS = Method(
    title="colours + k-means", params=KMeansParams, build=build, fit=fit, cost=count_work, is_floor=True
)

"""The papers' random affine augmentation, vectorised, on the device of the images.

Reproduces the semantics of Keras 1's ``ImageDataGenerator``, which the DAC family was trained with
(Chang et al. 2017; Souza & Zanchettin 2019, released scripts): nearest-neighbour sampling, edge fill, a rotation
centre one pixel off the true one, channel shift clipped to the image's own range, and `rescale` applied last.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Ranges of one random affine augmentation.

    rotation_deg: angle ~ U(-r, r). shift: fraction of the side, each axis ~ U(-s, s). zoom: each axis ~ U(lo, hi)
    independently; above 1 the object shrinks. channel_shift: one offset an image ~ U(-c, c). flip: mirror left-right
    with probability 1/2. rescale: factor on the result.
    """

    rotation_deg: float = 0.0
    shift: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    channel_shift: float = 0.0
    flip: bool = False
    rescale: float = 1.0


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    # A: DAC*, and ST-DAC on MNIST
    "dac-mnist": Augmentation(10.0, 0.1, (0.95, 1.05), 0.05, False, 0.975),
    # B: ST-DAC on Fashion-MNIST as released
    "dac-cifar": Augmentation(20.0, 0.18, (0.85, 1.15), 0.1, True, 0.95),
    # C: ConvDEC-DA
    "dec-da": Augmentation(10.0, 0.1),
    # of the student, ours
    "student": Augmentation(15.0, 0.1, (0.85, 1.15)),
}


def draw_affine(n: int, a: Augmentation, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw n affine maps from output to input pixel coordinates: p -> M[:, :, :2] p + M[:, :, 2].

    Returns (n, 2, 3) float32 in (row, column) order, M = R(theta) . T . Z about o = (H/2 + 1/2, W/2 + 1/2): the
    generator's centre is one pixel off the true one, (H-1)/2. Uses torch's global generator of `device`.
    """
    u = torch.rand(5, n, device=device)
    angle = (2 * u[0] - 1) * math.radians(a.rotation_deg)
    shift_row, shift_col = (2 * u[1] - 1) * a.shift * height, (2 * u[2] - 1) * a.shift * width
    zoom_row, zoom_col = a.zoom[0] + u[3:5] * (a.zoom[1] - a.zoom[0])
    row, col = height / 2 + 0.5, width / 2 + 0.5  # the centre
    cos, sin = angle.cos(), angle.sin()
    first = [cos * zoom_row, -sin * zoom_col]  # the rows of R diag(z)
    second = [sin * zoom_row, cos * zoom_col]
    first += [row + (cos * shift_row - sin * shift_col) - (first[0] * row + first[1] * col)]
    second += [col + (sin * shift_row + cos * shift_col) - (second[0] * row + second[1] * col)]
    return torch.stack(first + second, dim=1).view(n, 2, 3)


def sample_nearest(x: Tensor, affine: Tensor) -> Tensor:
    """Sample each image at its affine map of the output grid, nearest neighbour, edge pixels beyond the border.

    x: (B, C, H, W) any dtype. affine: (B, 2, 3) as from `draw_affine`. Returns (B, C, H, W), the dtype of x.
    """
    b, c, h, w = x.shape
    rows = torch.arange(h, device=x.device, dtype=affine.dtype)[:, None].expand(h, w).reshape(h * w)
    cols = torch.arange(w, device=x.device, dtype=affine.dtype).expand(h, w).reshape(h * w)
    # no matrix product, which a GPU may round to ten bits
    source = (affine[:, :, :1] * rows + affine[:, :, 1:2] * cols + affine[:, :, 2:]).round().long()  # (B, 2, HW)
    index = source[:, 0].clamp(0, h - 1) * w + source[:, 1].clamp(0, w - 1)  # (B, HW)
    return x.reshape(b, c, h * w).gather(2, index[:, None].expand(b, c, h * w)).view(b, c, h, w)


def augment(x: Tensor, a: Augmentation) -> Tensor:
    """Augment a batch.

    x: (B, C, H, W) float32, scaled and mean-subtracted. Returns the same shape and dtype. Order as in the generator:
    affine, channel shift, flip, then rescale.
    """
    b, _, h, w = x.shape
    y = sample_nearest(x, draw_affine(b, a, h, w, x.device))
    u = torch.rand(2, b, 1, 1, 1, device=x.device)
    if a.channel_shift:
        low, high = y.amin((1, 2, 3), keepdim=True), y.amax((1, 2, 3), keepdim=True)
        y = (y + (2 * u[0] - 1) * a.channel_shift).clamp(low, high)
    if a.flip:
        y = torch.where(u[1] < 0.5, y.flip(3), y)
    return y * a.rescale

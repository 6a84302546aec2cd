"""Affine spatial transformer layer (Jaderberg et al. 2015), as ST-DAC bounds it (Souza & Zanchettin 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make_affine_grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The sampling grid as one linear map of theta: grid = theta @ matrix + shift.

    Returns matrix (6, 2HW) and shift (2HW,), both float32; theta is row-major (a11 a12 tx a21 a22 ty), x first.
    Output points lie on linspace(-1, 1), and a source coordinate q falls on pixel (q + 1) W / 2. `grid_sample` with
    align_corners=False puts q on ((q + 1) W - 1) / 2, so the constant shift of 1/W (1/H) makes the two agree.
    """
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    homogeneous = torch.stack([x, y, torch.ones_like(x)]).view(3, height * width)
    matrix = torch.zeros(6, height * width, 2)
    matrix[:3, :, 0] = homogeneous
    matrix[3:, :, 1] = homogeneous
    shift = torch.tensor([1 / width, 1 / height]).repeat(height * width)
    return matrix.view(6, -1), shift


class LocalisationNet(nn.Module):
    """Predicts the six entries of an affine transform from a feature map.

    (B, C, H, W) float32 with H, W >= 4 -> theta (B, 6) in (-1, 1). Everything is tanh, the last layer included: |theta|
    < 1 is what keeps objects from shrinking out of sight. The last layer starts at W = 0, b = `theta_bias` on the
    diagonal, so the first transform is a zoom by 1 / tanh(theta_bias) (1.313 for the paper's 1).
    """

    def __init__(self, channels: int, height: int, width: int, theta_bias: float = 1.0) -> None:
        super().__init__()
        flat = 20 * (height // 4) * (width // 4)
        self.conv1 = nn.Conv2d(channels, 20, 5, padding=2)
        self.conv2 = nn.Conv2d(20, 20, 5, padding=2)
        self.dense = nn.Linear(flat, 50)
        self.theta = nn.Linear(50, 6)
        for layer in (self.conv1, self.conv2, self.dense):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # all three are built with a bias
        nn.init.zeros_(self.theta.weight)
        with torch.no_grad():
            self.theta.bias.copy_(theta_bias * torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv1(F.max_pool2d(x, 2)))  # (B, 20, H/2, W/2)
        x = torch.tanh(self.conv2(F.max_pool2d(x, 2)))  # (B, 20, H/4, W/4)
        return torch.tanh(self.theta(torch.tanh(self.dense(x.flatten(1)))))


class SpatialTransformer(nn.Module):
    """Straightens each feature map by the affine transform that its localisation net predicts.

    (B, C, H, W) float32 -> the same shape. Bilinear; 0 outside the map (after mean subtraction that is not the
    background: pulled-in borders look grey, as in the released code).
    # paper: neighbour indices are clipped before the weights are formed, a hard edge; here: zero padding, which ramps
    # over the last pixel, because every runtime has it as GridSample.
    """

    matrix: Tensor
    shift: Tensor

    def __init__(self, channels: int, height: int, width: int, theta_bias: float = 1.0) -> None:
        super().__init__()
        self.localisation = LocalisationNet(channels, height, width, theta_bias)
        matrix, shift = make_affine_grid(height, width)
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # sub-pixel coordinates do not survive bfloat16
            return self.sample(x.float(), self.localisation(x.float()))

    def sample(self, x: Tensor, theta: Tensor) -> Tensor:
        """Sample x (B, C, H, W) float32 at theta (B, 6)."""
        grid = self.grid(theta).view(-1, x.shape[2], x.shape[3], 2)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def grid(self, theta: Tensor) -> Tensor:
        """Where to sample: theta (B, 6) float32 -> (B, 2HW) float32, never rounded to TF32."""
        if theta.is_cuda:
            return (theta[:, :, None] * self.matrix).sum(1) + self.shift
        return torch.addmm(self.shift, theta, self.matrix)

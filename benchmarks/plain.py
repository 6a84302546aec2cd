"""ST-DAC in plain eager PyTorch: the baseline that the speed of training is compared with.

The algorithm of `stdac/methods/st_dac.py` (preset `code`, 0 to 3 spatial transformers) as one would write it without
a thought about speed: modules in the default layout, a grid an image by a batched product, one label pass a batch of 32
images, Adam as it comes. It imports nothing of stdac. Nothing in it is slow on purpose: images lie on the device as
float32, operations are batched, and the host never waits for a number. `tests/test_benchmarks.py` checks that it
computes the same features, losses, gradients and augmented images as stdac.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpatialTransformer(nn.Module):
    """Bounded affine spatial transformer: (B, C, H, W) float32 -> the same shape, bilinear, 0 outside the map."""

    base: Tensor
    shift: Tensor

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.localisation = Localisation(channels, height, width)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("base", torch.stack([x, y, torch.ones_like(x)]).view(3, -1), persistent=False)
        # the released code puts q on pixel (q + 1) W / 2, grid_sample on ((q + 1) W - 1) / 2
        self.register_buffer("shift", torch.tensor([1 / width, 1 / height]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        theta = self.localisation(x).view(b, 2, 3)
        grid = torch.bmm(theta, self.base.expand(b, 3, h * w)).transpose(1, 2).view(b, h, w, 2) + self.shift
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class Localisation(nn.Module):
    """(B, C, H, W) float32 -> theta (B, 6) in (-1, 1), tanh(1) on the diagonal before training."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 20, 5, padding=2)
        self.conv2 = nn.Conv2d(20, 20, 5, padding=2)
        self.dense = nn.Linear(20 * (height // 4) * (width // 4), 50)
        self.theta = nn.Linear(50, 6)
        for layer in (self.conv1, self.conv2, self.dense):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # all are built with a bias
        nn.init.zeros_(self.theta.weight)
        self.theta.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv1(F.max_pool2d(x, 2)))
        x = torch.tanh(self.conv2(F.max_pool2d(x, 2)))
        return torch.tanh(self.theta(torch.tanh(self.dense(x.flatten(1)))))


class PlainNet(nn.Module):
    """ST-DAC's convnet: (B, C, H, W) float32, standardised -> label features (B, K) float32, a softmax.

    Batch statistics always, in `eval` too; `width` scales the channels. Parameters are named as in
    `stdac.networks.STDACNet`.
    """

    def __init__(
        self, k: int, shape: tuple[int, int, int], *, stn: int = 2, width: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        c, h, w = shape
        c1, c2, c3, dense = (max(4, round(n * width)) for n in (64, 128, 256, 3096))
        self.stn1 = SpatialTransformer(c, h, w) if stn >= 1 else nn.Identity()
        self.conv1 = nn.Conv2d(c, c1, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(c1, eps=1e-3, track_running_stats=False)
        self.bn1_pool = nn.BatchNorm2d(c1, eps=1e-3, track_running_stats=False)
        self.conv2 = nn.Conv2d(c1, c2, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(c2, eps=1e-3, track_running_stats=False)
        self.stn2 = SpatialTransformer(c2, h // 2, w // 2) if stn >= 2 else nn.Identity()
        self.bn2_pool = nn.BatchNorm2d(c2, eps=1e-3, track_running_stats=False)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(c3, eps=1e-3, track_running_stats=False)
        self.stn3 = SpatialTransformer(c3, h // 4, w // 4) if stn >= 3 else nn.Identity()
        self.dense1 = nn.Linear(c3 * (h // 4) * (w // 4), dense)
        self.bn4 = nn.BatchNorm1d(dense, eps=1e-3, track_running_stats=False)
        self.dropout = nn.Dropout(dropout)
        self.dense2 = nn.Linear(dense, k)
        self.bn5 = nn.BatchNorm1d(k, eps=1e-3, track_running_stats=False)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        for layer in (self.dense1, self.dense2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.stn1(x))))
        x = self.bn1_pool(F.max_pool2d(x, 2))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.bn2_pool(F.max_pool2d(self.stn2(x), 2))
        x = self.stn3(F.relu(self.bn3(self.conv3(x))))
        x = self.dropout(F.relu(self.bn4(self.dense1(x.flatten(1)))))
        return F.softmax(F.relu(self.bn5(self.dense2(x))), dim=1)


@torch.no_grad()
def label_features(net: nn.Module, clean: Tensor, batch: int = 32) -> Tensor:
    """Label features (N, K) of clean images (N, C, H, W): no dropout, the statistics of each batch of 32."""
    net.eval()
    return torch.cat([net(x) for x in clean.split(batch)])


def loss(y: Tensor, y_clean: Tensor, tau: float) -> Tensor:
    """Pair loss plus ten times the auxiliary loss of label features y (B, K), given those of the clean images."""
    z, target = F.normalize(y), F.normalize(y_clean)
    similarity, pairs = z @ z.T, (target @ target.T > tau).float()
    pair = F.binary_cross_entropy(similarity.clamp(1e-7, 1 - 1e-7), pairs)
    auxiliary = F.binary_cross_entropy(y.clamp(1e-7, 1 - 1e-7), target)
    return pair + 10 * auxiliary


def augment(x: Tensor) -> Tensor:
    """Keras 1's random affine of a batch (B, C, H, W) with the ranges of ST-DAC on MNIST, nearest neighbour."""
    b, c, h, w = x.shape
    u = torch.rand(5, b, device=x.device)
    angle = (2 * u[0] - 1) * math.radians(10)
    shift = torch.stack([(2 * u[1] - 1) * 0.1 * h, (2 * u[2] - 1) * 0.1 * w], 1)
    zoom = 0.95 + 0.1 * u[3:5]
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(b, 2, 2)
    rows = torch.arange(h, device=x.device) - (h / 2 + 0.5)
    columns = torch.arange(w, device=x.device) - (w / 2 + 0.5)
    points = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).view(2, -1)
    source = rotation @ (zoom.T[:, :, None] * points + shift[:, :, None])
    row = (source[:, 0] + (h / 2 + 0.5)).round().long().clamp(0, h - 1)
    column = (source[:, 1] + (w / 2 + 0.5)).round().long().clamp(0, w - 1)
    index = (row * w + column)[:, None].expand(b, c, h * w)
    y = x.reshape(b, c, h * w).gather(2, index).view(b, c, h, w)
    brightness = (2 * torch.rand(2, b, 1, 1, 1, device=x.device)[0] - 1) * 0.05
    y = torch.clamp(y + brightness, y.amin((1, 2, 3), keepdim=True), y.amax((1, 2, 3), keepdim=True))
    return y * 0.975


def steps(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    clean: Tensor,
    labels: Tensor,
    tau: float,
    *,
    batch: int = 32,
    bfloat16: bool = False,
) -> Iterator[Tensor]:
    """One pass of optimiser steps over a labelled macro-batch; yields each loss, a 0-d tensor. bfloat16: autocast."""
    net.train()
    for index in torch.randperm(len(clean), device=clean.device).split(batch):
        if len(index) < batch:
            continue
        optimizer.zero_grad()
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=bfloat16):
            y = net(augment(clean[index]))
        value = loss(y.float(), labels[index], tau)
        value.backward()
        optimizer.step()
        yield value.detach()


def train(net: nn.Module, images: Tensor, epochs: int = 10, macro_batch: int = 1000) -> None:
    """The whole of ST-DAC but its evaluations. images: (N, C, H, W) float32, standardised, on the net's device."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    for epoch in range(epochs):
        tau = 0.99 - epoch * 0.19 / epochs
        for chunk in torch.randperm(len(images), device=images.device).split(macro_batch):
            clean = images[chunk]
            for _ in steps(net, optimizer, clean, label_features(net, clean), tau):
                pass

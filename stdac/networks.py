"""The networks that the methods train: the DAC family's convnets and the fully connected autoencoder."""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdac.dense import apply_dense
from stdac.errors import StdacError
from stdac.stn import SpatialTransformer


class BatchNorm(nn.Module):
    """Batch normalisation that uses batch statistics until it is told otherwise.

    (B, C) or (B, C, H, W) float32 -> the same shape. With `groups=None` in eval mode the stored population statistics
    are used (the deployed model). Otherwise batch statistics are: of the whole batch in train mode, of each run of
    `group` consecutive images when a group size is given (the DAC protocol, which predicts in batches of 32; Keras-1
    BatchNormalization mode 2). Nothing is tracked while training: `calibrate` fills the population statistics.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.observed: list[tuple[int, Tensor, Tensor]] | None = None

    def forward(self, x: Tensor, group: int | None = None) -> Tensor:
        if self.observed is not None:
            var, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
            self.observed.append((len(x), mean, var))
        if group is not None and group < len(x):
            return self._grouped(x, group)
        if self.training or group is not None or self.observed is not None:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)

    def _grouped(self, x: Tensor, group: int) -> Tensor:
        grouped = x.unflatten(0, (len(x) // group, group))  # (G, group, C, ...)
        var, mean = torch.var_mean(grouped, [1, *range(3, grouped.ndim)], correction=0)  # (G, C)
        scale = self.weight * torch.rsqrt(var + self.eps)
        # An image's own mean and scale, so that x keeps its layout: in five dimensions channels-last would be lost.
        affine = (1,) * (x.ndim - 2)
        mean, scale = (t.repeat_interleave(group, 0).view(len(x), -1, *affine) for t in (mean, scale))
        y: Tensor = (x - mean) * scale + self.bias.view(-1, *affine)
        return y


def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the population statistics of every `BatchNorm` from clean images, in one pass (deployed score).

    batches: images (B, C, H, W) float32 as the model takes them. Each layer's inputs are normalised with the
    statistics of their batch, so batches should be large; mean and variance are then those of all images together.
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    was_training = model.training
    model.eval()
    totals: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in norms]
    try:
        for norm, total in zip(norms, totals, strict=True):
            norm.observed = total
        with torch.no_grad():
            for x in batches:
                model(x)
    finally:
        for norm in norms:
            norm.observed = None
        model.train(was_training)
    for norm, total in zip(norms, totals, strict=True):
        share = torch.tensor([n for n, _, _ in total], dtype=torch.float64, device=norm.mean.device)
        share = (share / share.sum())[:, None]
        means = torch.stack([mean for _, mean, _ in total]).double()
        variances = torch.stack([var for _, _, var in total]).double()
        mean = (share * means).sum(0)
        norm.mean.copy_(mean)
        norm.var.copy_((share * (variances + (means - mean) ** 2)).sum(0))


def scale_channels(channels: int, width: float) -> int:
    """A layer's number of channels under the width multiplier, at least 4."""
    return max(4, round(channels * width))


def _init_he_normal(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """He-normal weights, zero bias, in place (Keras 1 `_init_he_normal`)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # every layer here has a bias
    return layer


def _init_glorot_uniform(layer: nn.Linear) -> nn.Linear:
    """Glorot-uniform weights, zero bias, in place."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Standardize(nn.Module):
    """(B, C, H, W) float32 in [0, 1] -> (x - mean) * factor: a model's first layer, its constants with the weights."""

    mean: Tensor
    factor: Tensor

    def __init__(self, mean: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (x - self.mean) * self.factor
        return y


class STDACNet(nn.Module):
    """ST-DAC's VGG-like convnet with 0 to 3 spatial transformers (Souza & Zanchettin 2019, Table 1, released scripts).

    (B, C, H, W) float32, standardised -> label features (B, K) float32, a softmax. `architecture` "code" is what the
    released scripts build; "table3" adds the third max-pool that the paper's tables list. `width` scales channels.
    `group` is passed on to every `BatchNorm`. Raises StdacError where the images are too small for the layers.
    """

    def __init__(
        self,
        k: int,
        shape: tuple[int, int, int],
        *,
        stn: int = 2,
        architecture: str = "code",
        width: float = 1.0,
        dropout: float = 0.5,
        theta_bias: float = 1.0,
    ) -> None:
        super().__init__()
        channels, height, width_px = shape
        smallest = 16 if stn == 3 else 8
        if min(height, width_px) < smallest:
            raise StdacError(
                f"images are {height}x{width_px} pixels, but st-dac with {stn} STN layers needs at least "
                f"{smallest}x{smallest}: set an image size of {smallest} or more"
            )
        c1, c2, c3, units = (scale_channels(c, width) for c in (64, 128, 256, 3096))
        h2, w2, h3, w3 = height // 2, width_px // 2, height // 4, width_px // 4
        self.stn1 = SpatialTransformer(channels, height, width_px, theta_bias) if stn >= 1 else None
        self.conv1 = _init_he_normal(nn.Conv2d(channels, c1, 3, padding=1))
        self.bn1 = BatchNorm(c1)
        self.bn1_pool = BatchNorm(c1)
        self.conv2 = _init_he_normal(nn.Conv2d(c1, c2, 3, padding=1))
        self.bn2 = BatchNorm(c2)
        self.stn2 = SpatialTransformer(c2, h2, w2, theta_bias) if stn >= 2 else None
        self.bn2_pool = BatchNorm(c2)
        self.conv3 = _init_he_normal(nn.Conv2d(c2, c3, 3, padding=1))
        self.bn3 = BatchNorm(c3)
        self.stn3 = SpatialTransformer(c3, h3, w3, theta_bias) if stn >= 3 else None
        self.bn3_pool = BatchNorm(c3) if architecture == "table3" else None
        flat = c3 * (h3 // 2) * (w3 // 2) if architecture == "table3" else c3 * h3 * w3
        self.dense1 = _init_glorot_uniform(nn.Linear(flat, units))
        self.bn4 = BatchNorm(units)
        self.dropout = nn.Dropout(dropout)
        self.dense2 = _init_glorot_uniform(nn.Linear(units, k))
        self.bn5 = BatchNorm(k)

    def embed(self, x: Tensor, group: int | None = None) -> Tensor:
        """What enters the last dense layer: (B, C, H, W) -> (B, 3096) float32, times `width`."""
        if self.stn1 is not None:
            x = self.stn1(x)
        x = F.relu(self.bn1(self.conv1(x), group))  # (B, 64, H, W)
        x = self.bn1_pool(F.max_pool2d(x, 2), group)
        x = F.relu(self.bn2(self.conv2(x), group))  # (B, 128, H/2, W/2)
        if self.stn2 is not None:
            x = self.stn2(x)
        x = self.bn2_pool(F.max_pool2d(x, 2), group)
        x = F.relu(self.bn3(self.conv3(x), group))  # (B, 256, H/4, W/4)
        if self.stn3 is not None:
            x = self.stn3(x)
        if self.bn3_pool is not None:
            x = self.bn3_pool(F.max_pool2d(x, 2), group)
        x = x.flatten(1)
        deployed = not self.training and group is None
        z: Tensor = self.dropout(F.relu(self.bn4(self.dense1(x) if deployed else apply_dense(self.dense1, x), group)))
        return z

    def classify(self, z: Tensor, group: int | None = None) -> Tensor:
        """Label features of embeddings z (B, 3096): (B, K) float32."""
        x = F.relu(self.bn5(self.dense2(z), group))  # the ReLU before the softmax is the paper's
        return x.softmax(1)

    def forward(self, x: Tensor, group: int | None = None) -> Tensor:
        return self.classify(self.embed(x, group), group)

    @property
    def transformers(self) -> list[SpatialTransformer]:
        """The spatial transformers, first to last."""
        return [s for s in (self.stn1, self.stn2, self.stn3) if s is not None]


class AllConvNet(nn.Module):
    """DAC's all-convolutional network for small images (Chang et al. 2017, authors' MNIST script).

    (B, C, H, W) float32, standardised, H, W >= 22 -> label features (B, K) float32, a softmax. The last average pool
    covers the whole map, which is 2x2 for 28x28 images. `width` scales channels, `group` goes to every `BatchNorm`.
    """

    def __init__(self, k: int, shape: tuple[int, int, int], width: float = 1.0) -> None:
        super().__init__()
        channels, height, width_px = shape
        if min(height, width_px) < 22:
            raise StdacError(
                f"images are {height}x{width_px} pixels, but DAC's network needs at least 22x22: "
                "set an image size of 22 or more"
            )
        a, b = scale_channels(64, width), scale_channels(128, width)
        plan = [(channels, a), (a, a), (a, a), (a, b), (b, b), (b, b)]
        self.convs = nn.ModuleList(_init_he_normal(nn.Conv2d(i, o, 3)) for i, o in plan)
        self.norms = nn.ModuleList(BatchNorm(o) for _, o in plan)
        self.pool_norms = nn.ModuleList([BatchNorm(a), BatchNorm(b)])
        self.conv_k = _init_he_normal(nn.Conv2d(b, k, 1))
        self.norm_k, self.pool_norm_k = BatchNorm(k), BatchNorm(k)
        self.denses = nn.ModuleList(init_identity(nn.Linear(k, k)) for _ in range(2))
        self.dense_norms = nn.ModuleList(BatchNorm(k) for _ in range(2))

    def embed(self, x: Tensor, group: int | None = None) -> Tensor:
        """What enters the last dense layer: (B, C, H, W) -> (B, K) float32."""
        for block in range(2):  # (B, 64, H-6, W-6) -> pooled; then (B, 128, ...) -> pooled
            for i in range(3 * block, 3 * block + 3):
                x = F.relu(self.norms[i](self.convs[i](x), group))
            x = self.pool_norms[block](F.max_pool2d(x, 2), group)
        x = F.relu(self.norm_k(self.conv_k(x), group))  # (B, K, 2, 2)
        x = self.pool_norm_k(x.mean((2, 3)), group)  # (B, K)
        return F.relu(self.dense_norms[0](self.denses[0](x), group))

    def classify(self, z: Tensor, group: int | None = None) -> Tensor:
        """Label features of embeddings z (B, K): (B, K) float32."""
        return F.relu(self.dense_norms[1](self.denses[1](z), group)).softmax(1)

    def forward(self, x: Tensor, group: int | None = None) -> Tensor:
        return self.classify(self.embed(x, group), group)


class SmallConvNet(nn.Module):
    """A small convnet for images of any size: three stages of 24, 48 and 96 channels, times `width`, and a mean over
    the last map.

    (B, C, H, W) float32, standardised, H, W >= 4 -> scores (B, K) float32, a softmax. `group` goes to every
    `BatchNorm`. Raises StdacError for smaller images.
    """

    def __init__(self, k: int, shape: tuple[int, int, int], width: float = 1.0) -> None:
        super().__init__()
        channels, height, width_px = shape
        if min(height, width_px) < 4:
            raise StdacError(
                f"images are {height}x{width_px} pixels, but the convnet needs at least 4x4: set an image size"
            )
        a, b, c = (scale_channels(size, width) for size in (24, 48, 96))
        plan = [(channels, a), (a, b), (b, b), (b, c), (c, c)]
        self.convs = nn.ModuleList(_init_he_normal(nn.Conv2d(i, o, 3, padding=1)) for i, o in plan)
        self.norms = nn.ModuleList(BatchNorm(o) for _, o in plan)
        self.dense = _init_glorot_uniform(nn.Linear(c, k))

    def embed(self, x: Tensor, group: int | None = None) -> Tensor:
        """The mean over the last map: (B, C, H, W) -> (B, 96) float32, times `width`."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x), group))
            if i in (0, 2):
                x = F.max_pool2d(x, 2)
        return x.mean((2, 3))

    def classify(self, z: Tensor, group: int | None = None) -> Tensor:
        """Scores of embeddings z (B, 96): (B, K) float32."""
        y: Tensor = self.dense(z).softmax(1)
        return y

    def forward(self, x: Tensor, group: int | None = None) -> Tensor:
        return self.classify(self.embed(x, group), group)


def init_identity(layer: nn.Linear) -> nn.Linear:
    """Identity weights, zero bias, in place."""
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class SoftAssignment(nn.Module):
    """Student's t similarity of codes to cluster centres, rows summing to 1 (Xie et al. 2016, Eq. 1, alpha = 1).

    z (B, d) float32 -> q (B, K) float32; its argmax is the nearest centre.
    """

    def __init__(self, k: int, dimensions: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(k, dimensions))

    def forward(self, z: Tensor) -> Tensor:
        # ||z - c||^2 by its binomial formula would lose digits where a code lies on a centre; K is small
        similarity = 1 / (1 + (z[:, None] - self.centres).square().sum(2))  # (B, K)
        return similarity / similarity.sum(1, keepdim=True)


def mlp(sizes: list[int]) -> nn.Sequential:
    """Dense layers with ReLU between them and none at the end, weights U(+-1/sqrt(fan_in)), zero bias."""
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        dense = nn.Linear(i, o)
        nn.init.uniform_(dense.weight, -(i**-0.5), i**-0.5)
        nn.init.zeros_(dense.bias)
        layers += [dense, nn.ReLU()]
    return nn.Sequential(*layers[:-1])

"""Autoencoders: the networks that a family of methods starts from, and the models that are made of their encoders."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdac.errors import StdacError
from stdac.networks import SoftAssignment, Standardize, scale_channels

NETWORKS = ("dense", "conv")
HIDDEN = (500, 500, 2000)  # units of the dense encoder (Xie et al. 2016)
FILTERS = (32, 64, 128)  # of the convolutional encoder (Guo et al. 2018)
KERNELS = (5, 5, 3)
STRIDE = 2
ENCODE_BATCH = 1000

Shape = tuple[int, int, int]


class DenseLayers(nn.Sequential):
    """Dense layers with ReLU between them and none at the end: (B, ...) flattened -> (B, sizes[-1])."""

    def __init__(self, sizes: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for i, o in pairwise(sizes):
            layers += [nn.Linear(i, o), nn.ReLU()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self:
            x = layer(x)
        return x


class DenseDecoder(nn.Module):
    """Dense layers from codes (B, d) to images (B, C, H, W)."""

    def __init__(self, sizes: Sequence[int], shape: Shape) -> None:
        super().__init__()
        self.layers = DenseLayers(sizes)
        self.shape = shape

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = self.layers(z).unflatten(1, self.shape)
        return y


class ConvEncoder(nn.Module):
    """ConvDEC-DA's encoder (Guo et al. 2018): 5×5·32, 5×5·64 and 3×3·128 of stride 2, ReLU, then dense to the code.

    (B, C, H, W) -> (B, d). The first two are padded to half the size, rounded up ("same", the odd pixel after); the
    last one only where a side divides by 8, so that 28×28 pixels become 14, 7 and 3.
    """

    def __init__(self, shape: Shape, dimensions: int, width: float = 1.0) -> None:
        super().__init__()
        self.maps = measure_maps(shape)  # the size of each map, that of the image first
        channels = [shape[0], *(scale_channels(n, width) for n in FILTERS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, kernel, STRIDE) for (i, o), kernel in zip(pairwise(channels), KERNELS, strict=True)
        )
        self.dense = nn.Linear(channels[-1] * self.maps[-1][0] * self.maps[-1][1], dimensions)

    def forward(self, x: Tensor) -> Tensor:
        for conv, kernel, size, smaller in zip(self.convs, KERNELS, self.maps, self.maps[1:], strict=False):
            x = F.relu(conv(F.pad(x, _find_padding(size, smaller, kernel))))
        y: Tensor = self.dense(x.flatten(1))
        return y


class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: codes (B, d) -> images (B, C, H, W), linear at the end."""

    def __init__(self, shape: Shape, dimensions: int, width: float = 1.0) -> None:
        super().__init__()
        self.maps = measure_maps(shape)[::-1]
        channels = [*(scale_channels(n, width) for n in reversed(FILTERS)), shape[0]]
        self.smallest = (channels[0], *self.maps[0])
        self.dense = nn.Linear(dimensions, channels[0] * self.maps[0][0] * self.maps[0][1])
        self.deconvs = nn.ModuleList(
            nn.ConvTranspose2d(i, o, kernel, STRIDE)
            for (i, o), kernel in zip(pairwise(channels), KERNELS[::-1], strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = F.relu(self.dense(z)).unflatten(1, self.smallest)
        steps = zip(self.deconvs, KERNELS[::-1], self.maps, self.maps[1:], strict=False)
        for number, (deconv, kernel, size, larger) in enumerate(steps):
            left, right, top, bottom = _find_padding(larger, size, kernel)
            x = F.pad(deconv(x), (-left, -right, -top, -bottom))
            if number < len(self.deconvs) - 1:
                x = F.relu(x)
        return x


def measure_maps(shape: Shape) -> list[tuple[int, int]]:
    """(height, width) of an image and of the three maps of `ConvEncoder`. Raises StdacError where the last is empty."""
    maps = [(shape[1], shape[2])]
    for number in range(3):
        padded = number < 2 or all(side % 8 == 0 for side in shape[1:])
        height, width = (-(-side // STRIDE) if padded else (side - KERNELS[number]) // STRIDE + 1 for side in maps[-1])
        maps.append((height, width))
    if min(maps[-1]) < 1:
        raise StdacError(
            f"images are {shape[1]}x{shape[2]} pixels, but the convolutional autoencoder needs at least 9x9: set an "
            "image size"
        )
    return maps


def _find_padding(size: tuple[int, int], smaller: tuple[int, int], kernel: int) -> tuple[int, int, int, int]:
    """What `F.pad` adds around a map of `size` so that a convolution of stride 2 makes it `smaller`; where it would
    rather leave something out, less than nothing after it."""
    (top, bottom), (left, right) = (
        (max(missing, 0) // 2, missing - max(missing, 0) // 2)
        for missing in ((s - 1) * STRIDE + kernel - n for n, s in zip(size, smaller, strict=True))
    )
    return left, right, top, bottom


class Autoencoder(nn.Module):
    """Encoder and decoder behind a factor for the pixels: as a model images (B, C, H, W) in [0, 1] -> codes (B, d).

    network: one of NETWORKS. The decoder is linear at the end; `reconstruct` is what is compared with `scale`d images.
    """

    def __init__(
        self, shape: Shape, network: str = "dense", width: float = 1.0, dimensions: int = 10, factor: float = 1.0
    ) -> None:
        super().__init__()
        self.standardize = Standardize(0.0, factor)
        self.encoder = make_encoder(shape, network, width, dimensions)
        if network == "dense":
            sizes = [dimensions, *(scale_channels(n, width) for n in reversed(HIDDEN)), shape[0] * shape[1] * shape[2]]
            self.decoder: nn.Module = DenseDecoder(sizes, shape)
        else:
            self.decoder = ConvDecoder(shape, dimensions, width)

    def scale(self, x: Tensor) -> Tensor:
        """What is encoded and reconstructed: (B, C, H, W) in [0, 1] -> the same shape."""
        y: Tensor = self.standardize(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(self.scale(x))
        return z

    def reconstruct(self, z: Tensor) -> Tensor:
        """Codes (B, d) -> images (B, C, H, W), in the scale of `scale`."""
        y: Tensor = self.decoder(z)
        return y


def make_encoder(shape: Shape, network: str, width: float, dimensions: int) -> nn.Module:
    """An encoder of NETWORKS: (B, C, H, W) -> (B, dimensions)."""
    if network == "dense":
        sizes = [scale_channels(n, width) for n in HIDDEN]
        return DenseLayers([shape[0] * shape[1] * shape[2], *sizes, dimensions])
    return ConvEncoder(shape, dimensions, width)


class EncoderWithCentres(nn.Module):
    """Scale, encode, soft assignment to centres: (B, C, H, W) float32 in [0, 1] -> (B, K), the argmax of which is the
    nearest centre."""

    def __init__(
        self,
        k: int,
        shape: Shape,
        network: str = "dense",
        width: float = 1.0,
        dimensions: int = 10,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.standardize = Standardize(0.0, factor)
        self.encoder = make_encoder(shape, network, width, dimensions)
        self.assign = SoftAssignment(k, dimensions)

    def take_encoder(self, autoencoder: Autoencoder) -> None:
        """Take the encoder of an autoencoder, and its factor: from now on both train one set of weights."""
        self.standardize, self.encoder = autoencoder.standardize, autoencoder.encoder

    def embed(self, x: Tensor) -> Tensor:
        """The codes: (B, C, H, W) -> (B, d) float32."""
        z: Tensor = self.encoder(self.standardize(x))
        return z

    def classify(self, z: Tensor) -> Tensor:
        """Soft assignments of codes z (B, d): (B, K) float32."""
        q: Tensor = self.assign(z)
        return q

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embed(x))


@torch.no_grad()
def encode_all(model: nn.Module, images: Tensor, batch: int = ENCODE_BATCH) -> Tensor:
    """The embeddings of all images: (N, C, H, W) uint8 -> (N, d). model: one that has `embed`, or gives them itself."""
    encode = getattr(model, "embed", model)
    return torch.cat([encode(x.float() / 255) for x in images.split(batch)])

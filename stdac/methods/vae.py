"""A variational autoencoder (Kingma and Welling 2014), fully connected or convolutional: an embedding of images.

It is a trial of its own, which clusters nothing: what `vae-dbscan` lays out, and what `stdac neighbours` searches in.
The layers are those of the paper on VAE, t-SNE and DBSCAN (S3), which are known by their numbers of parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdac.autoencoders import NETWORKS
from stdac.errors import StdacError
from stdac.methods.autoencoder import initialize
from stdac.methods.method import BUDGETS, PUBLISHED, Cost, Fitted, Method, Shape, Task, count_forward
from stdac.networks import scale_channels
from stdac.train import Trainer, phase
from stdac.trial import Params, check_choices, check_ranges

EPOCHS, CPU_EPOCHS = 500, 50
HIDDEN = (256, 128)  # units of the dense encoder
DROPOUT = 0.4
SLOPE = 0.3  # of the dense decoder's leaky ReLU, Keras's own
FILTERS = (128, 32)  # of the convolutional encoder, before its map of one channel
KERNELS = (7, 2, 7)
RATES = {"dense": 1e-3, "conv": 1e-4}  # of Adam
EFFICIENCY = {"dense": 0.8, "conv": 0.25}  # measured beside other work; the pooled maps of "conv" wait for memory


@dataclass(frozen=True)
class VAEParams(Params):
    """Hyperparameters."""

    network: str = "dense"  # or "conv"
    dimensions: int = 10  # of the code
    budget: str = PUBLISHED  # or "cpu": fewer epochs
    width: float = 1.0  # multiplier of the hidden layers' units or channels
    batch: int = 500
    lr: float | None = None  # Adam; None: 1e-3, of the convolutional network 1e-4

    def resolved(self, dataset: str) -> Self:
        """Fill in the learning rate. Raises StdacError for a value out of its range."""
        check_choices(self, {"network": NETWORKS, "budget": BUDGETS})
        filled = replace(self, lr=RATES[self.network] if self.lr is None else self.lr)
        check_ranges(filled, {"dimensions": 1, "batch": 2}, ("width", "lr"))  # batch statistics need two images
        return filled

    def choose_epochs(self, epochs: int) -> int:
        """The source's epochs, or those of a CPU's budget."""
        return epochs if self.budget == PUBLISHED else CPU_EPOCHS


class Normalized(nn.Sequential):
    """Dense layers, each followed by an activation, batch normalisation and dropout: (B, ...) -> (B, sizes[-1]).

    Running averages as in Keras: momentum .99, ε 1e-3. (Its averages are of the biased variance and torch's of the
    unbiased one: 500 / 499 of it.)
    """

    def __init__(self, sizes: tuple[int, ...], activation: nn.Module) -> None:
        layers: list[nn.Module] = []
        for i, o in pairwise(sizes):
            norm = nn.BatchNorm1d(o, eps=1e-3, momentum=0.01)  # torch's momentum is the weight of the new value
            layers += [nn.Linear(i, o), activation, norm, nn.Dropout(DROPOUT)]
        super().__init__(nn.Flatten(), *layers)


class ConvBody(nn.Module):
    """7×7·128, pooling, 2×2·32, pooling, 7×7·1, all padded to the same size, ReLU but after the last: (B, C, H, W) ->
    (B, H/4 · W/4)."""

    def __init__(self, shape: Shape, width: float) -> None:
        super().__init__()
        channels = (shape[0], *(scale_channels(n, width) for n in FILTERS), 1)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k) for (i, o), k in zip(pairwise(channels), KERNELS, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.convs
        x = F.max_pool2d(F.relu(convolve(first, x)), 2)
        x = F.max_pool2d(F.relu(convolve(second, x)), 2)
        return convolve(last, x).flatten(1)


class ConvDecoder(nn.Module):
    """The mirror of `ConvBody`: codes (B, d) -> logits of pixels (B, C, H, W); pixels of maps are repeated."""

    def __init__(self, shape: Shape, dimensions: int, width: float) -> None:
        super().__init__()
        self.maps = measure_maps(shape)[::-1]
        channels = (1, *(scale_channels(n, width) for n in reversed(FILTERS)), shape[0])
        self.dense = nn.Linear(dimensions, self.maps[0][0] * self.maps[0][1])
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k) for (i, o), k in zip(pairwise(channels), KERNELS[::-1], strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        first, second, last = self.convs
        x = self.dense(z).unflatten(1, (1, *self.maps[0]))
        x = F.interpolate(F.relu(convolve(first, x)), self.maps[1])
        x = F.interpolate(F.relu(convolve(second, x)), self.maps[2])
        return convolve(last, x)


def measure_maps(shape: Shape) -> list[tuple[int, int]]:
    """(height, width) of an image and after each of two poolings. Raises StdacError where nothing is left."""
    maps = [(shape[1] // n, shape[2] // n) for n in (1, 2, 4)]
    if min(maps[-1]) < 1:
        raise StdacError(
            f"images are {shape[1]}x{shape[2]} pixels, but the convolutional VAE needs at least 4x4: set an image size"
        )
    return maps


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """The convolution with as much padding as keeps the size; of an even kernel's the odd pixel after, as Keras has
    it."""
    assert isinstance(layer, nn.Conv2d)
    before, after = (layer.kernel_size[0] - 1) // 2, layer.kernel_size[0] // 2
    y: Tensor = layer(F.pad(x, (before, after, before, after)))
    return y


class VAEEncoder(nn.Module):
    """Body and two heads: images (B, C, H, W) in [0, 1] -> mean and log-variance of the codes, (B, d) each."""

    def __init__(self, shape: Shape, network: str, dimensions: int, width: float) -> None:
        super().__init__()
        if network == "dense":
            sizes = (shape[0] * shape[1] * shape[2], *(scale_channels(n, width) for n in HIDDEN))
            self.body: nn.Module = Normalized(sizes, nn.ReLU())
            features = sizes[-1]
        else:
            height, width_px = measure_maps(shape)[-1]
            self.body, features = ConvBody(shape, width), height * width_px
        self.mean = nn.Linear(features, dimensions)
        self.log_variance = nn.Linear(features, dimensions)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mean(h), self.log_variance(h)


class VariationalAutoencoder(nn.Module):
    """Encoder and decoder; as a model images (B, C, H, W) in [0, 1] -> means of the codes (B, d)."""

    def __init__(self, shape: Shape, network: str = "dense", dimensions: int = 10, width: float = 1.0) -> None:
        super().__init__()
        self.encoder = VAEEncoder(shape, network, dimensions, width)
        if network == "dense":
            sizes = (dimensions, *(scale_channels(n, width) for n in reversed(HIDDEN)))
            pixels = shape[0] * shape[1] * shape[2]
            layers = (Normalized(sizes, nn.LeakyReLU(SLOPE)), nn.Linear(sizes[-1], pixels), nn.Unflatten(1, shape))
            self.decoder: nn.Module = nn.Sequential(*layers)
        else:
            self.decoder = ConvDecoder(shape, dimensions, width)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(x)[0]
        return z


def build(k: int, shape: Shape, params: VAEParams) -> VariationalAutoencoder:
    """The untrained network. k is of no account: it clusters nothing."""
    model = VariationalAutoencoder(shape, params.network, params.dimensions, params.width)
    initialize(model, "glorot")
    return model


def fit(images: Tensor, k: int, params: VAEParams, trainer: Trainer) -> Fitted:
    """Phase "train", which scores nothing: there are no clusters."""
    assert params.lr is not None, "resolved has filled it"
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params).to(trainer.device)
    if params.network == "conv":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimizer = torch.optim.Adam(model.parameters(), lr=params.lr, eps=1e-7, fused=True)  # ε: Keras's own

    def batches(_epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for index in torch.randperm(len(images), device=images.device).split(params.batch):
            if len(index) > 1:  # one image has no batch statistics
                yield (images[index].float() / 255,)

    phase(
        trainer,
        "train",
        model.train(),
        optimizer,
        epochs=trainer.epochs,
        batches=batches,
        loss=partial(elbo_loss, model),
        main=True,
    )
    return Fitted(None, encoder=model.eval())


def elbo_loss(model: VariationalAutoencoder, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """`combine_losses` of images x (B, C, H, W) in [0, 1], and of codes that are drawn once an image."""
    mean, log_variance = model.encoder(x)  # (B, d) each
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    loss, reconstruction, divergence = combine_losses(model.decoder(z), x, mean, log_variance)
    return loss, {"loss_reconstruction": reconstruction, "loss_divergence": divergence}


def combine_losses(logits: Tensor, x: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(P · cross-entropy + divergence) / (2 P) for P pixels of an image, and the two alone.

    logits, x (in [0, 1]): (B, C, H, W); cross-entropy: binary, the mean over images and pixels. mean, log_variance:
    (B, d); divergence: KL(N(mean, variance) || N(0, 1)), summed over d, the mean over images.
    """
    pixels = x[0].numel()
    reconstruction = F.binary_cross_entropy_with_logits(logits, x)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
    return (pixels * reconstruction + divergence) / (2 * pixels), reconstruction, divergence


def count_work(task: Task) -> Cost:
    """What a trial computes: three passes' worth through encoder and decoder, which has as many multiply-adds."""
    params = task.params
    forward = 2 * count_forward(build(task.k, task.shape, params), task.shape)
    steps = task.epochs * -(-task.n // params.batch)
    return Cost(3.0 * forward * task.n * task.epochs, steps=steps, efficiency=EFFICIENCY[params.network])


VAE = Method(
    title="VAE, {network}, {dimensions}-d",
    params=VAEParams,
    build=build,
    fit=fit,
    epochs=EPOCHS,
    cost=count_work,
    small={"width": 0.25, "batch": 100},
    takes_k=False,
)

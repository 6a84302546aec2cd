"""An autoencoder, pre-trained once: what DEC, IDEC, DCN, Deep K-Means, VaDE and AE + k-means start from.

It is a trial of its own, which clusters nothing. The methods that start from it name it by `name_autoencoder`, so that
those of one seed and data set share it, whatever their number of clusters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from stdac.augment import AUGMENTATIONS, augment
from stdac.autoencoders import NETWORKS, Autoencoder
from stdac.errors import StdacError
from stdac.methods.method import BUDGETS, PUBLISHED, Cost, Fitted, Method, Shape, Task, count_forward
from stdac.train import Trainer, phase
from stdac.trial import Params, Trial, check_choices, check_ranges

EPOCHS = 50  # of Adam: Deep K-Means and DCN as Fard et al. 2018 train them, and everybody's on a CPU's budget
OUTPUTS = ("linear", "sigmoid")


class Recipe(NamedTuple):
    """How an autoencoder is trained. init: of the weights, see `initialize`; biases are 0. factor: of the pixels in
    [0, 1]. layer_steps, layer_epochs: of each layer alone before all together, where a recipe is layer-wise.
    corruption: dropout then, on both sides of a layer. decay_steps: after which the learning rate is a tenth (0:
    never). warm_up: steps without momentum."""

    init: str
    optimizer: str
    lr: float
    factor: float = 1.0
    layer_steps: int = 0
    layer_epochs: int = 0
    corruption: float = 0.0
    decay_steps: int = 0
    warm_up: int = 0

    @property
    def is_layerwise(self) -> bool:
        """Whether each layer is trained alone first."""
        return bool(self.layer_steps or self.layer_epochs)


RECIPES = {
    "adam": Recipe("glorot", "adam", 1e-3),  # Fard et al. 2018
    "sgd": Recipe("fan-in", "sgd", 1.0),  # Guo et al. 2018
    "dec": Recipe("normal", "sgd", 0.1, 0.02 * 255, 50_000, 0, 0.2, 20_000, 1000),  # Xie et al. 2016
    "dcn": Recipe("fan-in-normal", "nesterov", 1e-4, 1.0, 0, 250, 0.0, 0, 1000),  # Yang et al. 2017
}


@dataclass(frozen=True)
class AutoencoderParams(Params):
    """Hyperparameters."""

    network: str = "dense"  # or "conv"
    recipe: str = "adam"  # of RECIPES
    augmentation: str = "none"  # of the input, which is then what is reconstructed
    output: str = "linear"  # squared error; or "sigmoid": cross-entropy
    dimensions: int = 10  # of the code
    width: float = 1.0  # multiplier of the hidden layers' units or channels
    batch: int = 256

    def resolved(self, dataset: str) -> Self:
        """Check the values. Raises StdacError for one out of its range."""
        check_choices(self, {"network": NETWORKS, "recipe": RECIPES, "augmentation": AUGMENTATIONS, "output": OUTPUTS})
        if self.network == "conv" and RECIPES[self.recipe].is_layerwise:
            raise StdacError(
                f"got recipe = {self.recipe!r} for network conv, expected adam or sgd: it has dense layers"
            )
        check_ranges(self, {"dimensions": 1, "batch": 1}, ("width",))
        return self


@dataclass(frozen=True)
class PretrainedParams(Params):
    """What the methods share that start from an autoencoder. None: as the budget has it, see `fill_budget`.

    budget: "published", or "cpu": the autoencoder that all of them share, of fewer epochs. width: multiplier of the
    hidden layers' units or channels. dimensions: of the code. recipe: how the autoencoder is trained, "adam", "sgd",
    "dec" or "dcn", see `RECIPES`. pretrain_epochs: of it.
    """

    budget: str = PUBLISHED
    width: float = 1.0
    dimensions: int = 10
    recipe: str | None = None
    pretrain_epochs: int | None = None

    def fill_budget(self, recipe: str, epochs: int, cpu_epochs: int = EPOCHS) -> Self:
        """The same with what the source has where None is, `recipe` and `epochs`; on a CPU's budget Adam and
        `cpu_epochs`.

        Raises StdacError for a value out of its range.
        """
        check_choices(self, {"budget": BUDGETS})
        if self.budget != PUBLISHED:
            recipe, epochs = "adam", cpu_epochs
        filled = replace(
            self,
            recipe=recipe if self.recipe is None else self.recipe,
            pretrain_epochs=epochs if self.pretrain_epochs is None else self.pretrain_epochs,
        )
        check_ranges(filled, {"pretrain_epochs": 1}, ())
        return filled

    @property
    def factor(self) -> float:
        """Of the pixels in [0, 1], as the autoencoder was trained with it."""
        assert self.recipe is not None, "fill_budget has seen to it"
        return RECIPES[self.recipe].factor


def name_autoencoder(trial: Trial, **changes: object) -> list[Trial]:
    """The autoencoder that a trial with PretrainedParams needs. changes: other values of AutoencoderParams."""
    params: PretrainedParams = trial.params  # type: ignore[assignment]  # methods that need it have these
    assert params.recipe is not None and params.pretrain_epochs is not None, "fill_budget has seen to it"
    values = {"recipe": params.recipe, "dimensions": params.dimensions, "width": params.width} | changes
    own = AutoencoderParams(**values).resolved(trial.dataset)  # type: ignore[arg-type]
    return [
        replace(
            trial, method="autoencoder", n_clusters=0, epochs=params.pretrain_epochs, params=own, needs=(), source=None
        )
    ]


def load_autoencoder(trainer: Trainer) -> Autoencoder:
    """The autoencoder that the trial was given, on its device, in training mode."""
    model = trainer.needed[0].load_model()
    assert isinstance(model, Autoencoder), "the methods name one by name_autoencoder"
    return model.to(trainer.device).train()


def build(k: int, shape: Shape, params: AutoencoderParams) -> Autoencoder:
    """The untrained autoencoder. k is of no account: it clusters nothing."""
    factor = RECIPES[params.recipe].factor
    model = Autoencoder(shape, params.network, params.width, params.dimensions, factor)
    initialize(model, RECIPES[params.recipe].init)
    return model


def initialize(model: nn.Module, init: str) -> None:
    """Weights in place, biases 0. init: "glorot" (uniform), "fan-in" (uniform, ±1/√inputs), "fan-in-normal" (standard
    deviation 1/√inputs), "normal" (.01)."""
    for layer in model.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        inputs = layer.weight[0].numel()
        if init == "glorot":
            nn.init.xavier_uniform_(layer.weight)
        elif init == "fan-in":
            nn.init.uniform_(layer.weight, -(inputs**-0.5), inputs**-0.5)
        else:
            nn.init.normal_(layer.weight, std=0.01 if init == "normal" else inputs**-0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def fit(images: Tensor, k: int, params: AutoencoderParams, trainer: Trainer) -> Fitted:
    """Each layer alone, where the recipe is layer-wise; then all of them."""
    recipe, shape = RECIPES[params.recipe], (images.shape[1], images.shape[2], images.shape[3])
    model = build(k, shape, params).to(trainer.device)
    if recipe.is_layerwise:
        train_layers(model, images, params, trainer)
    if params.network == "conv":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimizer = make_optimizer(model, recipe)

    def batches(epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for x in follow_recipe(
            draw_batches(images, params.batch), optimizer, recipe, epoch, len(images) / params.batch
        ):
            yield (x,)

    phase(
        trainer,
        "pretrain",
        model,
        optimizer,
        epochs=trainer.epochs,
        batches=batches,
        loss=partial(reconstruction_loss, model, params),
        main=True,
    )
    return Fitted(None, encoder=model.eval())


def draw_batches(images: Tensor, batch: int) -> Iterator[Tensor]:
    """Shuffled mini-batches (b, C, H, W) float32 in [0, 1] of uint8 images; the last one may be shorter."""
    for index in torch.randperm(len(images), device=images.device).split(batch):
        yield images[index].float() / 255


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """As the recipe has it."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=0.9)
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases, "lr": 2 * recipe.lr}]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)


def follow_recipe(
    batches: Iterator[Tensor], optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int, steps: float
) -> Iterator[Tensor]:
    """The mini-batches of an epoch of so many steps; before each the optimiser is set as the recipe has it."""
    for number, x in enumerate(batches, round((epoch - 1) * steps)):
        if recipe.decay_steps or recipe.warm_up:
            for group in optimizer.param_groups:
                group.setdefault("start", group["lr"])
                group["lr"] = group["start"] * 0.1 ** (number // recipe.decay_steps if recipe.decay_steps else 0)
                group["momentum"] = 0.0 if number < recipe.warm_up else 0.9
                group["nesterov"] = recipe.optimizer == "nesterov" and number >= recipe.warm_up
        yield x


def reconstruction_loss(model: Autoencoder, params: AutoencoderParams, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """`measure_reconstruction` of x (B, C, H, W) in [0, 1], augmented before where that is asked for."""
    if params.augmentation != "none":
        x = augment(x, AUGMENTATIONS[params.augmentation])
    loss = measure_reconstruction(model, model(x), x, params.output)
    return loss, {"loss_reconstruction": loss}


def measure_reconstruction(model: Autoencoder, z: Tensor, x: Tensor, output: str = "linear") -> Tensor:
    """What the decoder makes of codes z (B, d) against x (B, C, H, W): the mean over images and pixels of the squared
    error, or of the binary cross-entropy where the output is a sigmoid."""
    if output == "sigmoid":
        return nn.functional.binary_cross_entropy_with_logits(model.reconstruct(z), model.scale(x))
    return (model.reconstruct(z) - model.scale(x)).square().mean()


def train_layers(model: Autoencoder, images: Tensor, params: AutoencoderParams, trainer: Trainer) -> None:
    """Phases "layer-1", "layer-2", …: each layer of the encoder with its mirror in the decoder, on the outputs of those
    before it (Xie et al. 2016, Sec. 3.2: denoising; Yang et al. 2017 without corruption)."""
    recipe = RECIPES[params.recipe]
    encoders, decoders = list_linear(model.encoder), list_linear(model.decoder)[::-1]
    for number, (encode, decode) in enumerate(zip(encoders, decoders, strict=True), 1):
        pair = nn.ModuleDict({"encode": encode, "decode": decode})
        optimizer = make_optimizer(pair, recipe)
        epochs = recipe.layer_epochs or -(-recipe.layer_steps * params.batch // len(images))
        before = partial(_run_layers, model, encoders[: number - 1])

        def batches(
            epoch: int,
            optimizer: torch.optim.Optimizer = optimizer,
            before: Callable[[Tensor], Tensor] = before,
        ) -> Iterator[tuple[Tensor, ...]]:
            drawn = draw_batches(images, params.batch)
            for x in follow_recipe(drawn, optimizer, recipe, epoch, len(images) / params.batch):
                yield (before(x),)

        # linear are the code, and the reconstruction of the pixels
        linear = (number == len(encoders), number == 1)
        loss = partial(layer_loss, pair, recipe.corruption, linear)
        phase(trainer, f"layer-{number}", pair, optimizer, epochs=epochs, batches=batches, loss=loss)


def list_linear(part: nn.Module) -> list[nn.Linear]:
    """The dense layers of an encoder or decoder, in order."""
    return [layer for layer in part.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def _run_layers(model: Autoencoder, layers: list[nn.Linear], x: Tensor) -> Tensor:
    """x (B, C, H, W) in [0, 1] through the first layers, each with its ReLU: (B, units)."""
    x = model.scale(x).flatten(1)
    for layer in layers:
        x = layer(x).relu()
    return x


def layer_loss(
    pair: nn.ModuleDict, corruption: float, linear: tuple[bool, bool], x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of a layer's own reconstruction of x (B, units), dropout on both sides. linear: whether its
    code and its reconstruction have no ReLU."""
    h = pair["encode"](nn.functional.dropout(x, corruption))
    h = nn.functional.dropout(h if linear[0] else h.relu(), corruption)
    y = pair["decode"](h)
    loss = ((y if linear[1] else y.relu()) - x).square().mean()
    return loss, {"loss_reconstruction": loss}


def count_work(task: Task) -> Cost:
    """What a trial computes: three passes' worth through encoder and decoder, which has as many multiply-adds."""
    params, recipe = task.params, RECIPES[task.params.recipe]
    forward = 2 * count_forward(build(task.k, task.shape, params), task.shape)
    layers = 0.0
    if recipe.is_layerwise:  # four layers, one after another: together once through all of them
        layers = 3.0 * forward * (recipe.layer_steps * params.batch + recipe.layer_epochs * task.n)
    steps = (task.epochs + 4 * recipe.layer_epochs) * task.n / params.batch + 4 * recipe.layer_steps
    return Cost(3.0 * forward * task.n * task.epochs, layers, steps)


AUTOENCODER = Method(
    title="Autoencoder, {network}",
    params=AutoencoderParams,
    build=build,
    fit=fit,
    epochs=EPOCHS,
    cost=count_work,
    small={"width": 0.1},
    takes_k=False,
)

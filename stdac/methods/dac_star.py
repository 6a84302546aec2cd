"""DAC*: Deep Adaptive Clustering with one falling threshold and every pair in use (Chang et al. 2017, MNIST script)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from stdac.augment import AUGMENTATIONS, augment
from stdac.methods.method import Fitted, Method, Shape
from stdac.methods.pairwise import (
    CleanPass,
    Deployed,
    assign_by_protocol,
    calibrate_and_assign,
    compare_all,
    count_family_work,
    fall_threshold,
    mean_pixel,
    normalize,
    pair_batches,
    pair_targets,
)
from stdac.networks import AllConvNet
from stdac.step import autocast, check_precision
from stdac.train import Assignment, Trainer, phase
from stdac.trial import Params, check_choices, check_ranges


@dataclass(frozen=True)
class DACStarParams(Params):
    """Hyperparameters, as in the authors' MNIST script.

    width: multiplier of the layers' channels. threshold_start, threshold_end: cosine above which a pair is positive, in
    the first epoch, and what it falls to. augmentation: "none", "dac-mnist", "dac-cifar" (mirrors images), "dec-da".
    macro_batch: images labelled at once; passes: over each macro-batch; batch: images a step; label_batch: images that
    share batch statistics when labelling; eval_batch: and when scoring. lr: RMSprop's learning rate. precision:
    "float32", "tf32" or "bfloat16".
    """

    width: float = 1.0
    threshold_start: float = 0.9
    threshold_end: float = 0.5  # approached linearly: 20 epochs step by .02 and end at .52
    augmentation: str = "dac-mnist"
    macro_batch: int = 1000
    passes: int = 5
    batch: int = 128
    label_batch: int = 32
    eval_batch: int = 128
    lr: float = 1e-3  # rho .9, eps 1e-8
    precision: str = "float32"  # see `stdac.step.PRECISIONS`

    def resolved(self, dataset: str) -> Self:
        """Check the names. Raises StdacError for an unknown one."""
        check_choices(self, {"augmentation": AUGMENTATIONS})
        check_precision(self.precision)
        check_ranges(self, {"passes": 1, "batch": 2, "label_batch": 2, "eval_batch": 2, "macro_batch": 2})
        return self


def build(k: int, shape: Shape, params: DACStarParams) -> Deployed:
    """The untrained deployed model."""
    return Deployed(AllConvNet(k, shape, params.width))


def fit(images: Tensor, k: int, params: DACStarParams, trainer: Trainer) -> Fitted:
    """Train the authors' network by their recipe."""
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params)
    return fit_model(model, images, params, trainer)


def fit_model(model: Deployed, images: Tensor, params: DACStarParams, trainer: Trainer) -> Fitted:
    """Train any network by DAC*'s recipe."""
    mean = mean_pixel(images)
    net = model.prepare(mean, trainer.device)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=params.lr, alpha=0.9, eps=1e-8, capturable=trainer.graphs)
    # paper: file order, the same in every epoch; here: one shuffle, the same in every epoch, because folders are
    # sorted by class, which batch statistics do not survive
    order = torch.randperm(len(images), device=images.device)
    clean_pass = CleanPass(net, params.label_batch, trainer)
    eval_pass = CleanPass(net, params.eval_batch, trainer)

    def batches(epoch: int) -> Iterator[tuple[Tensor, ...]]:
        return pair_batches(
            images,
            mean,
            clean_pass,
            order,
            fall_threshold(epoch, trainer.epochs, params.threshold_start, params.threshold_end),
            macro_batch=params.macro_batch,
            passes=params.passes,
            batch=params.batch,
            drop_last=False,
        )

    def evaluate(_epoch: int) -> Assignment:
        return assign_by_protocol(eval_pass, images, mean, order, params.macro_batch)

    phase(
        trainer,
        "cluster",
        net,
        optimizer,
        epochs=trainer.epochs,
        batches=batches,
        loss=partial(loss, net, params),
        evaluate=evaluate,
        main=True,
    )
    return Fitted(calibrate_and_assign(model, images), model)


def loss(
    net: nn.Module, params: DACStarParams, index: Tensor, clean: Tensor, y_clean: Tensor, tau: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a mini-batch as `pair_batches` yields it, augmented here, and its terms."""
    x = augment(clean[index], AUGMENTATIONS[params.augmentation])
    with autocast(params.precision, x.device):
        y = net(x)
    r, positive = pair_targets(y_clean[index], tau)
    pair = (compare_all(normalize(y.float())) - r).square().mean()
    return pair, {"loss_pair": pair, "positive_fraction": positive, "threshold": tau}


DAC_STAR = Method(
    title="DAC*",
    params=DACStarParams,
    build=build,
    fit=fit,
    epochs=20,
    cost=partial(count_family_work, build),
    colours={"DAC*": "#444444"},
    small={"width": 0.25, "macro_batch": 500},
    readings=("precision",),
)

"""DAC*: Deep Adaptive Clustering with one falling threshold and every pair in use (Chang et al. 2017, MNIST script)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from stdac.augment import AUGMENTATIONS, augment
from stdac.errors import StdacError
from stdac.methods.method import Fitted, Method, Shape
from stdac.methods.pairwise import (
    Deployed,
    LabelPass,
    calibrate_and_assign,
    cosines,
    pair_batches,
    pair_labels,
    pixel_mean,
    protocol_assignment,
    threshold_at,
    unit,
)
from stdac.networks import AllConvNet
from stdac.step import autocast, check_precision
from stdac.train import Assignment, Run, phase
from stdac.trial import Params, check_ranges


@dataclass(frozen=True)
class DACStarParams(Params):
    """Hyperparameters, as in the authors' MNIST script. width: multiplier of the layers' channels."""

    width: float = 1.0
    threshold_start: float = 0.9  # cosine above which a pair is positive, in the first epoch
    threshold_end: float = 0.5  # approached linearly: 20 epochs step by .02 and end at .52
    augmentation: str = "dac-mnist"
    macro_batch: int = 1000  # images labelled at once
    passes: int = 5  # over a macro-batch
    batch: int = 128
    label_batch: int = 32  # images that share batch statistics when labelling
    eval_batch: int = 128  # and when scoring
    lr: float = 1e-3  # RMSprop, rho .9, eps 1e-8
    precision: str = "float32"  # or "tf32", "bfloat16", see `stdac.step.PRECISIONS`

    def resolved(self, dataset: str) -> Self:
        """Check the names. Raises StdacError for an unknown one."""
        if self.augmentation not in AUGMENTATIONS:
            raise StdacError(f"got augmentation = {self.augmentation!r}, expected one of {', '.join(AUGMENTATIONS)}")
        check_precision(self.precision)
        check_ranges(self, {"passes": 1, "batch": 2, "label_batch": 2, "eval_batch": 2, "macro_batch": 2})
        return self


def build(k: int, shape: Shape, params: DACStarParams) -> Deployed:
    """The untrained deployed model."""
    return Deployed(AllConvNet(k, shape, params.width))


def fit(images: Tensor, k: int, params: DACStarParams, run: Run) -> Fitted:
    """Train the authors' network by their recipe."""
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params)
    return fit_model(model, images, params, run)


def fit_model(model: Deployed, images: Tensor, params: DACStarParams, run: Run) -> Fitted:
    """Train any network by DAC*'s recipe."""
    mean = pixel_mean(images)
    net = model.prepare(mean, run.device)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=params.lr, alpha=0.9, eps=1e-8, capturable=run.graphs)
    # paper: file order, the same in every epoch; here: one shuffle, the same in every epoch, because folders are
    # sorted by class, which batch statistics do not survive
    order = torch.randperm(len(images), device=images.device)
    label_pass = LabelPass(net, params.label_batch, run)
    eval_pass = LabelPass(net, params.eval_batch, run)

    def batches(epoch: int) -> Iterator[tuple[Tensor, ...]]:
        return pair_batches(
            images,
            mean,
            label_pass,
            order,
            threshold_at(epoch, run.epochs, params.threshold_start, params.threshold_end),
            macro_batch=params.macro_batch,
            passes=params.passes,
            batch=params.batch,
            drop_last=False,
        )

    def evaluate(_epoch: int) -> Assignment:
        return protocol_assignment(eval_pass, images, mean, order, params.macro_batch)

    phase(
        run,
        "cluster",
        net,
        optimizer,
        epochs=run.epochs,
        batches=batches,
        loss=partial(loss, net, params),
        evaluate=evaluate,
    )
    return Fitted(calibrate_and_assign(model, images), model)


def loss(
    net: nn.Module, params: DACStarParams, index: Tensor, clean: Tensor, labels: Tensor, tau: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a mini-batch as `pair_batches` yields it, augmented here, and its terms."""
    x = augment(clean[index], AUGMENTATIONS[params.augmentation])
    with autocast(params.precision, x.device):
        y = net(x)
    r, positive = pair_labels(labels[index], tau)
    pair = (cosines(unit(y.float())) - r).square().mean()
    return pair, {"loss_pair": pair, "positive_fraction": positive, "threshold": tau}


DAC_STAR = Method(DACStarParams, build, fit, epochs=20)

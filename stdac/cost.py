"""What a trial costs: multiply-adds, and a rough guess of seconds."""

from functools import cache

import torch
from torch import Tensor, nn

from stdac.methods import METHODS
from stdac.methods.method import Shape
from stdac.trial import Params, Trial

# Multiply-adds a second that training reached: ST-DAC at batch 32 on one Zen 4 core, compiled (0.25 s a step).
CPU_CORE_MACS = 2.8e10
# On a GPU small networks wait for kernel launches, about a millisecond a step; not measured yet.
GPU_STEP_S = 1.5e-3
START_S = 5.0
IMAGES = {"digits": 1797}
NAMED_IMAGES = 70_000


@cache
def forward_macs(method: str, k: int, shape: Shape, params: Params) -> int:
    """Multiply-adds of one image through the method's model, localisation nets included; 0 without a model."""
    build = METHODS[method].build
    if build is None:
        return 0
    total = 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d | nn.Linear):
            total += module.weight.numel() * (output[0, 0].numel() if output.ndim == 4 else 1)

    model = build(k, shape, params).eval()
    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    return total


def training_macs(trial: Trial, shape: Shape, images: int) -> float:
    """Multiply-adds of a trial: three forward passes' worth an image and pass, one a label pass, one an evaluation."""
    if not trial.epochs:
        return 0.0
    passes = getattr(trial.params, "passes", 1)
    return (
        float(forward_macs(trial.method, trial.n_clusters, shape, trial.params))
        * images
        * trial.epochs
        * (3 * passes + 2)
    )


def trial_seconds(trial: Trial, *, gpu: bool) -> float:
    """A rough guess of a trial's seconds on one core, or one GPU. Sizes of paths are not looked at: 70,000 images."""
    side = trial.image_size or 28
    images = min(trial.limit or NAMED_IMAGES, IMAGES.get(trial.dataset, NAMED_IMAGES))
    if gpu:
        batch, passes = getattr(trial.params, "batch", 32), getattr(trial.params, "passes", 1)
        return START_S + images * passes * trial.epochs / batch * GPU_STEP_S
    return START_S + training_macs(trial, (1, side, side), images) / CPU_CORE_MACS

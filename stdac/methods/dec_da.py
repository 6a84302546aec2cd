"""FcDEC-DA and ConvDEC-DA: DEC with augmented images, in the autoencoder's pre-training and in clustering
(Guo et al. 2018). The targets are those of the clean images."""

from dataclasses import dataclass
from typing import ClassVar

from stdac.methods.dec import PRETRAIN_EPOCHS, STEPS, DECParams, build, count_work, fit, name_needed
from stdac.methods.method import Method

INTERVAL = 140


@dataclass(frozen=True)
class FcDECDAParams(DECParams):
    """Hyperparameters: those of DEC, with rotations by up to 10 degrees and shifts by up to a tenth."""

    update_interval: int = INTERVAL

    augmentation: ClassVar[str] = "dec-da"
    cpu_epochs: ClassVar[int] = 100  # augmented, it needs more of them than the autoencoder that the others share


@dataclass(frozen=True)
class ConvDECDAParams(FcDECDAParams):
    """Hyperparameters: the same with the convolutional autoencoder, all trained by Adam."""

    optimizer: str = "adam"
    lr: float = 1e-3

    network: ClassVar[str] = "conv"
    published: ClassVar[tuple[str, int]] = ("adam", PRETRAIN_EPOCHS)


FCDEC_DA = Method(
    title="FcDEC-DA",
    params=FcDECDAParams,
    build=build,
    fit=fit,
    epochs=-(-STEPS // INTERVAL),
    cost=count_work,
    needs=name_needed,
    readings=("budget",),
    colours={"FcDEC-DA": "#44AA99"},
    small={"width": 0.25, "pretrain_epochs": 50},
)
CONVDEC_DA = Method(
    title="ConvDEC-DA",
    params=ConvDECDAParams,
    build=build,
    fit=fit,
    epochs=-(-STEPS // INTERVAL),
    cost=count_work,
    needs=name_needed,
    readings=("budget",),
    colours={"ConvDEC-DA": "#117733"},
    small={"width": 0.25, "pretrain_epochs": 20},
)

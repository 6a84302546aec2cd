"""A student: a convnet that learns the clusters of another trial, such as a vote of many, and can then be exported.

It is first taught the images that its teacher is most sure of, cluster by cluster, under augmentation and with smoothed
targets; then it goes on with what it is itself most sure of, in rounds, while its answers keep settling. Pseudo-labels
in rounds: Lee 2013. One cycle of the learning rate: Smith and Topin 2018. Smoothing: Szegedy et al. 2016.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from stdac.augment import AUGMENTATIONS, augment
from stdac.errors import StdacError
from stdac.methods.method import Cost, Fitted, Method, Shape, Task, count_forward
from stdac.methods.pairwise import CALIBRATION_BATCH, Deployed, mean_pixel, standardize
from stdac.networks import SmallConvNet, STDACNet, calibrate
from stdac.step import autocast, check_precision
from stdac.train import Assignment, Trainer, phase
from stdac.trial import Params, check_ranges, names_trials

CALIBRATED = 10_000  # images at most that population statistics are taken from: they are means
WARM_UP = 0.3  # of a cycle, in which the learning rate rises
LOWEST = 0.04  # of the learning rate, at both ends of a cycle


@dataclass(frozen=True)
class StudentParams(Params):
    """Hyperparameters. teacher: the id of the trial whose clusters are learned. network: "convnet", or "st-dac" with
    `stn` spatial transformers."""

    network: str = "convnet"
    stn: int = 0
    teacher: str = names_trials("")
    width: float = 1.0  # multiplier of the layers' channels
    share: float = 0.7  # of each cluster, those that the teacher is most sure of, which are taught
    rounds: int = 2  # the last epochs, at most, in which the student learns from itself
    sure_share: float = 0.9  # of each cluster, those that it is itself most sure of, which it then learns from
    smoothing: float = 0.1  # of the targets: so much goes to all clusters alike
    augmentation: str = "student"
    images: int = 20_000  # an epoch has as many, at least, if need be in several passes
    batch: int = 256
    lr: float = 4e-3  # Adam, at the top of a cycle
    precision: str = "float32"  # see `stdac.step.PRECISIONS`

    def resolved(self, dataset: str) -> Self:
        """Check the ranges. Raises StdacError for a value out of its range, or no teacher."""
        choices = {
            "network": (self.network, ("convnet", "st-dac")),
            "stn": (self.stn, (0, 1, 2, 3) if self.network == "st-dac" else (0,)),
            "augmentation": (self.augmentation, tuple(AUGMENTATIONS)),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                where = " for network convnet" if name == "stn" and self.network == "convnet" else ""
                raise StdacError(f"got {name} = {value!r}{where}, expected {', '.join(map(str, allowed))}")
        for name in ("share", "sure_share"):
            if not 0 < getattr(self, name) <= 1:
                raise StdacError(f"got {name} = {getattr(self, name)}, expected a share above 0, at most 1")
        if not 0 <= self.smoothing < 1:
            raise StdacError(f"got smoothing = {self.smoothing}, expected at least 0 and less than 1")
        check_precision(self.precision)
        check_ranges(self, {"rounds": 0, "images": 1, "batch": 2})
        if not self.teacher:
            raise StdacError(
                "method student has no teacher: name a trial (--set teacher=ID with its run folder as --out), or in a "
                "grid write a block for it, [trials.params.teacher]"
            )
        return self


def build(k: int, shape: Shape, params: StudentParams) -> Deployed:
    """The untrained model."""
    if params.network == "st-dac":
        return Deployed(STDACNet(k, shape, stn=params.stn, width=params.width))
    return Deployed(SmallConvNet(k, shape, params.width))


class Lesson(nn.Module):
    """What the student was taught and what it answered last: buffers, so that they survive a restart."""

    taught: Tensor  # (N,) bool: the images that the teacher is most sure of
    answers: Tensor  # (N,) int64: the student's clusters after the last epoch
    sureness: Tensor  # (N,) float32: of its answers
    settled: Tensor  # (E + 1,) float32: after each epoch, the share of answers that were the same before it
    epoch: Tensor  # 0-d int64: the last one

    def __init__(self, taught: Tensor, epochs: int) -> None:
        super().__init__()
        n, device = len(taught), taught.device
        self.register_buffer("taught", taught)
        self.register_buffer("answers", torch.full((n,), -1, device=device))
        self.register_buffer("sureness", torch.zeros(n, device=device))
        self.register_buffer("settled", torch.zeros(epochs + 1))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def note(self, epoch: int, answers: Assignment) -> None:
        """Keep the answers after an epoch."""
        assert answers.confidence is not None
        self.settled[epoch] = (answers.clusters == self.answers).float().mean()
        self.epoch.fill_(epoch)
        self.answers.copy_(answers.clusters)
        self.sureness.copy_(answers.confidence)


def fit(images: Tensor, k: int, params: StudentParams, trainer: Trainer) -> Fitted:
    """Learn the teacher's clusters, then its own."""
    (teacher,) = trainer.needed
    labels, confidence = (
        torch.from_numpy(a).to(images.device) for a in (teacher.read_clusters(), teacher.read_confidence())
    )
    _check_labels(labels, len(images), k)
    rounds = min(params.rounds, trainer.epochs - 1)

    # the network, and what survives a restart
    mean = mean_pixel(images)
    model = build(k, (images.shape[1], images.shape[2], images.shape[3]), params)
    net = model.prepare(mean, trainer.device)
    rate = torch.tensor(params.lr, device=images.device) if trainer.graphs else params.lr
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True, capturable=trainer.graphs)
    lesson = Lesson(choose_sure(labels, confidence, params.share), trainer.epochs)

    def batches(epoch: int) -> Iterator[tuple[Tensor, ...]]:
        own = epoch > trainer.epochs - rounds  # a round, in which the student learns from itself, is a cycle of its own
        targets = lesson.answers if own else labels
        chosen = choose_sure(targets, lesson.sureness, params.sure_share) if own else lesson.taught
        before, length, top = (0, 1, 0.5) if own else (epoch - 1, trainer.epochs - rounds, 1.0)
        share = chosen.float().mean()
        net.train()
        for done, index in draw_batches(chosen.nonzero()[:, 0], params.images, params.batch):
            set_rate(optimizer, params.lr * top * scale_rate((before + done) / length))
            yield index, images, targets, share

    def evaluate(epoch: int) -> Assignment:
        answers = answer(model, images)
        lesson.note(epoch, answers)
        return answers

    def finished() -> bool:
        epoch = int(lesson.epoch)
        return epoch > trainer.epochs - rounds and bool(lesson.settled[epoch] <= lesson.settled[epoch - 1])

    phase(
        trainer,
        "learn",
        nn.ModuleDict({"model": model, "lesson": lesson}),
        optimizer,
        epochs=trainer.epochs,
        batches=batches,
        loss=partial(loss, net, params, mean),
        evaluate=evaluate,
        finished=finished,
        main=True,
    )
    return Fitted(answer(model, images, calibrated=True).clusters, model)


def _check_labels(labels: Tensor, n: int, k: int) -> None:
    """Raise StdacError where the teacher's clusters cannot be learned."""
    if len(labels) != n:
        raise StdacError(
            f"the teacher has clusters of {len(labels)} images, the student {n}: name one of the same images"
        )
    if int(labels.max()) >= k:
        raise StdacError(
            f"the teacher has {int(labels.max()) + 1} clusters, the student {k}: give both the same number of clusters"
        )
    if int(labels.max()) < 0:
        raise StdacError("the teacher has put no image into a cluster, all are noise: name another trial")


def choose_sure(labels: Tensor, confidence: Tensor, share: float) -> Tensor:
    """Of each cluster the share of images with the most confidence, at least one: (N,) bool.

    labels: (N,) int64, -1 = noise, which is never chosen. confidence: (N,) float32; where it is NaN, all of the
    clusters are chosen. Among equals chance decides, by torch's global generator.
    """
    chance = torch.randperm(len(labels), device=labels.device)
    if bool(confidence.isnan().any()):
        return labels >= 0
    order = chance[confidence[chance].argsort(descending=True, stable=True)]  # the surest first
    order = order[labels[order].argsort(stable=True)]  # cluster by cluster
    sorted_labels = labels[order]
    counts = torch.bincount(sorted_labels + 1)  # of noise, then of each cluster
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(labels), device=labels.device) - first[sorted_labels + 1]
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    chosen[order] = (rank < (counts * share).ceil()[sorted_labels + 1]) & (sorted_labels >= 0)
    return chosen


def draw_batches(index: Tensor, images: int, batch: int) -> Iterator[tuple[float, Tensor]]:
    """Mini-batches (b,) of shuffled places, in as many passes over them as make `images`; with each the share of the
    epoch that was before it. Batches are equal but for the last of a pass, which is left out if it is short."""
    passes = max(1, math.ceil(images / len(index)))
    batch = min(batch, len(index))
    total = passes * (len(index) // batch)
    for number in range(passes):
        for i, part in enumerate(index[torch.randperm(len(index), device=index.device)].split(batch)):
            if len(part) == batch:
                yield (number * (len(index) // batch) + i) / total, part


def scale_rate(done: float) -> float:
    """The learning rate, as a share of its top, after a share of a cycle: a cosine up, a longer one down."""
    x = done / WARM_UP if done < WARM_UP else 1 - (done - WARM_UP) / (1 - WARM_UP)
    return LOWEST + (1 - LOWEST) * (1 - math.cos(math.pi * x)) / 2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor, as a captured step reads it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def loss(
    net: nn.Module, params: StudentParams, mean: float, index: Tensor, images: Tensor, targets: Tensor, share: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of augmented images with the clusters that they are to have, smoothed; and its terms."""
    x = augment(standardize(images[index], mean), AUGMENTATIONS[params.augmentation])
    with autocast(params.precision, x.device):
        y = net(x)
    log = y.float().clamp_min(1e-7).log()
    right = -log.gather(1, targets[index][:, None]).mean()
    total = (1 - params.smoothing) * right - params.smoothing * log.mean()
    return total, {"loss_clustering": right, "selected_fraction": share}


@torch.no_grad()
def answer(model: Deployed, images: Tensor, *, calibrated: bool = False) -> Assignment:
    """The clusters of all images as deployed, the population statistics taken from evenly spread images before."""
    if not calibrated:
        sample = images[:: math.ceil(len(images) / CALIBRATED)]
        parts = math.ceil(len(sample) / CALIBRATION_BATCH)
        calibrate(model, (sample[i::parts].float() / 255 for i in range(parts)))
    model.eval()
    scores = torch.cat([model(x.float() / 255) for x in images.split(CALIBRATION_BATCH)])
    confidence, clusters = scores.max(1)
    return Assignment(clusters, confidence.clamp(0, 1))


def count_work(task: Task) -> Cost:
    """Three forward passes' worth an image that is learned from, one an image that is answered for."""
    forward, params = count_forward(build(task.k, task.shape, task.params), task.shape), task.params
    learned = params.share * task.n * max(1, math.ceil(params.images / max(1.0, params.share * task.n)))
    return Cost(forward * task.epochs * (3 * learned + task.n), steps=task.epochs * learned / params.batch)


STUDENT = Method(
    title="Student, {network}",
    params=StudentParams,
    build=build,
    fit=fit,
    epochs=5,
    cost=count_work,
    colours={"Student, convnet": "#CC79A7", "Student, st-dac": "#56B4E9"},
    small={"width": 0.25, "images": 2000, "batch": 64},
    follows=True,
)

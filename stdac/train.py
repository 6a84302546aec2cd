"""The only training loop, and what a method is given to run in it.

A method calls `phase` once for each of its phases. Read `phase`, then `_train_epoch`; `stdac.step` has the single step.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stdac.compiling import Compiled
from stdac.errors import StdacError
from stdac.step import Loss, ReplayedStep, TrainingStep
from stdac.torch_state import read_generators, write_generators


class Assignment(NamedTuple):
    """A clustering of all images: clusters (N,) int64, -1 = noise; confidence (N,) float32 in [0, 1], if any."""

    clusters: Tensor
    confidence: Tensor | None = None


class Progress(NamedTuple):
    """Where a trial is. step counts mini-batches within the epoch; steps is what the epoch before took, 0 at first.
    main: whether the phase is the trial's main one, whose epochs are counted."""

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_s: float
    main: bool = False


class Recorder(Protocol):
    """Where a trial's numbers and checkpoints go; `stdac.run` has the one that writes a folder."""

    def score(
        self, phase: str, epoch: int, assignment: Assignment | None, log: Mapping[str, float], *, main: bool
    ) -> None: ...
    def checkpoint(self, phases: Mapping[str, Any]) -> None: ...
    def progress(self, progress: Progress) -> None: ...


class Needed(Protocol):
    """What a method sees of a done trial that its own one needs; `stdac.results` has the one that reads a folder."""

    @property
    def trial(self) -> dict[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...
    def load_model(self) -> nn.Module: ...
    def read_clusters(self) -> NDArray[np.int64]: ...
    def read_confidence(self) -> NDArray[np.float32]: ...
    def read_figure(self, name: str) -> NDArray[np.generic] | None: ...


class Source(NamedTuple):
    """The labelled data set of a trial. images: (M, C, H, W) uint8; labels: (M,) int64 in [0, classes). Both on the
    device."""

    images: Tensor
    labels: Tensor
    classes: int


@dataclass
class Trainer:
    """What a method is given besides its images, K and params.

    seed: of every random number; the global torch generators are seeded with it before `fit`. epochs: of the main
    phase. compile: whether to use torch.compile. graphs: whether to capture the training step as a CUDA graph. saved:
    the phases of the checkpoint that the trial resumes from. needed: the results of the trials that this one needs, in
    the order of `Method.needs`. source: the labelled data set, of a method that takes one.
    """

    seed: int
    epochs: int
    recorder: Recorder
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compile: bool = False
    graphs: bool = False
    saved: dict[str, Any] = field(default_factory=dict)
    needed: Sequence[Needed] = ()
    source: Source | None = None
    phases: dict[str, bool] = field(default_factory=dict)  # those begun, and whether each is the main one

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The module-level function, or partial of one, under torch.compile where this trial compiles, else itself."""
        return Compiled(function) if self.compile else function

    def training_step(self, loss: Loss, optimizer: torch.optim.Optimizer) -> TrainingStep:
        """The step that this trial takes; see `stdac.step`."""
        return (ReplayedStep if self.graphs else TrainingStep)(self.compiled(loss), optimizer)

    def begin(self, name: str, main: bool) -> None:
        """Note a phase. Raises StdacError for a name that is taken, or a second main phase."""
        if name in self.phases or name in RESERVED:
            raise StdacError(f"got a second phase named {name!r}: expected another name for each phase of a method")
        if main and self.has_main:
            raise StdacError(f"got {name!r} as a second main phase: expected main=True for one phase of a method")
        self.phases[name] = main

    @property
    def has_main(self) -> bool:
        """Whether the main phase has begun."""
        return any(self.phases.values())


RESERVED = ("deployed",)
"""What rows call a score that belongs to no phase."""


def phase(
    trainer: Trainer,
    name: str,
    state: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batches: Callable[[int], Iterable[tuple[Tensor, ...]]],
    loss: Loss,
    evaluate: Callable[[int], Assignment] | None = None,
    finished: Callable[[], bool] = lambda: False,
    main: bool = False,
) -> None:
    """Train for `epochs` epochs, or resume where the checkpoint stands; scores and a checkpoint after every epoch.

    name: of the phase, as its rows have it, free but unique in the method. state: every parameter and buffer that must
    survive a restart. batches(epoch) yields one mini-batch after another: the arguments of `loss`, of which the first
    has the length of the mini-batch. Tensors that were yielded are not changed afterwards. A step is taken before the
    generator goes on, so that it may use the updated network. loss: a module-level function, or a partial of one; it
    returns the scalar to minimise and 0-d tensors to log, named loss_… or term_…, which are averaged over the epoch.
    evaluate(epoch) clusters all images; it also runs before the first epoch, as epoch 0. Without it the rows have no
    scores. finished() ends the phase early after an epoch. main: whether this is the phase that the trial's epochs,
    curves and last scores are of: one of a method's phases is, and it evaluates where the method clusters.

    What follows a phase may rely on `state` and the random generators alone: stopped anywhere and resumed equals
    uninterrupted. Raises StdacError when the loss is no longer finite.
    """
    # where to begin: at the first epoch, or after the last one of the checkpoint
    trainer.begin(name, main)
    saved = trainer.saved.get(name)
    start = 1
    if saved is not None:
        restore(saved, state, optimizer)
        if saved["finished"]:
            return
        start = saved["epoch"] + 1
    elif evaluate is not None:
        trainer.recorder.score(name, 0, evaluate(0), {}, main=main)
    training_step = trainer.training_step(loss, optimizer)
    images_seen = saved["images_seen"] if saved is not None else 0
    steps = 0

    for epoch in range(start, epochs + 1):
        began = time.perf_counter()

        def tick(step: int, images: int, epoch: int = epoch, began: float = began, steps: int = steps) -> None:
            rate = images / (time.perf_counter() - began)
            trainer.recorder.progress(Progress(name, epoch, epochs, step, steps, rate, main))

        means, steps, images = _train_epoch(batches(epoch), training_step, tick)
        seconds = time.perf_counter() - began
        if not all(abs(mean) < float("inf") for mean in means.values()):
            raise StdacError(f"the loss of phase {name} is not finite in epoch {epoch}: lower the learning rate")
        images_seen += images
        means |= {"images_seen": images_seen, "seconds": seconds, "images_per_s": images / seconds}
        trainer.recorder.score(name, epoch, None if evaluate is None else evaluate(epoch), means, main=main)
        done = epoch == epochs or finished()
        progress = {"epoch": epoch, "finished": done, "images_seen": images_seen, "main": main}
        trainer.saved[name] = capture(state, None if done else optimizer) | progress
        trainer.recorder.checkpoint(trainer.saved)
        if done:
            return


def _train_epoch(
    batches: Iterable[tuple[Tensor, ...]], step: TrainingStep, tick: Callable[[int, int], None]
) -> tuple[dict[str, float], int, int]:
    """A step for every mini-batch; the mean of every logged term, the number of steps, and of images.

    The host waits for the device only at the end. tick: called with steps and images after each. Raises StdacError for
    an epoch without a mini-batch.
    """
    images = 0
    for number, batch in enumerate(batches, 1):
        step(*batch)
        images += len(batch[0])
        tick(number, images)
    if not images:
        raise StdacError(
            "an epoch has no mini-batch, which takes more images than there are: add images, or set a smaller batch"
        )
    steps = step.steps
    return step.means(), steps, images


def capture(state: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Everything that the rest of a phase depends on; a finished phase needs no optimizer any more."""
    return {
        "state": state.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer is not None else None,
        "generators": read_generators(),
    }


def restore(saved: dict[str, Any], state: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `capture` took."""
    state.load_state_dict(saved["state"])
    if saved["optimizer"] is not None:
        groups = [  # "capturable" depends on this machine (CUDA graphs), not on the one that wrote the checkpoint
            group | {key: ours[key] for key in ("capturable",) if key in ours}
            for group, ours in zip(saved["optimizer"]["param_groups"], optimizer.param_groups, strict=True)
        ]
        optimizer.load_state_dict(saved["optimizer"] | {"param_groups": groups})
    write_generators(saved["generators"])

"""What a trial costs: what its method says it computes, and a rough guess of seconds."""

from functools import cache

from stdac.errors import StdacError
from stdac.methods import METHODS
from stdac.methods.method import Cost, Shape, Task, count_forward
from stdac.torch_state import borrow_generators, fix_state
from stdac.trial import Params, Trial

# Multiply-adds a second that training reached: ST-DAC at batch 32 on one Zen 4 core, compiled (0.25 s a step).
CPU_CORE_MACS = 2.8e10
# On a GPU small networks wait for kernel launches, about a millisecond a step; not measured yet.
GPU_STEP_S = 1.5e-3
START_S = 5.0
IMAGES = {"digits": 1797}
NAMED_IMAGES = 70_000


def estimate_cost(trial: Trial, shape: Shape, n: int) -> Cost:
    """What a trial on n images of that shape (C, H, W) computes. Raises StdacError where its network is too large for
    them; the random state is left as it was."""
    return _count_cost(trial.method, trial.n_clusters, shape, n, trial.params, trial.epochs)


def count_main_macs(trial: Trial, shape: Shape, n: int) -> float:
    """Multiply-adds of a trial's epochs by a rule of thumb: three forward passes' worth an image and pass, one a label
    pass, one an evaluation. It decides whether a trial is compiled, so it stays as it is: a trial that another version
    has begun goes on with the same arithmetic."""
    forward = _count_forward(trial.method, trial.n_clusters, shape, trial.params) if trial.epochs else 0
    return float(forward) * n * trial.epochs * (3 * getattr(trial.params, "passes", 1) + 2)


@cache
def _count_forward(method: str, k: int, shape: Shape, params: Params) -> int:
    build = METHODS[method].build
    with fix_state(), borrow_generators():
        return 0 if build is None else count_forward(build(k, shape, params), shape)


@cache
def _count_cost(method: str, k: int, shape: Shape, n: int, params: Params, epochs: int) -> Cost:
    with fix_state(), borrow_generators():
        try:
            return METHODS[method].estimate(Task(k, shape, n, params, epochs))
        except (RuntimeError, OverflowError, MemoryError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise StdacError(f"the network of {method} cannot be built with these parameters ({reason})") from error


def estimate_seconds(trial: Trial, *, gpu: bool, images: int | None = None) -> float:
    """A rough guess of a trial's seconds on one core, or one GPU. images: of its data set, 70,000 of a path if not
    given, as they are not counted here."""
    side = trial.image_size or 28
    n = images or IMAGES.get(trial.dataset, NAMED_IMAGES)
    cost = estimate_cost(trial, (1, side, side), min(trial.limit or n, n))
    return START_S + (cost.steps * GPU_STEP_S if gpu and cost.steps else cost.macs / CPU_CORE_MACS / cost.efficiency)

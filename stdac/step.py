"""One training step: loss, gradient and optimiser, compiled once a process and replayed as one CUDA graph on a GPU."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stdac.compiling import Compiled, take_first_line
from stdac.errors import StdacError

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Given a function that launches kernels one by one, returns a function that launches all of them in one call."""

PRECISIONS = ("float32", "tf32", "bfloat16")
"""What a trial multiplies with. float32: IEEE everywhere. tf32: matrix products and convolutions of a GPU round their
inputs to 10 bits (the same as float32 on a CPU). bfloat16: autocast of the network in training steps, tf32 in all the
rest. What places pixels (augmentation, the transformers' grids) and what compares images (cosines) is float32 in all.
"""

WARM_UP = 3  # steps of a shape before it is captured: compilation, cuDNN's search, the optimiser's state
SHAPES = 4  # so many mini-batch shapes have a graph each; steps of other shapes run without a graph


def check_precision(precision: str) -> None:
    """Raise StdacError for a precision that is not one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise StdacError(f"got precision = {precision!r}, expected one of {', '.join(PRECISIONS)}")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context for a network's forward pass in a training step."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


@contextmanager
def set_precision(precision: str) -> Iterator[None]:
    """Let the GPU round float32 products to TF32 or not, as one of PRECISIONS says, and a CPU never; afterwards all is
    as it was."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    of_cpu = [part for part in (mkldnn.matmul, mkldnn.conv) if part.fp32_precision not in ("none", "ieee")]
    rounded = [(part, part.fp32_precision) for part in (matmul, cudnn.conv, cudnn.rnn, *of_cpu)]
    flags = [(part, _read_flag(part)) for part in (matmul, cudnn)]
    for part, _ in flags:
        part.allow_tf32 = precision != "float32"
    for part in of_cpu:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        for part, allowed in flags:
            part.allow_tf32 = allowed
        for part, before in rounded:
            part.fp32_precision = before


def _read_flag(part: Any) -> bool:
    """allow_tf32 of a part of torch.backends, which torch tells only where nothing has set its fp32_precision."""
    try:
        return bool(part.allow_tf32)
    except RuntimeError:
        return bool(part.fp32_precision == "tf32")


class TrainingStep:
    """Takes one optimiser step a call and adds up what the loss logs, without waiting for the device.

    loss: mini-batch -> (0-d loss, 0-d tensors to log). A tensor may be part of several mini-batches; it must not be
    changed in between, since a step need not copy it again.
    """

    def __init__(self, loss: Loss, optimizer: torch.optim.Optimizer) -> None:
        self.loss, self.optimizer = loss, optimizer
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def __call__(self, *batch: Tensor) -> None:
        self.step(*batch)
        self.steps += 1

    def step(self, *batch: Tensor) -> None:
        """Gradient, update and sums."""

        def differentiate(loss: Loss) -> tuple[Tensor, dict[str, Tensor]]:
            self.optimizer.zero_grad()
            value, log = loss(*batch)
            value.backward()
            return value, log

        value, log = self.loss.use(differentiate) if isinstance(self.loss, Compiled) else differentiate(self.loss)
        self.optimizer.step()
        for key, term in {"loss": value, **log}.items():
            if key not in self.sums:
                self.sums[key] = torch.zeros_like(term, requires_grad=False)
            self.sums[key].add_(term.detach())

    def means(self) -> dict[str, float]:
        """The mean over the steps since the last call of every logged term; waits for the device."""
        means = {key: float(total) / self.steps for key, total in self.sums.items()}
        for total in self.sums.values():
            total.zero_()
        self.steps = 0
        return means


class ReplayedStep(TrainingStep):
    """A TrainingStep that captures its kernels, once a shape, and from then on launches them all together.

    The first WARM_UP mini-batches of a shape are ordinary steps; then the step is captured with buffers of its own for
    the mini-batch, into which later ones are copied. The random numbers are those of ordinary steps. Where a step
    cannot be captured, it says so on stderr and goes on with ordinary steps.
    """

    def __init__(self, loss: Loss, optimizer: torch.optim.Optimizer, capture: Capture | None = None) -> None:
        super().__init__(loss, optimizer)
        self.capture = capture or _capture_cuda
        self.capturable = True
        self.seen: Counter[Any] = Counter()
        self.replays: dict[Any, Replay] = {}
        self.side: torch.cuda.Stream | None = None

    def __call__(self, *batch: Tensor) -> None:
        key = self.key(batch)
        replay = self.replays.get(key)
        if replay is None and self.capturable and self.seen[key] >= WARM_UP and len(self.replays) < SHAPES:
            replay = self.captured(key, batch)
        if replay is None:
            self.seen[key] += 1
            self.ordinary(*batch)
        else:
            replay(batch)
        self.steps += 1

    def key(self, batch: tuple[Tensor, ...]) -> Any:
        """What is baked into a graph: the shapes, and the optimiser's numbers."""
        numbers = [tuple(v for v in group.values() if isinstance(v, float)) for group in self.optimizer.param_groups]
        return tuple((x.shape, x.dtype) for x in batch), tuple(numbers)

    def ordinary(self, *batch: Tensor) -> None:
        """A step kernel by kernel, on a stream of its own as capturing wants it."""
        if not batch[0].is_cuda:
            self.step(*batch)
            return
        self.side = self.side or torch.cuda.Stream(batch[0].device)
        here, side = torch.cuda.current_stream(batch[0].device), self.side
        side.wait_stream(here)
        with torch.cuda.stream(side):
            self.step(*batch)
        here.wait_stream(side)

    def captured(self, key: Any, batch: tuple[Tensor, ...]) -> "Replay | None":
        """Capture the step for mini-batches like this one; None where that cannot be done."""
        buffers = tuple(x.clone() for x in batch)
        self.optimizer.zero_grad()
        try:
            self.replays[key] = Replay(buffers, self.capture(lambda: self.step(*buffers)))
        except RuntimeError as error:
            reason = take_first_line(error)
            print(f"this step cannot be captured as a CUDA graph ({reason}): training without", file=sys.stderr)
            self.capturable = False
            return None
        return self.replays[key]


class Replay:
    """A captured step and the buffers that it reads its mini-batch from."""

    def __init__(self, buffers: tuple[Tensor, ...], launch: Callable[[], None]) -> None:
        self.buffers, self.launch = buffers, launch
        self.last: list[Tensor | None] = [None] * len(buffers)

    def __call__(self, batch: tuple[Tensor, ...]) -> None:
        for i, (buffer, x) in enumerate(zip(self.buffers, batch, strict=True)):
            if x is not self.last[i]:
                buffer.copy_(x)
                self.last[i] = x
        self.launch()


def _capture_cuda(step: Callable[[], None]) -> Callable[[], None]:
    """Capture the kernels of a step as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay

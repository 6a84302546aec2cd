"""The floor: what each method has to compute and to move through memory, and the least time that this implies.

    python -m benchmarks.floor --threads 2      # this machine, measured, beside an H200, given

Counted, for P float32 parameters, M multiply-adds an image forward, and mini-batches of B:

- arithmetic of a step: 6 M B floating-point operations: 2 forward, 2 for the gradient of the inputs, 2 for that of the
  weights; 2 M an image where nothing is trained. No element-wise work, no augmentation.
- memory of a step: weights read by the forward and by the backward pass (8 P bytes), the gradient written (4 P), and
  the optimiser's own: Adam reads p, g, m, v and writes p, m, v (28 P); RMSprop and SGD with momentum have one state
  less (20 P). A pass without training reads the weights once (4 P). No activations: those of 32 images (19 MB) fit into
  a cache, and a pass over more images can be cut into such pieces. (Where all states fit into a cache too, as DAC*'s
  5 MB do everywhere and DEC's 40 MB on an H200, the true floor is that of the arithmetic alone.)

`floor` is the larger of the two: arithmetic and memory at once, nothing else. `in turn` is their sum: what can be hoped
for when Adam, which needs no arithmetic, follows a backward pass, which needs little else.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from stdac.autoencoders import Autoencoder
from stdac.machine import Machine, read_cpu_name
from stdac.methods import METHODS, resolve
from stdac.methods.method import count_forward

IMAGES, SHAPE, K = 70_000, (1, 28, 28), 10  # MNIST and Fashion-MNIST
STEP_BYTES = 12  # a parameter: read forward, read backward, gradient written
OPTIMIZER_BYTES = {"st-dac": 28, "dac-star": 20, "dec": 20}  # a parameter: Adam, RMSprop, SGD with momentum


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes that must pass between memory and processor."""

    flop: float
    bytes: float

    def times(self, n: float) -> "Work":
        """The same n times."""
        return Work(n * self.flop, n * self.bytes)


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second: floating-point operations, and bytes of memory."""

    name: str
    flop: float
    bytes: float

    def floor(self, *work: Work) -> float:
        """Least seconds of several pieces of work one after the other, each with arithmetic and memory at once."""
        return sum(max(w.flop / self.flop, w.bytes / self.bytes) for w in work)

    def in_turn(self, *work: Work) -> float:
        """Least seconds with arithmetic and memory one after the other."""
        return sum(w.flop / self.flop + w.bytes / self.bytes for w in work)


# 790 TFLOP/s in bfloat16 and 4.3 TB/s are measured values that were given to this project; TF32 is half of bfloat16 in
# NVIDIA's data sheet (495 and 990 TFLOP/s), where float32 without tensor cores is 67 TFLOP/s.
H200 = {
    "bfloat16": Rates("H200, bfloat16", 790e12, 4.3e12),
    "tf32": Rates("H200, TF32", 395e12, 4.3e12),
    "float32": Rates("H200, float32", 67e12, 4.3e12),
}


@dataclass(frozen=True)
class Cost:
    """What a method's trial is made of. step: one optimiser step. update: the optimiser's part of it. label: a pass
    over a macro-batch of 1,000 images without training. steps, passes: how many of each a trial has."""

    name: str
    parameters: int
    step: Work
    update: Work
    steps: int
    label: Work
    passes: float

    @property
    def trial(self) -> tuple[Work, Work]:
        """All steps, all passes."""
        return self.step.times(self.steps), self.label.times(self.passes)


def forward_work(macs: int, parameters: int, images: int) -> Work:
    """A pass over images without training."""
    return Work(2.0 * macs * images, 4.0 * parameters)


def step_work(macs: int, parameters: int, batch: int, optimizer_bytes: int) -> Work:
    """One optimiser step."""
    return Work(6.0 * macs * batch, float(parameters) * (STEP_BYTES + optimizer_bytes))


def size(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


def st_dac(stn: int) -> Cost:
    """ST-DAC on MNIST's number of images: 31 steps of 32 in each macro-batch of 1,000; a label pass of every image an
    epoch, an evaluation after each and before the first, and two passes for the deployed model."""
    return pairwise_cost("st-dac", f"ST-DAC, {stn} STN", {"stn": stn}, drop_last=True)


def dac_star() -> Cost:
    """DAC*: five passes over each macro-batch, mini-batches of 128, the shorter last one included."""
    return pairwise_cost("dac-star", "DAC*", {}, drop_last=False)


def pairwise_cost(method: str, name: str, params: dict[str, Any], *, drop_last: bool) -> Cost:
    """A method of the DAC family; the average mini-batch stands for all of them."""
    trial = resolve({"method": method, "dataset": "mnist", "params": params})
    p: Any = trial.params
    build = METHODS[method].build
    assert build is not None
    macs, parameters = count_forward(build(K, SHAPE, p), SHAPE), size(build(K, SHAPE, p))
    chunk_steps = p.macro_batch // p.batch if drop_last else -(-p.macro_batch // p.batch)
    batch = p.batch if drop_last else p.macro_batch / chunk_steps
    chunks = IMAGES // p.macro_batch
    update = OPTIMIZER_BYTES[method]
    return Cost(
        name,
        parameters,
        Work(6.0 * macs * batch, float(parameters) * (STEP_BYTES + update)),
        Work(0.0, float(parameters) * update),
        trial.epochs * chunks * p.passes * chunk_steps,
        forward_work(macs, parameters, p.macro_batch),
        (2 * trial.epochs + 1 + 2) * chunks,
    )


def dec() -> tuple[Cost, Cost]:
    """DEC: the autoencoder's pre-training, and at most 20,000 steps of clustering with a pass over all images at
    each of the 125 updates of the target, and after the last."""
    trial = resolve({"method": "dec", "dataset": "mnist"})
    p: Any = trial.params
    build = METHODS["dec"].build
    assert build is not None
    encoder, macs = size(build(K, SHAPE, p)), count_forward(build(K, SHAPE, p), SHAPE)
    both = size(Autoencoder(SHAPE, p.network, p.width, p.dimensions))
    update = OPTIMIZER_BYTES["dec"]
    label = forward_work(macs, encoder, 1000)
    pretraining = Cost(
        "DEC, pre-training",
        both,
        step_work(2 * macs, both, p.batch, update),
        Work(0.0, float(both) * update),
        p.pretrain_epochs * -(-IMAGES // p.batch),
        label,
        0,
    )
    clustering = Cost(
        "DEC, clustering (at most)",
        encoder,
        step_work(macs, encoder, p.batch, update),
        Work(0.0, float(encoder) * update),
        trial.epochs * p.update_interval,
        label,
        (trial.epochs + 1) * IMAGES / 1000,
    )
    return pretraining, clustering


def k_means() -> Cost:
    """One iteration of Lloyd's algorithm on pixels as its step; how many a trial takes depends on the images."""
    pixels = SHAPE[1] * SHAPE[2]
    iteration = Work(2.0 * IMAGES * K * pixels, 4.0 * IMAGES * pixels)
    return Cost("k-means, an iteration", K * pixels, iteration, Work(0.0, 0.0), 0, Work(0.0, 0.0), 0)


def costs() -> list[Cost]:
    """Every method that has a floor."""
    return [*(st_dac(stn) for stn in range(4)), dac_star(), *dec(), k_means()]


def measured_rates(threads: int) -> Rates:
    """This machine's: the best of matrix products and a convolution in float32, and the fastest of four ways through
    more memory than its caches hold (sum, copy, addition in place, fused Adam)."""
    torch.set_num_threads(threads)
    n = 64_000_000
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    x = torch.randn(32, 128, 14, 14).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(128, 256, 3, padding=1)
    conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)
    wide, other = torch.randn(n), torch.randn(n)
    parameter = nn.Parameter(torch.randn(n // 2))
    parameter.grad = torch.randn(n // 2)
    adam = torch.optim.Adam([parameter], fused=True)
    with torch.no_grad():
        products = [
            2 * 1536**3 / best(lambda: a @ b),
            2 * 1536**3 / best(lambda: np.matmul(a.numpy(), b.numpy())),
            2 * conv.weight.numel() * 32 * 14 * 14 / best(lambda: conv(x)),
        ]
        ways = [
            4 * n / best(wide.sum),
            8 * n / best(lambda: wide.copy_(other)),
            12 * n / best(lambda: wide.add_(other)),
        ]
    ways.append(28 * (n // 2) / best(adam.step))
    return Rates(f"{read_cpu_name()}, {threads} {'thread' if threads == 1 else 'threads'}", max(products), max(ways))


def best(call: Callable[[], Any], within: float = 1.0) -> float:
    """The shortest of as many calls as a second holds, in seconds, after one that does not count."""
    call()
    seconds: list[float] = []
    while not seconds or sum(seconds) < within:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def table(here: Rates) -> str:
    """A row a method: work of a step, its floor (and in turn), and the floor of a whole trial."""
    gpu = H200["bfloat16"]
    head = ["", "parameters", "GFLOP a step", "GB a step (optimiser)", "step here", "step, H200", "trial here", "H200"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    rows += [
        [
            cost.name,
            f"{cost.parameters / 1e6:.2f} M",
            f"{cost.step.flop / 1e9:.3g}",
            f"{cost.step.bytes / 1e9:.3g} ({cost.update.bytes / 1e9:.3g})",
            *(f"{ms(r.floor(cost.step))} ({ms(r.in_turn(cost.step))}) ms" for r in (here, gpu)),
            *(duration(r.floor(*cost.trial)) if cost.steps else "" for r in (here, gpu)),
        ]
        for cost in costs()
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def label_table(here: Rates) -> str:
    """The floor of one label pass of 1,000 images, by method, and of a trial on an H200 by precision."""
    head = ["", "GFLOP a label pass", "here", *H200, *(f"trial, {name}" for name in H200)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    rows += [
        [
            cost.name,
            f"{cost.label.flop / 1e9:.0f}",
            *(f"{ms(r.floor(cost.label))} ms" for r in (here, *H200.values())),
            *(duration(r.floor(*cost.trial)) for r in H200.values()),
        ]
        for cost in [*(st_dac(stn) for stn in range(4)), dac_star()]
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def ms(seconds: float) -> str:
    """Milliseconds in three digits or more."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@click.command()
@click.option("--threads", type=int, default=2, show_default=True, help="that this machine's rates are measured with")
def main(threads: int) -> None:
    """Print the work and the least times of every method, on this machine and on an H200, as Markdown."""
    Machine(device="cpu", threads=threads).prepare()
    here = measured_rates(threads)
    gpu = H200["bfloat16"]
    click.echo(f"here: {here.name}: {here.flop / 1e9:.0f} GFLOP/s, {here.bytes / 1e9:.1f} GB/s, measured")
    click.echo(f"{gpu.name}: {gpu.flop / 1e12:.0f} TFLOP/s, {gpu.bytes / 1e12:.1f} TB/s, given\n")
    click.echo(table(here) + "\n\n" + label_table(here))


if __name__ == "__main__":
    main()

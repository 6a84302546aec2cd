"""Who trains in `benchmarks.train`, each in a process of its own: ours, and plain eager PyTorch in two layouts."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks import plain
from stdac.compiling import set_compiler
from stdac.data import load
from stdac.machine import Machine
from stdac.methods import resolve
from stdac.methods.pairwise import CleanPass, Deployed, mean_pixel, standardize
from stdac.methods.st_dac import build_network, loss
from stdac.step import set_precision
from stdac.train import Trainer

BATCH, MACRO_BATCH, CHUNKS = 32, 992, 20
CONTENDERS = {"ours": "ours", "a": "(a) eager", "b": "(b) eager, channels last, fused Adam"}
WARM_UP = 5  # steps, a label pass before and after them
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Setting:
    """What a contender trains, and on what."""

    stn: int
    device: str
    precision: str
    threads: int
    data_dir: Path | None = None

    def images(self) -> Tensor:
        """Some macro-batches of MNIST, (M, 1, 28, 28) uint8, on the device, the same for every contender."""
        images = torch.from_numpy(load("mnist", data_dir=self.data_dir).images)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        return images[order[: CHUNKS * MACRO_BATCH]].to(self.device)


class Contender(Protocol):
    """One way to train: `label` takes the next macro-batch, `steps` trains on the last one taken."""

    def label(self) -> None: ...
    def steps(self, n: int) -> None: ...


class Ours:
    """What `stdac.methods.st_dac.fit` does in an epoch, compiled; on a GPU captured too, see `Machine.graphs`."""

    def __init__(self, setting: Setting) -> None:
        machine = Machine(device=setting.device, compile="on", threads=setting.threads)
        machine.prepare()
        device = machine.torch_device()
        spec = {"dataset": "mnist", "params": {"stn": setting.stn, "precision": setting.precision}}
        params: Any = resolve(spec).params
        trainer = Trainer(0, 1, Silent(), device, machine.compiles(device, 0), machine.graphs(device))
        images = setting.images()
        self.mean = mean_pixel(images)
        net = build_network(10, (1, 28, 28), params)
        Deployed(net).prepare(self.mean, device)
        optimizer = torch.optim.Adam(net.parameters(), lr=params.lr, fused=True, capturable=trainer.graphs)
        self.clean_pass = CleanPass(net, params.eval_batch, trainer)
        self.step = trainer.training_step(partial(loss, net, params), optimizer)
        self.tau = torch.tensor(0.9, device=device)
        self.chunks = cycle(images.split(MACRO_BATCH))

    def label(self) -> None:
        self.clean = standardize(next(self.chunks), self.mean)
        self.y_clean = self.clean_pass(self.clean)

    def steps(self, n: int) -> None:
        self.clean_pass.net.train()
        passes = (torch.randperm(MACRO_BATCH, device=self.clean.device).split(BATCH) for _ in count())
        for index in islice(chain.from_iterable(passes), n):
            self.step(index, self.clean, self.y_clean, self.tau)


class Silent:
    """A recorder that records nothing."""

    def score(self, *_: object) -> None: ...
    def checkpoint(self, *_: object) -> None: ...
    def progress(self, *_: object) -> None: ...


class Plain:
    """`benchmarks/plain.py`; `fast`: with channels-last layout and fused Adam."""

    def __init__(self, setting: Setting, *, fast: bool) -> None:
        torch.set_num_threads(setting.threads)
        images = setting.images().float() / 255
        images -= images.mean()
        dropout = 0.5 if setting.stn else 0.0  # as in the released scripts
        self.net = plain.PlainNet(10, (1, 28, 28), stn=setting.stn, dropout=dropout).to(setting.device)
        if fast:
            self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            images = images.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-4, fused=True if fast else None)
        self.bfloat16 = setting.precision == "bfloat16"
        self.chunks = cycle(images.split(MACRO_BATCH))

    def label(self) -> None:
        self.clean = next(self.chunks)
        self.labels = plain.label_features(self.net, self.clean)

    def steps(self, n: int) -> None:
        passes = (
            plain.steps(self.net, self.optimizer, self.clean, self.labels, 0.9, bfloat16=self.bfloat16) for _ in count()
        )
        for _ in islice(chain.from_iterable(passes), n):
            pass


def ready(kind: str, setting: Setting) -> Contender:
    """A contender by its key in CONTENDERS, warmed up."""
    contender: Contender = Ours(setting) if kind == "ours" else Plain(setting, fast=kind == "b")
    contender.label()
    contender.steps(WARM_UP)
    contender.label()
    synchronize(setting.device)
    return contender


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def contend(kind: str, setting: Setting, pipe: Connection) -> None:
    """A contender's process: for each (what, n) that comes, do it and answer the seconds; None ends it."""
    began = time.perf_counter()
    with set_precision(setting.precision), set_compiler():
        contender = ready(kind, setting)
        pipe.send(time.perf_counter() - began)
        while (request := pipe.recv()) is not None:
            what, n = request
            began = time.perf_counter()
            if what == "label":
                contender.label()
            else:
                contender.steps(n)
            synchronize(setting.device)
            pipe.send(time.perf_counter() - began)


@contextmanager
def contenders(wanted: Sequence[tuple[str, Setting]]) -> Iterator[tuple[list[Connection], list[float]]]:
    """Processes that are ready, by their pipes, and the seconds that each took to set up beside the others."""
    pipes, processes = [], []
    for kind, setting in wanted:
        pipe, theirs = SPAWN.Pipe()
        processes.append(SPAWN.Process(target=contend, args=(kind, setting, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a contender's death is an EOFError here
        pipes.append(pipe)
    try:
        yield pipes, [pipe.recv() for pipe in pipes]
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(None)
            process.join()
    finally:
        for process in processes:
            process.kill()


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a fresh process."""
    with SPAWN.Pool(1) as pool:
        return pool.apply(function, arguments)

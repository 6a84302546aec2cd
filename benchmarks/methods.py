"""The autoencoder family: an epoch of ours and of ClustPy's, and the accuracy of both with one budget.

    python -m pip install --no-deps --target DIR clustpy==0.0.3 tqdm pandas        # a compiler for C must be there
    python -m benchmarks.methods speed --clustpy DIR --threads 1 --rounds 5 --out benchmarks/results/methods-cpu.json
    python -m benchmarks.methods accuracy --clustpy DIR --seeds 3 --limit 5000 --out benchmarks/results/methods-cpu.json

Same images of MNIST, network 784-500-500-2000-10 with ReLU, mini-batches, Adam and threads. Contenders: ours as `stdac
train` runs it on few images (eager) and on many (compiled), and ClustPy's own loops. Each is a process of its own; they
take turns, an epoch in every round, and ratios are taken within a round. An epoch is a pass over the images in
mini-batches. Our targets of DEC are those of the paper, of all images: a pass through the encoder, which evaluates the
epoch before too, and is counted in a row of its own; ClustPy's are of the mini-batch. No other evaluation is counted.
Seconds of CPU are counted beside those of the clock: with one thread they are what an idle machine would take, whatever
else this one does.
Accuracy: each library's defaults beside network, epochs of pre-training and of clustering, images and seeds.
"""

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks import theirs
from benchmarks.contenders import in_process
from benchmarks.train import markdown, spread
from stdac import run
from stdac.data import Dataset, load
from stdac.in_memory import Trained, train_in_memory
from stdac.machine import Machine, describe_device, describe_provenance
from stdac.methods import METHODS, resolve
from stdac.metrics import score_clusters
from stdac.train import Assignment, Progress
from stdac.trial import Trial

METHOD = {"pretrain": "autoencoder", "DEC": "dec", "IDEC": "idec", "DCN": "dcn", "VaDE": "vade", "DeepKMeansP": "dkm-p"}
TITLES = {"pretrain": "pre-training", "DeepKMeansP": "Deep K-Means (DKM_p)"}
MEASURED = ("clock", "cpu", "clock_evaluated", "cpu_evaluated")
CONTENDERS = {"ours": "ours", "compiled": "ours, compiled", "clustpy": "ClustPy"}
SPAWN = multiprocessing.get_context("spawn")
MANY = 10**6  # epochs: as long as there are rounds


@dataclass(frozen=True)
class Setting:
    """What everybody trains on, and how. clustpy: the folder that ClustPy lies in, if it is not installed."""

    limit: int
    batch: int
    threads: int
    data_dir: Path | None = None
    clustpy: Path | None = None
    dataset: str = "mnist"

    def load(self) -> Dataset:
        """The images that are taken, with their labels."""
        return load(self.dataset, limit=self.limit, data_dir=self.data_dir)


def make_trial(method: str, setting: Setting, *, epochs: int, pretrain: int = 1, seed: int = 0, **params: Any) -> Trial:
    """Our trial of a method, its mini-batches as the setting has them."""
    kind = METHODS[METHOD[method]]
    given = {"batch": setting.batch} | params
    if method in ("DEC", "IDEC"):
        given |= {"update_interval": -(-setting.limit // setting.batch)}
    if method != "pretrain":
        given |= {"pretrain_epochs": pretrain, "recipe": "adam"}
    k = {"n_clusters": theirs.K} if kind.takes_k else {}
    spec = {
        "method": METHOD[method],
        "dataset": setting.dataset,
        "limit": setting.limit,
        "seed": seed,
        "epochs": epochs,
    }
    return resolve(spec | k | {"params": given})


class Untrained:
    """What a method needs, fresh: how long an epoch takes does not depend on it."""

    def __init__(self, trial: Trial, shape: tuple[int, int, int]) -> None:
        self.trial, self.fingerprint = trial.to_json(), ""
        build = METHODS[trial.method].build
        assert build is not None
        self.model = build(0, shape, trial.params)

    def load_model(self) -> nn.Module:
        return self.model

    def read_clusters(self) -> NDArray[np.int64]:
        raise NotImplementedError

    def read_confidence(self) -> NDArray[np.float32]:
        raise NotImplementedError


class Turns:
    """A recorder of ours that answers the seconds of an epoch, clock and CPU, and waits to be asked for the next."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.wait()

    def wait(self) -> None:
        """Until the next epoch is wanted; ends the process when none is."""
        if self.pipe.recv() is None:
            raise SystemExit
        self.began = self.last = read_clocks()

    def progress(self, _progress: Progress) -> None:
        self.last = read_clocks()

    def score(self, _phase: str, epoch: int, _assignment: Assignment | None, _log: object, *, main: bool) -> None:
        if not main or not epoch:  # layers, and what k-means found
            self.began = read_clocks()
            return
        self.pipe.send([measure_since(self.began, moment) for moment in (self.last, read_clocks())])
        self.wait()

    def checkpoint(self, _phases: object) -> None: ...


def measure_since(began: tuple[float, float], ended: tuple[float, float]) -> tuple[float, float]:
    """Seconds from one moment to another, of the clock and of the CPU."""
    return ended[0] - began[0], ended[1] - began[1]


def read_clocks() -> tuple[float, float]:
    """Seconds by the clock, and of this process' CPU time."""
    return time.perf_counter(), time.process_time()


def contend(kind: str, method: str, setting: Setting, pipe: Connection) -> None:
    """A contender's process: an epoch for each request, answered with its seconds; None ends it."""
    torch.set_num_threads(setting.threads)
    images = setting.load().images
    if kind == "clustpy":
        train = theirs.prepare_epoch(
            theirs.import_clustpy(setting.clustpy), method, torch.from_numpy(images), setting.batch
        )
        while pipe.recv() is not None:
            began = read_clocks()
            train()
            pipe.send([measure_since(began, read_clocks())] * 2)
        return
    trial = make_trial(method, setting, epochs=MANY, **OURS.get(method, {}))
    needed = [Untrained(other, images.shape[1:]) for other in METHODS[trial.method].needs(trial)]  # type: ignore[arg-type]
    machine = Machine("cpu", "on" if kind == "compiled" else "off", setting.threads)
    run.fit(trial, images, Turns(pipe), machine, {}, needed=needed)  # type: ignore[arg-type]


OURS: dict[str, dict[str, Any]] = {
    "DEC": {"optimizer": "adam", "tolerance": 0.0, "restarts": 1},
    "IDEC": {"tolerance": 0.0, "restarts": 1},
    "DCN": {"restarts": 1},
    "VaDE": {"starts": 1},
    "DeepKMeansP": {"restarts": 1},
}
"""For the sake of speed alone: Adam for all, nobody ends early."""


@contextmanager
def contenders(method: str, setting: Setting, kinds: Iterable[str]) -> Iterator[dict[str, Connection]]:
    """The processes of a method, by their pipes."""
    pipes, processes = {}, []
    for kind in kinds:
        pipes[kind], other = SPAWN.Pipe()
        processes.append(SPAWN.Process(target=contend, args=(kind, method, setting, other), daemon=True))
        processes[-1].start()
        other.close()  # so that a contender's death is an EOFError here
    try:
        yield pipes
        for pipe, process in zip(pipes.values(), processes, strict=True):
            pipe.send(None)
            process.join()
    finally:
        for process in processes:
            process.kill()


def measure(
    method: str, setting: Setting, rounds: int, kinds: Iterable[str] = tuple(CONTENDERS)
) -> dict[str, dict[str, list[float]]]:
    """Seconds of an epoch, by contender: of the clock and of the CPU, a value a round; a first round is not counted.
    evaluated: with what follows the epoch."""
    seconds: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in MEASURED} for kind in kinds}
    with contenders(method, setting, kinds) as pipes:
        for number in range(rounds + 1):
            for kind, pipe in pipes.items():
                pipe.send("epoch")
                (clock, cpu), (clock_evaluated, cpu_evaluated) = pipe.recv()
                if number:
                    for name, value in zip(MEASURED, (clock, cpu, clock_evaluated, cpu_evaluated), strict=True):
                        seconds[kind][name].append(value)
    return seconds


def cluster_by_ours(
    methods: Iterable[str], setting: Setting, pretrain: int, epochs: int, seed: int
) -> dict[str, NDArray[Any]]:
    """What each of our methods makes of the images; the autoencoder that some of them share is trained once."""
    dataset, machine = Dataset(setting.load().images, None), Machine("cpu", threads=setting.threads)
    done: dict[str, Trained] = {}
    labels = {}
    for method in methods:
        trial = make_trial(method, setting, epochs=epochs, pretrain=pretrain, seed=seed)
        for other in METHODS[trial.method].needs(trial):
            assert isinstance(other, Trial), "an autoencoder"
            done[other.id] = done.get(other.id) or train_in_memory(other, dataset, machine)
        needed = [done[name] for name in trial.needs]
        scorer = run.Scorer(trial, dataset, "cpu")
        fitted = run.fit(trial, dataset.images, scorer, machine, {}, needed=needed)
        assert fitted.labels is not None
        labels[method] = fitted.labels.numpy()
    return labels


def cluster_by_theirs(
    methods: Iterable[str], setting: Setting, pretrain: int, epochs: int, seed: int
) -> dict[str, NDArray[Any]]:
    """The same with ClustPy."""
    torch.set_num_threads(setting.threads)
    images = torch.from_numpy(setting.load().images)  # before torchvision may be replaced
    deep = theirs.import_clustpy(setting.clustpy)
    return theirs.cluster(deep, list(methods), images, setting.batch, pretrain, epochs, seed)


def compare_accuracy(
    methods: Sequence[str], setting: Setting, pretrain: int, epochs: int, seed: int
) -> dict[str, dict[str, float]]:
    """ACC of ours and of ClustPy's with a seed, by method; each library in a process of its own."""
    truth, scores = setting.load().labels, {}
    for kind, function in (("ours", cluster_by_ours), ("clustpy", cluster_by_theirs)):
        labels = in_process(function, methods, setting, pretrain, epochs, seed)
        scores[kind] = {
            name: float(score_clusters(truth, found.astype(np.int64))["acc"] or 0) for name, found in labels.items()
        }
    return {name: {kind: found[name] for kind, found in scores.items()} for name in methods}


def describe_run(setting: Setting, load_before: float) -> dict[str, Any]:
    """Setting, machine and date of a run, and how busy others kept the machine."""
    about = {key: value for key, value in describe_provenance().items() if key != "host"}
    about |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "load": [load_before, os.getloadavg()[0]]}
    about |= {"device": describe_device(torch.device("cpu"))}
    return about | {"limit": setting.limit, "batch": setting.batch, "threads": setting.threads}


def write_speed(times: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> str:
    """A row a method: seconds of CPU of an epoch, and how many times ours ClustPy's takes, CPU and clock."""
    head = ["an epoch", *(f"{title}, CPU s" for title in CONTENDERS.values())]
    head += [f"ClustPy to {title}, {what}" for title in ("ours", "compiled") for what in ("CPU", "clock")]
    rows = []
    for method, seconds in times.items():
        title = TITLES.get(method, method)
        rows.append(write_row(title, seconds, ""))
        if method in ("DEC", "IDEC"):
            rows.append(write_row(f"{title}, with the pass for its targets", seconds, "_evaluated"))
    return markdown(head, rows)


def write_row(title: str, seconds: Mapping[str, Mapping[str, list[float]]], suffix: str) -> list[str]:
    """A row of `write_speed`. suffix: of what is in MEASURED."""
    row = [title, *(f"{statistics.median(seconds[kind]['cpu' + suffix]):.2f}" for kind in CONTENDERS)]
    for kind in ("ours", "compiled"):
        for what in ("cpu", "clock"):
            pairs = zip(seconds["clustpy"][what + suffix], seconds[kind][what + suffix], strict=True)
            row.append(spread([a / b for a, b in pairs]) + "×")
    return row


def write_accuracy(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """A row a method: ACC with each seed, and their mean."""
    rows = []
    for method in seeds[0]:
        row = [TITLES.get(method, method)]
        for kind in ("ours", "clustpy"):
            values = [found[method][kind] for found in seeds]
            row += [" ".join(f"{value:.3f}" for value in values), f"{statistics.mean(values):.3f}"]
        rows.append(row)
    return markdown(["ACC", "ours, by seed", "mean", "ClustPy, by seed", "mean"], rows)


def read_file(out: Path | None) -> dict[str, Any]:
    """What a file of results holds."""
    return json.loads(out.read_text()) if out is not None and out.exists() else {}


def write_file(out: Path | None, runs: Mapping[str, Any]) -> None:
    """Write a file of results, if one is wanted."""
    if out is not None:
        out.write_text(json.dumps(runs, indent=1) + "\n")


def split_names(_context: click.Context, _option: click.Parameter, text: str) -> tuple[str, ...]:
    """The methods of a list with commas."""
    names = tuple(filter(None, text.split(",")))
    if set(names) - set(METHOD):
        raise click.BadParameter(f"got {text!r}, expected some of {', '.join(METHOD)}")
    return names


def share_options(command: Callable[..., None]) -> Callable[..., None]:
    """What both commands take."""
    for option in (
        click.option("--methods", callback=split_names, default=",".join(METHOD), show_default=True),
        click.option("--limit", default=5000, show_default=True, help="images"),
        click.option("--batch", default=256, show_default=True, help="images a mini-batch"),
        click.option("--threads", default=1, show_default=True, help="of every contender"),
        click.option("--data-dir", type=click.Path(path_type=Path), help="where MNIST lies, instead of $STDAC_DATA"),
        click.option("--clustpy", type=click.Path(path_type=Path), help="the folder that ClustPy lies in"),
        click.option("--out", type=click.Path(path_type=Path), help="a JSON file, added to where it exists"),
    ):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Ours and ClustPy's, side by side."""
    os.environ["TQDM_DISABLE"] = "1"  # of ClustPy's bars, in the processes to come


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@share_options
def speed(rounds: int, methods: tuple[str, ...], out: Path | None, **setting: Any) -> None:
    """Time an epoch of each method."""
    given, runs = Setting(**setting), read_file(out)
    for method in methods:
        click.echo(f"{method} …", err=True)
        before = os.getloadavg()[0]
        found = measure(method, given, rounds)
        runs.setdefault("speed", {})[method] = {"seconds": found, "about": describe_run(given, before)}
        write_file(out, runs)
    click.echo(write_speed({name: run["seconds"] for name, run in runs["speed"].items()}))


@main.command()
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--pretrain", default=10, show_default=True, help="epochs of pre-training")
@click.option("--epochs", default=10, show_default=True, help="epochs of clustering")
@share_options
def accuracy(
    seeds: int, pretrain: int, epochs: int, methods: tuple[str, ...], out: Path | None, **setting: Any
) -> None:
    """Compare the accuracy with one budget."""
    given, runs = Setting(**setting), read_file(out)
    names = [name for name in methods if name != "pretrain"]
    found: dict[str, Any] = runs.setdefault("accuracy", {})
    for seed in range(seeds):
        click.echo(f"seed {seed} …", err=True)
        before = os.getloadavg()[0]
        scores = compare_accuracy(names, given, pretrain, epochs, seed)
        about = describe_run(given, before) | {"pretrain": pretrain, "epochs": epochs}
        found[str(seed)] = {"acc": scores, "about": about}
        write_file(out, runs)
    click.echo(write_accuracy([run["acc"] for run in found.values()]))


@main.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def tables(path: Path) -> None:
    """Print the tables of a file of results."""
    runs = read_file(path)
    click.echo(write_speed({name: run["seconds"] for name, run in runs.get("speed", {}).items()}))
    if "accuracy" in runs:
        click.echo("\n" + write_accuracy([run["acc"] for run in runs["accuracy"].values()]))


if __name__ == "__main__":
    main()

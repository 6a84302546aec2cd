"""The command `stdac train`: one trial, its scores as they come, and the folder of its result."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stdac.command import parse_setting
from stdac.errors import StdacError
from stdac.observer import Observer
from stdac.words import escape_line

if TYPE_CHECKING:
    from stdac.machine import Machine
    from stdac.results import Result
    from stdac.train import Progress
    from stdac.trial import Trial


@click.command("train")
@click.option("--dataset", required=True, help="A name (digits, mnist, fashion-mnist, ...) or a path to images.")
@click.option("--method", default="st-dac", help="Clustering method.")
@click.option("--stn", type=int, help="Number of spatial transformers, 0 to 3 (short for --set stn=N).")
@click.option("--source", help="A labelled data set, of a method that learns from one; as --dataset.")
@click.option("--seed", type=int, default=0, help="Seed of every random number.")
@click.option("--epochs", type=int, help="Epochs of the main phase; the method's own number if not given.")
@click.option("--clusters", type=int, help="Number of clusters; 10 for data sets that have a name.")
@click.option("--limit", type=int, help="Use a fixed random subset of this many images.")
@click.option("--image-size", type=int, help="Resize images to this side in pixels.")
@click.option(
    "--background",
    type=click.Choice(["black", "white", "auto"]),
    default="black",
    help="What transparency is laid on; auto: white below a dark picture, black below a bright one.",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A hyperparameter of the method.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/one"), help="Run folder.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--compile", "compile_", type=click.Choice(["auto", "on", "off"]), default="auto", help="torch.compile.")
@click.option("--threads", type=int, help="CPU threads; all cores if not given.")
def train_command(
    dataset: str,
    method: str,
    stn: int | None,
    source: str | None,
    seed: int,
    epochs: int | None,
    clusters: int | None,
    limit: int | None,
    image_size: int | None,
    background: str,
    settings: tuple[str, ...],
    out: Path,
    data_dir: Path | None,
    device: str,
    compile_: str,
    threads: int | None,
) -> None:
    """Train one model; run again, it goes on where it stopped.

    Writes OUT/trials/ID with the scores of every epoch, the cluster of every image, and model.pt.
    """
    from stdac.machine import Machine
    from stdac.methods import add_needs, resolve

    params = dict(parse_setting(text) for text in settings) | ({} if stn is None else {"stn": stn})
    spec = {"dataset": dataset, "method": method, "seed": seed, "epochs": epochs, "n_clusters": clusters}
    spec |= {"limit": limit, "image_size": image_size, "source": source, "background": background}
    trial = resolve(spec | {"params": params})
    results: dict[str, Result] = {}
    for each in add_needs([trial]):
        what = f"{each.method} on {each.dataset}, {each.n_clusters} clusters, seed {each.seed}"
        click.echo(f"trial {each.id}: {what}{'' if each == trial else f', which {trial.id} needs'}", err=True)
        results[each.id] = _train_one(each, out, Machine(device, compile_, threads), data_dir, results)
    click.echo(results[trial.id].path)


def _train_one(
    trial: "Trial", out: Path, machine: "Machine", data_dir: Path | None, results: Mapping[str, "Result"]
) -> "Result":
    """Run one trial in OUT, or go on with it. Raises StdacError where another process is at it, or a trial that it
    needs is neither among the results nor done in OUT."""
    from stdac.folder import TrialFolder
    from stdac.layout import TRIAL_ID
    from stdac.results import take_result
    from stdac.run import run_trial
    from stdac.trial_data import refuse_changes

    folder = TrialFolder(out / "trials" / trial.id)
    others = {name: TrialFolder(out / "trials" / name) for name in trial.needs if name not in results}
    for name, other in others.items():
        if not TRIAL_ID.fullmatch(name) or other.done() is None:
            raise StdacError(
                f"trial {trial.id} needs trial {name}, which is not done in {out}: name its run folder with --out, "
                "or run both in one grid with stdac-grid launch"
            )
    needed = [results[name] if name in results else take_result(others[name]) for name in trial.needs]
    with TrainDisplay() as display, _say_how_to_go_on():
        ran = run_trial(trial, folder, machine=machine, data_dir=data_dir, needed=needed, observer=display)
    done = folder.done()
    if done is None:
        raise StdacError(f"{folder.path} is being written by another process: wait for it, or choose another --out")
    if not ran:
        refuse_changes([(trial.to_json(), done)], data_dir)
        click.echo("already done: nothing to do", err=True)
    return take_result(folder)


@contextmanager
def _say_how_to_go_on() -> Iterator[None]:
    """Ctrl-C ends in a sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise StdacError("stopped; the same command goes on after the last epoch that was done") from None


class TrainDisplay(Observer):
    """Scores as lines on stdout and, on a terminal, a bar on stderr that shows the epoch in progress."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None
        self.shown = 0.0

    def __enter__(self) -> "TrainDisplay":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]:.0f} images/s"))
            self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def on_note(self, text: str) -> None:
        """Say it on stderr."""
        click.echo(escape_line(text), err=True)

    def on_progress(self, p: "Progress") -> None:
        """Move the bar, at most ten times a second."""
        if self.bar is None or time.monotonic() - self.shown < 0.1:
            return
        self.shown = time.monotonic()
        if self.task is None:
            self.task = self.bar.add_task("", rate=0.0)
        text = f"{p.phase} {p.epoch}/{p.epochs}"
        self.bar.update(self.task, description=text, completed=p.step, total=p.steps or None, rate=p.images_per_s)

    def on_score(self, row: Mapping[str, Any]) -> None:
        """Print one row of scores."""
        names = (("ACC", "acc"), ("NMI", "nmi"), ("ARI", "ari"))
        scores = "  ".join(f"{name} {row[key]:.4f}" for name, key in names if row.get(key) is not None)
        loss = f"  loss {row['loss']:.4f}" if row.get("loss") is not None else ""
        seconds = f"  {row['seconds']:.0f} s" if row.get("seconds") is not None else ""
        click.echo(
            f"{row['phase']:>8} {row['epoch']:>3}  {scores or str(row['clusters_used']) + ' clusters'}{loss}{seconds}"
        )

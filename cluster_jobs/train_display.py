"""What `stdac train` shows: a line an epoch on stdout, where it is meanwhile and what came of it on stderr."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from stdac.observer import Observer
from stdac.words import escape_line, format_duration

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stdac.methods.method import Fitted
    from stdac.train import Progress
    from stdac.trial import Trial

SHOW_S, TELL_S = 0.1, 60.0  # between two looks of the bar, and between two lines where there is no terminal


class Clock:
    """How long a main phase still takes, by how far it has come since this process began it."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.began: tuple[float, float] | None = None  # the time, and the epochs that were done then

    def tell(self, done: float) -> str:
        """`12 min 05 s left` after so many epochs, in part perhaps; "" before that can be known."""
        now = time.monotonic()
        at, before = self.began = self.began or (now, done)
        if done <= before or done >= self.epochs:
            return ""
        return f"{format_duration((now - at) / (done - before) * (self.epochs - done))} left"


class TrainDisplay(Observer):
    """Shows a trial; on a terminal with a bar."""

    def __init__(self, trial: "Trial") -> None:
        self.trial = trial
        self.clock = Clock(trial.epochs)
        self.sizes = ""
        self.moved: float | None = None
        self.has_labels = False
        self.bar: Any = None
        self.task: Any = None
        self.shown = time.monotonic()

    def __enter__(self) -> "TrainDisplay":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def on_note(self, text: str) -> None:
        """Say it on stderr."""
        click.echo(escape_line(text), err=True)

    def on_progress(self, p: "Progress") -> None:
        """Move the bar, or say now and then where training is."""
        done = p.epoch - 1 + (min(1.0, p.step / p.steps) if p.steps else 0.0)
        left = self.clock.tell(done) if p.main else ""
        if time.monotonic() - self.shown < (TELL_S if self.bar is None else SHOW_S):
            return
        self.shown = time.monotonic()
        what = "epoch" if p.main else f"{p.phase}, epoch"
        text = ", ".join(filter(None, (f"{what} {p.epoch} of {p.epochs}", f"{p.images_per_s:,.0f} images/s", left)))
        if self.bar is None:
            click.echo(text, err=True)
        else:
            self.bar.update(self.task, description=text, completed=done, total=p.epochs)

    def on_clusters(self, clusters: "NDArray[np.int64]") -> None:
        """Note their sizes, for the row."""
        from analysis.ending import describe_sizes

        self.sizes = describe_sizes(clusters, self.trial.n_clusters)

    def on_score(self, row: Mapping[str, Any]) -> None:
        """Print a row: where it is of, scores where there are labels, what moved, the clusters, the time."""
        words = [self._name_row(row)]
        names = (("ACC", "acc"), ("NMI", "nmi"), ("ARI", "ari"))
        words += [f"{name} {row[key]:.4f}" for name, key in names if row.get(key) is not None]
        self.has_labels = row.get("acc") is not None
        if row["main"]:
            self.moved = row.get("term_moved")
            words += [f"{self.moved:.1%} moved"] if self.moved is not None else []
        words += [self.sizes]
        words += [f"loss {row['loss']:.4f}"] if row.get("loss") is not None else []
        words += [f"{row['seconds']:.0f} s"] if row.get("seconds") is not None else []
        words += [self.clock.tell(row["epoch"])] if row["main"] else []
        click.echo("  ".join(filter(None, words)))
        self.shown = time.monotonic()

    def _name_row(self, row: Mapping[str, Any]) -> str:
        """What a row is of."""
        of = f"epoch {row['epoch']:>{len(str(self.trial.epochs))}} of {self.trial.epochs}"
        if row["main"]:
            return of if row["epoch"] else "untrained" if self.trial.epochs else "clustered"
        return str(row["phase"]) if row["phase"] == "deployed" else f"{row['phase']} {row['epoch']}"

    def on_fitted(self, fitted: "Fitted", images: "NDArray[np.uint8]") -> None:
        """Say what can be said without labels: whether training had settled and, where there are none, how well the
        clusters are separated."""
        from analysis.ending import describe_separation, describe_settling

        if self.moved is not None:
            click.echo(describe_settling(self.moved, self.trial.epochs), err=True)
        if self.trial.epochs and not self.has_labels:
            separation = describe_separation(fitted, images, self.trial.n_clusters)
            if separation is not None:
                click.echo(separation, err=True)

"""Where a grid stands, as a person likes to watch it: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections import Counter, defaultdict
from datetime import datetime
from typing import Any

import click
import pyarrow.parquet as pq

from cluster_jobs.ledger import Ledger, Status
from stdac.record import RENEW_S
from stdac.words import duration

PLAIN_EVERY_S = 60.0
WATCH_EVERY_S = 2.0
LISTED = 60


def label(trial: dict[str, Any]) -> str:
    """A trial in a few words: "st-dac stn=2 on digits, K 10, seed 0"."""
    stn = trial["params"].get("stn")
    what = f"{trial['method']}{'' if stn is None else f' stn={stn}'} on {trial['dataset']}"
    return f"{what}, K {trial['n_clusters']}, seed {trial['seed']}"


def elapsed(status: Status) -> float:
    """Seconds that a running trial's attempt has taken."""
    now: float = status.detail["now"]
    return max(0.0, now - datetime.fromisoformat(status.detail["began"]).timestamp())


def eta_seconds(trials: dict[str, dict[str, Any]], statuses: list[Status]) -> float | None:
    """Seconds until the run is done, from the mean time of its done trials by kind; None before the first is done."""
    taken: dict[str, list[float]] = defaultdict(list)
    for status in statuses:
        if status.state == "done":
            taken[kind(trials[status.trial_id])].append(status.detail["seconds"])
    if not taken:
        return None
    means = {name: sum(times) / len(times) for name, times in taken.items()}
    typical = sum(means.values()) / len(means)
    left = 0.0
    for status in statuses:
        if status.state in ("waiting", "running"):
            whole = means.get(kind(trials[status.trial_id]), typical)
            spent = elapsed(status) if status.state == "running" else 0.0
            left += max(whole - spent, 0.1 * whole)
    workers = max(1, sum(status.state == "running" for status in statuses))
    return left / workers


def kind(trial: dict[str, Any]) -> str:
    """Trials of one kind take about equally long."""
    return f"{trial['method']} {trial['dataset']} {trial['params'].get('stn')} {trial['epochs']}"


def summary(trials: dict[str, dict[str, Any]], statuses: list[Status]) -> str:
    """One line: how many trials are in which state, and the time left."""
    counts = Counter(status.state for status in statuses)
    words = [f"{counts['done']} of {len(statuses)} done"]
    words += [f"{counts[state]} {state}" for state in ("running", "failed", "waiting") if counts[state]]
    eta = eta_seconds(trials, statuses) if counts["running"] or counts["waiting"] else None
    return ", ".join(words) + (f", about {duration(eta)} left" if eta is not None else "")


def where(status: Status) -> str:
    """What a trial is doing, or how it ended, in a few words."""
    detail = status.detail
    if status.state == "done":
        host = f"{detail['hosts'][-1]}, " if "hosts" in detail else ""
        return f"{duration(detail['seconds'])} on {host}{detail['device']}{interruptions(status)}"
    if status.state == "failed":
        return f"{detail['reason']} ({detail['log']})"
    if status.state == "waiting":
        return ""
    progress = detail["progress"]
    epoch = f"{progress['phase']} epoch {progress['epoch']}/{progress['epochs']}" if progress else "starting"
    rate = f", {progress['images_per_s']:.0f} images/s" if progress else ""
    job = f" (job {detail['job']})" if detail.get("job") else ""
    silent = f", silent for {duration(detail['silence'])}" if detail["silence"] > 3 * RENEW_S else ""
    return f"{epoch}{rate}, {duration(elapsed(status))} on {detail['host']}{job}{silent}{interruptions(status)}"


def interruptions(status: Status) -> str:
    """How often a trial was interrupted so far, and what that has cost; nothing for most."""
    times = status.detail.get("attempts", status.detail.get("attempt", 1)) - 1
    if not times:
        return ""
    lost = duration(status.detail.get("lost_seconds", 0.0))
    return f", interrupted {times} time{'s' * (times > 1)}, {lost} of work lost"


def report(ledger: Ledger, show_all: bool = False) -> str:
    """Where every trial of a run stands, a line each, then the sum of it and what of ours is in SLURM's queue.

    Of a long grid only what runs and what failed is listed, unless show_all.
    """
    from cluster_jobs.slurm_queue import summary as slurm_summary

    trials, statuses = ledger.trials(), ledger.statuses()
    shown = [s for s in statuses if show_all or len(statuses) <= LISTED or s.state in ("running", "failed")]
    lines = [f"{s.trial_id}  {s.state:<8} {label(trials[s.trial_id]):<42} {where(s)}".rstrip() for s in shown]
    if len(shown) < len(statuses):
        lines.append(f"({len(statuses) - len(shown)} trials that are done or waiting are not listed: --all)")
    lines.append(summary(trials, statuses))
    queue = slurm_summary(ledger.path)
    if queue:
        lines.append(f"SLURM: {queue}")
    if ledger.cancelled():
        lines.append("cancelled: stdac-grid launch, or retry, lets it go on")
    return "\n".join(lines)


def watch_report(ledger: Ledger, show_all: bool = False) -> None:
    """The report again and again until no trial is running or waiting, or the run is cancelled."""
    while True:
        click.clear()
        click.echo(report(ledger, show_all))
        states = {status.state for status in ledger.statuses()}
        if not states & {"running", "waiting"} or (ledger.cancelled() and "running" not in states):
            return
        time.sleep(WATCH_EVERY_S)


def final_accuracy(ledger: Ledger, status: Status) -> float | None:
    """ACC by the protocol at the last epoch of a done trial."""
    path = ledger.folder(status.trial_id).path / f"attempt-{status.detail['attempt']}" / "metrics.parquet"
    rows = pq.read_table(path, columns=["phase", "epoch", "acc"]).to_pylist()
    return max((r for r in rows if r["phase"] == "cluster"), key=lambda r: r["epoch"])["acc"]  # type: ignore[no-any-return]


class Display:
    """Call `tick` now and then while a run goes on."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.trials = ledger, ledger.trials()
        self.reported: set[str] = {s.trial_id for s in ledger.statuses() if s.state == "done"}
        self.said = time.monotonic()
        self.looked = 0.0
        self.live: Any = None

    def __enter__(self) -> "Display":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.tick(force=True)
        if self.live is not None:
            self.live.stop()
        click.echo(summary(self.trials, self.ledger.statuses()), err=True)

    def tick(self, force: bool = False) -> None:
        """Look at the run, at most once a second; report what ended since."""
        if not force and time.monotonic() - self.looked < 1.0:
            return
        self.looked = time.monotonic()
        statuses = self.ledger.statuses()
        for status in statuses:
            if status.state in ("done", "failed") and status.trial_id not in self.reported:
                self.reported.add(status.trial_id)
                self.say(self.ended(status))
        if self.live is not None:
            self.live.update(self.table(statuses))
        elif time.monotonic() - self.said > PLAIN_EVERY_S:
            self.say(summary(self.trials, statuses))

    def ended(self, status: Status) -> str:
        """The line about a trial that is over."""
        text = f"{label(self.trials[status.trial_id]):<42}"
        if status.state == "failed":
            return f"{text} FAILED: {where(status)}"
        accuracy = final_accuracy(self.ledger, status)
        return f"{text} {'' if accuracy is None else f'ACC {accuracy:.3f}, '}{where(status)}"

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.said = time.monotonic()
        if self.live is not None:
            self.live.console.print(line, highlight=False, markup=False)
        else:
            click.echo(line, err=True)

    def table(self, statuses: list[Status]) -> Any:
        """The live table: a bar for the run, a line for each running trial."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        done = sum(status.state == "done" for status in statuses)
        table.add_row(ProgressBar(total=len(statuses), completed=done, width=40), summary(self.trials, statuses))
        for status in statuses:
            if status.state == "running":
                table.add_row(label(self.trials[status.trial_id]), where(status))
        return table

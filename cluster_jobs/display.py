"""Where a grid stands, as a person likes to watch it: a live table on a terminal, plain lines elsewhere."""

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from analysis.runs import read_main_rows
from cluster_jobs.ledger import LEFT, Ledger, State, Status
from cluster_jobs.pace import Pace, measure_elapsed, read_costs
from stdac.errors import StdacError
from stdac.leases import RENEW_S
from stdac.trial import choose_telling, count_distinct, make_id, write_canonical
from stdac.words import count_noun, escape_line, format_duration, shorten_paths

PLAIN_EVERY_S = 60.0
WATCH_EVERY_S = 2.0
LOOK_S = 1.0
LISTED = 60


class Labels:
    """What trials are called in a line: "st-dac stn=2 on digits, K 10, seed 0", with the parameters by which those of
    their method on their data set differ."""

    def __init__(self, trials: Iterable[Mapping[str, Any]]) -> None:
        settings: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        trials = list(trials)
        self.datasets = shorten_paths({trial["dataset"] for trial in trials})
        self.methods = {make_id(trial): trial["method"] for trial in trials}
        for trial in trials:
            settings[trial["method"], trial["dataset"]][write_canonical(self._shorten_params(trial))] = None
        self.swept = {key: _find_swept([json.loads(text) for text in texts]) for key, texts in settings.items()}

    def __call__(self, trial: Mapping[str, Any]) -> str:
        swept = self.swept.get((trial["method"], trial["dataset"]), [])
        shown = self._shorten_params(trial)
        params = [f"{name}={shown.get(name)}" for name in swept if shown.get(name) != ""]  # it names no trial
        what = " ".join([trial["method"], *params])
        dataset = self.datasets.get(trial["dataset"], trial["dataset"])
        k = f", K {trial['n_clusters']}" if trial["n_clusters"] else ""
        return f"{what} on {dataset}{k}, seed {trial['seed']}"

    def _shorten_params(self, trial: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's parameters, those that name trials by what these are: "3 × st-dac, 2 × kmeans"."""
        params, needs = dict(trial["params"]), set(trial.get("needs", ()))
        for name, value in params.items():
            named = value if isinstance(value, list) else [value]
            if needs and named and all(isinstance(item, str) and item in needs for item in named):
                counts = Counter(self.methods.get(item, "another trial") for item in named)
                texts = [f"{n} × {method}" if isinstance(value, list) else method for method, n in counts.items()]
                params[name] = ", ".join(sorted(texts))
        return params


def _find_swept(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters that differ, those with most values first, without those that follow from others."""
    names = sorted({name for params in settings for name in params})
    return choose_telling(settings, sorted(names, key=lambda name: -count_distinct(settings, [name])))


def summarize(states: Iterable[State], pace: Pace, running: Sequence[Status]) -> str:
    """One line: how many trials are in which state, and the time left."""
    counts = Counter(states)
    words = [f"{counts['done']} of {counts.total()} done"]
    words += [
        f"{counts[state]} {state}" for state in ("running", "failed", "waiting", "blocked", "paused") if counts[state]
    ]
    going_on = any(counts[state] for state in LEFT) and not counts["paused"]
    eta = pace.seconds_left(running) if going_on else None
    return ", ".join(words) + (f", about {format_duration(eta)} left" if eta is not None else "")


def describe_place(status: Status) -> str:
    """What a trial is doing, or how it ended, in a few words."""
    detail = status.detail
    if status.state == "done":
        host = f"{detail['hosts'][-1]}, " if detail.get("hosts") else ""
        took = format_duration(detail.get("seconds", 0.0))
        return (
            f"{took} on {host}{detail.get('device', 'a device that it does not name')}{_describe_interruptions(status)}"
        )
    if status.state == "failed":
        return f"{detail['reason']} ({detail['log']})"
    if status.state == "blocked":
        names = detail["for"]
        return f"waiting for {names[0] if len(names) == 1 else f'{len(names)} trials that it needs'}"
    if status.state in ("waiting", "paused"):
        return f"after epoch {detail['epoch']}/{detail['epochs']}" if detail else ""
    progress = detail["progress"] or {}
    known = {"phase", "epoch", "epochs"} <= progress.keys()
    epoch = f"{progress['phase']} epoch {progress['epoch']}/{progress['epochs']}" if known else "starting"
    rate = f", {progress['images_per_s']:.0f} images/s" if "images_per_s" in progress else ""
    job = f" (job {detail['job']})" if detail.get("job") else ""
    silent = f", silent for {format_duration(detail['silence'])}" if detail["silence"] > 3 * RENEW_S else ""
    if detail.get("ahead"):
        ahead = format_duration(detail["ahead"])
        return f"{epoch}, on {detail['host']}{job}, if it lives: its lease lies {ahead} ahead of the clock of its files"
    since = f"{format_duration(measure_elapsed(status))} on {detail['host']}{job}"
    return f"{epoch}{rate}, {since}{silent}{_describe_interruptions(status)}"


def _describe_interruptions(status: Status) -> str:
    """How often a trial was interrupted so far, and what that has cost; nothing for most."""
    times = status.detail.get("attempts", status.detail.get("attempt", 1)) - 1 - status.detail.get("pauses", 0)
    if times < 1:
        return ""
    lost = format_duration(status.detail.get("lost_seconds", 0.0))
    return f", interrupted {times} time{'s' * (times > 1)}, {lost} of work lost"


def report(ledger: Ledger, show_all: bool = False) -> str:
    """Where every trial of a run stands, a line each, then the sum of it and what of ours is in SLURM's queue.

    Of a long grid only what runs and what failed is listed, unless show_all.
    """
    from cluster_jobs.slurm_queue import describe_jobs

    trials, statuses = ledger.trials(), ledger.statuses()
    label = Labels(trials.values())
    pace, running = Pace(read_costs(ledger.path)), [status for status in statuses if status.state == "running"]
    for status in statuses:
        pace.add(status.trial_id, trials[status.trial_id])
        if status.state in ("done", "failed"):
            pace.end(status)
    shown = [s for s in statuses if show_all or len(statuses) <= LISTED or s.state in ("running", "failed")]
    lines = [f"{s.trial_id}  {s.state:<8} {label(trials[s.trial_id]):<42} {describe_place(s)}".rstrip() for s in shown]
    if len(shown) < len(statuses):
        lines.append(f"({count_noun(len(statuses) - len(shown), 'trial')} done or waiting, not listed: --all)")
    lines.append(summarize((status.state for status in statuses), pace, running))
    queue = describe_jobs(ledger.path)
    if queue:
        lines.append(f"SLURM: {queue}")
    if ledger.cancelled():
        lines.append("cancelled: stdac-grid launch, or retry, lets it go on")
    return "\n".join(map(escape_line, lines))


def watch_report(ledger: Ledger, show_all: bool = False) -> None:
    """The report again and again until no trial is running or waiting, or the run is cancelled."""
    while True:
        click.clear()
        click.echo(report(ledger, show_all))
        states = set(ledger.states().values())
        if not states.intersection(LEFT) or (ledger.cancelled() and "running" not in states):
            return
        time.sleep(WATCH_EVERY_S)


def _read_final_accuracy(ledger: Ledger, status: Status) -> float | None:
    """ACC by the protocol at the last epoch of a done trial."""
    path = ledger.folder(status.trial_id).attempt_path(status.detail["attempt"]) / "metrics.parquet"
    accuracy: float | None = read_main_rows(path)[-1]["acc"]
    return accuracy


class Display:
    """Call `tick` now and then while a run goes on. Of a trial it keeps what `label` calls it and its kind, no more."""

    def __init__(self, ledger: Ledger, label: Callable[[dict[str, Any]], str] | None = None) -> None:
        self.ledger, self.label = ledger, label
        self.labels: dict[str, str] = {}
        self.pace = Pace(read_costs(ledger.path))
        self.said = time.monotonic()
        self.looked = 0.0
        self.live: Any = None
        for trial_id, state in self.look().items():
            if state == "done":
                self.pace.end(ledger.status(trial_id))

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
        click.echo(self.summary(self.look()), err=True)

    def look(self) -> dict[str, State]:
        """The states of all trials, of which another launch may have added some."""
        states = self.ledger.states()
        if len(states) > len(self.labels):
            trials = self.ledger.trials()
            label = self.label or Labels(trials.values())
            for trial_id, trial in trials.items():
                if trial_id not in self.labels:
                    self.labels[trial_id] = label(trial)
                    self.pace.add(trial_id, trial)
        return states

    def tick(self, force: bool = False) -> None:
        """Look at the run, at most once a second; report what ended since."""
        if not force and time.monotonic() - self.looked < LOOK_S:
            return
        self.looked = time.monotonic()
        states = self.look()
        for trial_id in [t for t in self.pace.kinds if states[t] in ("done", "failed")]:
            status = self.ledger.status(trial_id)
            if status.state in ("done", "failed"):
                self.pace.end(status)
                self.say(self.ended(status))
        if self.live is not None:
            self.live.update(self.table(states))
        elif time.monotonic() - self.said > PLAIN_EVERY_S:
            self.say(self.summary(states))

    def running(self, states: Mapping[str, State]) -> list[Status]:
        """Where those trials stand that run."""
        found = (self.ledger.status(trial_id) for trial_id, state in states.items() if state == "running")
        return [status for status in found if status.state == "running"]

    def summary(self, states: Mapping[str, State]) -> str:
        """One line."""
        return summarize(states.values(), self.pace, self.running(states))

    def ended(self, status: Status) -> str:
        """The line about a trial that is over."""
        text = f"{self.labels[status.trial_id]:<42}"
        if status.state == "failed":
            return f"{text} FAILED: {describe_place(status)}"
        try:
            accuracy = _read_final_accuracy(self.ledger, status)
        except (
            StdacError,
            OSError,
        ) as error:  # which is no reason to stop the others: collecting the rows says so again
            return f"{text} done, but {error}"
        return f"{text} {'' if accuracy is None else f'ACC {accuracy:.3f}, '}{describe_place(status)}"

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.said, line = time.monotonic(), escape_line(line)
        if self.live is not None:
            self.live.console.print(line, highlight=False, markup=False)
        else:
            click.echo(line, err=True)

    def table(self, states: Mapping[str, State]) -> Any:
        """The live table: a bar for the run, a line for each running trial."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        running = self.running(states)
        done = sum(state == "done" for state in states.values())
        bar = ProgressBar(total=len(states), completed=done, width=40)
        table.add_row(bar, summarize(states.values(), self.pace, running))
        for status in running:
            words = (self.labels[status.trial_id], describe_place(status))
            table.add_row(*(Text(escape_line(word)) for word in words))
        return table

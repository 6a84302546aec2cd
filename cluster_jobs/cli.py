"""stdac-grid: plan, launch and watch a grid of trials. Heavy imports live in the commands that need them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stdac.command import Commands
from stdac.errors import StdacError

if TYPE_CHECKING:
    from cluster_jobs.grid import Grid
    from cluster_jobs.worker import Options

HOURS_TO_CONFIRM = 3.0
RUN = click.argument("run", type=click.Path(path_type=Path))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="stdac")
def main() -> None:
    """Run a grid of clustering trials, lose nothing, and print the table.

    GRID is a preset (quick, paper) or a TOML file; RUN is the folder of a launched grid.
    """


@main.command()
@click.argument("grid", default="paper")
@click.option("--device", default="auto", help="auto, cpu or cuda: what the estimate is for.")
def plan(grid: str, device: str) -> None:
    """Print the trials of GRID, their number and what they will cost; run nothing."""
    from cluster_jobs.display import duration, label
    from cluster_jobs.grid import load_grid

    loaded = load_grid(grid)
    for trial in loaded.trials:
        click.echo(f"{trial.id}  {label(trial.to_json()):<44} {duration(estimate(trial, device)):>14}")
    total, workers = grid_estimate(loaded, device)
    click.echo(
        f"{len(loaded.trials)} trials, roughly {duration(total)} with {workers} at a time on {device_word(device)}"
    )


def device_word(device: str) -> str:
    """What this machine would train on: "this CPU" or "this GPU"."""
    return "this GPU" if uses_gpu(device) else "this CPU"


def uses_gpu(device: str) -> bool:
    """Whether trials on `device` run on a GPU."""
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def estimate(trial: Any, device: str) -> float:
    """A rough guess of one trial's seconds, from its multiply-adds and the rate one core reached when measured."""
    from stdac.cost import trial_seconds

    return trial_seconds(trial, gpu=uses_gpu(device))


def grid_estimate(grid: "Grid", device: str) -> tuple[float, int]:
    """Seconds for the whole grid on this machine, and how many trials run at a time."""
    workers = default_workers(device)
    return sum(estimate(trial, device) for trial in grid.trials) / min(workers, len(grid.trials)), workers


def default_workers(device: str) -> int:
    """One worker a core on the CPU, one a GPU otherwise."""
    import torch

    return torch.cuda.device_count() if uses_gpu(device) else len(os.sched_getaffinity(0))


@main.command()
@click.argument("grid", default="paper")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/NAME of the grid if not given.")
@click.option("--backend", type=click.Choice(["auto", "local", "ray"]), default="auto", help="Who starts the workers.")
@click.option("--nodes", type=click.IntRange(1), default=1, help="Nodes of the cluster to use.")
@click.option("--workers", type=click.IntRange(1), help="Trials at a time; one a core, or one a GPU, if not given.")
@click.option("--trials-per-gpu", type=click.IntRange(1), default=1, help="Trials that share one GPU.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
@click.option("--keep", type=click.Choice(["all", "metrics"]), default="all", help="What a done trial leaves.")
@click.option("--yes", is_flag=True, help="Do not ask before hours of computing.")
def launch(
    grid: str,
    out: Path | None,
    backend: str,
    nodes: int,
    workers: int | None,
    trials_per_gpu: int,
    device: str,
    data_dir: Path | None,
    keep: str,
    yes: bool,
) -> None:
    """Run what is missing of GRID. Stopped or killed, launch again: it goes on.

    Trials that failed before are tried again. The exit code is 1 if any trial failed.
    """
    from cluster_jobs.display import Display, duration
    from cluster_jobs.grid import load_grid
    from cluster_jobs.ledger import Ledger
    from cluster_jobs.worker import Options

    loaded = load_grid(grid)
    backend, why = choose_backend(backend, nodes)
    ledger = Ledger(out or Path("runs") / loaded.name)
    total, at_once = grid_estimate(loaded, device)
    hours = total / 3600 / nodes
    if hours > HOURS_TO_CONFIRM and not yes:
        click.echo(
            f"{len(loaded.trials)} trials will take roughly {duration(hours * 3600)} on {device_word(device)}; "
            "`stdac-grid launch quick` makes a real table in a few minutes on two CPU cores.",
            err=True,
        )
        click.confirm("Go on?", abort=True, err=True)
    vanished = ledger.plan(loaded.trials, loaded.text)
    if vanished:
        click.echo(f"{len(vanished)} earlier trials are not in this grid; they stay: {' '.join(vanished)}", err=True)
    for trial_id in ledger.retry():
        click.echo(f"trying {trial_id} again, which had failed", err=True)
    workers = workers or at_once * trials_per_gpu
    click.echo(
        f"{len(loaded.trials)} trials in {ledger.path}, backend {backend} ({why}), {workers} at a time", err=True
    )
    with Display(ledger) as display:
        run_backend(backend, ledger.path, workers, Options(device, None, absolute(data_dir), keep), display.tick)
    finish(ledger)


def choose_backend(backend: str, nodes: int) -> tuple[str, str]:
    """The backend and why it was chosen. Raises StdacError for several nodes where there is no cluster."""
    if backend != "auto":
        return backend, "as asked"
    if os.environ.get("RAY_ADDRESS"):
        return "ray", "RAY_ADDRESS is set"
    if nodes > 1:
        raise StdacError(
            f"got --nodes {nodes}, but there is no cluster here: RAY_ADDRESS is not set. Start Ray on the nodes "
            "(ray start --head, then ray start --address=HEAD:6379) and set RAY_ADDRESS, or leave out --nodes"
        )
    return "local", "no cluster was found: RAY_ADDRESS is not set"


def absolute(path: Path | None) -> Path | None:
    """The path from the root, as processes that start elsewhere need it."""
    return None if path is None else path.resolve()


def run_backend(backend: str, run: Path, workers: int, options: "Options", tick: Callable[[], None]) -> None:
    """Start the workers and wait until nothing is left to do."""
    if backend == "ray":
        from cluster_jobs.ray_tune import run_workers

        run_workers(run, workers, options, tick)
    else:
        from cluster_jobs.local import LocalWorkers

        gpus = default_workers(options.device) if uses_gpu(options.device) else 0
        LocalWorkers(run, workers, options, gpus).watch(tick)


def finish(ledger: Any) -> None:
    """Collect the rows, say what failed, and set the exit code."""
    ledger.collect()
    statuses = ledger.statuses()
    failed = [s for s in statuses if s.state == "failed"]
    left = [s for s in statuses if s.state in ("waiting", "running")]
    click.echo(f"results: stdac-grid results {ledger.path}", err=True)
    if failed or left:
        first = f"; the first: {failed[0].detail['reason']} ({failed[0].detail['log']})" if failed else ""
        raise StdacError(f"{len(failed)} trials failed and {len(left)} did not end{first}; launch again to retry")


@main.command()
@RUN
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores if not given.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
@click.option("--keep", type=click.Choice(["all", "metrics"]), default="all", help="What a done trial leaves.")
def work(run: Path, device: str, threads: int | None, data_dir: Path | None, keep: str) -> None:
    """Be one worker of RUN: claim a trial, run it, take the next, until none is waiting."""
    import signal

    from cluster_jobs import worker

    signal.signal(signal.SIGTERM, worker.interrupt)
    done, failed = worker.work(run, worker.Options(device, threads, data_dir, keep))
    click.echo(f"{done} trials done, {failed} failed")
    if failed:
        raise click.exceptions.Exit(1)


@main.command()
@RUN
@click.option("--watch", is_flag=True, help="Show it again every two seconds until all is over.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def status(run: Path, watch: bool, as_json: bool) -> None:
    """Say what of RUN is done, running, failed and waiting."""
    import json
    import time

    from cluster_jobs.display import label, summary, where
    from cluster_jobs.ledger import Ledger

    ledger = Ledger(run)
    trials = ledger.trials()
    while True:
        statuses = ledger.statuses()
        if as_json:
            click.echo(json.dumps([s._asdict() for s in statuses]))
        else:
            if watch:
                click.clear()
            for s in statuses:
                click.echo(f"{s.trial_id}  {s.state:<8} {label(trials[s.trial_id]):<42} {where(s)}".rstrip())
            click.echo(summary(trials, statuses))
        if not watch or not any(s.state in ("waiting", "running") for s in statuses):
            return
        time.sleep(2)


@main.command()
@RUN
@click.option("--markdown", is_flag=True, help="As a Markdown table.")
@click.option("--figures", type=click.Path(path_type=Path), help="Also write the figures into this folder.")
def results(run: Path, markdown: bool, figures: Path | None) -> None:
    """Print mean ± std (n) of every cell of RUN beside the published value."""
    from analysis.figures import write_figures
    from analysis.runs import read_metrics
    from analysis.table import format_results
    from analysis.table import results as cells_of

    click.echo(format_results(cells_of(read_metrics(run)), markdown=markdown))
    if figures is not None:
        for path in write_figures(run, figures):
            click.echo(f"wrote {path}", err=True)


@main.command()
@RUN
@click.option("--method", default="st-dac", help="Among this method's trials.")
def best(run: Path, method: str) -> None:
    """Print the model file of the trial with the lowest final training loss: a choice that needs no labels.

    Losses compare within one method only, and best where its trials share their loss's parameters.
    """
    from cluster_jobs.ledger import Ledger

    click.echo(Ledger(run).best_model(method))


@main.command()
@RUN
def collect(run: Path) -> None:
    """Write RUN/metrics.parquet with the rows of all done trials."""
    from cluster_jobs.ledger import Ledger

    click.echo(Ledger(run).collect())


@main.command()
@RUN
def retry(run: Path) -> None:
    """Forget the failures of RUN, so that the next worker tries those trials again."""
    from cluster_jobs.ledger import Ledger

    again = Ledger(run).retry()
    click.echo(f"{len(again)} trials will be tried again: stdac-grid launch, or stdac-grid work {run}")

"""The commands that run a grid: `stdac-grid plan`, `launch` and `work`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stdac.errors import StdacError
from stdac.words import count_noun, format_duration

if TYPE_CHECKING:
    from stdac.trial import Trial

HOURS_TO_CONFIRM = 3.0
RUN = click.argument("run", type=click.Path(path_type=Path))
PAUSE_AFTER = click.option(
    "--pause-after",
    type=click.IntRange(1),
    metavar="EPOCH",
    help="Leave every trial at its checkpoint of that epoch; without it, the next launch goes on.",
)
WITHOUT = click.option(
    "--without",
    type=click.Path(path_type=Path),
    metavar="ROWS",
    help="Leave out the trials that are finished there: a metrics.parquet, or a published folder or run that has one.",
)


@click.command()
@click.argument("grid", default="paper")
@click.option("--device", default="auto", help="auto, cpu or cuda: what the estimate is for.")
def plan(grid: str, device: str) -> None:
    """Print the trials of GRID, their number and what they will cost; run nothing."""
    from cluster_jobs.display import Labels
    from cluster_jobs.grid import load_grid
    from cluster_jobs.local import count_places, uses_gpu

    loaded = load_grid(grid)
    gpu, workers = uses_gpu(device), count_places(device)
    label = Labels(trial.to_json() for trial in loaded.trials)
    for trial in loaded.trials:
        click.echo(f"{trial.id}  {label(trial.to_json()):<44} {format_duration(estimate(trial, gpu)):>14}")
    total = estimate_all(loaded.trials, gpu, workers)
    click.echo(
        f"{count_noun(len(loaded.trials), 'trial')}, roughly {format_duration(total)}, "
        f"{workers} at a time on {_name_device(gpu)}"
    )


def _name_device(gpu: bool) -> str:
    """What the estimate is for, as a person says it."""
    return "a GPU each" if gpu else "CPU cores"


def estimate(trial: Any, gpu: bool, images: int | None = None) -> float:
    """A rough guess of one trial's seconds, from its multiply-adds and the rate one core reached when measured. images:
    of its data set, see `stdac.cost.estimate_seconds`."""
    from stdac.cost import estimate_seconds

    return estimate_seconds(trial, gpu=gpu, images=images)


def estimate_all(trials: "Sequence[Trial]", gpu: bool, workers: int, images: int | None = None) -> float:
    """Seconds for the trials with `workers` of them at a time."""
    return sum(estimate(trial, gpu, images) for trial in trials) / max(1, min(workers, len(trials)))


def _add_slurm_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how to ask SLURM for nodes; the command gets them as **slurm."""
    options = [
        click.option("--partition", help="SLURM partition; else $SBATCH_PARTITION, else [slurm] of GRID."),
        click.option("--account", help="SLURM account."),
        click.option("--qos", help="SLURM quality of service."),
        click.option("--time", help="Time limit of a worker; it is requeued and goes on. Up to 4 hours if not given."),
        click.option("--gres", help="What a worker asks for; gpu:1 where the partition has GPUs, if not given."),
        click.option("--mem-per-cpu", help="Memory for each of a worker's CPUs."),
        click.option("--cpus-per-task", type=click.IntRange(1), help="CPUs of a worker."),
        click.option("--constraint", help="Node features."),
        click.option("--workers-per-node", type=click.IntRange(1), help="One a GPU, else one, if not given."),
        click.option("--sbatch", "extra", multiple=True, metavar="KEY=VALUE", help="Any other option of sbatch."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("grid", default="paper")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/NAME of the grid if not given.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "local", "ray", "slurm"]),
    help="Who starts workers: auto with --nodes (Ray or SLURM, whichever is there), else local.",
)
@click.option("--nodes", type=click.IntRange(1), help="Nodes of a cluster to use; this machine alone if not given.")
@click.option("--simulate", is_flag=True, help="Be the cluster: start --nodes Ray nodes on this machine.")
@click.option("--workers", type=click.IntRange(1), help="Trials at a time; one a core, or one a GPU, if not given.")
@click.option("--trials-per-gpu", type=click.IntRange(1), default=1, help="Trials that share one GPU.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
@click.option("--keep", type=click.Choice(["all", "metrics"]), default="all", help="What a done trial leaves.")
@PAUSE_AFTER
@WITHOUT
@click.option("--detach", is_flag=True, help="Return at once; status, logs and cancel look after the run.")
@click.option("--yes", is_flag=True, help="Do not ask before hours of computing.")
@_add_slurm_options
def launch(
    grid: str,
    out: Path | None,
    backend: str | None,
    nodes: int | None,
    simulate: bool,
    workers: int | None,
    trials_per_gpu: int,
    device: str,
    data_dir: Path | None,
    keep: str,
    pause_after: int | None,
    without: Path | None,
    detach: bool,
    yes: bool,
    **slurm: Any,
) -> None:
    """Run what is missing of GRID. Stopped or killed, launch again: it goes on.

    Trials that failed before are tried again. The exit code is 1 if any trial failed.
    """
    from cluster_jobs.backends import choose_backend, drive
    from cluster_jobs.data_check import check_data
    from cluster_jobs.display import Display
    from cluster_jobs.grid import load_grid
    from cluster_jobs.ledger import Ledger
    from cluster_jobs.pace import write_costs
    from cluster_jobs.request import Options, Request

    # what is asked for, who runs it, and what that will take
    loaded = load_grid(grid, without)
    ledger = Ledger((out or Path("runs") / loaded.name).resolve(), pause_after)
    options = Options(device, None, _resolve_path(data_dir), keep, pause_after)
    request = Request(ledger.path, options, nodes or 1, workers, trials_per_gpu, simulate)
    chosen = choose_backend(backend or ("auto" if nodes else None), request, slurm, loaded.slurm)
    states = ledger.states() if ledger.exists() else {}
    left = [trial for trial in loaded.trials if states.get(trial.id) != "done"]
    hours = estimate_all(left, chosen.gpu, chosen.at_once) / 3600
    if hours > HOURS_TO_CONFIRM and not yes:
        took, device = format_duration(3600 * hours), _name_device(chosen.gpu)
        click.echo(
            f"{count_noun(len(left), 'trial')} will take roughly {took}, "
            f"{chosen.at_once} at a time on {device}; "
            "`stdac-grid launch quick` makes a real table on two cores in a few minutes.",
            err=True,
        )
        click.confirm("Go on?", abort=True, err=True)

    check_data(ledger, loaded.trials, options.data_dir)

    # write it down; failures and an earlier cancellation are forgotten
    vanished = ledger.plan(loaded.trials, loaded.text)
    write_costs(ledger.path, loaded.trials, gpu=chosen.gpu)
    ledger.resume()
    if vanished:
        click.echo(
            f"not in this grid, and they stay: {count_noun(len(vanished), 'earlier trial')}: {' '.join(vanished)}",
            err=True,
        )
    for trial_id in ledger.retry():
        click.echo(f"trying {trial_id} again, which had failed", err=True)
    who = f"backend {chosen.name} ({chosen.why}), {chosen.at_once} at a time"
    click.echo(f"{count_noun(len(loaded.trials), 'trial')} in {ledger.path}, {who}", err=True)

    # run it
    del loaded  # of thousands of trials the driver needs no more than the ledger's ids
    if detach:
        chosen.detach()
        return
    with Display(ledger) as display:
        drive(ledger, chosen, display)
    finish(ledger)


def _resolve_path(path: Path | None) -> Path | None:
    """The path from the root, as processes that start elsewhere need it."""
    return None if path is None else path.resolve()


def finish(ledger: Any) -> None:
    """Collect the rows, say what failed, and set the exit code."""
    from cluster_jobs.ledger import LEFT

    ledger.collect()
    states = ledger.states()
    failed = [ledger.status(trial_id) for trial_id, state in states.items() if state == "failed"]
    left = sum(state in LEFT for state in states.values())
    click.echo(f"results: stdac-grid results {ledger.path}", err=True)
    if ledger.cancelled():
        raise StdacError(f"the run was cancelled, {count_noun(left, 'trial')} did not end: launch again to go on")
    if paused := sum(state == "paused" for state in states.values()):
        click.echo(f"paused: {count_noun(paused, 'trial')}; launch without --pause-after to go on", err=True)
    if failed or left:
        first = f"; the first: {failed[0].detail['reason']} ({failed[0].detail['log']})" if failed else ""
        raise StdacError(
            f"{count_noun(len(failed), 'trial')} failed and {left} did not end{first}; launch again to retry"
        )


@click.command()
@RUN
@click.option("--grid", help="Plan this grid first, so that no launch is needed: a preset or a TOML file.")
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes here, one trial at a time each.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of a process; its share if not given.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
@click.option("--keep", type=click.Choice(["all", "metrics"]), default="all", help="What a done trial leaves.")
@PAUSE_AFTER
@WITHOUT
@click.option("--grace", type=click.IntRange(0), default=60, help="Seconds after SIGUSR2 to wait for checkpoints.")
def work(
    run: Path,
    grid: str | None,
    workers: int,
    device: str,
    threads: int | None,
    data_dir: Path | None,
    keep: str,
    pause_after: int | None,
    without: Path | None,
    grace: int,
) -> None:
    """Work at RUN on this machine until no trial is waiting: start it by hand, or by any batch system.

    Any number may work at one run, on any machine that sees the folder. SIGTERM ends it at once; SIGUSR2 lets every
    trial reach its next checkpoint first and, inside a SLURM job, requeues the job.
    """
    from cluster_jobs.data_check import refuse_other_data
    from cluster_jobs.grid import load_grid
    from cluster_jobs.ledger import LEFT, Ledger
    from cluster_jobs.local import uses_gpu, work_here
    from cluster_jobs.pace import write_costs
    from cluster_jobs.request import Options

    ledger = Ledger(run.resolve(), pause_after)
    if grid is not None:
        loaded = load_grid(grid, without)
        planned = {trial.id: trial.to_json() for trial in loaded.trials}
        refuse_other_data(ledger, planned, _resolve_path(data_dir))
        ledger.plan(loaded.trials, loaded.text)
        write_costs(ledger.path, loaded.trials, gpu=uses_gpu(device))
    else:
        refuse_other_data(ledger, ledger.trials(), _resolve_path(data_dir))
    if ledger.cancelled():
        raise StdacError(f"{run} was cancelled: `stdac-grid retry {run}` lets workers take its trials again")
    options = Options(device, threads, _resolve_path(data_dir), keep, pause_after)
    done, failed = work_here(ledger, workers, options, grace)
    if not ledger.count(*LEFT):
        ledger.collect()
    click.echo(f"{count_noun(done, 'trial')} done here, {failed} failed")
    if failed:
        raise click.exceptions.Exit(1)

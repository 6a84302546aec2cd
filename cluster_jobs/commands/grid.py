"""stdac-grid: plan, launch and watch a grid of trials. Heavy imports live in the commands that need them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stdac.command import Commands
from stdac.errors import StdacError

if TYPE_CHECKING:
    from cluster_jobs.grid import Grid

HOURS_TO_CONFIRM = 3.0
RUN = click.argument("run", type=click.Path(path_type=Path))
PAUSE_AFTER = click.option(
    "--pause-after",
    type=click.IntRange(1),
    metavar="EPOCH",
    help="Leave every trial at its checkpoint of that epoch; without it, the next launch goes on.",
)
UNFINISHED = click.option("--unfinished", is_flag=True, help="Also the epochs so far of trials that are not done.")


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
    from cluster_jobs.display import Labels
    from cluster_jobs.grid import load_grid
    from cluster_jobs.local import count_places, uses_gpu
    from stdac.words import format_duration

    loaded = load_grid(grid)
    gpu, workers = uses_gpu(device), count_places(device)
    label = Labels(trial.to_json() for trial in loaded.trials)
    for trial in loaded.trials:
        click.echo(f"{trial.id}  {label(trial.to_json()):<44} {format_duration(estimate(trial, gpu)):>14}")
    total = _estimate_grid(loaded, gpu, workers)
    click.echo(
        f"{len(loaded.trials)} trials, roughly {format_duration(total)}, {workers} at a time on {_name_device(gpu)}"
    )


def _name_device(gpu: bool) -> str:
    """What the estimate is for, as a person says it."""
    return "a GPU each" if gpu else "CPU cores"


def estimate(trial: Any, gpu: bool) -> float:
    """A rough guess of one trial's seconds, from its multiply-adds and the rate one core reached when measured."""
    from stdac.cost import estimate_seconds

    return estimate_seconds(trial, gpu=gpu)


def _estimate_grid(grid: "Grid", gpu: bool, workers: int) -> float:
    """Seconds for the whole grid with `workers` trials at a time."""
    return sum(estimate(trial, gpu) for trial in grid.trials) / min(workers, len(grid.trials))


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


@main.command()
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
    from stdac.words import format_duration

    # what is asked for, who runs it, and what that will take
    loaded = load_grid(grid)
    ledger = Ledger((out or Path("runs") / loaded.name).resolve(), pause_after)
    options = Options(device, None, _resolve_path(data_dir), keep, pause_after)
    request = Request(ledger.path, options, nodes or 1, workers, trials_per_gpu, simulate)
    chosen = choose_backend(backend or ("auto" if nodes else None), request, slurm, loaded.slurm)
    hours = _estimate_grid(loaded, chosen.gpu, chosen.at_once) / 3600
    if hours > HOURS_TO_CONFIRM and not yes:
        took, device = format_duration(3600 * hours), _name_device(chosen.gpu)
        click.echo(
            f"{len(loaded.trials)} trials will take roughly {took}, {chosen.at_once} at a time on {device}; "
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
        click.echo(f"{len(vanished)} earlier trials are not in this grid; they stay: {' '.join(vanished)}", err=True)
    for trial_id in ledger.retry():
        click.echo(f"trying {trial_id} again, which had failed", err=True)
    who = f"backend {chosen.name} ({chosen.why}), {chosen.at_once} at a time"
    click.echo(f"{len(loaded.trials)} trials in {ledger.path}, {who}", err=True)

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
        raise StdacError(f"the run was cancelled, {left} trials did not end: launch again to go on")
    if paused := sum(state == "paused" for state in states.values()):
        click.echo(f"{paused} trials are paused: launch without --pause-after to go on", err=True)
    if failed or left:
        first = f"; the first: {failed[0].detail['reason']} ({failed[0].detail['log']})" if failed else ""
        raise StdacError(f"{len(failed)} trials failed and {left} did not end{first}; launch again to retry")


@main.command()
@RUN
@click.option("--grid", help="Plan this grid first, so that no launch is needed: a preset or a TOML file.")
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes here, one trial at a time each.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of a process; its share if not given.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
@click.option("--keep", type=click.Choice(["all", "metrics"]), default="all", help="What a done trial leaves.")
@PAUSE_AFTER
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
    grace: int,
) -> None:
    """Work at RUN on this machine until no trial is waiting: start it by hand, or by any batch system.

    Any number may work at one run, on any machine that sees the folder. SIGTERM ends it at once; SIGUSR2 lets every
    trial reach its next checkpoint first and, inside a SLURM job, requeues the job.
    """
    from cluster_jobs.grid import load_grid
    from cluster_jobs.ledger import LEFT, Ledger
    from cluster_jobs.local import uses_gpu, work_here
    from cluster_jobs.pace import write_costs
    from cluster_jobs.request import Options

    ledger = Ledger(run.resolve(), pause_after)
    if grid is not None:
        loaded = load_grid(grid)
        ledger.plan(loaded.trials, loaded.text)
        write_costs(ledger.path, loaded.trials, gpu=uses_gpu(device))
    if ledger.cancelled():
        raise StdacError(f"{run} was cancelled: `stdac-grid retry {run}` lets workers take its trials again")
    options = Options(device, threads, _resolve_path(data_dir), keep, pause_after)
    done, failed = work_here(ledger, workers, options, grace)
    if not ledger.count(*LEFT):
        ledger.collect()
    click.echo(f"{done} trials done here, {failed} failed")
    if failed:
        raise click.exceptions.Exit(1)


@main.command()
@RUN
@click.option("--watch", is_flag=True, help="Show it again every two seconds until all is over.")
@click.option("--all", "show_all", is_flag=True, help="Also list the trials that are done or waiting, however many.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def status(run: Path, watch: bool, show_all: bool, as_json: bool) -> None:
    """Say what of RUN is done, running where and since when, failed and why, waiting; and when it will be done."""
    import json

    from cluster_jobs.display import report, watch_report
    from cluster_jobs.ledger import Ledger

    ledger = Ledger(run.resolve())
    if as_json:
        click.echo(json.dumps([s._asdict() for s in ledger.statuses()]))
    elif watch:
        watch_report(ledger, show_all)
    else:
        click.echo(report(ledger, show_all))


@main.command()
@RUN
@click.argument("trial")
@click.option("-f", "--follow", is_flag=True, help="Go on until the trial is over, on whatever node it continues.")
def logs(run: Path, trial: str, follow: bool) -> None:
    """Print what the workers said about TRIAL (an id or its beginning), attempt by attempt."""
    from cluster_jobs import logs as trial_logs
    from cluster_jobs.ledger import Ledger

    ledger = Ledger(run.resolve())
    trial_id = trial_logs.resolve(ledger, trial)
    for line in (trial_logs.follow if follow else trial_logs.read)(ledger, trial_id):
        click.echo(line)


@main.command()
@RUN
def cancel(run: Path) -> None:
    """Stop every worker of RUN, wherever it is; the trials' checkpoints stay, and `launch` goes on from them."""
    from cluster_jobs.backends import cancel as cancel_run
    from cluster_jobs.ledger import Ledger

    ledger = Ledger(run.resolve())
    ledger.trials()
    click.echo(cancel_run(ledger))


@main.command()
@RUN
@click.option("--mend", is_flag=True, help="Also clear away what is of no use, and set damaged results aside.")
def doctor(run: Path, mend: bool) -> None:
    """Find and explain what crashes have left in RUN: stale leases, losers' parts, half-written or damaged files."""
    from cluster_jobs.data_check import warn_of_changes
    from cluster_jobs.doctor import examine
    from cluster_jobs.doctor import mend as mend_finding
    from cluster_jobs.ledger import Ledger

    findings = examine(Ledger(run.resolve()))
    warn_of_changes(run)
    for finding in findings:
        click.echo(finding)
        if mend and finding.mend is not None:
            mend_finding(finding)
            click.echo("  mended")
    mendable = sum(finding.mend is not None for finding in findings)
    if not findings:
        click.echo("nothing to mend: every file is where it belongs")
    elif mendable and not mend:
        click.echo(f"{mendable} of {len(findings)} findings can be mended: stdac-grid doctor {run} --mend")
        raise click.exceptions.Exit(1)


@main.command()
@RUN
@click.option("--markdown", is_flag=True, help="As a Markdown table.")
@click.option("--figures", type=click.Path(path_type=Path), help="Also write the figures into this folder.")
@UNFINISHED
def results(run: Path, markdown: bool, figures: Path | None, unfinished: bool) -> None:
    """Print mean ± std (n) of every cell of RUN beside the published value."""
    from analysis.cells import make_cells as cells_of
    from analysis.figures import write_figures
    from analysis.runs import read_metrics
    from analysis.table import format_results
    from cluster_jobs.data_check import warn_of_changes

    warn_of_changes(run)
    click.echo(format_results(cells_of(read_metrics(run, unfinished=unfinished)), markdown=markdown))
    if figures is not None:
        for path in write_figures(run, figures, unfinished=unfinished):
            click.echo(f"wrote {path}", err=True)


@main.command("report")
@RUN
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The file; RUN/report.html if not given.")
@UNFINISHED
def report_command(run: Path, out: Path | None, unfinished: bool) -> None:
    """Write one HTML file that shows RUN: table, curves, transformers, where it ran, and how to repeat it."""
    from analysis.report import write_report
    from cluster_jobs.data_check import warn_of_changes

    warn_of_changes(run)
    click.echo(write_report(run, out, unfinished=unfinished))


@main.command()
@RUN
@click.option("--method", default="st-dac", help="Among this method's trials.")
def best(run: Path, method: str) -> None:
    """Print the model file of the trial with the lowest final training loss: a choice that needs no labels.

    Losses compare within one method only, and best where its trials share their loss's parameters.
    """
    from cluster_jobs.data_check import warn_of_changes
    from cluster_jobs.ledger import Ledger

    warn_of_changes(run)
    click.echo(Ledger(run).best_model(method))


@main.command()
@RUN
@UNFINISHED
def collect(run: Path, unfinished: bool) -> None:
    """Write RUN/metrics.parquet with the rows of all done trials."""
    from cluster_jobs.ledger import Ledger

    click.echo(Ledger(run).collect(unfinished=unfinished))


@main.command()
@RUN
def retry(run: Path) -> None:
    """Forget the failures of RUN, or that it was cancelled, so that the next worker tries those trials again."""
    from cluster_jobs.ledger import Ledger
    from stdac.words import count_noun

    ledger = Ledger(run)
    ledger.resume()
    again = ledger.retry()
    others = ledger.count("waiting", "blocked") - len(again)
    words = [f"{count_noun(len(again), 'trial')} that had failed will be tried again"] if again or others < 1 else []
    words += [f"{count_noun(others, 'trial')} that waited will be taken"] if others > 0 else []
    click.echo(f"{' and '.join(words)}: stdac-grid launch, or stdac-grid work {run}")


if __name__ == "__main__":
    main()

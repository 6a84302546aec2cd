"""stdac-grid: plan, launch and watch a grid of trials. Heavy imports live in the commands that need them."""

from pathlib import Path

import click

from cluster_jobs.commands.consensus import consensus_command
from cluster_jobs.commands.launch import RUN, launch, plan, work
from stdac.command import Commands

UNFINISHED = click.option("--unfinished", is_flag=True, help="Also the epochs so far of trials that are not done.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="stdac")
def main() -> None:
    """Run a grid of clustering trials, lose nothing, and print the table.

    GRID is a preset (quick, paper, methods and more: an unknown name lists them) or a TOML file; RUN is the folder of a
    launched grid.
    """


for command in (plan, launch, work, consensus_command):
    main.add_command(command)


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
    from analysis.agreement import list_choices
    from analysis.cells import make_cells as cells_of
    from analysis.figures import write_figures
    from analysis.runs import read_metrics
    from analysis.studies import find_studies, format_studies, write_studies
    from analysis.table import format_results
    from cluster_jobs.data_check import warn_of_changes

    warn_of_changes(run)
    cells = cells_of(read_metrics(run, unfinished=unfinished))
    click.echo(format_results(cells, markdown=markdown, more=list_choices(run, cells)))
    studies = find_studies(cells)
    if studies:
        click.echo(f"{format_studies(studies, markdown=markdown)}\n")
    if figures is not None:
        written = write_figures(run, figures, unfinished=unfinished)
        for path in [*written, *write_studies(run, studies, figures)]:
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
@click.option("--method", help="Among this method's trials; all with a model if not given.")
@click.option("--dataset", help="Among this data set's trials; to be given where RUN has several.")
def best(run: Path, method: str | None, dataset: str | None) -> None:
    """Print the model file of the trial that the others agree with most: a choice that needs no labels.

    Agreement is the mean NMI to the other trials of the same images, of which there must be three. Where there are
    fewer, it is the lowest final training loss of the method, st-dac if not given. Standard error says which it was.
    """
    from analysis.agreement import choose_model
    from cluster_jobs.data_check import warn_of_changes
    from cluster_jobs.ledger import Ledger

    warn_of_changes(run)
    ledger = Ledger(run)
    ledger.trials()
    choice = choose_model(run, method, dataset) or ledger.best_model(method or "st-dac", dataset)
    click.echo(choice.why, err=True)
    click.echo(choice.path)


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

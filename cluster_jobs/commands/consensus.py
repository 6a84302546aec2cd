"""The command `stdac-grid consensus`: one clustering from all trials of a run."""

from pathlib import Path

import click

RUN = click.argument("run", type=click.Path(path_type=Path))
WAYS = ("spectral", "average", "complete", "vote")


@click.command("consensus")
@RUN
@click.option("--clusters", type=click.IntRange(2), help="K; as most members have if not given.")
@click.option("--by", "how", default="spectral", type=click.Choice(WAYS), help="How the consensus is found.")
@click.option("--method", "methods", multiple=True, help="Only trials of this method are members; may be repeated.")
@click.option("--dataset", help="Only this data set; a committee for each if not given.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
def consensus_command(
    run: Path,
    clusters: int | None,
    how: str,
    methods: tuple[str, ...],
    dataset: str | None,
    device: str,
    data_dir: Path | None,
) -> None:
    """Let the done trials of RUN vote: one clustering, how sure it is of each image, and whom the others agree with.

    It is a trial of RUN as the others are: a method "committee" with these members. No label is looked at.
    """
    from cluster_jobs.committees import describe_committee, plan_committees, run_committee
    from cluster_jobs.data_check import warn_of_changes
    from cluster_jobs.ledger import Ledger
    from stdac.methods import METHODS, check_names

    check_names(set(methods), METHODS, "method")
    warn_of_changes(run)
    ledger = Ledger(run.resolve())
    planned = plan_committees(ledger, clusters, how, methods, dataset)
    for each in planned:
        ledger.plan([each.trial], each.text)
    for number, each in enumerate(planned):
        run_committee(ledger, each.trial, device, None if data_dir is None else data_dir.resolve())
        click.echo(("\n" if number else "") + describe_committee(ledger, each))
    ledger.collect()

"""Whether the data of a run's trials are there, and are those that its done trials were trained on."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from analysis.runs import list_trial_folders
from cluster_jobs.ledger import Ledger
from stdac.errors import StdacError
from stdac.layout import TrialFiles
from stdac.trial import Trial
from stdac.trial_data import find_changes, find_data, list_paths, refuse_changes


def check_data(ledger: Ledger, trials: Sequence[Trial], data_dir: Path | None) -> None:
    """Raise StdacError where done trials were trained on other data than there are now, or others would find none.

    It is looked at once, before anything is begun or submitted.
    """
    states = ledger.states() if ledger.exists() else {}
    find_data((trial.to_json() for trial in trials if states.get(trial.id) != "done"), data_dir)
    refuse_other_data(ledger, {trial.id: trial.to_json() for trial in trials}, data_dir)


def refuse_other_data(ledger: Ledger, planned: Mapping[str, Mapping[str, Any]], data_dir: Path | None) -> None:
    """Raise StdacError where those of the planned trials that are done were trained on other data than there are now.

    planned: their JSON by id.
    """
    folders = [ledger.folder(name) for name, trial in planned.items() if list_paths(trial)]
    refuse_changes(_read_done(folders), data_dir)


def warn_of_changes(run: Path) -> None:
    """Say on stderr where the data of a run's done trials have changed since, as far as they are on this machine."""
    for change in list_changes(run):
        click.echo(f"note: {change}; these results are of the data then", err=True)


def list_changes(run: Path) -> list[str]:
    """What `find_changes` says of the done trials of a run folder; nothing of what is no run folder, or damaged."""
    return [] if run.is_file() else find_changes(_read_done(_list_folders(run)))


def _read_done(folders: Iterable[TrialFiles]) -> Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(trial.json, done.json) of the done trials among some; one that cannot be looked at stops no other."""
    for folder in folders:
        try:
            done = folder.done()
            trial = {} if done is None else folder.trial()
        except (StdacError, OSError):  # the doctor's business
            continue
        if done is not None:
            yield trial, done


def _list_folders(run: Path) -> Iterable[TrialFiles]:
    """The folders of trials whose data may be at a path: where there is a plan, it tells without looking into them."""
    ledger = Ledger(run)
    try:
        planned = ledger.trials()
    except (StdacError, OSError):
        return list_trial_folders(run)
    return [ledger.folder(trial_id) for trial_id, trial in planned.items() if list_paths(trial)]

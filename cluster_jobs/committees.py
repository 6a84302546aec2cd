"""A committee of the trials of a run, for each set of images: planned, run and shown as one trial more of that run."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analysis.agreement import LEAST, Panel, is_own, read_panels
from analysis.table import format_text_table, show
from cluster_jobs.display import Labels
from cluster_jobs.grid import load_spec, resolve_block
from cluster_jobs.ledger import Ledger
from stdac.errors import StdacError
from stdac.methods import METHODS
from stdac.metrics import accuracy
from stdac.trial import Trial
from stdac.words import count_noun, shorten_paths

SHARED = ("dataset", "limit", "image_size", "background")


class Planned(NamedTuple):
    """A committee. text: the grid that has it. panel: its members."""

    trial: Trial
    text: str
    panel: Panel


def plan_committees(
    ledger: Ledger, k: int | None, how: str, methods: Sequence[str] = (), dataset: str | None = None
) -> list[Planned]:
    """A committee of all done trials of the same images whose clusters were kept, for each set of images in a run.

    k: clusters; as most members have if None. how: see `stdac.consensus.find_consensus`. methods, dataset: of the
    members, all if not given. Committees and those that learn from them are no members. Raises StdacError where there
    are too few members.
    """
    trials = ledger.trials()
    names = shorten_paths({trial["dataset"] for trial in trials.values()})

    def is_member(trial: dict[str, Any]) -> bool:
        of_dataset = dataset in (None, trial["dataset"], names.get(trial["dataset"]))
        return of_dataset and is_own(trial) and (not methods or trial["method"] in methods)

    panels = [panel for panel in read_panels(ledger.path, is_member) if panel.voices[0].trial.get("source") is None]
    if not panels:
        raise StdacError(
            f"{ledger.path} has no {LEAST} done trials of the same images whose clusters were kept: a committee needs "
            f"at least {LEAST}; launch more seeds or methods, without --keep metrics"
        )
    return [_plan(panel, k, how) for panel in panels]


def _plan(panel: Panel, k: int | None, how: str) -> Planned:
    """The committee of a panel's voices, which are all independent."""
    first = panel.voices[0].trial
    clusters = Counter(voice.trial["n_clusters"] for voice in panel.voices)
    block = {"method": "committee"} | {name: first[name] for name in SHARED if first.get(name) is not None}
    block |= {"n_clusters": k or min(clusters, key=lambda n: (-clusters[n], n)), "seed": 0}
    lines = [f"{name} = {json.dumps(value)}" for name, value in block.items()]
    lines += ["[trials.params]", f"consensus = {json.dumps(how)}", "members = ["]
    lines += [*(f"  {json.dumps(voice.trial_id)}," for voice in panel.voices), "]"]
    text = "\n".join(["[[trials]]", *lines, ""])
    (trial,) = resolve_block({}, load_spec(text)["trials"][0], Path("/"))
    return Planned(trial, text, panel)


def run_committee(ledger: Ledger, trial: Trial, device: str, data_dir: Path | None) -> None:
    """Run a committee in the run of its members, unless it is done. Raises what makes it fail."""
    from stdac.machine import Machine
    from stdac.run import run_trial

    folder = ledger.folder(trial.id)
    folder.forgive()
    needed = [ledger.result(name) for name in trial.needs]
    run_trial(trial, folder, machine=Machine(device), data_dir=data_dir, needed=needed)
    if folder.done() is None:
        raise StdacError(f"another process is at {folder.path}: wait for it, or look with stdac-grid status")


def describe_committee(ledger: Ledger, planned: Planned) -> str:
    """A done committee for a person: its members by agreement, how many images they agree on, what to do next."""
    trial, panel = planned.trial, planned.panel
    result = ledger.result(trial.id)
    clusters, sure = result.read_clusters(), result.read_confidence()
    label = Labels(voice.trial for voice in panel.voices)
    head = f"{count_noun(len(panel.voices), 'member')}, {count_noun(len(clusters), 'image')}, K {trial.n_clusters}, "
    head += f"{trial.params.consensus} consensus" if hasattr(trial.params, "consensus") else ""
    scored = all(voice.acc is not None for voice in panel.voices)
    rows = [["agreement", *(["ACC *"] if scored else []), "member", "trial"]]
    for voice, agreement in panel.own:
        acc = [show(voice.acc)] if scored else []
        rows.append([show(agreement), *acc, label(voice.trial), voice.trial_id])
    share = f"all members agree on {(sure == 1).mean():.1%} of the images, on average {sure.mean():.1%} of them do"
    lines = [f"committee {trial.id}: {head}", "", format_text_table(rows), "", share]
    if panel.left_out:
        lines.append(f"{count_noun(panel.left_out, 'trial')} more were not asked")
    if scored:
        lines.append(f"* by labels, which chose nothing; the committee has {show(_score(result.path, clusters))}")
    lines.append(f"its clusters: {result.path / 'assignments.parquet'}")
    if "student" in METHODS:
        words = ["stdac", "train", "--method", "student", "--dataset", trial.dataset]
        words += [word for name, value in _list_options(trial) for word in (name, str(value))]
        words += ["--set", f"teacher={trial.id}", "--out", str(ledger.path)]
        lines.append(f"next, a model of it that clusters new pictures: {shlex.join(words)}")
    return "\n".join(lines)


def _list_options(trial: Trial) -> Iterable[tuple[str, int | str]]:
    """What `stdac train` is to be told of the images besides their name."""
    yield "--clusters", trial.n_clusters
    if trial.limit is not None:
        yield "--limit", trial.limit
    if trial.image_size is not None:
        yield "--image-size", trial.image_size
    if trial.background != "black":
        yield "--background", trial.background


def _score(path: Path, clusters: NDArray[np.int64]) -> float:
    """ACC of the committee by the labels beside its clusters."""
    labels = pq.ParquetFile(path / "assignments.parquet").read(["label"], use_threads=False)["label"].to_numpy()
    return accuracy(labels.astype(np.int64), clusters)

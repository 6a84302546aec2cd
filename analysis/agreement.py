"""Which trial to believe, without labels: the one that the others agree with most. Where there are labels, it is also
said how that choice compares with the best, but they choose nothing."""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analysis.cells import Cell
from analysis.runs import list_finished, list_trial_folders, look_at
from analysis.table import show
from stdac.consensus import compare_members, count_votes, find_fault
from stdac.errors import StdacError
from stdac.methods import METHODS
from stdac.metrics import accuracy
from stdac.results import read_part
from stdac.trial import make_id, write_canonical
from stdac.words import count_noun, escape_line, shorten_paths

LEAST = 3  # voices of which one can be told from the others
MOST = 200  # of which all pairs are compared

Trial = dict[str, Any]


class Voice(NamedTuple):
    """A finished trial. path: the folder of the attempt that counts. clusters: (N,) int64, -1 = noise. acc: None where
    there are no labels. own: whether it is independent of the others, see `Method.follows`."""

    trial: Trial
    path: Path
    clusters: NDArray[np.int64]
    acc: float | None
    own: bool

    @property
    def trial_id(self) -> str:
        """The trial's id."""
        return self.path.parent.name


class Panel(NamedTuple):
    """Finished trials of the same images, by id. agreement: of each its mean NMI to those other ones that have a voice
    of their own."""

    voices: Sequence[Voice]
    agreement: Sequence[float]
    left_out: int

    @property
    def own(self) -> list[tuple[Voice, float]]:
        """Those with a voice of their own, and their agreement, the highest first."""
        pairs = [(v, a) for v, a in zip(self.voices, self.agreement, strict=True) if v.own]
        return sorted(pairs, key=lambda pair: -pair[1])


def read_panels(run: Path, wanted: Callable[[Trial], bool] = lambda _: True) -> list[Panel]:
    """The finished trials at `run` whose clusters were kept, by the images that they are of; only where at least LEAST
    have a voice of their own. wanted: which trials to take. One that cannot be read is said on stderr."""
    groups: dict[str, list[tuple[Trial, Path]]] = {}
    for trial, path, fingerprint in _list_kept(run):
        if wanted(trial):
            groups.setdefault(fingerprint or _name_images(trial), []).append((trial, path))
    panels = []
    for group in groups.values():
        voices = [voice for trial, path in group[:MOST] if (voice := _read_voice(trial, path)) is not None]
        if sum(voice.own for voice in voices) >= LEAST and len({len(voice.clusters) for voice in voices}) == 1:
            panels.append(Panel(voices, measure_voices(voices), max(0, len(group) - MOST)))
    return panels


def _list_kept(run: Path) -> Iterator[tuple[Trial, Path, str]]:
    """(trial.json, folder of the attempt that counts, fingerprint of its images) of every finished trial whose clusters
    were kept. Of thousands that have none no more is read than the names of their files."""
    for folder in list_trial_folders(run):
        seen = look_at(folder) if any(folder.path.glob("attempt-*/assignments.parquet")) else None
        if seen is not None and seen.done is not None and seen.trial is not None:
            path = folder.attempt_path(seen.done["attempt"])
            if (path / "assignments.parquet").is_file():
                yield seen.trial, path, seen.done.get("fingerprint", "")


def _name_images(trial: Trial) -> str:
    """What trials of the same images have in common, where an earlier stdac kept no fingerprint."""
    return write_canonical([trial.get(name) for name in ("dataset", "limit", "image_size", "background")])


def _read_voice(trial: Trial, path: Path) -> Voice | None:
    """A trial's clusters and their score; None where they say nothing of what belongs together."""
    file = path / "assignments.parquet"
    try:
        content = pa.BufferReader(read_part(file))
        table = pq.ParquetFile(content).read(["cluster", "label"], use_threads=False)
        clusters = table["cluster"].to_numpy().astype(np.int64)
    except (StdacError, OSError, KeyError, ValueError, pa.ArrowException) as error:
        print(escape_line(f"{file} is left out of the agreement, as it cannot be read: {error}"), file=sys.stderr)
        return None
    if find_fault(clusters) is not None:
        return None
    known = len(table) > 0 and table["label"].null_count == 0
    acc = accuracy(table["label"].to_numpy().astype(np.int64), clusters) if known else None
    return Voice(trial, path, clusters, acc, is_own(trial))


def is_own(trial: Mapping[str, Any]) -> bool:
    """Whether a trial's clusters are found independently of those of other trials."""
    return not (trial["method"] in METHODS and METHODS[trial["method"]].follows)


def measure_voices(voices: Sequence[Voice]) -> list[float]:
    """Of each voice its mean NMI to the others that are independent."""
    nmi = compare_members(count_votes([voice.clusters for voice in voices]))
    own = np.array([voice.own for voice in voices], float)
    others = own - np.diag(own)  # (M, M)
    return [float(mean) for mean in (nmi * others).sum(1) / np.maximum(others.sum(1), 1)]


class Choice(NamedTuple):
    """A model file, and why it was chosen: a clause."""

    path: Path
    why: str


def choose_model(run: Path, method: str | None = None, dataset: str | None = None) -> Choice | None:
    """The model that the other trials of its images agree with most; None where there are too few to compare.

    method, dataset: of the trials that it may be of; the others still judge. Raises StdacError where there are several
    data sets and none is named.
    """
    names = shorten_paths({trial["dataset"] for trial, _ in list_finished(run)})
    wanted = {name for name, short in names.items() if dataset in (None, name, short)}
    if not wanted and names:
        raise StdacError(f"{run} has no done trial of {dataset!r}: expected one of {', '.join(sorted(names.values()))}")
    if len(wanted) > 1:
        raise StdacError(f"{run} has trials of {', '.join(sorted(names.values()))}: choose one with --dataset")
    panels = read_panels(run, lambda trial: trial["dataset"] in wanted)
    found = [(panel, _list_candidates(panel, method)) for panel in panels]
    found = [(panel, candidates) for panel, candidates in found if candidates]
    if not found:
        return None
    panel, candidates = max(found, key=lambda pair: len(pair[0].voices[0].clusters))
    voice, agreement = max(candidates, key=lambda pair: pair[1])
    path = voice.path / "model.pt"
    read_part(path)
    return Choice(path, _explain(panel, voice, agreement, candidates, len(found)))


def _list_candidates(panel: Panel, method: str | None) -> list[tuple[Voice, float]]:
    """The voices of a panel that have a model, and their agreement."""
    pairs = zip(panel.voices, panel.agreement, strict=True)
    return [(v, a) for v, a in pairs if (v.path / "model.pt").is_file() and method in (None, v.trial["method"])]


def _explain(
    panel: Panel, voice: Voice, agreement: float, candidates: Sequence[tuple[Voice, float]], images: int
) -> str:
    """Why a model was chosen."""
    judges = sum(other.own for other in panel.voices if other is not voice)
    text = f"by agreement: {voice.trial['method']}, seed {voice.trial['seed']}, has a mean NMI of {show(agreement)} to "
    text += f"the {judges} others"
    if (least := min(agree for _, agree in candidates)) < agreement:
        text += f", the least of {count_noun(len(candidates), 'model')} has {show(least)}"
    if panel.left_out:
        text += f"; {count_noun(panel.left_out, 'trial')} more were not looked at"
    if images > 1:
        text += f"; of {images} sets of images, that of {len(voice.clusters):,}"
    return f"{text}. No label was looked at"


def list_choices(run: Path, cells: Iterable[Cell]) -> dict[str, list[str]]:
    """Of each data set, as `Cell.dataset` has it, what is to be said of the choice by agreement: a sentence for trials
    of the same images. Without those that were not kept, or are too few."""
    names = {
        trial_id: (cell.dataset, f"{cell.label}, seed {seed}")
        for cell in cells
        for trial_id, seed in zip(cell.trial_ids, cell.seeds, strict=True)
    }
    said: dict[str, list[str]] = {}
    for panel in read_panels(run, lambda trial: make_id(trial) in names and is_own(trial)):
        dataset = names[panel.voices[0].trial_id][0]
        said.setdefault(dataset, []).append(_compare_choices(panel, {name: text for name, (_, text) in names.items()}))
    return said


def _compare_choices(panel: Panel, labels: Mapping[str, str]) -> str:
    """What was chosen by agreement, beside the best by labels, the mean, and the rank correlation of the two."""
    (chosen, agreement), *others = panel.own
    text = f"Chosen without labels, by agreement with the {len(others)} others (mean NMI {show(agreement)}): "
    text += labels[chosen.trial_id]
    accs = [voice.acc for voice, _ in panel.own if voice.acc is not None]
    if chosen.acc is None or len(accs) < len(panel.own):
        return f"{text}."
    best = max((voice for voice, _ in panel.own), key=lambda voice: voice.acc or 0)
    text += f", ACC {show(chosen.acc)}; by labels the best is {labels[best.trial_id]}, with {show(best.acc)}; the mean "
    text += f"is {show(float(np.mean(accs)))}"
    rho = correlate_ranks([agree for _, agree in panel.own], accs)
    return (
        text
        + (f". Rank correlation of agreement with ACC: {show(rho)}" if rho is not None else "")
        + (f" (n = {len(accs)}, of the clusters as they are deployed).")
    )


def correlate_ranks(a: Collection[float], b: Collection[float]) -> float | None:
    """Spearman's rank correlation; None where one of them is constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(list(a), list(b))[0]) if len(set(a)) > 1 and len(set(b)) > 1 else None

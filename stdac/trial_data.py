"""The data of a trial: loaded from what it names, and told apart from what it was trained on before."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stdac.data import NAMES, Dataset, load, open_data
from stdac.errors import NotHere, StdacError
from stdac.pictures.arrays import find_labels
from stdac.text import find_path
from stdac.trial import write_canonical

DATA = ("dataset", "source", "limit", "image_size", "background")
"""What in a trial's JSON says which data it is trained on."""


@dataclass(frozen=True)
class TrialData:
    """The images that a trial clusters, and the labelled data set that it may learn from.

    files: see `hash_files`, None where both have a name.
    """

    dataset: Dataset
    source: Dataset | None
    files: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the data: what was left out, and which classes there are."""
        of_source = self.source.notes if self.source is not None else ()
        return tuple(note for note in (*self.dataset.notes, *of_source, self.dataset.scored_against) if note)

    @property
    def fingerprint(self) -> str:
        """What the data are known by: the images, and the images and labels of the source."""
        if self.source is None:
            return self.dataset.fingerprint
        digest = hashlib.sha256(f"{self.dataset.fingerprint} {self.source.fingerprint}".encode())
        digest.update(np.ascontiguousarray(self.source.labels, np.int64).data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """For done.json: fingerprint, the number of images, the SHA-256 of their labels or None, and files."""
        labels = self.dataset.labels
        digest = None if labels is None else hashlib.sha256(np.ascontiguousarray(labels, np.int64).data).hexdigest()
        images = len(self.dataset.images)
        return {"fingerprint": self.fingerprint, "images": images, "labels": digest, "files": self.files}


def load_trial_data(trial_json: Mapping[str, Any], data_dir: Path | None = None) -> TrialData:
    """The data of a trial from its JSON. Raises NotHere where they are not on this machine, StdacError where they
    cannot be used."""
    files = hash_files(trial_json)  # before they are read: what changes meanwhile shows at the next comparison
    given: dict[str, Any] = {name: trial_json.get(name) for name in ("limit", "image_size")}
    given["background"] = trial_json.get("background", "black")
    dataset = load(trial_json["dataset"], data_dir=data_dir, **given)
    name = trial_json.get("source")
    source = None if name is None else load(name, data_dir=data_dir, **given)
    if source is not None and source.labels is None:
        raise StdacError(f"the source {name} has no labels: expected a data set with them, such as sub-folders")
    return TrialData(dataset, source, files)


def list_paths(trial_json: Mapping[str, Any]) -> list[str]:
    """The paths among a trial's data, which may change; a data set with a name is the same everywhere."""
    names = (trial_json["dataset"], trial_json.get("source"))
    return [find_path(os.path.expanduser(name)) for name in names if name is not None and name not in NAMES]  # noqa: PTH111


def hash_files(trial_json: Mapping[str, Any]) -> str | None:
    """The SHA-256 over names, sizes and times of all files of a trial's data; None where no path is among them.

    Equal ones mean equal data; of different ones the content has to be compared.
    """
    paths = list_paths(trial_json)
    if not paths:
        return None
    digest = hashlib.sha256()
    for path in paths:
        for line in sorted(_list_files(path)):
            digest.update(line)
        digest.update(b"\n")
    return digest.hexdigest()


def _list_files(path: str) -> Iterator[bytes]:
    """A line for each file at or below a path: name, size, time. Links are followed, each folder entered once."""
    if not os.path.isdir(path):  # noqa: PTH112  # a path that is too long, or holds a NUL, is no folder
        yield from _describe_file(path, "")
        if (labels := find_labels(path)) is not None:
            yield from _describe_file(labels, "labels")
        return
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        for name in files:
            file = os.path.join(folder, name)  # noqa: PTH118  # a Path for each of a million would cost
            yield from _describe_file(file, file[len(path) :])


def _describe_file(path: str, name: str) -> Iterator[bytes]:
    """The line of one file; none where it is gone."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return
    yield f"{name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode(errors="surrogateescape")


def find_changes(
    done: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], data_dir: Path | None = None
) -> list[str]:
    """A clause for each data set that is not what finished trials were trained on: what it held then and holds now.

    done: (trial.json, done.json) of each. Names, sizes and times of the files are compared first, and the images where
    those differ. Data that are not on this machine are passed over.

    >>> find_changes([({"dataset": "mnist"}, {"fingerprint": "of a data set that has a name"})])
    []
    """
    groups: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for trial_json, about in done:
        if list_paths(trial_json):
            groups.setdefault(write_canonical({name: trial_json.get(name) for name in DATA}), []).append(
                (trial_json, about)
            )
    return [change for group in groups.values() for change in _compare_data(group, data_dir)]


def _compare_data(group: list[tuple[Mapping[str, Any], Mapping[str, Any]]], data_dir: Path | None) -> Iterator[str]:
    """The clauses for trials that name the same data."""
    trial_json = group[0][0]
    if not all(map(os.path.exists, list_paths(trial_json))):
        return
    files = hash_files(trial_json)
    doubtful = [about for _, about in group if about.get("files") != files]
    if not doubtful:
        return
    name = " or ".join([trial_json["dataset"], *filter(None, [trial_json.get("source")])])
    try:
        now = load_trial_data(trial_json, data_dir).describe()
    except NotHere:
        return
    except StdacError as error:
        yield f"{name} no longer holds what {_name_trials(doubtful)} trained on ({error})"
        return
    other = [about for about in doubtful if about.get("fingerprint") != now["fingerprint"]]
    if other:
        then = f"{other[0]['images']:,} then, " if "images" in other[0] else ""
        yield f"{name} holds other images than {_name_trials(other)} trained on ({then}{now['images']:,} now)"
    same = [about for about in doubtful if about not in other and "labels" in about]
    relabelled = [about for about in same if about["labels"] != now["labels"]]
    if relabelled:
        yield f"{name} has other labels than {_name_trials(relabelled)} scored with"


def _name_trials(done: Sequence[Mapping[str, Any]]) -> str:
    """Of whom a clause speaks, with the verb."""
    return "this trial was" if len(done) == 1 else f"{len(done):,} trials were"


def refuse_changes(done: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], data_dir: Path | None = None) -> None:
    """Raise StdacError where finished work would be passed off as done on data that are others now: see above."""
    changes = find_changes(done, data_dir)
    if changes:
        raise StdacError(f"{'; '.join(changes)}: put the old ones back, or start anew in another --out")


def find_data(trials: Iterable[Mapping[str, Any]], data_dir: Path | None = None) -> None:
    """Raise StdacError where the data of trials are not on this machine, before any of them is begun; trials: JSON.

    A data set with a name is loaded, and downloaded if need be; of others the first images are looked for.
    """
    names = {name: None for trial in trials for name in (trial["dataset"], trial.get("source")) if name is not None}
    for name in names:
        if name in NAMES:
            load(name, data_dir=data_dir)
        else:
            open_data(name)

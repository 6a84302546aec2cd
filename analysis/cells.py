"""The cells of a table of results: one a method and data set, over seeds, with the published values beside it."""

import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa

from analysis.intervals import Interval, estimate_difference, estimate_mean
from analysis.published import METRICS, Published, find_published, find_published_curve, is_comparable
from analysis.runs import SETTINGS, TEXT_SETTINGS
from stdac.data import CLASSES
from stdac.methods import METHODS, fill_params, fill_title, name_system
from stdac.methods.method import PRETRAINED
from stdac.record import PRECISION
from stdac.trial import choose_telling, list_naming_fields, write_canonical
from stdac.words import shorten_paths

SCORES = ("acc", "nmi", "ari", *METRICS)
UNKNOWN = "another trial"

Settings = dict[str, Any]
Trial = dict[tuple[str, int], dict[str, Any]]
"""The rows of one trial by phase and epoch."""


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one setting of its parameters, over seeds; all scores in [0, 1].

    dataset: its name, of a path the end, and what tells trials of other images apart. label: unique within it.
    settings: parameters, SETTINGS and source. seeds: ascending, and trial_ids with them. epoch: None where all seeds
    are finished; else the last epoch that all seeds have, where scores and curves end. done: the number of finished
    seeds. scores: for SCORES, "noise", "purity" and each space's PRECISION (protocol, last epoch), "acc_best"
    (protocol, best epoch by labels) and "acc_deployed" one value a seed; without those that do not exist. curves: by
    epoch one protocol ACC a seed, a seed that stopped early keeping its last. published: by metric, where comparable;
    of an unfinished cell the value after the same epoch.
    """

    dataset: str
    method: str
    label: str
    settings: Settings
    seeds: tuple[int, ...]
    trial_ids: tuple[str, ...]
    epoch: int | None
    done: int
    scores: Mapping[str, Sequence[float]]
    curves: Mapping[int, Sequence[float]]
    published: Mapping[str, Published]

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.seeds)

    def mean(self, score: str) -> float | None:
        """The mean over seeds, or None where the score does not exist."""
        values = self.scores.get(score)
        return statistics.fmean(values) if values else None

    def std(self, score: str) -> float | None:
        """The standard deviation over seeds (ddof = 0), or None where the score does not exist."""
        values = self.scores.get(score)
        return statistics.pstdev(values) if values else None

    @property
    def published_curve(self) -> dict[int, float]:
        """The published mean ACC by epoch, where comparable."""
        return find_published_curve(name_system(self.method, self.settings), self.dataset) if self.published else {}

    @property
    def difference(self) -> float | None:
        """Our mean ACC less the published one, like with like."""
        paper, ours = self.published.get("acc"), self.mean(self.compared)
        return None if paper is None or ours is None else ours - paper.mean

    @property
    def compared(self) -> str:
        """The score that the published ACC is compared with: of the best epoch where that is."""
        paper = self.published.get("acc")
        return "acc_best" if paper is not None and paper.of_best_epoch else "acc"

    @property
    def interval(self) -> Interval | None:
        """The 95 % confidence interval of the mean ACC over seeds, or None with fewer than three."""
        return estimate_mean(self.scores.get("acc", ()))

    @property
    def difference_interval(self) -> Interval | None:
        """The 95 % confidence interval of `difference`, or None where there is none."""
        paper = self.published.get("acc")
        return None if paper is None else estimate_difference(self.scores.get(self.compared, ()), paper)

    @property
    def gap(self) -> float:
        """Deployed less protocol ACC of the seed where they differ most; 0 where there is no deployed model."""
        pairs = zip(self.scores.get("acc_deployed", ()), self.scores.get("acc", ()), strict=False)
        return max((deployed - protocol for deployed, protocol in pairs), key=abs, default=0.0)


def make_cells(rows: pa.Table) -> list[Cell]:
    """The cells of a ROWS table, by data set, then floor methods, DEC, DAC* and ST-DAC with 0 to 3 STN."""
    trials: dict[str, Trial] = {}
    for row in rows.to_pylist():
        trials.setdefault(row["trial_id"], {})[row["phase"], row["epoch"]] = row
    names = _name_datasets([_take_first_row(trial) for trial in trials.values()])
    known = {trial_id: _take_first_row(trial) for trial_id, trial in trials.items()}
    groups: dict[tuple[str, ...], list[Trial]] = {}
    settings: dict[tuple[str, ...], Settings] = {}
    for trial_id, trial in trials.items():
        if not list_epochs(trial):  # unfinished, in an earlier phase, or of a method that clusters nothing
            continue
        found = _read_settings(known[trial_id], known)
        key = (names[trial_id], known[trial_id]["method"], write_canonical(found))
        settings[key] = found
        groups.setdefault(key, []).append(trial)
    cells = sorted((_make_cell(key[0], settings[key], group) for key, group in groups.items()), key=rank)
    return [
        cell for dataset in list_datasets(cells) for cell in _distinguish([c for c in cells if c.dataset == dataset])
    ]


def _read_settings(row: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Parameters, SETTINGS and TEXT_SETTINGS: all that a row's trial may differ in from others of its method, but the
    seed. known: a row of each trial. Of a trial that a parameter names it has the method and the settings, so that
    those of different seeds are pooled, which name different trials."""
    params = fill_params(row["method"], json.loads(row["params"]))
    others = {trial_id: other for trial_id, other in known.items() if trial_id != row["trial_id"]}
    for name in list_naming_fields(METHODS[row["method"]].params) if row["method"] in METHODS else ():
        given = params.get(name) or ""
        params[name] = _describe_named(given, others) if isinstance(given, str) else _sort_named(given, others)
    return params | {name: row[name] for name in (*SETTINGS, *TEXT_SETTINGS)}


def is_pretrained(method: str, settings: Settings) -> bool:
    """Whether a trial is of a method that was trained before on other images, or made of one that is."""
    own = method in METHODS and METHODS[method].pretrained
    named = [each for value in settings.values() for each in _flatten(value) if isinstance(each, Mapping)]
    return own or any(is_pretrained(each["method"], dict(each)) for each in named)


def _describe_named(trial_id: str, known: Mapping[str, Mapping[str, Any]]) -> Settings | str:
    """The method and settings of a trial that is named; words where there is none, or none of the known ones."""
    if not trial_id:
        return "no trial"
    row = known.get(trial_id)
    return UNKNOWN if row is None else {"method": row["method"]} | _read_settings(row, known)


def _sort_named(trial_ids: Iterable[str], known: Mapping[str, Mapping[str, Any]]) -> list[Settings | str]:
    """The same of several, in whatever order they are named."""
    return sorted((_describe_named(trial_id, known) for trial_id in trial_ids), key=write_canonical)


def list_epochs(trial: Trial) -> list[int]:
    """The epochs of the main phase after which a trial has a clustering."""
    return [epoch for (_, epoch), row in trial.items() if row["main"] and row["clusters_used"] is not None]


def _name_datasets(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the data set of each trial is called, by trial id; rows: one of ROWS a trial.

    Trials that were trained on other images, or scored with other labels, than others of their data set, limit and
    image size are never pooled: their data sets have names of their own.
    """
    short = shorten_paths({row["dataset"] for row in rows})
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in ("dataset", "source", "limit", "image_size")), []).append(row)
    names: dict[str, str] = {}
    for group in groups.values():
        told = _tell_data_apart(group)
        for row in group:
            version = next((text for data, text in told.items() if data.startswith(row["data"] or "?")), "unfinished")
            names[row["trial_id"]] = short[row["dataset"]] + (f" ({version})" if len(told) > 1 else "")
    return names


def _tell_data_apart(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The different data of trials that name the same: what they are known by, and what tells them from the others."""
    images = {row["data"]: row["images"] for row in rows if row["data"] is not None}
    whole = sorted(data for data in images if not any(other.startswith(f"{data}/") for other in images))
    counts = [images[data] for data in whole]
    return {
        data: f"{images[data]:,} images" if counts.count(images[data]) == 1 and images[data] else f"data {data}"
        for data in whole
    }


def _make_cell(dataset: str, settings: Settings, trials: list[Trial]) -> Cell:
    """The cell of trials that differ in their seed only."""
    trials = sorted(trials, key=lambda trial: _take_first_row(trial)["seed"])
    first, epoch = _take_first_row(trials[0]), _find_common_epoch(trials)
    if epoch is not None:
        trials = [cut_after(trial, epoch) for trial in trials]
    label = fill_title(first["method"], settings)
    if is_pretrained(first["method"], settings) and PRETRAINED not in label:
        label += f" {PRETRAINED}"
    metrics = SCORES if is_comparable(first) else ()
    system = name_system(first["method"], settings)
    k = first["n_clusters"] or CLASSES
    asked = {"epoch": epoch, "k": k, "limit": first["limit"]}
    values = {metric: find_published(system, first["dataset"], metric, **asked) for metric in metrics}
    return Cell(
        dataset=dataset,
        method=first["method"],
        label=label,
        settings=settings,
        seeds=tuple(_take_first_row(trial)["seed"] for trial in trials),
        trial_ids=tuple(_take_first_row(trial)["trial_id"] for trial in trials),
        epoch=epoch,
        done=sum(_take_first_row(trial)["finished"] for trial in trials),
        scores=_group_by_name([_read_scores(trial) for trial in trials]),
        curves=_group_by_epoch(trials),
        published={metric: value for metric, value in values.items() if value is not None},
    )


def _take_first_row(trial: Trial) -> dict[str, Any]:
    """Any row of a trial, for what all of them share."""
    return next(iter(trial.values()))


def _find_common_epoch(trials: list[Trial]) -> int | None:
    """The last epoch that all trials have, finished ones having all; None where all are finished."""
    return min((max(list_epochs(trial)) for trial in trials if not _take_first_row(trial)["finished"]), default=None)


def cut_after(trial: Trial, epoch: int) -> Trial:
    """The rows of the main phase up to an epoch."""
    return {key: row for key, row in trial.items() if row["main"] and key[1] <= epoch}


def _read_scores(trial: Trial) -> dict[str, float | None]:
    """The scores of one trial as Cell.scores names them; None without ground truth."""
    epochs = {epoch: row for (_, epoch), row in trial.items() if row["main"]}
    last = epochs[max(epochs)]
    scores = {name: last[name] for name in last if name in (*SCORES, "noise", "purity") or name.startswith(PRECISION)}
    accs = [row["acc"] for row in epochs.values() if row["acc"] is not None]
    scores["acc_best"] = max(accs) if len(accs) > 1 else None
    scores["acc_deployed"] = next((row["acc"] for (phase, _), row in trial.items() if phase == "deployed"), None)
    return scores


def _group_by_name(scores: list[dict[str, float | None]]) -> dict[str, list[float]]:
    """The scores that all trials have, {name: one value a trial}."""
    columns = {name: [trial[name] for trial in scores] for name in scores[0]}
    return {name: [v for v in column if v is not None] for name, column in columns.items() if None not in column}


def _group_by_epoch(trials: list[Trial]) -> dict[int, list[float]]:
    """Protocol ACC by epoch, one value a trial; one that stopped early keeps its last. Empty without ground truth."""
    curves = [{epoch: row["acc"] for (_, epoch), row in trial.items() if row["main"]} for trial in trials]
    if any(acc is None for curve in curves for acc in curve.values()):
        return {}
    epochs = sorted(set().union(*curves))
    return {e: [curve[max(i for i in curve if i <= e)] for curve in curves] for e in epochs}


def rank(cell: Cell) -> tuple[Any, ...]:
    """The sort key of a cell: data set, method as in METHODS, title, then settings."""
    method = list(METHODS).index(cell.method) if cell.method in METHODS else len(METHODS)
    settings = json.dumps([cell.settings.get(name) for name in _order_settings(cell.method, cell.settings)])
    texts = (_split_numbers(text) for text in (fill_title(cell.method, cell.settings), settings))
    return (_rank_dataset(cell.dataset), method, cell.method, *texts)


def _split_numbers(text: str) -> list[str | float]:
    """A text as texts and numbers in turn, so that 3 is before 30, and 30 before 150."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", text))]


def _rank_dataset(name: str) -> tuple[int, str]:
    """digits, MNIST, Fashion-MNIST, then by name."""
    known = ("digits", "mnist", "fashion-mnist")
    return (known.index(name) if name in known else len(known), name)


def list_datasets(cells: Iterable[Cell]) -> list[str]:
    """The data sets of the cells, in order, each once."""
    return list(dict.fromkeys(cell.dataset for cell in cells))


def _distinguish(cells: list[Cell]) -> Iterator[Cell]:
    """The cells of one data set, their labels lengthened by the settings that tell equal ones apart."""
    for cell in cells:
        twins = [c.settings for c in cells if c.label == cell.label]
        yield replace(cell, label=cell.label + _tell_apart(cell.method, cell.settings, twins))


def _tell_apart(method: str, settings: Settings, twins: Sequence[Settings]) -> str:
    """The settings that tell one from its twins, each after a comma."""
    names = choose_telling(twins, _order_settings(method, *twins))
    return "".join(f", {name} {_show_setting(settings.get(name), [t.get(name) for t in twins])}" for name in names)


def _order_settings(method: str, *settings: Settings) -> list[str]:
    """The names of settings, those first by which a person tells variants of a method apart: its parameters in the
    order of their dataclass, then SETTINGS and TEXT_SETTINGS, then what this version does not know."""
    known = [f.name for f in fields(METHODS[method].params)] if method in METHODS else []
    return list(dict.fromkeys([*known, *SETTINGS, *TEXT_SETTINGS, *sorted(name for s in settings for name in s)]))


def _show_setting(value: Any, others: Sequence[Any] = ()) -> str:
    """A setting's value in a label; others: those that it is told from."""
    if isinstance(value, Mapping):  # a trial that is named
        method, title = value["method"], fill_title(value["method"], value)
        rivals = [dict(each) for other in others for each in _flatten(other) if isinstance(each, Mapping)]
        twins = [each for each in rivals if each["method"] == method and fill_title(method, each) == title]
        return title + _tell_apart(method, dict(value), twins)
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) or item == UNKNOWN for item in value):
        counts = Counter(_show_setting(item, others) for item in value)
        return "; ".join(f"{n} × {text}" for text, n in counts.most_common())
    if isinstance(value, list | tuple):
        return "-".join(map(_show_setting, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _flatten(value: Any) -> Sequence[Any]:
    """The items of a list, or the one value."""
    return value if isinstance(value, list) else [value]

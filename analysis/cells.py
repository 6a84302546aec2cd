"""The cells of a table of results: one a method and data set, over seeds, with the published values beside it."""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa

from analysis.intervals import Interval, estimate_difference, estimate_mean
from analysis.published import Published, find_published, find_published_curve, is_comparable
from analysis.runs import SETTINGS, TEXT_SETTINGS
from stdac.methods import METHODS, fill_params, fill_title
from stdac.trial import choose_telling

SCORES = ("acc", "nmi", "ari")

Settings = dict[str, Any]
Trial = dict[tuple[str, int], dict[str, Any]]
"""The rows of one trial by phase and epoch."""


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one setting of its parameters, over seeds; all scores in [0, 1].

    label: unique within the data set. settings: parameters, SETTINGS and source. seeds: ascending, and trial_ids with
    them. epoch: None where all seeds are finished; else the last epoch that all seeds have, where scores and curves
    end. done: the number of finished seeds. scores: for "acc", "nmi", "ari", "noise" (protocol, last epoch), "acc_best"
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
        return find_published_curve(fill_title(self.method, self.settings), self.dataset) if self.published else {}

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
        """The 95 % confidence interval of the mean ACC over seeds, or None with fewer than two."""
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
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials.values():
        if not list_epochs(trial):  # unfinished, in an earlier phase
            continue
        row = next(iter(trial.values()))
        key = (row["dataset"], row["method"], json.dumps(_read_settings(row), sort_keys=True))
        groups.setdefault(key, []).append(trial)
    cells = sorted((_make_cell(group) for group in groups.values()), key=rank)
    return [
        cell for dataset in list_datasets(cells) for cell in _distinguish([c for c in cells if c.dataset == dataset])
    ]


def _read_settings(row: Mapping[str, Any]) -> Settings:
    """Parameters, SETTINGS and TEXT_SETTINGS: all that a row's trial may differ in from others of its method, but the
    seed."""
    params = fill_params(row["method"], json.loads(row["params"]))
    return params | {name: row[name] for name in (*SETTINGS, *TEXT_SETTINGS)}


def list_epochs(trial: Trial) -> list[int]:
    """The epochs of the main phase that a trial has rows of."""
    return [epoch for (_, epoch), row in trial.items() if row["main"]]


def _make_cell(trials: list[Trial]) -> Cell:
    """The cell of trials that differ in their seed only."""
    trials = sorted(trials, key=lambda trial: _take_first_row(trial)["seed"])
    first, epoch = _take_first_row(trials[0]), _find_common_epoch(trials)
    if epoch is not None:
        trials = [cut_after(trial, epoch) for trial in trials]
    settings = _read_settings(first)
    label = fill_title(first["method"], settings)
    metrics = SCORES if is_comparable(first) else ()
    values = {metric: find_published(label, first["dataset"], metric, epoch) for metric in metrics}
    return Cell(
        dataset=first["dataset"],
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
    scores = {metric: last[metric] for metric in (*SCORES, "noise")}
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
    return (_rank_dataset(cell.dataset), method, cell.method, fill_title(cell.method, cell.settings), settings)


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
        names = choose_telling(twins, _order_settings(cell.method, *twins))
        told = "".join(f", {name} {_show_setting(cell.settings.get(name))}" for name in names)
        yield replace(cell, label=cell.label + told)


def _order_settings(method: str, *settings: Settings) -> list[str]:
    """The names of settings, those first by which a person tells variants of a method apart: its parameters in the
    order of their dataclass, then SETTINGS and TEXT_SETTINGS, then what this version does not know."""
    known = [f.name for f in fields(METHODS[method].params)] if method in METHODS else []
    return list(dict.fromkeys([*known, *SETTINGS, *TEXT_SETTINGS, *sorted(name for s in settings for name in s)]))


def _show_setting(value: Any) -> str:
    """A setting's value in a label."""
    if isinstance(value, list | tuple):
        return "-".join(map(_show_setting, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

"""The table of results: one row a method and data set, over seeds, beside the published value."""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from analysis.published import Published, comparable, published
from analysis.runs import SETTINGS

NAMES = {"kmeans": "k-means", "pca-kmeans": "PCA + k-means", "dec": "DEC", "dac-star": "DAC*", "st-dac": "ST-DAC"}
"""The tables' names of the methods, in the tables' order: the floor first."""

FLOOR = ("kmeans", "pca-kmeans")
TELLING = ("preset", "architecture", "width", *SETTINGS)
"""What tells two rows of one method apart, tried before the other parameters."""

GAP = 0.005  # a larger difference between protocol and deployed ACC is pointed out
SETTLED = 10  # seeds, as in the paper

Settings = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one setting of its parameters, over seeds; all scores in [0, 1].

    label: unique within the data set. settings: parameters and SETTINGS. seeds: ascending, and trial_ids with them.
    scores: for "acc", "nmi", "ari" (protocol, last epoch), "acc_best" (protocol, best epoch by labels) and
    "acc_deployed" one value a seed; without those that do not exist. curves: by epoch one protocol ACC a seed, a seed
    that stopped early keeping its last. published: by metric, where comparable.
    """

    dataset: str
    method: str
    label: str
    settings: Settings
    seeds: tuple[int, ...]
    trial_ids: tuple[str, ...]
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
    def difference(self) -> float | None:
        """Our mean ACC less the published one, like with like: of the best epoch where the published one is."""
        paper = self.published.get("acc")
        ours = self.mean("acc_best" if paper is not None and paper.of_best_epoch else "acc")
        return None if paper is None or ours is None else ours - paper.mean

    @property
    def gap(self) -> float:
        """Deployed less protocol ACC of the seed where they differ most; 0 where there is no deployed model."""
        pairs = zip(self.scores.get("acc_deployed", ()), self.scores.get("acc", ()), strict=False)
        return max((deployed - protocol for deployed, protocol in pairs), key=abs, default=0.0)


def results(rows: pa.Table) -> list[Cell]:
    """The cells of a ROWS table, by data set, then floor methods, DEC, DAC* and ST-DAC with 0 to 3 STN."""
    trials: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for row in rows.to_pylist():
        trials.setdefault(row["trial_id"], {})[row["phase"], row["epoch"]] = row
    groups: dict[tuple[str, ...], list[dict[tuple[str, int], dict[str, Any]]]] = {}
    for trial in trials.values():
        row = next(iter(trial.values()))
        key = (row["dataset"], row["method"], json.dumps(settings_of(row), sort_keys=True))
        groups.setdefault(key, []).append(trial)
    cells = sorted((make_cell(group) for group in groups.values()), key=rank)
    return [cell for dataset in datasets(cells) for cell in distinguish([c for c in cells if c.dataset == dataset])]


def settings_of(row: Mapping[str, Any]) -> Settings:
    """Parameters and SETTINGS of a row's trial: all that it may differ in from others of its method, but the seed."""
    return dict(json.loads(row["params"])) | {name: row[name] for name in SETTINGS}


def make_cell(trials: list[dict[tuple[str, int], dict[str, Any]]]) -> Cell:
    """The cell of trials that differ in their seed only, each {(phase, epoch): row}."""
    trials = sorted(trials, key=lambda trial: next(iter(trial.values()))["seed"])
    firsts = [next(iter(trial.values())) for trial in trials]
    first = firsts[0]
    settings, scores = settings_of(first), [trial_scores(trial) for trial in trials]
    label = NAMES.get(first["method"], first["method"])
    label += f", {settings['stn']} STN" if "stn" in settings else ""
    beside = comparable(first)
    values = {metric: published(label, first["dataset"], metric) for metric in ("acc", "nmi", "ari") if beside}
    return Cell(
        dataset=first["dataset"],
        method=first["method"],
        label=label,
        settings=settings,
        seeds=tuple(row["seed"] for row in firsts),
        trial_ids=tuple(row["trial_id"] for row in firsts),
        scores=by_name(scores),
        curves=by_epoch(trials),
        published={metric: value for metric, value in values.items() if value is not None},
    )


def trial_scores(trial: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, float | None]:
    """The scores of one trial as Cell.scores names them; None without ground truth."""
    epochs = {epoch: row for (phase, epoch), row in trial.items() if phase == "cluster"}
    last = epochs[max(epochs)]
    scores = {metric: last[metric] for metric in ("acc", "nmi", "ari")}
    accs = [row["acc"] for row in epochs.values() if row["acc"] is not None]
    scores["acc_best"] = max(accs) if len(accs) > 1 else None
    scores["acc_deployed"] = next((row["acc"] for (phase, _), row in trial.items() if phase == "deployed"), None)
    return scores


def by_name(scores: list[dict[str, float | None]]) -> dict[str, list[float]]:
    """The scores that all trials have, {name: one value a trial}."""
    columns = {name: [trial[name] for trial in scores] for name in scores[0]}
    return {name: [v for v in column if v is not None] for name, column in columns.items() if None not in column}


def by_epoch(trials: list[dict[tuple[str, int], dict[str, Any]]]) -> dict[int, list[float]]:
    """Protocol ACC by epoch, one value a trial; one that stopped early keeps its last. Empty without ground truth."""
    curves = [{epoch: row["acc"] for (phase, epoch), row in t.items() if phase == "cluster"} for t in trials]
    if any(acc is None for curve in curves for acc in curve.values()):
        return {}
    epochs = sorted(set().union(*curves))
    return {e: [curve[max(i for i in curve if i <= e)] for curve in curves] for e in epochs}


def rank(cell: Cell) -> tuple[Any, ...]:
    """The sort key of a cell: data set, method, STN layers, then settings."""
    method = list(NAMES).index(cell.method) if cell.method in NAMES else len(NAMES)
    rest = json.dumps([cell.settings.get(name) for name in TELLING]) + json.dumps(cell.settings, sort_keys=True)
    return (dataset_rank(cell.dataset), method, cell.method, cell.settings.get("stn", 0), rest)


def dataset_rank(name: str) -> tuple[int, str]:
    """digits, MNIST, Fashion-MNIST, then by name."""
    known = ("digits", "mnist", "fashion-mnist")
    return (known.index(name) if name in known else len(known), name)


def datasets(cells: Iterable[Cell]) -> list[str]:
    """The data sets of the cells, in order, each once."""
    return list(dict.fromkeys(cell.dataset for cell in cells))


def distinguish(cells: list[Cell]) -> Iterator[Cell]:
    """The cells of one data set, their labels lengthened by the settings that tell equal ones apart."""
    for cell in cells:
        twins = [c.settings for c in cells if c.label == cell.label]
        told = "".join(f", {name} {show_setting(cell.settings.get(name))}" for name in telling(twins))
        yield replace(cell, label=cell.label + told)


def telling(settings: list[Settings]) -> list[str]:
    """The fewest settings, taken greedily, by which all of `settings` differ."""
    names = [*TELLING, *sorted({name for s in settings for name in s} - set(TELLING))]
    chosen: list[str] = []
    for name in names:
        more = [*chosen, name]
        if distinct(settings, more) > distinct(settings, chosen):
            chosen = more
    return chosen


def distinct(settings: list[Settings], names: list[str]) -> int:
    """How many different values `settings` have in `names`."""
    return len({json.dumps([s.get(name) for name in names]) for s in settings})


def show_setting(value: Any) -> str:
    """A setting's value in a label."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def format_results(cells: list[Cell], *, markdown: bool = False) -> str:
    """The table as aligned text, or as Markdown: mean ± std (n) and the published value; then who wins, and caveats."""
    blocks = [HEADING]
    for dataset in datasets(cells):
        of_dataset = [cell for cell in cells if cell.dataset == dataset]
        layout = markdown_table if markdown else text_table
        blocks.append((f"**{dataset}**\n\n" if markdown else f"{dataset}\n") + layout(table_rows(of_dataset)))
        blocks.append("\n".join(f"- {remark}" if markdown else remark for remark in remarks(of_dataset)))
    return "\n\n".join(block for block in blocks if block) + "\n"


HEADING = (
    "Mean ± standard deviation over seeds (n), after the last epoch, by the paper's protocol (batch statistics).\n"
    "deployed: ACC of the model as it is exported. best epoch: chosen by labels, for comparison only."
)


def table_rows(cells: list[Cell]) -> list[list[str]]:
    """The header and one row a cell, without the columns that no cell fills."""
    header = ["method", "ACC (n)", "paper", "diff.", "NMI", "paper", "ARI", "paper", "deployed", "best epoch"]
    columns = list(zip(header, *(table_row(cell) for cell in cells), strict=True))
    filled = [column for column in columns if set(column[1:]) != {"-"}]
    return [list(row) for row in zip(*filled, strict=True)]


def table_row(cell: Cell) -> list[str]:
    """A cell's strings, "-" where there is nothing."""
    difference = cell.difference
    return [
        cell.label,
        f"{show(cell.mean('acc'), spread(cell, 'acc'))} ({cell.n})" if "acc" in cell.scores else "-",
        show_published(cell.published.get("acc")),
        "-" if difference is None else show_signed(difference),
        show(cell.mean("nmi"), spread(cell, "nmi")),
        show_mean(cell.published.get("nmi")),
        show(cell.mean("ari"), spread(cell, "ari")),
        show_mean(cell.published.get("ari")),
        show(cell.mean("acc_deployed")),
        show(cell.mean("acc_best")),
    ]


def spread(cell: Cell, score: str) -> float | None:
    """The standard deviation, where there is more than one seed to have one."""
    return cell.std(score) if cell.n > 1 else None


def show(mean: float | None, std: float | None = None) -> str:
    """.980 ± .007, or .980, or -."""
    if mean is None:
        return "-"
    return show_number(mean) + ("" if std is None else f" ± {show_number(std)}")


def show_number(value: float) -> str:
    """Three decimals without the leading zero: .980, 1.000, -.031."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(round(value, 3)) < 1 else f"{value:.3f}"


def show_signed(value: float) -> str:
    """A difference with its sign: +.003, -.012."""
    return ("+" if round(value, 3) >= 0 else "-") + show_number(abs(value))


def show_published(value: Published | None) -> str:
    """A published mean ± std, † where it is of the best epoch."""
    if value is None:
        return "-"
    return show(value.mean, value.std) + (" †" if value.of_best_epoch else "")


def show_mean(value: Published | None) -> str:
    """A published mean, † where it is of the best epoch."""
    return "-" if value is None else show(value.mean) + (" †" if value.of_best_epoch else "")


def text_table(rows: list[list[str]]) -> str:
    """Rows as columns aligned by spaces, a rule below the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def markdown_table(rows: list[list[str]]) -> str:
    """Rows as a Markdown table; asterisks and bars are text."""
    escaped = [[text.replace("*", r"\*").replace("|", r"\|") for text in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def remarks(cells: list[Cell]) -> list[str]:
    """What to know about the table of one data set: who wins, what is not settled, what differs."""
    return [remark for remark in (winner(cells), unsettled(cells), gaps(cells), best_epoch(cells)) if remark]


def winner(cells: list[Cell]) -> str:
    """Who has the highest mean ACC, against the floor; or that there is no ground truth to score against."""
    scored = sorted((c for c in cells if "acc" in c.scores), key=lambda c: -(c.mean("acc") or 0))
    if not scored:
        return f"{cells[0].dataset} has no ground truth: nothing is scored. The clusters are in assignments.parquet."
    best = scored[0]
    text = f"Highest mean ACC on {best.dataset}: {best.label}, {show(best.mean('acc'))} (n = {best.n})"
    learned = best.method not in FLOOR
    other = next((c for c in scored if (c.method in FLOOR) == learned), None)
    if other is None:
        return f"{text}."
    who, acc = other.label, show(other.mean("acc"))
    return f"{text}; " + (f"{who} has {acc}." if learned else f"the best learned method is {who} with {acc}.")


def unsettled(cells: list[Cell]) -> str | None:
    """A warning where several of 1, 2 and 3 STN are compared over fewer seeds than the paper's."""
    stns = sorted({c.settings["stn"] for c in cells if c.settings.get("stn") and c.n < SETTLED})
    compared = {c.settings["stn"] for c in cells if c.settings.get("stn")}
    if not stns or len(compared) < 2:
        return None
    names = [str(n) for n in sorted(compared)]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"With fewer than {SETTLED} seeds the ranking of {listed} STN is not settled."


def gaps(cells: list[Cell]) -> str | None:
    """Where the deployed model's ACC is not the protocol's."""
    wide = [f"{c.label} ({show_signed(c.gap)})" for c in cells if abs(c.gap) > GAP]
    if not wide:
        return None
    what = f"Deployed and protocol ACC differ by more than {show_number(GAP)} (deployed less protocol, widest seed)"
    return f"{what}: {'; '.join(wide)}."


def best_epoch(cells: list[Cell]) -> str | None:
    """What † means, where it occurs."""
    if not any(value.of_best_epoch for cell in cells for value in cell.published.values()):
        return None
    return "† The paper took the best epoch of each run, by labels: compare with the column best epoch, as diff. does."

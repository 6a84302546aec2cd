"""Studies: cells that differ in one number, such as α or K, as a table and a figure against it, and the confusion
matrices of a study of K."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analysis.cells import Cell, list_datasets
from analysis.figures import PALETTE, make_slug, open_figure
from analysis.runs import SETTINGS, list_finished
from analysis.table import (
    COLUMNS,
    Column,
    format_markdown_table,
    format_text_table,
    make_rows,
    show,
)
from stdac.data import CLASSES
from stdac.metrics import contingency
from stdac.results import read_part
from stdac.trial import make_id, write_canonical

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 3  # values, of two there is no curve
WIDE = 20  # an axis whose largest value is more times its least is logarithmic
SYMBOLS = {"n_clusters": "K", "alpha": "α"}
ELSEWHERE = ("stn",)  # what the main table and the curves are of; 0 STN differs from the others in its dropout, too
SHOWN = ("method", "ACC (n)", "95 % interval", "paper's ACC", "diff.", "NMI", "paper's NMI")  # of COLUMNS
RELABELLED = ("relabelled ACC", "paper's relabelled ACC")  # and where there are more clusters than classes
NOTE = "Each dot is a seed, the line their mean; a diamond is the published value."
NOTE_RELABELLED = (
    "relabelled: ACC if clusters that are left without a class count as the first class, as a paper scores more "
    "clusters than classes."
)
MATRIX_INCHES = 3.6


class Study(NamedTuple):
    """Cells of one data set that differ in one number. setting: its name. lines: by name, cells that are equal in all
    else, in the order of their values."""

    dataset: str
    setting: str
    lines: Mapping[str, Sequence[Cell]]

    @property
    def symbol(self) -> str:
        """What the number is called in tables and figures."""
        return SYMBOLS.get(self.setting, self.setting)

    @property
    def cells(self) -> list[Cell]:
        """All of them, a line after another."""
        return [cell for line in self.lines.values() for cell in line]

    @property
    def title(self) -> str:
        """The study in a few words."""
        return f"ACC by {self.symbol} on {self.dataset}"

    @property
    def has_more_clusters(self) -> bool:
        """Whether some cells have more clusters than classes."""
        return any(is_relabelled(cell) for cell in self.cells)


def is_relabelled(cell: Cell) -> bool:
    """Whether a cell's ACC is another where unmatched clusters are relabelled; rows of earlier versions do not say."""
    acc = cell.scores.get("acc")
    return cell.scores.get("acc_relabelled", acc) != acc


def find_studies(cells: Sequence[Cell]) -> list[Study]:
    """The studies among the cells, by data set and setting; of several methods in one, where each has a line."""
    studies = []
    for dataset in list_datasets(cells):
        scored = [cell for cell in cells if cell.dataset == dataset and "acc" in cell.scores]
        for setting in _list_numbers(scored):
            lines = {_name_line(line): line for line in _find_lines(scored, setting)}
            if lines:
                studies.append(Study(dataset, setting, lines))
    return studies


def _list_numbers(cells: Sequence[Cell]) -> list[str]:
    """The settings that are numbers: parameters, then those of all trials."""
    names = dict.fromkeys(name for cell in cells for name in cell.settings if _read_number(cell, name) is not None)
    return sorted((name for name in names if name not in ELSEWHERE), key=lambda name: name in SETTINGS)


def _read_number(cell: Cell, setting: str) -> float | None:
    """A setting's value, or None where it is no number."""
    value = cell.settings.get(setting)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _find_lines(cells: Sequence[Cell], setting: str) -> Iterator[list[Cell]]:
    """Groups of at least LEAST cells of one method that differ in that setting alone, by its value."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if _read_number(cell, setting) is not None:
            rest = {name: value for name, value in cell.settings.items() if name != setting}
            groups.setdefault(f"{cell.method} {write_canonical(rest)}", []).append(cell)
    for group in groups.values():
        if len(group) >= LEAST:
            yield sorted(group, key=lambda cell: _read_number(cell, setting) or 0.0)


def _name_line(line: Sequence[Cell]) -> str:
    """What the labels of its cells have in common."""
    parts = [cell.label.split(", ") for cell in line]
    return ", ".join(part for part in parts[0] if all(part in others for others in parts))


# tables


def make_study_rows(study: Study) -> list[list[str]]:
    """The header and a row a cell: the number, then what `COLUMNS` says of it that a study is about."""
    value = Column(study.symbol, study.symbol, lambda cell: f"{_read_number(cell, study.setting):g}")
    names = (*SHOWN, *RELABELLED) if study.has_more_clusters else SHOWN
    known = [column for column in COLUMNS if column.name in names]
    purity = Column("purity", "purity", lambda cell: show(cell.mean("purity")))
    return make_rows(study.cells, [value, *known, purity], full=True)


def format_studies(studies: Sequence[Study], *, markdown: bool = False) -> str:
    """The tables as aligned text, or as Markdown; empty where there are none."""
    blocks = []
    for study in studies:
        format_table = format_markdown_table if markdown else format_text_table
        title = f"**{study.title}**\n" if markdown else study.title
        note = [f"\n{NOTE_RELABELLED}"] if study.has_more_clusters else []
        blocks.append("\n".join([title, format_table(make_study_rows(study)), *note]))
    return "\n\n".join(blocks)


# figures


def write_studies(run: Path, studies: Sequence[Study], out: Path) -> list[Path]:
    """Write the figures of the studies of a run to the folder `out`, as `analysis.figures.write_figures` does."""
    paths = []
    for study in studies:
        name = f"{make_slug(study.dataset)}-by-{make_slug(study.setting)}"
        paths.append(draw_study(study, out / f"{name}.png"))
        matrices = read_matrices(run, study)
        if matrices:
            paths.append(draw_matrices(matrices, out / f"{name}-confusion.png"))
    return paths


def draw_study(study: Study, path: Path) -> Path:
    """Draw ACC against the number: mean and seeds, a line each, with the published values.

    path: .png, .svg or .pdf. Raises StdacError for another suffix.
    """
    with open_figure(path, (7.2, 4.2)) as fig:
        axes = fig.subplots()
        for (name, line), colour in zip(study.lines.items(), PALETTE * len(study.lines), strict=False):
            _draw_line(axes, study, name, line, colour)
        _finish_axes(axes, study)
    return path


def _draw_line(axes: "Axes", study: Study, name: str, line: Sequence[Cell], colour: str) -> None:
    """One line: the mean, each seed, what a paper has; and the other score, where there are more clusters than
    classes."""
    values = [_read_number(cell, study.setting) or 0.0 for cell in line]
    accs = [cell.scores["acc"] for cell in line]
    axes.plot(values, [np.mean(a) for a in accs], "-o", color=colour, linewidth=2, markersize=4, label=name)
    for value, found in zip(values, accs, strict=True):
        axes.plot([value] * len(found), found, ".", color=colour, alpha=0.4, markersize=7)
    if any(map(is_relabelled, line)) and all("acc_relabelled" in cell.scores for cell in line):
        relabelled = [np.mean(cell.scores["acc_relabelled"]) for cell in line]
        axes.plot(values, relabelled, ":", color=colour, linewidth=1.5, label=f"{name}, relabelled")
    papers = {v: _find_paper(cell) for v, cell in zip(values, line, strict=True)}
    known = {value: acc for value, acc in papers.items() if acc is not None}
    if known:
        axes.plot(
            list(known),
            list(known.values()),
            "D",
            color=colour,
            markerfacecolor="none",
            markersize=9,
            label=f"{name}, paper",
        )


def _find_paper(cell: Cell) -> float | None:
    """The published ACC of a cell, or what a paper has in its place."""
    found = cell.published.get("acc") or cell.published.get("acc_relabelled")
    return None if found is None else found.mean


def _finish_axes(axes: "Axes", study: Study) -> None:
    """Scales, ticks at the values that were tried, title and legend."""
    values = sorted({_read_number(cell, study.setting) or 0.0 for cell in study.cells})
    if values[0] > 0 and values[-1] > WIDE * values[0]:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=9)
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1)
    axes.set_xlabel(study.symbol)
    axes.set_ylabel("ACC")
    seeds = sorted({cell.n for cell in study.cells})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    axes.set_title(f"{study.title}\n", loc="left", fontweight="bold")
    note = f"mean of {count} seed{'s' if seeds[-1] > 1 else ''}, each a dot"
    axes.text(0, 1.02, note, transform=axes.transAxes, color="#666666", fontsize=9)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10)


# confusion matrices


class Matrix(NamedTuple):
    """The confusion matrix of one trial. counts: (classes, clusters) of images, clusters in the order of their classes,
    those that are left without one last."""

    title: str
    counts: NDArray[np.int64]
    classes: tuple[str, ...]


def read_matrices(run: Path, study: Study) -> list[Matrix]:
    """Of a study of K, the confusion matrix of the first finished seed of each cell whose clusters a run has kept."""
    if study.setting != "n_clusters":
        return []
    attempts = {make_id(trial): attempt for trial, attempt in list_finished(run)}
    matrices = []
    for cell in study.cells:
        seeds = zip(cell.trial_ids, cell.seeds, strict=True)
        found = (_read_matrix(attempts[name], cell, seed) for name, seed in seeds if name in attempts)
        matrices += [matrix for matrix in found if matrix is not None][:1]
    return matrices


def _read_matrix(attempt: Path, cell: Cell, seed: int) -> Matrix | None:
    """The matrix of one trial; None where it kept no clusters, or has no ground truth."""
    path = attempt / "assignments.parquet"
    if not path.exists():
        return None
    table = pq.ParquetFile(pa.BufferReader(read_part(path))).read(["cluster", "label"], use_threads=False)
    if table["label"].null_count:
        return None
    truth, clusters = (table[name].to_numpy().astype(np.int64) for name in ("label", "cluster"))
    return Matrix(
        f"K = {cell.settings['n_clusters']}, ACC {show(cell.scores['acc'][cell.seeds.index(seed)])}",
        align(contingency(truth, clusters)),
        tuple(map(str, np.unique(truth))),
    )


def align(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The columns of counts (classes, clusters) in the order of the classes that the best one-to-one map gives them;
    then those left without one, in the order of the class that most of their images have."""
    from scipy.optimize import linear_sum_assignment

    classes, chosen = linear_sum_assignment(-counts)
    mapped = dict(zip(chosen.tolist(), classes.tolist(), strict=True))
    order = sorted(range(counts.shape[1]), key=lambda c: (c not in mapped, mapped.get(c, int(counts[:, c].argmax()))))
    return counts[:, order]


def draw_matrices(matrices: Sequence[Matrix], path: Path) -> Path:
    """Draw confusion matrices side by side: of each class the share of its images in each cluster, in per cent.

    path: .png, .svg or .pdf. Raises StdacError for another suffix.
    """
    widths = [max(matrix.counts.shape[1], CLASSES // 2) for matrix in matrices]
    with open_figure(path, (MATRIX_INCHES * sum(widths) / CLASSES + 1, MATRIX_INCHES + 1)) as fig:
        panels = fig.subplots(1, len(matrices), squeeze=False, width_ratios=widths)[0]
        for axes, matrix in zip(panels, matrices, strict=True):
            _draw_matrix(axes, matrix)
        panels[0].set_ylabel("class")
    return path


def _draw_matrix(axes: "Axes", matrix: Matrix) -> None:
    """One matrix; shares below .5 % are left out."""
    share = matrix.counts / matrix.counts.sum(1, keepdims=True)  # (classes, clusters)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.005:
            colour = "white" if value > 0.6 else "#222222"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(share.shape[1]), [str(column + 1) for column in range(share.shape[1])], fontsize=8)
    axes.set_yticks(range(len(matrix.classes)), matrix.classes, fontsize=8)
    axes.set_title(matrix.title, fontsize=10)
    axes.set_xlabel("cluster")
    axes.spines[:].set_visible(False)

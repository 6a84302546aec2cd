"""The figures of a run: accuracy by epoch, and what the spatial transformers do to images."""

import io
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.cells import Cell, list_datasets, make_cells
from analysis.runs import list_finished, read_metrics
from analysis.table import is_floor, show
from stdac.errors import StdacError
from stdac.files import atomic_write
from stdac.methods import METHODS
from stdac.record import FIGURES
from stdac.results import read_part
from stdac.trial import make_id

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#882255", "#444444", "#997700")
"""Told apart with every kind of colour vision, and dark enough for text."""

SPARE = ("#56B4E9", "#CC6677", "#44AA99", "#AA4499", "#332288", "#6699CC")
GREY = "#999999"
LEAST_SPAN = 0.2  # of the axis of mean scales
SHOWN = 12  # images in a picture of the transformers
STYLE: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "stdac"}
SUFFIXES = (".png", ".svg", ".pdf")


def write_figures(run: Path, out: Path, *, unfinished: bool = False) -> list[Path]:
    """Write all figures of a run to the folder `out`: the curves, and the transformers' pictures of the first seed.

    run, unfinished: see `analysis.runs.read_metrics`; a collected file has no pictures. Returns the paths. Raises
    StdacError as `read_metrics` does, or where `out` cannot be written.
    """
    rows = read_metrics(run, unfinished=unfinished)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StdacError(f"cannot make the folder {out} ({error.strerror}): choose another place") from error
    cells = make_cells(rows)
    paths = [draw_curves(cells, out / "accuracy-by-epoch.png")] if any(is_trained(cell) for cell in cells) else []
    for cell, seed, trace in find_traces(run, cells):
        name = f"{make_slug(cell.dataset)}-{make_slug(cell.label)}.png"
        paths.append(draw_stn_pictures(trace, out / name, title=f"{cell.label} on {cell.dataset}, seed {seed}"))
    return paths


def find_traces(run: Path, cells: Sequence[Cell]) -> Iterator[tuple[Cell, int, Path]]:
    """(cell, seed, its stn.npz) of the first finished seed with one, of every cell of a run that has one."""
    attempts = {make_id(trial): attempt for trial, attempt in list_finished(run)}
    for cell in cells:
        seeds = zip(cell.trial_ids, cell.seeds, strict=True)
        found = ((seed, attempts[name] / FIGURES) for name, seed in seeds if name in attempts)
        for seed, trace in islice((pair for pair in found if _has_trace(pair[1])), 1):
            yield cell, seed, trace


def _has_trace(path: Path) -> bool:
    """Whether there are figures' data at a path that are of transformers, or damaged, which `_read_trace` says."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "theta_mean.npy" in archive.namelist()
    except FileNotFoundError:
        return False
    except (OSError, zipfile.BadZipFile):
        return True


def is_trained(cell: Cell) -> bool:
    """Whether a cell has a curve: ACC at more than one epoch."""
    return len(cell.curves) > 1


def make_slug(text: str) -> str:
    """Text as a part of a file's name: lower-case letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"


def draw_curves(cells: Sequence[Cell], path: Path) -> Path:
    """Draw protocol ACC by epoch, one panel a data set: mean over seeds, range, published curve, k-means.

    path: .png, .svg or .pdf. Raises StdacError for another suffix or cells without any curve.
    """
    names = [name for name in list_datasets(cells) if any(is_trained(c) for c in cells if c.dataset == name)]
    if not names:
        raise StdacError("no trial has accuracies at more than one epoch: expected at least one of a learned method")
    with open_figure(path, (6.4 * len(names), 4.2)) as fig:
        for axes, name in zip(fig.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            _draw_panel(axes, [cell for cell in cells if cell.dataset == name])
    return path


def _draw_panel(axes: "Axes", cells: list[Cell]) -> None:
    """One data set's curves, each named at its right end with its last value."""
    lines = [cell for cell in cells if is_trained(cell)]
    ends: list[tuple[float, str, str]] = []
    dashed = False
    for cell, colour in zip(lines, choose_colours(lines), strict=True):
        epochs, accs = list(cell.curves), list(cell.curves.values())
        mean = np.mean(accs, axis=1)
        axes.fill_between(epochs, [min(a) for a in accs], [max(a) for a in accs], color=colour, alpha=0.13, linewidth=0)
        axes.plot(epochs, mean, color=colour, linewidth=2, solid_capstyle="round")
        last = "" if cell.epoch is None else f", epoch {cell.epoch}"
        ends.append((mean[-1], f"{cell.label}  {show(mean[-1])}{last}", colour))
        paper = cell.published_curve
        axes.plot(list(paper), list(paper.values()), "--", color=colour, linewidth=1)
        dashed = dashed or bool(paper)
    floor = next((cell for cell in cells if is_floor(cell) and "acc" in cell.scores), None)
    if floor is not None:
        acc = float(np.mean(floor.scores["acc"]))
        axes.axhline(acc, color=GREY, linewidth=1.5, zorder=0)
        ends.append((acc, f"{floor.label}  {show(acc)}", "#666666"))
    _finish_panel(axes, cells, ends, dashed)


def _finish_panel(axes: "Axes", cells: list[Cell], ends: list[tuple[float, str, str]], dashed: bool) -> None:
    """Scales, title and the names at the lines' right ends, moved apart where they would overlap."""
    from matplotlib.ticker import MaxNLocator

    seeds = sorted({cell.n for cell in cells if is_trained(cell)})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    band = "" if seeds[-1] == 1 else ", band: lowest to highest"
    paper = "; dashed: paper" if dashed else ""
    axes.set_title(f"{cells[0].dataset}\n", loc="left", fontweight="bold")
    note = f"mean of {count} seed{'s' if seeds[-1] > 1 else ''}{band}{paper}"
    axes.text(0, 1.02, note, transform=axes.transAxes, color="#666666", fontsize=9)
    axes.set_xlabel("epoch")
    axes.set_ylabel("ACC")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylim(0, 1)
    axes.margins(x=0.01)
    heights = spread_out([acc for acc, _, _ in ends], 0.062)
    for (_, text, colour), height in zip(ends, heights, strict=True):
        axes.text(1.02, height, text, color=colour, transform=axes.transAxes, va="center", fontsize=10)


def choose_colours(cells: Sequence[Cell]) -> list[str]:
    """A colour a cell, the same in every panel where its method says one."""
    spare = iter(SPARE * len(cells))
    known = [METHODS[cell.method].colours if cell.method in METHODS else {} for cell in cells]
    return [of_method.get(cell.label) or next(spare) for of_method, cell in zip(known, cells, strict=True)]


def spread_out(heights: Sequence[float], least: float) -> list[float]:
    """The heights moved, by least squares, to be at least `least` apart; the topmost not above 1."""
    order = sorted(range(len(heights)), key=lambda i: -heights[i])
    blocks: list[list[float]] = []  # isotonic regression: pool what would be closer than allowed
    for rank, i in enumerate(order):
        blocks.append([heights[i] + rank * least])
        while len(blocks) > 1 and np.mean(blocks[-2]) < np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    tops = [min(1.0, float(np.mean(block))) for block in blocks for _ in block]
    placed = {i: top - rank * least for rank, (i, top) in enumerate(zip(order, tops, strict=True))}
    return [placed[i] for i in range(len(heights))]


def draw_stn_pictures(trace: Path, path: Path, *, title: str = "") -> Path:
    """Draw images as they are and as the first transformer hands them on: untrained, after epoch 1, after the last.

    trace: an attempt's folder or its stn.npz. path: .png, .svg or .pdf. Below, the mean scale theta_11 and theta_22 of
    each transformer by epoch. Raises StdacError where there is no trace, as in a trial without transformers.
    """
    arrays = _read_trace(trace / FIGURES if trace.is_dir() else trace)
    last = len(arrays["straightened"]) - 1
    chosen = np.linspace(0, len(arrays["images"]) - 1, min(SHOWN, len(arrays["images"]))).round().astype(int)
    named = [("original", arrays["images"]), ("untrained", arrays["straightened"][0])]
    named += [(f"epoch {epoch}", arrays["straightened"][epoch]) for epoch in sorted({1, last}) if epoch <= last]
    with open_figure(path, (9.6, 0.78 * len(named) + 2.9)) as fig:
        top, bottom = fig.subfigures(2, 1, squeeze=False, height_ratios=[0.78 * len(named) + 0.5, 2.4])[:, 0]
        heading = f"{title}: what the first transformer hands on".removeprefix(": ")
        top.suptitle(heading, x=0.01, ha="left", fontweight="bold", fontsize=12)
        for axes, (name, images) in zip(top.subplots(len(named), 1), named, strict=True):
            _draw_strip(axes, name, images[chosen])
        _draw_scales(bottom.subplots(), arrays["theta_mean"])
    return path


def _read_trace(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an stn.npz, see `stdac.methods.st_dac.StnTrace`. Raises StdacError where they are not there."""
    try:
        with np.load(io.BytesIO(read_part(path)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("theta_mean", "straightened", "images")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StdacError(
            f"cannot read {path} as a trace of transformers: "
            "expected the stn.npz of a finished ST-DAC trial with at least 1 STN"
        ) from error


def _draw_strip(axes: "Axes", name: str, images: NDArray[np.uint8]) -> None:
    """Images (n, C, H, W) uint8 side by side, named on the left; the first three channels are RGB, else grey."""
    channels = 3 if images.shape[1] >= 3 else 1
    padded = np.pad(images[:, :channels], ((0, 0), (0, 0), (0, 0), (1, 1)), constant_values=255)  # (n, C, H, W + 2)
    strip = padded.transpose(2, 0, 3, 1).reshape(images.shape[2], -1, channels)  # (H, n (W + 2), C)
    axes.imshow(strip if channels == 3 else strip[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_scales(axes: "Axes", theta_mean: NDArray[np.float32]) -> None:
    """Mean theta_11 (solid) and theta_22 (dashed) by epoch, theta_mean (E + 1, S, 6), one colour a transformer."""
    from matplotlib.ticker import MaxNLocator

    for number, colour in zip(range(theta_mean.shape[1]), PALETTE[1:], strict=False):
        for entry, style, name in ((0, "-", "11"), (4, "--", "22")):
            label = rf"STN {number + 1}, $\theta_{{{name}}}$"
            axes.plot(theta_mean[:, number, entry], style, color=colour, linewidth=2, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean scale")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.01)
    low, high = axes.get_ylim()
    room = max(0.0, LEAST_SPAN - (high - low)) / 2  # tiny drifts should look tiny
    axes.set_ylim(low - room, high + room)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10)


def import_matplotlib() -> Any:
    """matplotlib, whatever MPLBACKEND says: notebooks name a backend there that only they have, and that a figure
    which is drawn straight into a file does not need."""
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is not None:  # a notebook that has it, and draws by it later, finds it as if nothing had been
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


@contextmanager
def open_figure(path: Path, size_inches: tuple[float, float]) -> Iterator["Figure"]:
    """A figure to draw on, written to `path` whole or not at all. Raises StdacError for an unknown suffix."""
    if path.suffix not in SUFFIXES:
        raise StdacError(f"got a figure named {path.name}, expected one that ends in {', '.join(SUFFIXES)}")
    matplotlib = import_matplotlib()
    from matplotlib.figure import Figure

    kind = path.suffix[1:]
    dated = {"svg": "Date", "pdf": "CreationDate"}  # left out, so that equal figures are equal files
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a name in letters that the font lacks
        texts = matplotlib.rcParams["svg.fonttype"]
        matplotlib.rcdefaults()  # a matplotlibrc of the user's, or of the current folder, changes no figure
        matplotlib.rcParams.update(STYLE | {"svg.fonttype": texts})
        fig = Figure(figsize=size_inches, layout="constrained")
        yield fig
        with atomic_write(path) as file:
            fig.savefig(file, format=kind, dpi=150, metadata={dated[kind]: None} if kind in dated else {})

"""A study of K as a table, a text and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.figures import GREY, PALETTE, open_figure
from analysis.k_study import Scores, Suggestion, list_numbers
from analysis.table import format_text_table, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADING = ["K", "agreement (n)", "silhouette", "confidence", "clusters used"]
PANELS = (
    ("agreement", "seed agreement", "adjusted Rand index of each pair of seeds"),
    ("silhouette", "silhouette", "of the pixels' principal components, each seed"),
    ("confidence", "confidence", "0 is chance, 1 / K; each seed"),
)


def describe_study(curves: Sequence[Scores], suggestion: Suggestion) -> str:
    """The table of all K, mean ± std over seeds (of agreement: ± standard error), and the suggestion below it."""
    rows = [HEADING, *(format_row(scores, suggestion) for scores in curves)]
    return f"{format_text_table(rows)}\n\n{_describe_suggestion(suggestion)}"


def format_row(scores: Scores, suggestion: Suggestion) -> list[str]:
    """The line of one K."""
    used = [str(n) for n in sorted({min(scores.used), max(scores.used)})]
    mark = " <-" if scores.k == suggestion.k else ""
    error = None if np.isnan(scores.agreement_error) else scores.agreement_error
    return [
        str(scores.k),
        f"{show(float(np.mean(scores.agreement)), error)} ({len(scores.used)})",
        _mean_std(scores.silhouette),
        _mean_std(scores.confidence),
        " to ".join(used) + mark,
    ]


def _mean_std(values: Sequence[float]) -> str:
    """Mean ± std of the values that are numbers."""
    known = [value for value in values if not np.isnan(value)]
    return show(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None) if known else "-"


def _describe_suggestion(suggestion: Suggestion) -> str:
    """The suggestion, its candidates and its reasons."""
    text = make_heading(suggestion)
    return "\n".join([f"{text[0].upper()}{text[1:]}.", *(f"- {reason}" for reason in suggestion.reasons)])


def make_heading(suggestion: Suggestion) -> str:
    """The suggestion in a few words."""
    if suggestion.k is None:
        return f"no suggestion, as these curves do not tell one K from another ({list_numbers(suggestion.candidates)})"
    if not suggestion.firm:
        return f"perhaps K = {suggestion.k}, with doubts; candidates are {list_numbers(suggestion.candidates)}"
    others = [k for k in suggestion.candidates if k != suggestion.k]
    return f"suggested is K = {suggestion.k}" + (f"; also worth a look: {list_numbers(others)}" if others else "")


def draw_study(curves: Sequence[Scores], suggestion: Suggestion, path: Path, *, title: str) -> Path:
    """Draw the curves by K, a panel each; a line at the suggested K, a band at every candidate.

    path: .png, .svg or .pdf. Raises StdacError for another suffix or where it cannot be written.
    """
    panels = [panel for panel in PANELS if any(getattr(scores, panel[0]) for scores in curves)]
    with open_figure(path, (4.4 * len(panels), 3.9)) as fig:
        fig.suptitle(f"{title}: {make_heading(suggestion)}", x=0.01, ha="left", fontweight="bold", fontsize=12)
        for axes, panel, colour in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels, PALETTE, strict=False):
            _draw_curve(axes, curves, suggestion, panel, colour)
    return path


def _draw_curve(
    axes: "Axes", curves: Sequence[Scores], suggestion: Suggestion, panel: tuple[str, str, str], colour: str
) -> None:
    """One curve: the mean as a line, every value as a dot, the suggested K as a vertical line."""
    from matplotlib.ticker import MaxNLocator

    name, what, note = panel
    values = {scores.k: [v for v in getattr(scores, name) if not np.isnan(v)] for scores in curves}
    for k in suggestion.candidates:
        axes.axvspan(k - 0.3, k + 0.3, color=GREY, alpha=0.2, linewidth=0, zorder=0)
    if suggestion.k is not None:
        axes.axvline(suggestion.k, color=GREY, linewidth=1.5, zorder=0)
    drawn = {k: found for k, found in values.items() if found}
    axes.plot(list(drawn), [np.mean(v) for v in drawn.values()], color=colour, linewidth=2, marker="o", markersize=4)
    for k, found in drawn.items():
        axes.plot([k] * len(found), found, ".", color=colour, alpha=0.4, markersize=6)
    axes.set_title(f"{what}\n", loc="left", fontweight="bold", fontsize=11)
    axes.text(0, 1.02, note, transform=axes.transAxes, color="#666666", fontsize=9)
    axes.set_xlabel("K")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), max(high, 1.0 if name == "agreement" else 0.2))

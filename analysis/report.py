"""A run as one HTML file that needs nothing else: table, curves, transformers, where it ran, how to repeat it."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.agreement import list_choices
from analysis.cells import Cell, list_datasets, make_cells
from analysis.figures import draw_curves, draw_stn_pictures, find_traces, import_matplotlib, is_trained
from analysis.provenance import describe_environment, list_commands, read_grids
from analysis.report_style import CSS
from analysis.runs import read_metrics
from analysis.studies import (
    NOTE,
    NOTE_RELABELLED,
    Study,
    draw_matrices,
    draw_study,
    find_studies,
    make_study_rows,
    read_matrices,
)
from analysis.table import COLUMNS, HEADING, INTERVALS, list_remarks, make_rows, show
from stdac.files import atomic_write, check_suffix, sweep_temporary
from stdac.scratch import open_scratch
from stdac.words import count_noun, format_duration

EPOCHS = 24  # columns of the table by epoch, at most


def write_report(run: Path, out: Path | None = None, *, unfinished: bool = False) -> Path:
    """Write a run as one HTML file; returns its path.

    run, unfinished: see `analysis.runs.read_metrics`; a collected file has no pictures of transformers. out: RUN/
    report.html if None. Raises StdacError as `read_metrics` does, or where `out` cannot be written.
    """
    out = out or (run if run.is_dir() else run.parent) / "report.html"
    check_suffix(out, (".html", ".htm"))
    rows = read_metrics(run, unfinished=unfinished)
    text = make_page(run, rows, run.resolve().name, hosts=True)
    sweep_temporary(out)
    with atomic_write(out) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    return out


def make_page(run: Path, rows: pa.Table, name: str, *, hosts: bool) -> str:
    """The report of a ROWS table read from `run`, as HTML; it says of nothing when it was written."""
    cells = make_cells(rows)
    more = list_choices(run, cells)
    groups = {dataset: [c for c in cells if c.dataset == dataset] for dataset in list_datasets(cells)}
    sections = [_make_dataset_section(group, more.get(dataset, ())) for dataset, group in groups.items()]
    sections += [_make_study_section(run, study) for study in find_studies(cells)]
    pictures = [_draw_stn_figure(cell, seed, trace) for cell, seed, trace in find_traces(run, cells)]
    if pictures:
        sections.append(make_section("Spatial transformers", STN_NOTE, *pictures))
    trials = {trial["trial_id"]: trial for trial in describe_environment(run, rows, hosts=hosts)}
    sections += [_make_provenance_section(cells, trials), _repeat_section(name, read_grids(run, rows))]
    return PAGE.format(title=escape(name), css=CSS, summary=summarize_cells(cells), body="\n".join(sections))


PAGE = """<!doctype html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: results</title>
<style>{css}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
{summary}
</header>
{body}
</main>
</body>
</html>
"""

STN_NOTE = (
    "What the first transformer hands on to the network, from before training to after the last epoch, and the mean "
    "scale of each transformer by epoch. The images are drawn without looking at labels."
)


def summarize_cells(cells: Sequence[Cell]) -> str:
    """What is in the report, and what its numbers mean."""
    done, n = sum(cell.done for cell in cells), sum(cell.n for cell in cells)
    what = f"{count_noun(n, 'trial')} in {count_noun(len(cells), 'cell')}: {done} finished"
    what += f", {n - done} unfinished and shown as far as they are." if done < n else "."
    return "\n".join(f"<p>{escape(text)}</p>" for text in (what, *HEADING.splitlines()))


def make_section(title: str, note: str, *parts: str) -> str:
    """A section with a heading and, perhaps, a note below it."""
    opening = f"<section>\n<h2>{escape(title)}</h2>" + (f"\n<p>{escape(note)}</p>" if note else "")
    return "\n".join([opening, *parts, "</section>"])


def _make_dataset_section(cells: list[Cell], more: Sequence[str]) -> str:
    """One data set: table, remarks and more of them, curves, and the curves' numbers."""
    name = cells[0].dataset
    header, *body = make_rows(cells, COLUMNS, full=True)
    notes = [f"{INTERVALS}."] if any(cell.interval for cell in cells) else []
    listed = "".join(f"<li>{escape(remark)}</li>\n" for remark in [*list_remarks(cells), *more, *notes])
    parts = [_make_table(f"Results on {name}", header, body), f"<ul>\n{listed}</ul>"]
    if any(is_trained(cell) for cell in cells):
        label = f"Accuracy by epoch on {name}; its numbers are in the table below."
        parts.append(draw_svg(lambda path: draw_curves(cells, path), label, f"curves-{cells[0].trial_ids[0]}", "plot"))
        parts.append(_make_table(f"Accuracy by epoch on {name}", *_make_epoch_rows(cells)))
    return make_section(name, "", *parts)


def _make_epoch_rows(cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    """The header and rows of mean ACC by epoch, ours and the paper's below it; some of the epochs where many."""
    lines: dict[str, dict[int, float]] = {}
    for cell in filter(is_trained, cells):
        lines[cell.label] = {epoch: float(np.mean(accs)) for epoch, accs in cell.curves.items()}
        if cell.published_curve:
            lines[f"{cell.label}, paper"] = cell.published_curve
    epochs = sorted(set().union(*lines.values()))
    if len(epochs) > EPOCHS:
        epochs = [epochs[i] for i in np.unique(np.linspace(0, len(epochs) - 1, EPOCHS).round().astype(int))]
    body = [[label, *(show(line.get(epoch)) for epoch in epochs)] for label, line in lines.items()]
    return ["epoch", *map(str, epochs)], body


def _make_study_section(run: Path, study: Study) -> str:
    """One study: its table, its figure, and the confusion matrices of one of K."""
    name = f"{study.setting}-{study.cells[0].trial_ids[0]}"
    header, *body = make_study_rows(study)
    parts = [_make_table(study.title, header, body)]
    parts.append(draw_svg(lambda path: draw_study(study, path), study.title, f"study-{name}", "plot"))
    matrices = read_matrices(run, study)
    if matrices:
        label = f"Confusion matrices by {study.symbol} on {study.dataset}"
        parts.append(draw_svg(lambda path: draw_matrices(matrices, path), label, f"confusion-{name}", "plot"))
    return make_section(study.title, NOTE + (f" {NOTE_RELABELLED}" if study.has_more_clusters else ""), *parts)


def _draw_stn_figure(cell: Cell, seed: int, trace: Path) -> str:
    """The pictures of one trial's transformers."""
    title = f"{cell.label} on {cell.dataset}, seed {seed}"
    label = f"{title}: images before and after the first transformer, and mean scales by epoch"
    return draw_svg(
        lambda path: draw_stn_pictures(trace, path, title=title), label, f"stn-{cell.trial_ids[0]}", "picture"
    )


def draw_svg(draw: Callable[[Path], Path], label: str, name: str, kind: str) -> str:
    """A drawing as an SVG element, read out as `label`; its ids begin with `name`, which is unique on the page.

    matplotlib's ids and last digits differ from one drawing to the next: ids are counted through, digits cut.
    """
    matplotlib = import_matplotlib()
    with open_scratch() as folder, matplotlib.rc_context({"svg.fonttype": "none"}):
        svg = draw(folder / "figure.svg").read_text("utf-8")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    numbers = count(1)
    ids: defaultdict[str, str] = defaultdict(lambda: f"{name}-{next(numbers)}")
    svg = re.sub(r'(\bid="|href="#|url\(#)([^")]+)', lambda match: match[1] + ids[match[2]], svg)
    svg = re.sub(r"(\d\.\d{3})\d{3,}", r"\g<1>", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    return f'<figure class="{kind}" tabindex="0">\n{svg}</figure>'


def _make_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names its rows; it scrolls where the screen is narrow."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{_dash_empty(text)}</td>" for text in rest)
        + "</tr>\n"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">\n<table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>"
    )


def _dash_empty(text: str) -> str:
    """A cell's text; nothing is an en dash."""
    return "–" if text == "-" else escape(text)


def _make_provenance_section(cells: Sequence[Cell], trials: dict[str, dict[str, Any]]) -> str:
    """What each trial ran on, and the environments that they refer to by number."""
    environments: dict[tuple[str, ...], str] = {}
    rows = []
    for cell in cells:
        for seed, name in zip(cell.seeds, cell.trial_ids, strict=True):
            attempts = [_make_environment_row(attempt) for attempt in trials[name]["attempts"]]
            numbers = [environments.setdefault(facts, str(len(environments) + 1)) for facts in attempts]
            rows.append(_make_trial_row(f"{cell.label} on {cell.dataset}, seed {seed}", trials[name], numbers))
    header = ["trial", "id", "state", "training", "device", "environment of each attempt"]
    parts = [_make_table("Trials", header, rows)]
    if environments:
        listed = [[number, *facts] for facts, number in environments.items()]
        names = ["environment", "commit", "Python", "libraries", "processor", "host"]
        width = 5 + any(facts[-1] != "-" for facts in environments)
        parts.append(_make_table("Environments", names[:width], [row[:width] for row in listed]))
    return make_section(
        "Where it ran", "A + after a commit: files differed from it. Training: without evaluation.", *parts
    )


def _make_trial_row(what: str, trial: dict[str, Any], environments: list[str]) -> list[str]:
    """The row of one trial in the table of trials."""
    state = "finished" if trial["finished"] else f"after {trial['epoch']} of {trial['epochs']} epochs"
    seconds = format_duration(trial["seconds"]) if trial["seconds"] else "-"
    return [what, trial["trial_id"], state, seconds, ", ".join(trial["devices"]) or "-", ", ".join(environments) or "-"]


def _make_environment_row(attempt: dict[str, Any]) -> tuple[str, ...]:
    """What attempts in one environment share."""
    libraries = ", ".join(f"{name} {number}" for name, number in attempt.get("versions", {}).items() if number)
    processor = f"{attempt.get('cpu', '-')} × {attempt.get('cpus', '-')}"
    commit, host = (attempt.get(name) or "-" for name in ("commit", "host"))
    return commit[:12] + "+" * commit.endswith("+"), attempt.get("python", "-"), libraries, processor, host


def _repeat_section(name: str, files: dict[str, str]) -> str:
    """The grids and the commands that repeat the run."""
    parts = [f"<h3>{escape(file)}</h3>\n<pre>{escape(text)}</pre>" for file, text in files.items()]
    return make_section("To repeat it", "", f"<pre>{escape(list_commands(name, list(files)))}</pre>", *parts)

"""The table of results: one row a method, over seeds, beside the published value; and what to know about it."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from analysis.cells import Cell, list_datasets
from analysis.intervals import LEAST, Interval
from stdac.methods import METHODS
from stdac.metrics import NEIGHBOURS
from stdac.record import PRECISION
from stdac.words import escape_line

GAP = 0.005  # a larger difference between protocol and deployed ACC is pointed out
SETTLED = 10  # seeds, as in the paper

HEADING = (
    "Mean ± standard deviation over seeds (n), after the last epoch, by the paper's protocol (batch statistics).\n"
    "deployed: ACC of the model as it is exported. best epoch: chosen by labels, for comparison only."
)
INTERVALS = (
    "95 % confidence intervals of the mean over seeds (Student's t) and of its difference to the paper's (Welch)"
)


def format_results(
    cells: list[Cell], *, markdown: bool = False, more: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> str:
    """The tables as aligned text, or as Markdown, a block a data set; then who wins, and caveats. more: further remarks
    by data set."""
    blocks = [HEADING]
    for dataset in list_datasets(cells):
        of_dataset = [cell for cell in cells if cell.dataset == dataset]
        remarks = [*list_remarks(of_dataset), *more.get(dataset, ())]
        blocks += (_make_markdown_blocks if markdown else _make_text_blocks)(of_dataset, remarks)
    text = "\n\n".join(block for block in blocks if block) + "\n"
    return "".join(f"{escape_line(line)}\n" for line in text.split("\n")[:-1])


def _make_text_blocks(cells: list[Cell], remarks: Sequence[str]) -> list[str]:
    """One data set: its table, that of the intervals, which would make it too wide, and the remarks."""
    rows = make_rows(cells, [column for column in COLUMNS if column not in INTERVAL_COLUMNS])
    blocks = [f"{cells[0].dataset}\n{format_text_table(rows)}"]
    known = [cell for cell in cells if cell.interval is not None]
    if known:
        blocks.append(f"{INTERVALS}\n{format_text_table(make_rows(known, [METHOD, *INTERVAL_COLUMNS]))}")
    return [*blocks, "\n".join(remarks)]


def _make_markdown_blocks(cells: list[Cell], remarks: Sequence[str]) -> list[str]:
    """One data set: its name, its table with the intervals, and the remarks as a list."""
    notes = [f"{INTERVALS}."] if any(cell.interval for cell in cells) else []
    remarked = "\n".join(f"- {escape_markdown(remark)}" for remark in [*remarks, *notes])
    return [f"**{cells[0].dataset}**", format_markdown_table(make_rows(cells, COLUMNS, full=True)), remarked]


class Column(NamedTuple):
    """A column: its header, its full name, which is unique, and a cell's text in it, "-" where there is nothing."""

    header: str
    name: str
    text: Callable[[Cell], str]


def make_rows(cells: list[Cell], columns: Sequence[Column], *, full: bool = False) -> list[list[str]]:
    """The header, with full names if asked for, and one row a cell, without the columns that no cell fills."""
    texts = {column: [column.text(cell) for cell in cells] for column in columns}
    filled = {column: text for column, text in texts.items() if not set(text) <= {"-", "all"}}
    header = [column.name if full else column.header for column in filled]
    return [header, *(list(row) for row in zip(*filled.values(), strict=True))]


def _show_epochs(cell: Cell) -> str:
    """How far an unfinished cell is: 3 of 10, or all."""
    return "all" if cell.epoch is None else f"{cell.epoch} of {cell.settings['epochs']}"


def _show_acc(cell: Cell) -> str:
    """.980 ± .007 (10): the mean, the standard deviation where there are several seeds, their number."""
    return f"{show_score(cell, 'acc')} ({cell.n})" if "acc" in cell.scores else "-"


def show_score(cell: Cell, score: str) -> str:
    """The mean, and the standard deviation where there is more than one seed to have one."""
    return show(cell.mean(score), cell.std(score) if cell.n > 1 else None)


def show_published(cell: Cell, score: str, *, spread: bool = False) -> str:
    """A published mean, with its standard deviation if asked for; † where it is of the best epoch."""
    value = cell.published.get(score)
    if value is None:
        return "-"
    when = "" if cell.epoch is None else f" at epoch {cell.epoch}"
    return show(value.mean, value.std if spread else None) + (when if spread else "") + " †" * value.of_best_epoch


def _show_interval(interval: Interval | None, *, signed: bool = False) -> str:
    """.975 to .985, or -.002 to +.010."""
    number = show_signed if signed else _show_number
    return "-" if interval is None else f"{number(interval.low)} to {number(interval.high)}"


def _show_noise(cell: Cell) -> str:
    """The mean share of images in no cluster, where there are any."""
    return show(cell.mean("noise")) if cell.mean("noise") else "-"


def _show_relabelled(cell: Cell) -> str:
    """The mean of `relabelled_accuracy`, where clusters are left without a class, or the paper has it."""
    more = cell.mean("acc_relabelled") != cell.mean("acc") or "acc_relabelled" in cell.published
    return show_score(cell, "acc_relabelled") if more else "-"


def _show_majority(cell: Cell) -> str:
    """The mean of `majority_accuracy`, where clusters are left without a class, or images out, or the paper has it."""
    more = _show_relabelled(cell) != "-" or cell.mean("noise") or "acc_majority" in cell.published
    return show_score(cell, "acc_majority") if more else "-"


def _show_difference(cell: Cell) -> str:
    """Our mean ACC less the published one."""
    return "-" if cell.difference is None else show_signed(cell.difference)


METHOD = Column("method", "method", lambda cell: cell.label)
INTERVAL_COLUMNS = (
    Column("ACC", "95 % interval", lambda cell: _show_interval(cell.interval)),
    Column("diff.", "95 % interval of diff.", lambda cell: _show_interval(cell.difference_interval, signed=True)),
)
COLUMNS = (
    METHOD,
    Column("epochs", "epochs", _show_epochs),
    Column("ACC (n)", "ACC (n)", _show_acc),
    INTERVAL_COLUMNS[0],
    Column("paper", "paper's ACC", lambda cell: show_published(cell, "acc", spread=True)),
    Column("diff.", "diff.", _show_difference),
    INTERVAL_COLUMNS[1],
    Column("NMI", "NMI", lambda cell: show_score(cell, "nmi")),
    Column("paper", "paper's NMI", lambda cell: show_published(cell, "nmi")),
    Column("ARI", "ARI", lambda cell: show_score(cell, "ari")),
    Column("paper", "paper's ARI", lambda cell: show_published(cell, "ari")),
    Column("noise", "noise", _show_noise),
    Column("majority", "majority ACC", _show_majority),
    Column("paper", "paper's majority ACC", lambda cell: show_published(cell, "acc_majority")),
    Column("relabelled", "relabelled ACC", _show_relabelled),
    Column("paper", "paper's relabelled ACC", lambda cell: show_published(cell, "acc_relabelled")),
    Column("deployed", "deployed", lambda cell: show(cell.mean("acc_deployed"))),
    Column("best epoch", "best epoch", lambda cell: show(cell.mean("acc_best"))),
)


def show(mean: float | None, std: float | None = None) -> str:
    """.980 ± .007, or .980, or -."""
    if mean is None:
        return "-"
    return _show_number(mean) + ("" if std is None else f" ± {_show_number(std)}")


def _show_number(value: float) -> str:
    """Three decimals without the leading zero: .980, 1.000, -.031."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(round(value, 3)) < 1 else f"{value:.3f}"


def show_signed(value: float) -> str:
    """A difference with its sign: +.003, -.012."""
    return ("+" if round(value, 3) >= 0 else "-") + _show_number(abs(value))


def format_text_table(rows: list[list[str]]) -> str:
    """Rows as columns aligned by spaces, a rule below the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def format_markdown_table(rows: list[list[str]]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def escape_markdown(text: str) -> str:
    """Text whose asterisks and bars are no Markdown."""
    return text.replace("*", r"\*").replace("|", r"\|")


def list_remarks(cells: list[Cell]) -> list[str]:
    """What to know about the table of one data set: who wins, what is not settled, what differs."""
    found = (
        name_winner(cells),
        list_unfinished(cells),
        list_few(cells),
        _list_unsettled(cells),
        _list_gaps(cells),
        _explain_best_epoch(cells),
        _explain_others(cells),
        _list_precisions(cells),
    )
    return [remark for remark in found if remark]


def name_winner(cells: list[Cell]) -> str | None:
    """Who has the highest mean ACC when finished, against the floor; or that there is no ground truth to score by."""
    if not any("acc" in cell.scores for cell in cells):
        return f"{cells[0].dataset} has no ground truth: nothing is scored. The clusters are in assignments.parquet."
    final = [cell for cell in cells if "acc" in cell.scores and cell.epoch is None]
    if not final:
        return None
    best, *others = sorted(final, key=lambda cell: -(cell.mean("acc") or 0))
    among = "" if len(final) == len(cells) else " among what is finished"
    text = f"Highest mean ACC on {best.dataset}{among}: {best.label}, {show(best.mean('acc'))} (n = {best.n})"
    learned = not is_floor(best)
    other = next((cell for cell in others if is_floor(cell) == learned), None)
    if other is None:
        return f"{text}."
    who, acc = other.label, show(other.mean("acc"))
    return f"{text}; " + (f"{who} has {acc}." if learned else f"the best learned method is {who} with {acc}.")


def is_floor(cell: Cell) -> bool:
    """Whether a cell's method is one of those that learned ones have to beat."""
    return cell.method in METHODS and METHODS[cell.method].is_floor


def list_unfinished(cells: list[Cell]) -> str | None:
    """Which cells are not finished, after which epoch they are shown, and what the published value beside them is."""
    listed = [
        f"{c.label} (after {_show_epochs(c)} epochs" + (f"; {c.done} of {c.n} seeds are finished)" if c.done else ")")
        for c in cells
        if c.epoch is not None
    ]
    if not listed:
        return None
    text = f"Unfinished, shown after the last epoch that all seeds have: {'; '.join(listed)}."
    if any(cell.published for cell in cells if cell.epoch is not None):
        text += " The paper's value beside them is its mean after the same epoch, read off its figure to ± .01."
    return text


def list_few(cells: list[Cell]) -> str | None:
    """Which cells have too few seeds for an interval."""
    few = [cell for cell in cells if cell.n < LEAST and "acc" in cell.scores]
    if not few:
        return None
    of_all = len(few) == len(cells)
    which = "" if of_all else f" of {'; '.join(c.label for c in few)}"
    return f"n < {LEAST}: no interval{which}."


def _list_unsettled(cells: list[Cell]) -> str | None:
    """A warning where several of 1, 2 and 3 STN are compared over fewer seeds than the paper's."""
    stns = sorted({c.settings["stn"] for c in cells if c.settings.get("stn") and c.n < SETTLED})
    compared = {c.settings["stn"] for c in cells if c.settings.get("stn")}
    if not stns or len(compared) < 2:
        return None
    names = [str(n) for n in sorted(compared)]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"With fewer than {SETTLED} seeds the ranking of {listed} STN is not settled."


def _list_gaps(cells: list[Cell]) -> str | None:
    """Where the deployed model's ACC is not the protocol's."""
    wide = [f"{c.label} ({show_signed(c.gap)})" for c in cells if abs(c.gap) > GAP]
    if not wide:
        return None
    what = f"Deployed and protocol ACC differ by more than {_show_number(GAP)} (deployed less protocol, widest seed)"
    return f"{what}: {'; '.join(wide)}."


def _explain_best_epoch(cells: list[Cell]) -> str | None:
    """What † means, where it occurs."""
    if not any(value.of_best_epoch for cell in cells for value in cell.published.values()):
        return None
    return "† The paper took the best epoch of each run, by labels: compare with the column best epoch, as diff. does."


def _explain_others(cells: list[Cell]) -> str | None:
    """What the accuracies of other papers are, where one is shown."""
    if all(_show_majority(cell) == "-" for cell in cells):
        return None
    text = "majority: ACC where ten random images of each cluster name it, several clusters the same class if need be"
    if any(_show_relabelled(cell) != "-" for cell in cells):
        text += "; relabelled: ACC where clusters that are left without a class stand for the first one"
    return f"{text}. Noise is wrong."


def _list_precisions(cells: list[Cell]) -> str | None:
    """How often the nearest images have an image's class, in the spaces of a method and in pixels."""
    listed = []
    for cell in cells:
        names = [name for name in cell.scores if name.startswith(PRECISION)]
        told = ", ".join(f"{show(cell.mean(name))} in {name.removeprefix(PRECISION)}" for name in names)
        listed += [f"{cell.label}: {told}"] if told else []
    return f"Share of an image's {NEIGHBOURS} nearest that have its class: {'; '.join(listed)}." if listed else None

"""A grid: a TOML file whose list-valued keys are crossed into Trials."""

import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stdac.errors import StdacError
from stdac.text import read_text
from stdac.trial import Trial, list_named_trials, list_naming_fields

NAME = re.compile(r"[^./\\][^/\\]{0,99}")
MOST_TRIALS = 1_000_000  # of a block: a number with a few digits too many would take all memory

PRESETS = Path(__file__).parent / "grids"


class Grid(NamedTuple):
    """A named set of trials. text: the TOML as it was written, kept with the run. slurm: how to ask SLURM for nodes."""

    name: str
    trials: list[Trial]
    text: str
    slurm: dict[str, Any]


def list_presets() -> list[str]:
    """The grids that come with stdac."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_grid(name: str, without: Path | None = None) -> Grid:
    """Read a preset or a TOML file and expand it, without the trials that are finished in a table of rows.

    The file has `[defaults]`, perhaps `[slurm]` (see `cluster_jobs.slurm`), and any number of `[[trials]]`
    blocks with the keys of a Trial; `params` is a table of the method's hyperparameters. A list is an axis: a block is
    the product of its axes; of a parameter that is a tuple a list is one value, and a list of lists an axis.
    `seeds = 10` is short for `seed = [0, ..., 9]`. A parameter that names trials takes their ids, or blocks of its own,
    see `resolve_cell`. Equal trials are kept once, in the order of the file, each after those that it needs, which are
    added. Paths of data sets start in the file's folder. Raises StdacError for an
    unknown preset (the known ones are named), a file that is not TOML, or a trial that `stdac.methods.resolve` refuses.

    >>> [trial.params.stn for trial in load_grid("quick").trials if trial.method == "st-dac"]
    [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
    """
    from stdac.methods import add_needs

    path = PRESETS / f"{name}.toml" if name in list_presets() else Path(name)
    if not path.is_file():
        raise StdacError(f"unknown grid {name!r}: expected one of {', '.join(list_presets())}, or a TOML file")
    text = read_text(path)
    try:
        spec = load_spec(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, and brackets as deep, too
        raise StdacError(f"{path} is not TOML: {error}") from error
    check_keys(path, spec)
    name = _read_name(path, spec)
    defaults = spec.get("defaults", {})
    trials: list[Trial] = []
    for number, block in enumerate(spec["trials"], 1):
        try:
            trials += resolve_block(defaults, block, path.parent)
        except RecursionError as error:
            raise StdacError(f"{path}, block {number} of [[trials]]: it has too many blocks within blocks") from error
        except StdacError as error:
            where = "[defaults]" if _is_of_defaults(defaults, block, str(error)) else f"block {number} of [[trials]]"
            raise StdacError(f"{path}, {where}: {error}") from error
    finished = set() if without is None else _list_finished(without)
    left = _leave_out(trials, finished)
    if not trials:
        raise StdacError(f"{path} has no trials: expected no empty list among its axes")
    if not left:
        raise StdacError(f"all {len(trials)} trials of {path} are finished in {without}: nothing is left")
    return Grid(name, add_needs(left), text, spec.get("slurm", {}))


def load_spec(text: str) -> dict[str, Any]:
    """The tables of a grid file. Raises ValueError or RecursionError for what is not TOML."""
    return tomllib.loads(text)


def _list_finished(path: Path) -> set[str]:
    """The ids of the finished trials of a run, or of a table of rows."""
    from analysis.runs import read_metrics

    return set(read_metrics(path)["trial_id"].to_pylist())


def _leave_out(trials: list[Trial], finished: set[str]) -> list[Trial]:
    """The trials that are not finished, and those that they name, whose results they are given."""
    wanted = {trial.id for trial in trials} - finished
    for trial in reversed(trials):  # each is after those that it names
        wanted |= set(list_named_trials(trial.params)) if trial.id in wanted else set()
    return [trial for trial in trials if trial.id in wanted]


def check_keys(path: Path, spec: Mapping[str, Any]) -> None:
    """Raise StdacError where the file's shape is not a grid's."""
    extra = set(spec) - {"name", "about", "defaults", "slurm", "trials"}
    if extra:
        raise StdacError(
            f"{path} has an unknown key {min(extra)!r}: expected name, about, [defaults], [slurm] and [[trials]]"
        )
    tables = {"defaults": spec.get("defaults", {}), "slurm": spec.get("slurm", {})}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise StdacError(f"{path} has {name} = {str(table)[:80]}, expected a table [{name}]")
    blocks = spec.get("trials")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(b, dict) for b in blocks):
        raise StdacError(f"{path} has no trials: expected at least one [[trials]] block")


def _read_name(path: Path, spec: Mapping[str, Any]) -> str:
    """The grid's name, which its run folder gets; the file's where it has none. Raises StdacError for what is none."""
    name = spec.get("name", path.stem)
    if "name" in spec and not (isinstance(name, str) and NAME.fullmatch(name) and name.isprintable()):
        raise StdacError(
            f"{path} has name = {json.dumps(name, default=str)}, expected a word that its run folder can have: no "
            "slash, no dot at the beginning, no control characters"
        )
    return str(name)


def resolve_block(defaults: Mapping[str, Any], block: Mapping[str, Any], base: Path) -> list[Trial]:
    """The trials of a block in a file in the folder `base`. Raises StdacError as `stdac.methods.resolve` does."""
    return [trial for cell in expand(merge(defaults, block)) for trial in resolve_cell(cell, base)]


SHARED = ("dataset", "limit", "image_size", "background", "source", "n_clusters")
"""What a block within a trial has from that trial, as its seed, unless it says otherwise."""


def resolve_cell(cell: Mapping[str, Any], base: Path) -> list[Trial]:
    """A trial, after those that its parameters name by blocks of their own, see `stdac.trial.names_trials`.

    Such a block has the trial's data set, number of clusters and seed unless it says otherwise; `seeds = m` in it makes
    m trials, with the seeds s m, ..., s m + m - 1 where the trial has the seed s: those of two seeds share none.
    """
    from stdac.methods import METHODS, list_tuple_params, resolve

    method = str(cell.get("method", "st-dac"))
    named: list[Trial] = []
    params = dict(cell["params"])
    for name in list_naming_fields(METHODS[method].params):
        if name not in params:
            continue
        given = params[name]
        ids: list[Any] = []
        for item in given if isinstance(given, list | tuple) else [given]:
            groups = _resolve_inner(name, item, cell, base) if isinstance(item, Mapping) else []
            ids += [group[-1].id for group in groups] if isinstance(item, Mapping) else [item]
            named += [trial for group in groups for trial in group]
        if name not in list_tuple_params([method]) and len(ids) != 1:
            raise StdacError(f"got {len(ids)} trials for {name}, expected one: a block with no list and no seeds")
        params[name] = tuple(ids) if name in list_tuple_params([method]) else ids[0]
    return [*named, resolve({**cell, "params": params}, base)]


def _resolve_inner(name: str, block: Mapping[str, Any], cell: Mapping[str, Any], base: Path) -> list[list[Trial]]:
    """The trials of a block within a cell, each after those that it names itself."""
    inner = {key: cell[key] for key in SHARED if cell.get(key) is not None}
    if not _takes_k(block.get("method")):
        inner.pop("n_clusters", None)
    inner |= block
    seed, count = cell.get("seed", 0), inner.get("seeds")
    if "seed" not in inner and count is None:
        inner["seed"] = seed
    elif "seed" not in inner and type(seed) is int and type(count) is int and 1 <= count <= MOST_TRIALS:
        del inner["seeds"]
        inner["seed"] = [seed * count + i for i in range(count)]
    try:
        return [resolve_cell(each, base) for each in expand(merge({}, inner))]
    except StdacError as error:
        raise StdacError(f"in {name}: {error}") from error


def _takes_k(method: Any) -> bool:
    """Whether a method of this name is given the number of clusters; an unknown one is complained of elsewhere."""
    from stdac.methods import METHODS

    return not isinstance(method, str) or method not in METHODS or METHODS[method].takes_k


def _is_of_defaults(defaults: Mapping[str, Any], block: Mapping[str, Any], error: str) -> bool:
    """Whether an error names a key that the block has from the defaults alone."""
    params = set(defaults.get("params", {})) - set(block.get("params", {}))
    return any(f"{key} = " in error or repr(key) in error for key in {*defaults, *params} - set(block))


def merge(defaults: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """The block over the defaults, parameter by parameter."""
    for table in (defaults, block):
        if not isinstance(table.get("params", {}), Mapping):
            raise StdacError(f"got params = {str(table['params'])[:80]}, expected a table of the method's parameters")
    params = {**defaults.get("params", {}), **block.get("params", {})}
    return {**defaults, **block, **({"params": params} if params else {})}


def _read_tuples(method: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a block, lists that are one value of a tuple turned into tuples: all other lists are axes."""
    from stdac.methods import METHODS, check_names, list_tuple_params

    for name in method if isinstance(method, list) else [method or "st-dac"]:
        check_names({str(name)}, METHODS, "method")
    names = list_tuple_params(method if isinstance(method, list) else [method or "st-dac"])
    wrapped: dict[str, Any] = {n: value for n, value in params.items() if n in names and isinstance(value, list)}
    for name, value in wrapped.items():
        is_axis = bool(value) and all(isinstance(item, list) for item in value)
        wrapped[name] = [tuple(item) for item in value] if is_axis else tuple(value)
    return {**params, **wrapped}


def expand(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The product of a block's lists, the last key varying fastest and the seed slowest."""
    block = dict(block)
    if "seeds" in block:
        count = block.pop("seeds")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1 or "seed" in block:
            raise StdacError(f"got seeds = {count!r}, expected a whole number of at least 1, and no seed beside it")
        if count > MOST_TRIALS:
            raise StdacError(f"got seeds = {count}, expected at most {MOST_TRIALS:,} trials in a block")
        block["seed"] = list(range(count))
    params = block.pop("params", {})
    axes: dict[tuple[str, ...], Any] = {("seed",): block.pop("seed", 0)}
    axes |= {(key,): value for key, value in block.items()}
    axes |= {("params", key): value for key, value in _read_tuples(block.get("method"), params).items()}
    values_of = [value if isinstance(value, list) else [value] for value in axes.values()]
    if math.prod(map(len, values_of)) > MOST_TRIALS:
        raise StdacError(f"got a block of {math.prod(map(len, values_of)):,} trials, expected at most {MOST_TRIALS:,}")
    for values in itertools.product(*values_of):
        cell: dict[str, Any] = {"params": {}}
        for key, value in zip(axes, values, strict=True):
            (cell["params"] if len(key) == 2 else cell)[key[-1]] = value
        yield cell


def to_toml(value: Any) -> str:
    """A value of a grid's file as TOML in one line; strings, numbers, truth values and lists are as in JSON."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {to_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(to_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)

"""Where and with what the trials of a run were computed, and the grid and commands that repeat them."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.runs import SETTINGS, TEXT_SETTINGS, list_trial_folders
from stdac.errors import StdacError
from stdac.files import read_json
from stdac.folder import TrialFolder

FACTS = ("attempt", "began", "commit", "python", "versions", "cpu", "cpus")
"""What of a lease may be published: nothing that names a host, a user, a path or a job."""


def describe_environment(run: Path, rows: pa.Table, *, hosts: bool) -> list[dict[str, Any]]:
    """What each trial of `rows` was computed on: plain values for JSON, in the order of the rows.

    run: where `rows`, a ROWS table, were read from; of a folder that `analysis.publish` wrote, what it kept. hosts:
    also the hosts' names. A trial has trial_id, method, dataset, seed, params, finished, epoch (its last), epochs,
    seconds (of training, without evaluation), devices, and attempts with FACTS of each.
    """
    kept = {trial["trial_id"]: trial for trial in _read_kept(run)}
    folders = {folder.path.name: folder for folder in ([] if run.is_file() else list_trial_folders(run))}
    trials: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        trials.setdefault(row["trial_id"], []).append(row)
    facts = (*FACTS, "host") if hosts else FACTS
    described = []
    for name, of_trial in trials.items():
        attempts = _read_attempts(folders[name], facts) if name in folders else kept.get(name, {}).get("attempts", [])
        described.append(describe_trial(of_trial) | {"attempts": attempts})
    return described


def _read_kept(run: Path) -> list[dict[str, Any]]:
    """The environment.json of a published folder; empty where there is none."""
    path = run / "environment.json"
    return list(read_json(path)) if path.is_file() else []


def describe_trial(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows of one trial tell of it."""
    first = rows[0]
    same = {name: first[name] for name in ("trial_id", "method", "dataset", "seed", "finished", "epochs")}
    return same | {
        "params": json.loads(first["params"]),
        "epoch": max(row["epoch"] for row in rows),
        "seconds": round(sum(row["seconds"] or 0.0 for row in rows), 1),
        "devices": list(dict.fromkeys(row["device"] for row in rows if row["device"])),
    }


def _read_attempts(folder: TrialFolder, facts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The chosen facts of every attempt at a trial, in order."""
    leases = (folder.lease(number) for number in folder.leases())
    return [{fact: lease[fact] for fact in facts if fact in lease} for lease in leases]


def read_grids(run: Path, rows: pa.Table) -> dict[str, str]:
    """The grid files of a run, name -> TOML; one worked out from its trials where it was launched without."""
    found = [] if run.is_file() else sorted(run.glob("grid*.toml"), key=lambda path: (len(path.name), path.name))
    return {path.name: path.read_text("utf-8") for path in found} or {"grid.toml": derive_grid(rows)}


def derive_grid(rows: pa.Table) -> str:
    """A grid of exactly the trials of a ROWS table, a block for those that differ in their seed only."""
    blocks: dict[str, list[int]] = {}
    for trial in {row["trial_id"]: row for row in rows.to_pylist()}.values():
        spec = {name: trial[name] for name in ("dataset", "method", *SETTINGS, *TEXT_SETTINGS)}
        spec = shorten_spec(spec | {"params": json.loads(trial["params"])})
        blocks.setdefault(json.dumps(spec), []).append(trial["seed"])
    texts = ["# Worked out from the trials, which were started one by one.\n"]
    for spec_json, seeds in sorted(blocks.items()):
        spec = json.loads(spec_json)
        params = ", ".join(f"{name} = {write_toml(value)}" for name, value in spec.pop("params").items())
        lines = [f"{name} = {write_toml(value)}\n" for name, value in (spec | {"seed": sorted(seeds)}).items()]
        texts.append("[[trials]]\n" + "".join(lines) + (f"params = {{ {params} }}\n" if params else ""))
    return "\n".join(texts)


def shorten_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's specification without what `stdac.methods.resolve` fills in by itself; what its title names stays."""
    from stdac.methods import METHODS, resolve

    short = {name: value for name, value in spec.items() if value is not None}
    told = METHODS[spec["method"]].title_params if spec["method"] in METHODS else ()
    short["params"] = dict(sorted(short["params"].items()))
    with suppress(StdacError):  # of a method or parameter that this version does not know: everything stays
        wanted = resolve(short)
        for holder, names in ((short, (*SETTINGS, *TEXT_SETTINGS)), (short["params"], sorted(short["params"]))):
            for name in [name for name in names if name in holder and name not in told]:
                value = holder.pop(name)
                if not _does_resolve(short, wanted):
                    holder[name] = value
    return short


def _does_resolve(spec: Mapping[str, Any], wanted: Any) -> bool:
    """Whether a specification resolves to the wanted trial."""
    from stdac.methods import resolve

    with suppress(StdacError):
        return bool(resolve(spec) == wanted)
    return False


def write_toml(value: Any) -> str:
    """A string, number, truth value or list of them as TOML."""
    return json.dumps(value)


def list_commands(name: str, grid_names: list[str]) -> str:
    """The commands that repeat a run of that name and show it."""
    launches = "".join(f"stdac-grid launch {grid} --out runs/{name}\n" for grid in grid_names)
    return f"{launches}stdac-grid results runs/{name} --unfinished\nstdac-grid report runs/{name} --unfinished\n"

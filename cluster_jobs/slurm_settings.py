"""How to ask SLURM for nodes: what the user said, completed with what the cluster says of its partitions. Pure."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from stdac.errors import StdacError

TIME_MIN = 240  # a task's time limit where neither the user nor the partition says less; it is requeued and goes on

ENVIRONMENT = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "time": "SBATCH_TIMELIMIT",
    "gres": "SBATCH_GRES",
    "mem_per_cpu": "SBATCH_MEM_PER_CPU",
    "constraint": "SBATCH_CONSTRAINT",
}
"""Where sbatch itself looks for a setting."""

OURS = {"array", "error", "job-name", "no-requeue", "open-mode", "output", "requeue", "signal"}
"""Options of sbatch that the backend needs as it sets them."""

FROM_OUTSIDE = {"bb", "bbf", "chdir", "export", "export-file", "get-user-env", "gid", "prolog", "uid", "wrap"}
"""Options of sbatch that choose what runs, as whom or where: not for a grid's file, which may be a stranger's. Nor are
those of containers."""

WHOLE = {"mem"}
"""Options of sbatch with whose names others begin that are ours."""

OPTION = re.compile(r"[a-z][a-z0-9-]*")
UNSAFE = re.compile(r"""[\x00-\x1f\x7f-\x9f\u2028\u2029'"\\#]""")
"""What no setting holds: it would end a line of the batch script, or sbatch reads it otherwise than a shell."""

OVERRIDING = {*ENVIRONMENT.values(), "SBATCH_ARRAY_INX", "SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_GPU"} | {
    "SBATCH_NO_REQUEUE",
    *(f"SBATCH_{name.upper().replace('-', '_')}" for name in OURS),
}
"""Variables by which sbatch would override its script: what they say is in the settings, or must not be said."""


@dataclass(frozen=True)
class Settings:
    """How to ask SLURM for the tasks of a run's array; None is left to the cluster.

    time: of one task, in minutes. gres: of one task ("gpu:1"), "" for none. workers_per_node: tasks a node, for which
    the array is sized; SLURM places them. extra: further options of sbatch; a value of "" for one that has none.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: int | None = None
    gres: str | None = None
    mem_per_cpu: str = "2000M"
    cpus_per_task: int = 2
    constraint: str | None = None
    workers_per_node: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


class Partition(NamedTuple):
    """What sinfo says of one. time: its limit in minutes, None without. gpus: of the node that has most."""

    time: int | None
    gpus: int
    default: bool


def choose_settings(flags: Mapping[str, Any], table: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Settings from flags, over sbatch's environment variables, over a grid's [slurm] table, over the defaults.

    A flag that is None or () was not given. Raises StdacError for keys that do not exist and values that cannot be.
    """
    names = [f.name for f in fields(Settings)]
    unknown = sorted(set(table) - set(names))
    if unknown:
        raise StdacError(f"[slurm] has an unknown key {unknown[0]!r}: expected one of {', '.join(names)}")
    given = dict(table)
    given |= {key: environment[variable] for key, variable in ENVIRONMENT.items() if environment.get(variable)}
    given |= {key: value for key, value in flags.items() if value not in (None, ())}
    of_grid, given["extra"] = _read_extra(table.get("extra", {})), _read_extra(flags.get("extra") or {})
    for name in of_grid:
        if _abbreviates(name, {*FROM_OUTSIDE, "container"}) or name.startswith("container"):
            raise StdacError(f"got {name!r} in [slurm.extra], expected it as --sbatch {name}=... on the command line")
    given["extra"] = of_grid | given["extra"]
    for key, value in given.items():
        if key == "time":
            given[key] = parse_minutes(value)
        elif key in ("cpus_per_task", "workers_per_node"):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise StdacError(f"got {key} = {value!r}, expected a whole number of at least 1")
        elif key != "extra":
            given[key] = _check_value(key, value)
    return Settings(**given)


def _read_extra(extra: Mapping[str, Any] | Sequence[str]) -> dict[str, str]:
    """Options of sbatch from a table, or from words like "reservation=friday"; what has a key of its own is refused."""
    if isinstance(extra, str) or not isinstance(extra, Mapping | Sequence):
        raise StdacError(f"got extra = {extra!r} in [slurm], expected a table of options of sbatch")
    if not isinstance(extra, Mapping):
        extra = {key: value for key, _, value in (word.partition("=") for word in extra)}
    options = {str(key).lstrip("-").replace("_", "-"): _check_value(key, value) for key, value in extra.items()}
    for name in options:
        if not OPTION.fullmatch(name):
            raise StdacError(f"got an option of sbatch named {name!r}, expected small letters, digits and -")
        if _abbreviates(name, {f.name.replace("_", "-") for f in fields(Settings)}):
            raise StdacError(f"got {name!r} among the further options of sbatch: it has a key and a flag of its own")
        if _abbreviates(name, OURS):
            raise StdacError(f"got {name!r} among the further options of sbatch: stdac has to set it itself")
    return options


def _abbreviates(name: str, options: Iterable[str]) -> bool:
    """Whether sbatch may take a name for one of the options: it knows them by their beginnings, too."""
    return name not in WHOLE and any(option.startswith(name) for option in options)


def _check_value(key: str, value: Any) -> str:
    """A setting as text. Raises StdacError for what would not stay one value in a batch script."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise StdacError(f"got {key} = {value!r} as a setting of SLURM, expected one text or number")
    if found := UNSAFE.search(str(value)):
        raise StdacError(f"got {key} = {value!r} as a setting of SLURM, expected it without {found[0]!r}")
    return str(value)


def parse_minutes(duration: str | int) -> int:
    """A duration in SLURM's formats as minutes, seconds rounded up: 90, 30:00, 1:30:00, 1-12, 1-12:30, 1-12:30:00."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(duration).strip())
    if match is None:
        raise StdacError(f"got a time of {duration!r}, expected minutes, H:M:S or D-H:M:S, such as 90 or 1-12:00:00")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:
        parts.insert(0, 0)
    hours, mins, seconds = (*parts, 0, 0)[:3]
    whole = int(days or 0) * 1440 + hours * 60 + mins + math.ceil(seconds / 60)
    if whole < 1:
        raise StdacError(f"got a time of {duration!r}, expected at least one minute")
    return whole


def complete_settings(asked: Settings, known: Mapping[str, Partition], device: str) -> Settings:
    """The settings with time, gres and workers_per_node filled in for the partitions of a cluster and a device."""
    names = asked.partition.split(",") if asked.partition else [name for name, part in known.items() if part.default]
    mine = [known[name] for name in names if name in known]
    node_gpus = 0 if device == "cpu" else max((part.gpus for part in mine), default=0)
    gres = asked.gres if asked.gres is not None else "gpu:1" if node_gpus else ""
    gpus = count_gpus(gres)
    return replace(
        asked,
        time=asked.time or min([TIME_MIN, *(part.time for part in mine if part.time)]),
        gres=gres,
        workers_per_node=asked.workers_per_node or (max(1, node_gpus // gpus) if gpus else 1),
    )


def count_gpus(gres: str) -> int:
    """The number of GPUs in a gres: "gpu:2" has 2, "gpu:a100:4(S:0-1),gpu:v100:1" has 5, "(null)" none."""
    items = re.sub(r"\([^)]*\)", "", gres).split(",")
    words = [item.split(":") for item in items if item.split(":")[0] == "gpu"]
    return sum(int(word[-1]) if word[-1].isdigit() else 1 for word in words)


def read_partitions(text: str) -> dict[str, Partition]:
    """Partitions from lines of sinfo like "gpu*|1-00:00:00|gpu:2", several a partition where its nodes differ."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, limit, gres = line.split("|", 2)
        default = name.endswith("*")
        name = name.rstrip("*")
        gpus = max(count_gpus(gres), found[name].gpus if name in found else 0)
        found[name] = Partition(None if limit == "infinite" else parse_minutes(limit), gpus, default)
    return found


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for sbatch: without what would override the script, or tell of a job that we are in."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {
        key: value
        for key, value in environment.items()
        if key not in OVERRIDING and (key in kept or not key.startswith("SLURM_"))
    }

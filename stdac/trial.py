"""A Trial: the frozen description of one training run, its id, and its JSON."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Self

from stdac.errors import StdacError

SCHEMA_VERSION = 1


def added(version: str, before: Any, default: Any = MISSING) -> Any:
    """A dataclass field that `version` of stdac added to trials, which until then had the value `before`.

    It stays out of a trial's JSON, and so out of its id, while it has that value; a stored trial without it had it.
    default: of new trials, `before` if not given. For fields of Trial and of Params.

    >>> @dataclass(frozen=True)
    ... class SmoothedParams(Params):
    ...     smoothing: float = added("0.2", before=0.0, default=0.1)
    >>> list_values(SmoothedParams()), list_values(SmoothedParams(smoothing=0.0))
    ({'smoothing': 0.1}, {})
    """
    return field(default=before if default is MISSING else default, metadata={"added": version, "before": before})


def names_trials(default: Any = ()) -> Any:
    """A field of Params whose value are the ids of other trials, whose results the method is given: a tuple of strings,
    or one string, which is empty for none.

    >>> @dataclass(frozen=True)
    ... class FollowerParams(Params):
    ...     leader: str = names_trials("")
    >>> list_named_trials(FollowerParams("c6978ba90d329783"))
    ('c6978ba90d329783',)
    """
    return field(default=default, metadata={"names_trials": True})


@dataclass(frozen=True)
class Params:
    """A method's hyperparameters: each method file derives its own, with default, unit and source of every field.

    Fields are numbers, truth values, strings or tuples of them, or None; one that is added later is made by `added`.
    """

    def resolved(self, dataset: str) -> Self:
        """The same parameters with everything that depends on the data set filled in."""
        return self

    def choose_epochs(self, epochs: int) -> int:
        """The epochs of the main phase where nobody says how many; epochs: the method's own."""
        return epochs


@dataclass(frozen=True)
class Trial:
    """One training run, fully resolved: equal trials have equal ids on every machine.

    method: a name in METHODS. dataset: a name or a path, see `stdac.data.load`. seed: of every random number.
    n_clusters: K >= 2, or 0 where the method takes none. epochs: of the method's main phase (0 where it has none).
    params: the method's own dataclass. limit: train on a fixed random subset of that many images (None: all).
    image_size: side in pixels that images are resized to (None: as they are, which must then all be of one size).
    source: a second data set whose labels may be read. needs: the ids of the trials whose results this one is given, in
    the order of `Method.needs`. background: what the transparency of pictures is laid on, of
    `stdac.pictures.colour.BACKGROUNDS`.

    Device, workers, paths and compilation are not part of it: they do not define the experiment.

    >>> from stdac.methods import resolve
    >>> trial = resolve({"dataset": "mnist", "method": "kmeans"})
    >>> trial.id, trial.n_clusters
    ('c6978ba90d329783', 10)
    """

    method: str
    dataset: str
    seed: int
    n_clusters: int
    epochs: int
    params: Params
    limit: int | None = None
    image_size: int | None = None
    source: str | None = added("0.2", before=None)
    needs: tuple[str, ...] = added("0.2", before=())
    background: str = added("0.2", before="black")

    def to_json(self) -> dict[str, Any]:
        """The trial as plain values, with the schema version."""
        return list_values(self) | {"schema_version": SCHEMA_VERSION}

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON of all resolved values."""
        return make_id(self.to_json())


def list_values(record: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them, without those `added` ones that have the value from before."""
    values = {f.name: getattr(record, f.name) for f in fields(record) if not _is_as_before(record, f.name, f.metadata)}
    return {name: _to_plain(value) for name, value in values.items()}


def _is_as_before(record: Any, name: str, metadata: Mapping[str, Any]) -> bool:
    value = getattr(record, name)
    before = metadata.get("before", MISSING)
    return bool(value == before) and isinstance(value, bool) == isinstance(before, bool)


def _to_plain(value: Any) -> Any:
    if is_dataclass(value):
        return list_values(value)
    return [_to_plain(item) for item in value] if isinstance(value, tuple) else value


def list_naming_fields(kind: type[Any]) -> list[str]:
    """The fields of a Params dataclass that were made by `names_trials`."""
    return [f.name for f in fields(kind) if f.metadata.get("names_trials")]


def list_named_trials(params: Any) -> tuple[str, ...]:
    """The ids that the parameters name, see `names_trials`, in the order of the fields."""
    values = [getattr(params, name) for name in list_naming_fields(type(params))]
    return tuple(name for value in values for name in ([value] if isinstance(value, str) else value) if name)


def list_earlier_values(kind: type[Any]) -> dict[str, Any]:
    """What a stored trial without some of a dataclass' fields had in them: those that were `added`."""
    return {f.name: f.metadata["before"] for f in fields(kind) if "before" in f.metadata}


def make_id(trial_json: Mapping[str, Any]) -> str:
    """The id of a trial from its JSON. Raises ValueError or RecursionError for what is no trial's."""
    return hashlib.sha256(write_canonical(trial_json).encode()).hexdigest()[:16]


def write_canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same text for equal values on every Python version."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def choose_telling(settings: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """The fewest of the names, taken greedily in their order, by whose values all of the different settings differ."""
    chosen: list[str] = []
    for name in names:
        if count_distinct(settings, [*chosen, name]) > count_distinct(settings, chosen):
            chosen.append(name)
    return chosen


def count_distinct(settings: Sequence[Mapping[str, Any]], names: Sequence[str]) -> int:
    """How many different values settings have in these names together."""
    return len({write_canonical([values.get(name) for name in names]) for values in settings})


def check_choices(params: Params, allowed: Mapping[str, Iterable[str]]) -> None:
    """Raise StdacError where a parameter has none of the values that it may have."""
    for name, values in allowed.items():
        if getattr(params, name) not in values:
            raise StdacError(f"got {name} = {getattr(params, name)!r}, expected one of {', '.join(values)}")


def check_ranges(params: Params, least: Mapping[str, int], positive: Iterable[str] = ("width", "lr")) -> None:
    """Raise StdacError where a parameter is below its least value, or one that must be positive and finite is not."""
    for name, number in least.items():
        if getattr(params, name) < number:
            raise StdacError(f"got {name} = {getattr(params, name)}, expected at least {number}")
    for name in positive:
        if not 0 < getattr(params, name) < float("inf"):
            raise StdacError(f"got {name} = {getattr(params, name)}, expected a number above 0")

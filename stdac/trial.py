"""A Trial: the frozen description of one training run, its id, and its JSON."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from stdac.errors import StdacError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Params:
    """A method's hyperparameters: each method file derives its own, with default, unit and source of every field."""

    def resolved(self, dataset: str) -> Self:
        """The same parameters with everything that depends on the data set filled in."""
        return self


@dataclass(frozen=True)
class Trial:
    """One training run, fully resolved: equal trials have equal ids on every machine.

    method: a name in METHODS. dataset: a name or a path, see `stdac.data.load`. seed: of every random number.
    n_clusters: K >= 2. epochs: of the method's main phase (0 where it has none). params: the method's own dataclass.
    limit: train on a fixed random subset of that many images (None: all). image_size: side in pixels that images are
    resized to (None: as they are, which must then all be of one size).

    Device, workers, paths and compilation are not part of it: they do not define the experiment.
    """

    method: str
    dataset: str
    seed: int
    n_clusters: int
    epochs: int
    params: Params
    limit: int | None = None
    image_size: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The trial as plain values, with the schema version."""
        return asdict(self) | {"schema_version": SCHEMA_VERSION}

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON of all resolved values."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()[:16]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same text for equal values on every Python version."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def check_ranges(params: Params, least: Mapping[str, int], positive: Iterable[str] = ("width", "lr")) -> None:
    """Raise StdacError where a parameter is below its least value, or one that must be positive and finite is not."""
    for name, number in least.items():
        if getattr(params, name) < number:
            raise StdacError(f"got {name} = {getattr(params, name)}, expected at least {number}")
    for name in positive:
        if not 0 < getattr(params, name) < float("inf"):
            raise StdacError(f"got {name} = {getattr(params, name)}, expected a number above 0")

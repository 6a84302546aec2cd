"""Every clustering system of the grid: METHODS, name -> method, and how a specification becomes a Trial."""

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from stdac.data import CLASSES, NAMES
from stdac.errors import StdacError
from stdac.methods.dac_star import DAC_STAR
from stdac.methods.dec import DEC
from stdac.methods.kmeans import KMEANS, PCA_KMEANS
from stdac.methods.method import Fitted, Method
from stdac.methods.st_dac import ST_DAC
from stdac.trial import SCHEMA_VERSION, Params, Trial

METHODS: dict[str, Method] = {
    "kmeans": KMEANS,
    "pca-kmeans": PCA_KMEANS,
    "dec": DEC,
    "dac-star": DAC_STAR,
    "st-dac": ST_DAC,
}

KEYS = ("method", "dataset", "seed", "n_clusters", "epochs", "params", "limit", "image_size")


def resolve(spec: Mapping[str, Any]) -> Trial:
    """A Trial from plain values: what a grid cell, a command line or a trial.json says.

    spec: KEYS, of which only `dataset` must be there; schema_version is checked. Everything left out takes its
    default: method st-dac, seed 0, the method's own epochs and parameters, K = 10 for the data sets that have a name.
    Raises StdacError that names the valid keys, methods or parameters where one is unknown or of a wrong type.
    """
    version = spec.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise StdacError(f"got a trial of schema version {version}, this stdac reads {SCHEMA_VERSION}")
    unknown(set(spec) - {"schema_version"}, KEYS, "trial key")
    name, dataset = spec.get("method", "st-dac"), spec.get("dataset")
    unknown({name}, METHODS, "method")
    if not isinstance(dataset, str) or not dataset:
        raise StdacError(f"got dataset {dataset!r}, expected one of {', '.join(NAMES)}, or a path")
    k = spec.get("n_clusters")
    if k is None and dataset not in NAMES:
        raise StdacError(f"the number of clusters of {dataset} is not known: pass n_clusters (--clusters)")
    method = METHODS[name]
    epochs = spec.get("epochs")
    return Trial(
        method=name,
        dataset=dataset,
        seed=whole_number("seed", spec.get("seed", 0), 0),
        n_clusters=whole_number("n_clusters", CLASSES if k is None else k, 2),
        epochs=method.epochs if epochs is None or not method.epochs else whole_number("epochs", epochs, 1),
        params=resolve_params(method.params, spec.get("params") or {}).resolved(dataset),
        limit=None if spec.get("limit") is None else whole_number("limit", spec["limit"], 2),
        image_size=None if spec.get("image_size") is None else whole_number("image_size", spec["image_size"], 1),
    )


def resolve_params(kind: type[Params], values: Mapping[str, Any]) -> Params:
    """The dataclass from plain values, each checked against its field's type; an int serves as a float."""
    hints = typing.get_type_hints(kind)
    unknown(set(values), [f.name for f in fields(kind)], f"parameter of {kind.__name__.removesuffix('Params')}")
    return kind(**{name: typed(name, value, hints[name]) for name, value in values.items()})


def typed(name: str, value: Any, hint: Any) -> Any:
    """The value as its field's type has it. Raises StdacError naming what was expected."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in allowed:
        return None
    if float in allowed and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) in allowed:
        return value
    expected = " or ".join(t.__name__ for t in allowed if t is not types.NoneType)
    raise StdacError(f"got {name} = {value!r}, expected {expected}")


def whole_number(name: str, value: Any, least: int) -> int:
    """An integer of at least `least`. Raises StdacError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise StdacError(f"got {name} = {value!r}, expected a whole number of at least {least}")
    return value


def unknown(got: set[Any], known: typing.Iterable[str], what: str) -> None:
    """Raise StdacError for the first name that is not known, naming those that are."""
    for name in sorted(map(str, got - set(known))):
        raise StdacError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")


__all__ = ["KEYS", "METHODS", "Fitted", "Method", "resolve", "resolve_params"]

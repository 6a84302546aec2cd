"""Every clustering system of the grid: METHODS, name -> method, and how a specification becomes a Trial."""

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from stdac.data import CLASSES, NAMES, resolve_name
from stdac.errors import StdacError
from stdac.methods.ae_kmeans import AE_KMEANS
from stdac.methods.autoencoder import AUTOENCODER
from stdac.methods.committee import COMMITTEE
from stdac.methods.dac_star import DAC_STAR
from stdac.methods.dcn import DCN
from stdac.methods.dec import DEC, IDEC
from stdac.methods.dec_da import CONVDEC_DA, FCDEC_DA
from stdac.methods.deep_kmeans import DKM_A, DKM_P
from stdac.methods.descriptors import COLOUR_KMEANS, HOG_KMEANS
from stdac.methods.features import FEATURES_KMEANS, FEATURES_METHOD
from stdac.methods.kmeans import KMEANS, PCA_KMEANS
from stdac.methods.method import Fitted, Method
from stdac.methods.st_dac import ST_DAC
from stdac.methods.student import STUDENT
from stdac.methods.umap_gmm import UMAP_GMM
from stdac.methods.vade import VADE
from stdac.methods.vae import VAE
from stdac.methods.vae_dbscan import VAE_DBSCAN
from stdac.pictures.colour import BACKGROUNDS
from stdac.text import escape_name
from stdac.trial import SCHEMA_VERSION, Params, Trial, list_earlier_values

METHODS: dict[str, Method] = {
    "kmeans": KMEANS,
    "pca-kmeans": PCA_KMEANS,
    "hog-kmeans": HOG_KMEANS,
    "colour-kmeans": COLOUR_KMEANS,
    "umap-gmm": UMAP_GMM,
    "features": FEATURES_METHOD,
    "features-kmeans": FEATURES_KMEANS,
    "autoencoder": AUTOENCODER,
    "ae-kmeans": AE_KMEANS,
    "dcn": DCN,
    "dec": DEC,
    "idec": IDEC,
    "vade": VADE,
    "dkm-a": DKM_A,
    "dkm-p": DKM_P,
    "fcdec-da": FCDEC_DA,
    "convdec-da": CONVDEC_DA,
    "vae": VAE,
    "vae-dbscan": VAE_DBSCAN,
    "dac-star": DAC_STAR,
    "st-dac": ST_DAC,
    "committee": COMMITTEE,
    "student": STUDENT,
}
"""In the order of the tables: the floors first."""

KEYS = ("method", "dataset", "seed", "n_clusters", "epochs", "params", "limit", "image_size", "source", "background")
ASKED = ("image_size", "background")
MOST = 2**63  # whole numbers are smaller: files have 64 bits for them
STORED_KEYS = ("schema_version", "needs")
"""What a trial.json has besides."""


def resolve(spec: Mapping[str, Any], base: Path | None = None) -> Trial:
    """A Trial from plain values: what a grid cell, a command line or a trial.json says.

    spec: KEYS, of which only `dataset` must be there. base: the folder that paths of data sets start in, the current
    one if not given. Everything left out takes its default: method st-dac, seed 0,
    the method's own epochs, limit and parameters, K = 10 for the data sets that have a name. With a schema_version,
    which is checked, it is a stored trial: what was added to trials since has the value that it had before, and its
    needs are those that it names. Raises StdacError that names the valid keys, methods or parameters where one is
    unknown or of a wrong type.

    >>> resolve({"dataset": "mnist", "params": {"stn": 1}}).params.stn
    1
    """
    # what must be right before anything else can be read
    stored = "schema_version" in spec
    if stored and spec["schema_version"] != SCHEMA_VERSION:
        raise StdacError(f"got a trial of schema version {spec['schema_version']}, this stdac reads {SCHEMA_VERSION}")
    check_names(set(spec) - set(STORED_KEYS if stored else ()), KEYS, "trial key")
    name, dataset = spec.get("method", "st-dac"), spec.get("dataset")
    check_names({name}, METHODS, "method")
    if not isinstance(dataset, str) or not dataset:
        raise StdacError(f"got dataset {dataset!r}, expected one of {', '.join(NAMES)}, or a path")
    k, method = spec.get("n_clusters"), METHODS[name]
    if not method.takes_k and k is not None and not (stored and k == 0):
        raise StdacError(f"got n_clusters = {k!r}, but method {name} is not given the number of clusters: leave it out")
    if k is None and method.takes_k and dataset not in NAMES:
        raise StdacError(f"the number of clusters of {dataset} is not known: pass n_clusters (--clusters)")
    dataset = dataset if stored else resolve_name(dataset, base)

    # every field with its default, then what follows from all of them
    epochs, limit = spec.get("epochs"), spec.get("limit")
    params = resolve_params(method.params, spec.get("params") or {}, stored=stored).resolved(dataset)
    if epochs is None and method.epochs:
        epochs = params.choose_epochs(method.epochs)
    if limit is None and not stored:
        limit = method.limit
    asked = list_asked(method, params) if not stored else {}
    image_size, background = (spec[key] if spec.get(key) is not None else asked.get(key) for key in ASKED)
    trial = Trial(
        method=name,
        dataset=dataset,
        seed=_read_whole_number("seed", spec.get("seed", 0), 0),
        n_clusters=_read_whole_number("n_clusters", CLASSES if k is None else k, 2) if method.takes_k else 0,
        epochs=_read_whole_number("epochs", epochs, 1) if method.epochs else 0,
        params=params,
        limit=None if limit is None else _read_whole_number("limit", limit, 2),
        image_size=None if image_size is None else _read_whole_number("image_size", image_size, 1),
        source=_read_source(spec.get("source"), name, method, base, stored=stored),
        background=_read_background(background),
    )
    needs = (
        spec.get("needs", ())
        if stored
        else [needed if isinstance(needed, str) else needed.id for needed in method.needs(trial)]
    )
    return replace(trial, needs=tuple(map(str, needs)))


def list_asked(method: Method, params: Params) -> Mapping[str, Any]:
    """Values of ASKED that a method's trials have where nobody says theirs. Raises as `Method.asks` does."""
    return {} if method.asks is None else method.asks(params)


def _read_source(source: Any, name: str, method: Method, base: Path | None, *, stored: bool) -> str | None:
    """The labelled data set of a trial. Raises StdacError where its method wants one and there is none, or reverse."""
    if source is None and not method.takes_source:
        return None
    if not method.takes_source:
        raise StdacError(f"got source = {source!r}, but method {name} reads no labelled data set: leave it out")
    if not isinstance(source, str) or not source:
        raise StdacError(f"got source = {source!r}, expected a labelled data set for method {name}: a name or a path")
    return source if stored else resolve_name(source, base)


def _read_background(background: Any) -> str:
    """What transparency is laid on, black if not given. Raises StdacError for what is none of BACKGROUNDS."""
    if background is None:
        return "black"
    check_names({background}, BACKGROUNDS, "background")
    return str(background)


def add_needs(trials: Iterable[Trial]) -> list[Trial]:
    """The trials, each once and after those that it needs, which are added where they are more than an id."""
    ordered: dict[str, Trial] = {}

    def add(trial: Trial) -> None:
        if trial.id not in ordered:
            for needed in METHODS[trial.method].needs(trial):
                if isinstance(needed, Trial):
                    add(needed)
            ordered[trial.id] = trial

    for trial in trials:
        add(trial)
    return list(ordered.values())


def fill_title(method: str, params: Mapping[str, Any]) -> str:
    """What tables call a trial's method; the bare name of one that this version does not know."""
    return METHODS[method].fill_title(params) if method in METHODS else method


def name_system(method: str, params: Mapping[str, Any]) -> str:
    """The published system that a trial is one of: its title without the budget."""
    return METHODS[method].name_system(params) if method in METHODS else method


def fill_params(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """A stored trial's parameters with those that were added since it was stored."""
    return (list_earlier_values(METHODS[method].params) if method in METHODS else {}) | dict(params)


def list_tuple_params(methods: Iterable[str]) -> set[str]:
    """The parameters of these methods that are tuples, of which a list is one value."""
    hints = [typing.get_type_hints(METHODS[name].params) for name in methods if name in METHODS]
    return {name for kind in hints for name, hint in kind.items() if any(map(_is_tuple, _list_types(hint)))}


def resolve_params(kind: type[Params], values: Mapping[str, Any], *, stored: bool = False) -> Params:
    """The dataclass from plain values, each checked against its field's type; an int serves as a float.

    stored: of a trial.json, see `resolve`.
    """
    hints = typing.get_type_hints(kind)
    check_names(set(values), [f.name for f in fields(kind)], f"parameter of {kind.__name__.removesuffix('Params')}")
    given = (list_earlier_values(kind) if stored else {}) | {n: _check_type(n, v, hints[n]) for n, v in values.items()}
    for f in fields(kind):
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise StdacError(f"parameter {f.name} of {kind.__name__.removesuffix('Params')} has no default: pass it")
    return kind(**given)


def _list_types(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_tuple(hint: Any) -> bool:
    """Whether a type is of tuples."""
    return typing.get_origin(hint) is tuple


def _check_type(name: str, value: Any, hint: Any) -> Any:
    """The value as its field's type has it. Raises StdacError naming what was expected."""
    allowed = _list_types(hint)
    if value is None and types.NoneType in allowed:
        return None
    if isinstance(value, int) and abs(value) >= MOST:
        raise StdacError(f"got {name} = {repr(value)[:20]}…, expected a number below 2^63")
    if float in allowed and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) in allowed:
        return value
    for kind in filter(_is_tuple, allowed):
        if isinstance(value, list | tuple):
            return _check_tuple(name, value, kind)
    expected = " or ".join(_describe_type(t) for t in allowed if t is not types.NoneType)
    raise StdacError(f"got {name} = {value!r}, expected {expected}")


def _check_tuple(name: str, values: Sequence[Any], kind: Any) -> tuple[Any, ...]:
    """The values as tuple[int, ...] or tuple[float, float] has them. Raises StdacError naming what was expected."""
    kinds = typing.get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if len(kinds) != len(values):
        raise StdacError(f"got {name} = {list(values)!r}, expected {_describe_type(kind)}")
    return tuple(_check_type(name, value, hint) for value, hint in zip(values, kinds, strict=True))


def _describe_type(hint: Any) -> str:
    """A field's type in a few words."""
    if not _is_tuple(hint):
        return str(hint.__name__)
    kinds = typing.get_args(hint)
    many = kinds[-1] is Ellipsis
    return f"a list of {'' if many else f'{len(kinds)} '}{_describe_type(kinds[0])}"


def _read_whole_number(name: str, value: Any, least: int) -> int:
    """An integer of at least `least`. Raises StdacError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise StdacError(f"got {name} = {repr(value)[:80]}, expected a whole number of at least {least}")
    if value >= MOST:
        raise StdacError(f"got {name} = {repr(value)[:20]}…, expected a whole number below 2^63")
    return value


def check_names(got: set[Any], known: Iterable[str], what: str) -> None:
    """Raise StdacError for the first name that is not known, naming those that are."""
    for name in sorted(map(str, got - set(known))):
        raise StdacError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")


__all__ = [
    "KEYS",
    "METHODS",
    "Fitted",
    "Method",
    "add_needs",
    "escape_name",
    "fill_params",
    "fill_title",
    "name_system",
    "resolve",
    "resolve_params",
]

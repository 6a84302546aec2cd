"""Deep clustering of images with spatial transformers (ST-DAC): trials, models, and scikit-learn estimators.

What a program uses is imported from here: `from stdac import STDAC, DEC, Clusterer, load_run`.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.runs import read_metrics as load_run
    from export.clusterer import Clusterer
    from export.convert.to_onnx import export_model
    from stdac.data import load as load_dataset
    from stdac.estimator import (
        DCN,
        DEC,
        IDEC,
        STDAC,
        AEKMeans,
        ConvDECDA,
        DACStar,
        DeepKMeansA,
        DeepKMeansP,
        FcDECDA,
        VaDE,
    )

__version__ = "0.1.0"
__all__ = [
    "DCN",
    "DEC",
    "IDEC",
    "STDAC",
    "AEKMeans",
    "Clusterer",
    "ConvDECDA",
    "DACStar",
    "DeepKMeansA",
    "DeepKMeansP",
    "FcDECDA",
    "VaDE",
    "__version__",
    "export_model",
    "load_dataset",
    "load_run",
]

ESTIMATORS = (
    *("AEKMeans", "DCN", "DEC", "IDEC", "VaDE", "DeepKMeansA", "DeepKMeansP"),
    *("FcDECDA", "ConvDECDA", "DACStar", "STDAC"),
)
"""A class for each method that has a model, see `stdac.estimator`."""

_PUBLIC = {
    **{name: ("stdac.estimator", name) for name in ESTIMATORS},
    "Clusterer": ("export.clusterer", "Clusterer"),
    "export_model": ("export.convert.to_onnx", "export_model"),
    "load_dataset": ("stdac.data", "load"),
    "load_run": ("analysis.runs", "read_metrics"),
}


def __getattr__(name: str) -> Any:
    """A public name on first use (PEP 562): `import stdac` alone must not take the second that torch takes."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    _check_package(module.partition(".")[0])
    return getattr(import_module(module), attribute)


def _check_package(name: str) -> None:
    """Raise ImportError where a package of ours is hidden by somebody else's module of the same name."""
    module = sys.modules.get(name)
    spec = find_spec(name) if module is None else module.__spec__
    folders = (spec and spec.submodule_search_locations) or ()
    if Path(__file__).resolve().parents[1] / name not in [Path(folder).resolve() for folder in folders]:
        where = (spec and spec.origin) or "a module of that name"
        raise ImportError(f"{where} hides stdac's package {name}: rename it, or import stdac from elsewhere")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

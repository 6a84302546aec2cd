"""Deep clustering of images with spatial transformers (ST-DAC): trials, models, and a scikit-learn estimator."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stdac.estimator import STDAC

__version__ = "0.1.0"
__all__ = ["STDAC", "__version__"]


def __getattr__(name: str) -> Any:
    """STDAC on first use (PEP 562): `import stdac` alone must not take the second that torch takes."""
    if name == "STDAC":
        from stdac.estimator import STDAC

        return STDAC
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "STDAC"])

"""A trained model leaves torch: one ONNX file, and a `Clusterer` that sorts images with it, without torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.clusterer import Clusterer

__all__ = ["Clusterer"]


def __getattr__(name: str) -> Any:
    """Import `Clusterer` on first use (PEP 562), so that `stdac --help` need not wait for pyarrow."""
    if name == "Clusterer":
        from export.clusterer import Clusterer

        return Clusterer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

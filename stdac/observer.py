"""Who watches a trial: the command line, a worker, a test. Imports nothing heavy, as all of these do."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stdac.folder import Attempt
    from stdac.methods.method import Fitted
    from stdac.train import Progress


class Observer:
    """Who watches a trial as it goes on, and may end it by raising. These do nothing; derive what is wanted."""

    def on_claim(self, attempt: "Attempt") -> None:
        """The trial is this process' now."""

    def on_note(self, text: str) -> None:
        """A sentence on the data: what was left out, what can hardly be meant."""

    def on_progress(self, progress: "Progress") -> None:
        """A step was taken."""

    def on_clusters(self, clusters: "NDArray[np.int64]") -> None:
        """All images were clustered, (N,) with -1 for noise; the row of that follows."""

    def on_score(self, row: Mapping[str, Any]) -> None:
        """A row of METRICS was added."""

    def on_fitted(self, fitted: "Fitted", images: "NDArray[np.uint8]") -> None:
        """Training has ended, with this, on these images (N, C, H, W); all rows are there."""

    def must_save(self, epoch: int) -> bool:
        """Whether the checkpoint of an epoch of the main phase is needed, which is else left out where it costs too
        much time."""
        return False

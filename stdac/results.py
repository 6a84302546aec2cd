"""What a done trial hands to one that needs it: its model and its clusters, never ground truth."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.folder import TrialFolder

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Result:
    """A done trial. trial: its trial.json. path: the folder of the attempt that counts. fingerprint: of its images."""

    trial: dict[str, Any]
    path: Path
    fingerprint: str

    def load_model(self) -> "nn.Module":
        """Its model, or encoder, in eval mode on the CPU. Raises StdacError where it kept none."""
        from stdac.model_file import load_model

        path = self.path / "model.pt"
        if not path.is_file():
            raise StdacError(f"a needed trial has no {path}: delete its folder and launch again, so that it makes one")
        return load_model(path)[0]

    def read_clusters(self) -> NDArray[np.int64]:
        """The cluster of each image, (N,) int64, -1 = noise. Raises StdacError where it kept none."""
        return self._read_column("cluster").astype(np.int64)

    def read_confidence(self) -> NDArray[np.float32]:
        """How sure the protocol was of each image, (N,) float32, NaN where it does not say. Raises as above."""
        return self._read_column("protocol_confidence").astype(np.float32)

    def _read_column(self, name: str) -> NDArray[Any]:
        path = self.path / "assignments.parquet"
        try:
            column: NDArray[Any] = pq.read_table(path.open("rb"), columns=[name], use_threads=False)[name].to_numpy()
        except (OSError, pa.ArrowException) as error:
            raise StdacError(
                f"a needed trial has no {path} that can be read: delete its folder and launch again"
            ) from error
        return column


def take_result(folder: TrialFolder) -> Result:
    """The result of a trial, for those that need it. Raises StdacError where it is not done."""
    done = folder.done()
    if done is None:
        raise StdacError(f"trial {folder.path.name} is not done: those that need it have to wait")
    return Result(folder.trial(), folder.attempt_path(done["attempt"]), str(done.get("fingerprint", "")))

"""The parts of a done trial's result as its attempt wrote them, and what of them a trial that needs it is handed: its
model and its clusters, never ground truth."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.files import is_real_folder, read_plain
from stdac.layout import ATTEMPT, TrialFiles
from stdac.record import FIGURES
from stdac.trial import make_id

if TYPE_CHECKING:
    from torch import nn


def read_part(path: Path, done: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a file of a result. Raises StdacError where they are not those that done.json has the SHA-256 of.

    done: done.json, where it was read already. A file that lies elsewhere, or that an earlier stdac wrote, has none.
    Raises OSError where it cannot be read.
    """
    attempt, folder = ATTEMPT.fullmatch(path.parent.name), TrialFiles(path.parent.parent)
    if attempt is None:
        return read_plain(path, follow=True)
    done = folder.done() if done is None else done
    if not is_real_folder(path.parent):
        raise StdacError(f"{path.parent} is not a folder: {_name_way_out(folder)}")
    content = read_plain(path)
    digests = done.get("sha256") if done is not None and done["attempt"] == int(attempt[1]) else None
    if digests is not None and hashlib.sha256(content).hexdigest() != digests.get(path.name):
        raise StdacError(
            f"{path.name} of trial {folder.path.name} is not what its attempt wrote, it was damaged or changed since: "
            f"{_name_way_out(folder)}"
        )
    return content


def _name_way_out(folder: TrialFiles) -> str:
    """What to do about the damaged result of a trial."""
    run = folder.path.parent.parent
    return f"stdac-grid doctor {run} --mend puts the trial aside, and the next launch runs it again"


@dataclass(frozen=True)
class Result:
    """A done trial. trial: its trial.json. path: the folder of the attempt that counts. fingerprint: of its images."""

    trial: dict[str, Any]
    path: Path
    fingerprint: str

    def load_model(self) -> "nn.Module":
        """Its model, or encoder, in eval mode on the CPU. Raises StdacError where it kept none."""
        from stdac.methods import METHODS
        from stdac.model_file import load_model

        path, method = self.path / "model.pt", self.trial["method"]
        if method in METHODS and METHODS[method].build is None:
            raise StdacError(
                f"trial {make_id(self.trial)} has no model, as none of method {method} has: name one of a method that "
                "makes one"
            )
        if not path.is_file():
            raise StdacError(f"a needed trial has no {path}: delete its folder and launch again, so that it makes one")
        read_part(path)
        return load_model(path)[0]

    def read_clusters(self) -> NDArray[np.int64]:
        """The cluster of each image, (N,) int64, -1 = noise. Raises StdacError where it kept none."""
        return self._read_column("cluster").astype(np.int64)

    def read_confidence(self) -> NDArray[np.float32]:
        """How sure the protocol was of each image, (N,) float32, NaN where it does not say. Raises as above."""
        return self._read_column("protocol_confidence").astype(np.float32)

    def read_figure(self, name: str) -> NDArray[np.generic] | None:
        """An array of its figures; None where it kept none of that name. Raises StdacError for a damaged file."""
        path = self.path / FIGURES
        if not path.is_file():
            return None
        with np.load(BytesIO(read_part(path)), allow_pickle=False) as file:
            array: NDArray[np.generic] | None = file.get(name)
        return array

    def _read_column(self, name: str) -> NDArray[Any]:
        path = self.path / "assignments.parquet"
        if not self.trial["n_clusters"] and not path.exists():
            raise StdacError(
                f"trial {make_id(self.trial)} of method {self.trial['method']} clusters nothing: name one that does"
            )
        try:
            content = pa.BufferReader(read_part(path))
            column: NDArray[Any] = pq.ParquetFile(content).read([name], use_threads=False)[name].to_numpy()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise StdacError(
                f"a needed trial has no {path} that can be read: delete its folder and launch again"
            ) from error
        return column


def take_result(folder: TrialFiles) -> Result:
    """The result of a trial, for those that need it. Raises StdacError where it is not done."""
    done = folder.done()
    if done is None:
        raise StdacError(f"trial {folder.path.name} is not done: those that need it have to wait")
    return Result(folder.trial(), folder.attempt_path(done["attempt"]), str(done.get("fingerprint", "")))

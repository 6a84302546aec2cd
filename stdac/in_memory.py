"""A trial trained in memory, after those that it needs: nothing is written, and nothing can be resumed."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stdac import run
from stdac.data import Dataset
from stdac.errors import StdacError
from stdac.machine import Machine, describe_device
from stdac.methods import METHODS
from stdac.methods.method import Fitted
from stdac.trial import Trial


@dataclass(frozen=True)
class Trained:
    """A trained trial: for those that need it what `stdac.results.Result` is where trials have folders.

    source: the trial. needed: those that were trained before it, as it needs them.
    """

    source: Trial
    dataset: Dataset
    fitted: Fitted
    scorer: run.Scorer
    needed: Sequence["Trained"] = ()

    @property
    def trial(self) -> dict[str, Any]:
        """Its trial.json."""
        return self.source.to_json()

    @property
    def fingerprint(self) -> str:
        """Of its images."""
        return self.dataset.fingerprint

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of METRICS: those of the trials that it needed, then its own."""
        return [row for each in self.needed for row in each.rows] + self.scorer.rows

    def load_model(self) -> nn.Module:
        """A copy of its model, or encoder, in eval mode on the CPU. Raises StdacError where it has none."""
        module = self.fitted.encoder if self.fitted.model is None else self.fitted.model
        if module is None:
            raise StdacError(f"a needed trial of method {self.source.method} has no model: name one that makes one")
        return copy.deepcopy(module).cpu().eval()

    def read_clusters(self) -> NDArray[np.int64]:
        """The cluster of each image, (N,) int64, -1 = noise. Raises StdacError where there are none."""
        if self.fitted.labels is None:
            raise StdacError(f"a needed trial of method {self.source.method} clusters nothing: name one that does")
        clusters: NDArray[np.int64] = self.fitted.labels.cpu().numpy()
        return clusters

    def read_confidence(self) -> NDArray[np.float32]:
        """How sure the protocol was of each image, (N,) float32, NaN where it does not say. Raises as above."""
        unknown = np.full(len(self.read_clusters()), np.nan, np.float32)
        protocol = self.scorer.protocol
        return unknown if protocol is None or protocol.confidence is None else protocol.confidence.float().numpy()

    def read_figure(self, name: str) -> NDArray[np.generic] | None:
        """An array of its figures; None where it has none of that name."""
        return self.fitted.figures.get(name)


def train_in_memory(trial: Trial, dataset: Dataset, machine: Machine) -> Trained:
    """Train a trial on images, and first those that it needs. Raises StdacError where it names one by its id alone."""
    run.check_clusters(trial.n_clusters, len(dataset.images))  # before those that it needs take their time
    needed = []
    for other in METHODS[trial.method].needs(trial):
        if not isinstance(other, Trial):
            raise StdacError(
                f"method {trial.method} needs trial {other}, which is in no run folder here: launch a grid"
            )
        needed.append(train_in_memory(other, dataset, machine))
    scorer = run.Scorer(trial, dataset, describe_device(machine.torch_device()))
    fitted = run.fit(trial, dataset.images, scorer, machine, {}, needed=needed)
    return Trained(trial, dataset, fitted, scorer, needed)

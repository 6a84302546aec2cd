"""A method whose parameters name trials: each image has the cluster that most of the members give it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stdac.methods.method import Fitted, Method
from stdac.train import Trainer
from stdac.trial import Params, names_trials


@dataclass(frozen=True)
class VoterParams(Params):
    """Hyperparameters."""

    members: tuple[str, ...] = names_trials()
    first: str = names_trials("")


def fit(images: Tensor, k: int, params: VoterParams, trainer: Trainer) -> Fitted:
    """The most frequent number, and the share of the members that give it."""
    votes = np.stack([member.read_clusters() for member in trainer.needed])  # (M, N)
    counts = (votes[:, :, None] == np.arange(k)).sum(0)  # (N, K)
    confidence = torch.from_numpy((counts.max(1) / len(votes)).astype(np.float32))
    labels = torch.from_numpy(counts.argmax(1))
    return Fitted(labels, confidence=confidence, terms={"term_unanimous": float((confidence == 1).float().mean())})


VOTER = Method(title="Vote", params=VoterParams, fit=fit)

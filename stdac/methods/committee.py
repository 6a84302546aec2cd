"""A committee: the consensus of other trials' clusterings. It reads their clusters, and no image and no label."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stdac.consensus import CONSENSUS, count_votes, find_consensus, find_fault, measure_agreement, measure_confidence
from stdac.data import Dataset
from stdac.errors import StdacError
from stdac.methods.method import Cost, Fitted, Method, Task
from stdac.train import Needed, Trainer
from stdac.trial import Params, check_choices, names_trials
from stdac.words import count_noun

LEAST = 2  # members
ITERATIONS = 400  # of k-means, all its restarts together
EFFICIENCY = 0.01  # 70,000 images and 100 members: see benchmarks/consensus.py


@dataclass(frozen=True)
class CommitteeParams(Params):
    """members: trials of the same images, of any method and number of clusters; in whatever order, they are one
    committee. consensus: of `stdac.consensus.CONSENSUS`."""

    members: tuple[str, ...] = names_trials()
    consensus: str = "spectral"

    def resolved(self, dataset: str) -> Self:
        """The same with its members in order. Raises StdacError for fewer than two, one named twice, or another
        consensus."""
        members = tuple(sorted(self.members))
        if len(members) < LEAST:
            raise StdacError(f"got {count_noun(len(members), 'member')} for a committee, expected at least {LEAST}")
        twice = [name for name, other in pairwise(members) if name == other]
        if twice:
            raise StdacError(f"got member {twice[0]} twice, expected each trial once: it has one vote")
        check_choices(self, {"consensus": CONSENSUS})
        return type(self)(members, self.consensus)


def fit(images: Tensor, k: int, params: CommitteeParams, trainer: Trainer) -> Fitted:
    """Read the members' clusters, and find what they agree on."""
    members = _read_members(images, params.members, trainer.needed)
    votes = count_votes(members)
    labels = find_consensus(members, k, params.consensus, trainer.seed)
    agreement, confidence = measure_agreement(votes), measure_confidence(votes, labels)
    return Fitted(
        torch.from_numpy(labels).to(trainer.device),
        figures={"members": np.array(params.members), "agreement": agreement},
        confidence=torch.from_numpy(confidence),
        terms={"term_agreement": float(agreement.mean()), "term_unanimous": float((confidence == 1).mean())},
    )


def _read_members(images: Tensor, names: Sequence[str], needed: Sequence[Needed]) -> list[NDArray[np.int64]]:
    """The members' clusters, each (N,). Raises StdacError for one of other images, or that has no say."""
    fingerprint = Dataset(images.cpu().numpy(), None).fingerprint
    members = []
    for name, member in zip(names, needed, strict=True):
        clusters, source = member.read_clusters(), member.trial.get("source")
        if len(clusters) != len(images) or (source is None and member.fingerprint not in ("", fingerprint)):
            raise StdacError(
                f"member {name} of the committee has clustered {count_noun(len(clusters), 'image')} of "
                f"{member.trial['dataset']} that are not the {len(images):,} of this trial: expected members of the "
                "same data set, limit and image size"
            )
        if (fault := find_fault(clusters)) is not None:
            raise StdacError(f"member {name} of the committee {fault}: leave it out")
        members.append(clusters)
    return members


def count_work(task: Task) -> Cost:
    """What a trial computes: each image's votes against all clusters of all members, and k-means on K numbers each."""
    votes = max(len(task.params.members), LEAST)
    return Cost(float(task.n) * (votes * votes * task.k + ITERATIONS * task.k * task.k), efficiency=EFFICIENCY)


COMMITTEE = Method(title="Committee of {members}", params=CommitteeParams, fit=fit, cost=count_work, follows=True)

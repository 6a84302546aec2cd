"""How many clusters? The curves of a finished study of K, and what they suggest. No label is looked at.

Seed agreement: do trials that differ by their seed alone find the same clusters? Too many are cut at random, too few
are merged at random, and the seeds disagree (Lange et al. 2004, von Luxburg 2010). But groups that merge in one way
only, such as animals and vehicles, agree at a smaller K as well, so that several K may be right.

Silhouette: are images closer to their own cluster than to the next (Rousseeuw 1987)? In a space that is the same for
every K, the principal components of the pixels, which knows nothing of what networks learn. The embeddings of models
with different K are different spaces, and in each its own clusters shine: comparing them would be comparing rulers.

Confidence falls with K by nature, even when chance is taken off, and the networks here are built to use all clusters:
both are shown and decide nothing.

The rule: candidates are the K whose agreement is within one standard error of the best. Of those the silhouette
decides, and where it too is the same to within its error, the smallest K (the rule of one standard error, Breiman et
al. 1984). Where the curves contradict each other, are flat, poor, or end at the edge of the range, that is said.
"""

from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analysis.runs import list_finished
from analysis.table import show
from stdac.errors import StdacError
from stdac.results import read_part

COMPONENTS = 50
SAMPLE = 2000  # images that silhouettes are taken of: their cost grows with the square
POOR_AGREEMENT, NO_AGREEMENT = 0.5, 0.2  # adjusted Rand indices; on images without clusters it was .09 at best


class Scores(NamedTuple):
    """The trials of one K, a value a seed unless said otherwise.

    agreement: adjusted Rand index of each pair of seeds, at most 1, 0 by chance. agreement_error: its mean's standard
    error, by leaving out one seed at a time. silhouette: in [-1, 1], NaN where a trial used one cluster. confidence:
    mean score of the images' clusters, 0 where it is 1 / K and 1 where it is 1; empty for a method without. used: the
    clusters that have an image.
    """

    k: int
    agreement: tuple[float, ...]
    agreement_error: float
    silhouette: tuple[float, ...]
    confidence: tuple[float, ...]
    used: tuple[int, ...]


class Assigned(NamedTuple):
    """What one trial says. clusters: (N,) int64; confidence: its mean over the images, NaN where there is none."""

    clusters: NDArray[np.int64]
    confidence: float


class Suggestion(NamedTuple):
    """What the curves suggest. k: None where they say nothing. candidates: all K worth a look, ascending. reasons:
    sentences. firm: whether the curves agree with each other and say something."""

    k: int | None
    candidates: tuple[int, ...]
    reasons: tuple[str, ...]
    firm: bool


def score_study(run: Path, trial_ids: Collection[str], images: NDArray[np.uint8]) -> list[Scores]:
    """The scores of each K, ascending, of those trials of the run that are finished.

    images: (N, C, H, W) uint8, those that the trials were trained on. A K with fewer than two finished trials is left
    out. Raises StdacError for results that cannot be read, or are of other images.
    """
    points = _project_images(images)
    trials: dict[int, list[Assigned]] = {}
    for trial, attempt in list_finished(run):
        if attempt.parent.name in trial_ids:
            trials.setdefault(trial["n_clusters"], []).append(_read_assignments(attempt, len(images)))
    return [score_trials(k, found, points) for k, found in sorted(trials.items()) if len(found) > 1]


def _read_assignments(attempt: Path, n: int) -> Assigned:
    """The clusters of a finished trial's deployed model, and its confidence by the training protocol."""
    path = attempt / "assignments.parquet"
    try:
        content = pa.BufferReader(read_part(path))
        table = pq.ParquetFile(content).read(["cluster", "protocol_confidence"], use_threads=False)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise StdacError(f"cannot read {path}: take that trial's folder away and launch the study again") from error
    if len(table) != n:
        raise StdacError(f"{path} has {len(table)} images, expected {n}: start anew with another --out")
    confidence = table["protocol_confidence"].to_numpy().astype(float)
    return Assigned(table["cluster"].to_numpy().astype(np.int64), float(confidence.mean()))


def _project_images(images: NDArray[np.uint8]) -> NDArray[Any]:
    """The first COMPONENTS principal components of the pixels of SAMPLE images at most, evenly spaced: the space of the
    silhouettes. Returns (n, d) float32."""
    from sklearn.decomposition import PCA

    pixels = images[sample_index(len(images))].reshape(min(len(images), SAMPLE), -1).astype(np.float32) / 255
    points: NDArray[Any] = PCA(min(COMPONENTS, *pixels.shape), random_state=0).fit_transform(pixels)
    return points


def sample_index(n: int) -> NDArray[np.int64]:
    """Which of n images are looked at: SAMPLE at most, evenly spaced."""
    return np.linspace(0, n - 1, min(n, SAMPLE)).round().astype(np.int64)


def score_trials(k: int, trials: Sequence[Assigned], points: NDArray[Any]) -> Scores:
    """The scores of one K from its trials, one a seed, and the sample's points (n, d)."""
    clusters = [trial.clusters for trial in trials]
    index = sample_index(len(clusters[0]))
    confidences = [(trial.confidence - 1 / k) / (1 - 1 / k) for trial in trials if not np.isnan(trial.confidence)]
    return Scores(
        k,
        tuple(measure_agreement(a, b) for a, b in combinations(clusters, 2)),
        estimate_error(clusters),
        tuple(measure_silhouette(points, found[index]) for found in clusters),
        tuple(confidences),
        tuple(len(np.unique(found)) for found in clusters),
    )


def measure_agreement(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Adjusted Rand index of two clusterings (N,) of the same images; 0 where both put all images into one cluster."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(a, b)) if len(np.unique(a)) > 1 or len(np.unique(b)) > 1 else 0.0


def measure_silhouette(points: NDArray[Any], clusters: NDArray[np.int64]) -> float:
    """Mean silhouette of clusters (n,) of points (n, d); NaN for a single cluster, or one for every point."""
    from sklearn.metrics import silhouette_score

    used = len(np.unique(clusters))
    return float(silhouette_score(points, clusters)) if 1 < used < len(points) else float("nan")


def estimate_error(clusters: Sequence[NDArray[np.int64]]) -> float:
    """Standard error of the mean pairwise agreement, by the jackknife over seeds: pairs share seeds, so they are not
    independent. NaN for fewer than three."""
    n = len(clusters)
    if n < 3:
        return float("nan")
    pairs = np.full((n, n), np.nan)
    for i, j in combinations(range(n), 2):
        pairs[i, j] = measure_agreement(clusters[i], clusters[j])
    without = [np.nanmean(np.delete(np.delete(pairs, i, 0), i, 1)) for i in range(n)]
    return float(np.sqrt((n - 1) * np.var(without)))


def suggest(curves: Sequence[Scores]) -> Suggestion:
    """The K that the curves suggest, the other candidates, and why. curves: as `score_study` returns them."""
    if len(curves) < 2:
        return Suggestion(None, tuple(s.k for s in curves), ("A curve needs at least two finished K.",), False)
    agreement, silhouette = _draw_agreement_curve(curves), _draw_silhouette_curve(curves)
    near = agreement.near(list(agreement.values))
    tied = silhouette.near(near)
    doubts = _find_doubts(agreement, silhouette, near, tied[0])
    known = len(near) < len(curves) and max(agreement.values.values()) >= NO_AGREEMENT
    candidates = sorted({*near, silhouette.best(list(silhouette.values))}) if doubts else near
    reasons = [_explain_agreement(agreement, near), *_explain_silhouette(silhouette, near, tied)]
    return Suggestion(tied[0] if known else None, tuple(candidates), (*(reasons if known else []), *doubts), not doubts)


class Curve(NamedTuple):
    """values: K -> mean over seeds, ascending in K. errors: K -> its standard error, NaN where it has none."""

    values: dict[int, float]
    errors: dict[int, float]

    def best(self, among: Sequence[int]) -> int:
        """The K with the highest value."""
        return max(among, key=self.values.__getitem__)

    def error(self, k: int) -> float:
        """The standard error at K, but no less than the median over all K: three seeds may agree by chance."""
        known = [error for error in self.errors.values() if not np.isnan(error)]
        usual, own = float(np.median(known)) if known else 0.0, self.errors[k]
        return usual if np.isnan(own) else max(usual, own)

    def near(self, among: Sequence[int]) -> list[int]:
        """The K within one standard error of the best, ascending."""
        best = self.best(among)
        return [k for k in among if self.values[k] >= self.values[best] - self.error(best)]


def _draw_agreement_curve(curves: Sequence[Scores]) -> Curve:
    """Mean agreement by K."""
    return Curve({s.k: float(np.mean(s.agreement)) for s in curves}, {s.k: s.agreement_error for s in curves})


def _draw_silhouette_curve(curves: Sequence[Scores]) -> Curve:
    """Mean silhouette by K, of the trials that have one; -1, the lowest, where none has."""
    known = {s.k: [value for value in s.silhouette if not np.isnan(value)] for s in curves}
    errors = {k: float(np.std(v, ddof=1)) / len(v) ** 0.5 if len(v) > 1 else float("nan") for k, v in known.items()}
    return Curve({k: float(np.mean(v)) if v else -1.0 for k, v in known.items()}, errors)


def _explain_agreement(agreement: Curve, near: Sequence[int]) -> str:
    """Where the seeds agree most, in a sentence."""
    best = agreement.best(near)
    others = [k for k in near if k != best]
    text = f"Different seeds agree most at K = {best} (adjusted Rand index {show(agreement.values[best])})"
    return (
        f"{text}; within one standard error, {show(agreement.error(best))}: {list_numbers(others)}."
        if others
        else f"{text}."
    )


def _explain_silhouette(silhouette: Curve, near: Sequence[int], tied: Sequence[int]) -> list[str]:
    """What the silhouette adds to that, in a sentence or none."""
    best = silhouette.best(near)
    value = show(silhouette.values[best])
    if len(tied) > 1:
        error = f"to within one standard error, {show(silhouette.error(best))}"
        return [
            f"Their silhouettes are the same {error}, for {list_numbers(tied)}: of equals the smallest K is suggested."
        ]
    if len(near) > 1:
        return [f"Of these K = {best} has the best silhouette, {value}."]
    return [f"The silhouette is best there too, {value}."] if best == silhouette.best(list(silhouette.values)) else []


def _find_doubts(agreement: Curve, silhouette: Curve, near: Sequence[int], chosen: int) -> list[str]:
    """Why the suggestion may be wrong, in sentences; none where the curves are clear."""
    ks = list(agreement.values)
    peak = silhouette.best(ks)
    doubts = []
    if len(near) == len(ks):
        doubts.append("The seeds agree equally at every K, to within one standard error: that decides nothing.")
    elif not set(silhouette.near(ks)) & set(near):
        doubts.append(
            f"The curves contradict each other: the silhouette is best at K = {peak} ({show(silhouette.values[peak])} "
            f"against {show(silhouette.values[chosen])}), where seeds agree less ({show(agreement.values[peak])})."
        )
    if (highest := max(agreement.values.values())) < POOR_AGREEMENT:
        doubts.append(
            f"Even the best agreement is {'hardly above chance' if highest < NO_AGREEMENT else 'poor'} "
            f"({show(highest)}): at every K different seeds find different clusters; train longer (--epochs), on more "
            "images (--limit) or larger ones (--image-size), or there are no clusters in these images."
        )
    if len(near) < len(ks) and (ks[-1] in near or (ks[0] in near and ks[0] > 2)):
        way = "larger" if ks[-1] in near else "smaller"
        doubts.append(f"The best are at the end of the range: look at {way} K too (--k).")
    return doubts


def list_numbers(numbers: Sequence[int]) -> str:
    """Numbers as a person lists them: 8, 10 and 12."""
    words = [str(number) for number in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)

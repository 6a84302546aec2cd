"""The statistics of then and now: each test with an effect size in [0, 1] that does not grow with the images' number.

With a million images any difference is significant, so whoever judges asks for both.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stdac.errors import StdacError

ALPHA = 0.05
SIZES = ((0.5, "large"), (0.3, "medium"), (0.1, "small"))  # Cohen 1988, for w; Cramér's V of two rows is w
EXCESS = 2.0  # times as many outliers as expected: what counts as more than a few
LEAST_EXPECTED = 5.0  # images in each cell for which chi-squared's distribution serves; else it is simulated
DRAWS = 20_000
EXACT_KS = 500  # values on each side up to which the exact distribution is used

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


class Difference(NamedTuple):
    """What a test found. p: where there are several, corrected by Holm for the others. effect: in [0, 1]."""

    statistic: float
    p: float
    effect: float

    @property
    def size(self) -> str:
        """The effect in a word: negligible, small, medium or large."""
        return measure_effect(self.effect)

    @property
    def notable(self) -> bool:
        """Whether the difference is significant, and not negligible."""
        return self.p < ALPHA and self.effect >= SIZES[-1][0]


class Excess(NamedTuple):
    """Outliers of one kind: how many images lie beyond a threshold, and how many were to be expected.

    p: that so many or more do by chance alone, corrected as in Difference.
    """

    threshold: float
    expected: float
    seen: int
    p: float

    @property
    def notable(self) -> bool:
        """Whether there are significantly more than expected, and EXCESS times as many."""
        return self.p < ALPHA and self.seen >= EXCESS * self.expected


def measure_effect(effect: float) -> str:
    """An effect in a word."""
    return next((word for least, word in SIZES if effect >= least), "negligible")


def import_stats() -> Any:
    """scipy.stats. Raises StdacError where it is not installed."""
    try:
        from scipy import stats
    except ImportError as error:
        raise StdacError(
            "to compare two runs needs scipy, which is not installed: pip install 'stdac[train]', or scikit-learn alone"
        ) from error
    return stats


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number: the chance of any false alarm among them is held (Holm 1979)."""
    order = sorted(range(len(p)), key=p.__getitem__)
    raised = np.maximum.accumulate([min(1.0, (len(p) - rank) * p[i]) for rank, i in enumerate(order)])
    return [float(raised[order.index(i)]) for i in range(len(p))]


def correct_values(tests: Sequence[Any]) -> list[Any]:
    """The tests with p values corrected by Holm; those that are None stay so."""
    p = iter(holm([test.p for test in tests if test is not None]))
    return [None if test is None else test._replace(p=next(p)) for test in tests]


def shares_test(stats: Any, counts: NDArray[np.int64]) -> Difference | None:
    """Chi-squared test of homogeneity on counts (2, K) int64; None where one side has no image.

    Where a cell expects few images the distribution is simulated with the same margins, seeded. The effect is Cramér's
    V of the two sides weighted equally: the plain V shrinks when one is much smaller than the other.
    """
    counts = counts[:, counts.sum(0) > 0]
    n = counts.sum(1)
    if not n.all():
        return None
    statistic = _chi_squared(counts)
    p = float(stats.chi2.sf(statistic, counts.shape[1] - 1)) if counts.shape[1] > 1 else 1.0
    if (n.min() / n.sum() * counts.sum(0)).min() < LEAST_EXPECTED:
        draw = np.random.default_rng(0).multivariate_hypergeometric(counts.sum(0), n[0], DRAWS, method="marginals")
        drawn = _chi_squared(np.stack([draw, counts.sum(0) - draw], 1))
        p = float((1 + (drawn >= statistic * (1 - 1e-9)).sum()) / (1 + DRAWS))
    share = counts / n[:, None]
    return Difference(float(statistic), p, float(np.sqrt(((share[1] - share[0]) ** 2 / share.sum(0)).sum() / 2)))


def _chi_squared(counts: NDArray[np.int64]) -> Any:
    """Pearson's statistic of homogeneity of tables (..., 2, K) without empty columns."""
    total = counts.sum((-2, -1), keepdims=True)
    expected = counts.sum(-1, keepdims=True) * (counts.sum(-2, keepdims=True) / total)
    return ((counts - expected) ** 2 / expected).sum((-2, -1))


def share_changes(counts: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Change of each cluster's share (K,) and its interval's ends, wide enough that all K hold together with 95 %.

    counts: (2, K). NaN where one side has no image.
    """
    return newcombe(counts, counts.sum(1, keepdims=True), NormalDist().inv_cdf(1 - ALPHA / (2 * counts.shape[1])))


def newcombe(hits: NDArray[np.int64], n: NDArray[np.int64], z: float) -> tuple[Floats, Floats, Floats]:
    """Difference of two shares hits / n, second less first, and its interval's ends: Newcombe 1998, method 10.

    hits: (2, ...), n: the same or broadcast to it. z: how many standard errors, 1.96 for 95 %.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        share = hits / n
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)  # Wilson's interval of each share
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    below, above = share - np.maximum(middle - half, 0), np.minimum(middle + half, 1) - share
    change = share[1] - share[0]
    return change, change - np.hypot(below[1], above[0]), change + np.hypot(above[1], below[0])


def ks_test(stats: Any, then: Floats, now: Floats) -> Difference | None:
    """Two-sample Kolmogorov–Smirnov test on confidences; None where one side has none. Ties make it cautious."""
    if not len(then) or not len(now):
        return None
    method = "exact" if max(len(then), len(now)) <= EXACT_KS else "asymp"
    result = stats.ks_2samp(then, now, method=method)
    return Difference(float(result.statistic), float(result.pvalue), float(result.statistic))


def compare_beyond_quantile(stats: Any, then: Floats, now: Floats, tail: float) -> tuple[Mask, Excess | None]:
    """Which values now exceed the r-th largest of the n values then, with r = tail * n rounded up.

    Exact for any continuous distribution: if nothing changed, the number that does among m is beta-binomial with
    parameters m, r, n + 1 - r, whose mean is m r / (n + 1). Values that are NaN are not counted on either side.
    """
    then, finite = then[np.isfinite(then)], np.isfinite(now)
    n, m = len(then), int(finite.sum())
    if not n or not m:
        return np.zeros(len(now), bool), None
    r = math.ceil(tail * n)
    threshold = float(np.partition(then, n - r)[n - r])
    beyond = finite & (now > threshold)
    seen = int(beyond.sum())
    p = float(stats.betabinom.sf(seen - 1, m, r, n + 1 - r)) if seen else 1.0
    return beyond, Excess(threshold, m * r / (n + 1), seen, p)

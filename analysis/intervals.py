"""95 % confidence intervals over seeds: of a mean, and of its difference to a published one."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from analysis.published import Published

LEVEL = 0.95
LEAST = 3  # values: the interval of two is ten times as wide as their distance, and says nothing


class Interval(NamedTuple):
    """From low to high."""

    low: float
    high: float


def estimate_mean(values: Sequence[float]) -> Interval | None:
    """Student's t interval of the mean of scores in [0, 1], cut to that range; None for fewer than LEAST values."""
    if len(values) < LEAST:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return make_interval(statistics.fmean(values), error, len(values) - 1, least=0)


def estimate_difference(values: Sequence[float], paper: Published) -> Interval | None:
    """Welch's interval of the mean of `values` less the published mean, cut to [-1, 1].

    None for fewer than LEAST values, or where the published standard deviation or number of runs is not known. The
    published standard deviation is taken to be over n (ddof = 0), as ours in the tables.
    """
    if len(values) < LEAST or paper.std is None or paper.n is None or paper.n < 2:
        return None
    ours, theirs = statistics.variance(values) / len(values), paper.std**2 / (paper.n - 1)  # squared standard errors
    total = ours + theirs
    weights = ours**2 / (len(values) - 1) + theirs**2 / (paper.n - 1)
    freedom = total**2 / weights if weights else paper.n - 1
    return make_interval(statistics.fmean(values) - paper.mean, math.sqrt(total), freedom, least=-1)


def make_interval(centre: float, error: float, freedom: float, *, least: float) -> Interval:
    """The interval of a centre with a standard error and degrees of freedom, cut to [least, 1]."""
    from scipy.special import stdtrit

    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Interval(max(least, centre - half), min(1.0, centre + half))

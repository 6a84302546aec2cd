"""A comparison of two runs for a terminal: a verdict in one sentence, then the numbers behind it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stdac.words import count_noun, escape_line

if TYPE_CHECKING:
    from export.results.drift import Drift

NOTE = "p is corrected for the number of tests (Holm); the intervals hold for all clusters at once."


def describe_drift(drift: "Drift", names: Sequence[str | None] = ()) -> str:
    """A verdict in one sentence, then the numbers. names: K of the new model, "" or None for none; may be empty."""
    shown = [escape_line(name or "") for name in names] + [""] * (len(drift.change) - len(names))
    lines = [f"{judge_drift(drift, shown)}.", *_describe_compared(drift)]
    if drift.now and drift.then:
        lines += ["", *_format_shares(drift, shown), "", *_describe_tests(drift), NOTE]
    return "\n".join(lines)


def judge_drift(drift: "Drift", names: Sequence[str]) -> str:
    """What happened, in plain words, without a full stop."""
    if not drift.then or not drift.now:
        return _describe_nothing_new(drift)
    if drift.size == "none":
        return "no drift: the new images fall into the clusters as the earlier ones did, with the same confidence"
    if drift.size == "negligible":
        return "hardly any drift: what differs is more than chance, but too little to act on"
    reasons = []
    if drift.shares is not None and drift.shares.notable:
        k = int(np.abs(drift.change).argmax())
        name = f" ({names[k]})" if names[k] else ""
        then, now = (format_percent(share) for share in drift.counts[:, k] / drift.counts.sum(1))
        shift = f"the mix of clusters shifted by {format_percent(drift.moved)} of the images"
        reasons.append(f"{shift}, most of all cluster {k}{name} from {then} to {now}")
    if drift.confidence is not None and drift.confidence.notable:
        reasons.append(f"the model is {'less' if _is_lower(drift) else 'more'} sure")
    for excess, what in ((drift.low_confidence, "of low confidence"), (drift.far, "far from their cluster")):
        if excess is not None and excess.notable:
            reasons.append(f"{excess.seen / excess.expected:.1f} times as many images as expected are {what}")
    return f"{drift.size} drift: {'; '.join(reasons)}"


def _describe_nothing_new(drift: "Drift") -> str:
    """Why nothing can be tested."""
    if not drift.then:
        return "nothing to compare with: the earlier run has no image with a cluster"
    if drift.matching is None:
        return "no drift: there is no new image, all are of the earlier run"
    agreement = format_percent(drift.matching.agreement)
    return f"there is no new image, and of those in both runs {agreement} are in the cluster that continues theirs"


def _is_lower(drift: "Drift") -> bool:
    """Whether the mean confidence fell."""
    then, now = np.nansum(drift.mean_confidence * drift.counts, 1) / drift.counts.sum(1)
    return bool(now < then)


def _describe_compared(drift: "Drift") -> list[str]:
    """What was compared with what."""
    line = f"{count_noun(drift.then, 'image')} then, {count_noun(drift.now, 'new one')} now"
    if drift.matching is None:
        again = f"; {drift.known:,} of the new run are the same ones again and count as then" if drift.known else ""
        return [line + again]
    fresh = [str(cluster) for cluster, old in enumerate(drift.matching.old_of) if old is None]
    models = (
        "the model is another one, so its own clusters of the earlier images stand for then; "
        f"on {count_noun(drift.matching.images, 'image')} of both runs the two models agree on "
        f"{format_percent(drift.matching.agreement)}"
    )
    return [line, models + (f", and no earlier cluster continues as {', '.join(fresh)}" if fresh else "")]


def _format_shares(drift: "Drift", names: Sequence[str]) -> list[str]:
    """A line a cluster: shares, their change and its interval, mean confidences; and what is significant there."""
    wide = max(map(len, ("name", *names)))
    head = f"cluster  {'name':{wide}}     then      now   change      95 % interval       confidence then, now"
    return [head, *(_format_share(drift, k, f"{name:{wide}}") for k, name in enumerate(names))]


def _format_share(drift: "Drift", k: int, name: str) -> str:
    """The line of one cluster."""
    then, now = drift.counts[:, k] / drift.counts.sum(1)
    interval = f"{100 * drift.low[k]:+6.2f} to {100 * drift.high[k]:+6.2f} %"
    means = ["    -" if np.isnan(mean) else f"{mean:.3f}" for mean in drift.mean_confidence[:, k]]
    test = drift.by_cluster[k]
    notes = ["share changed"] if drift.low[k] > 0 or drift.high[k] < 0 else []
    notes += ["confidence changed"] if test is not None and test.notable else []
    line = f"{k:>7}  {name}  {100 * then:5.2f} %  {100 * now:5.2f} %  {100 * drift.change[k]:+6.2f}  {interval}"
    return f"{line}           {means[0]}  {means[1]}  {', '.join(notes)}".rstrip()


def _describe_tests(drift: "Drift") -> list[str]:
    """A line a test."""
    lines = []
    if drift.shares is not None:
        degrees = int((drift.counts.sum(0) > 0).sum()) - 1
        found = (
            f"chi-squared {drift.shares.statistic:.1f} with {degrees} degrees of freedom, {_format_p(drift.shares.p)}"
        )
        lines.append(f"shares:      {found}; Cramér's V {drift.shares.effect:.3f}, {drift.shares.size}")
    if drift.confidence is not None:
        found = f"Kolmogorov-Smirnov, {_format_p(drift.confidence.p)}"
        lines.append(f"confidences: {found}; D {drift.confidence.effect:.3f}, {drift.confidence.size}")
    for excess, where in ((drift.low_confidence, "confidence below"), (drift.far, "distance above")):
        if excess is not None:
            counted = f"{excess.expected:,.1f} expected, {excess.seen:,} seen, {_format_p(excess.p)}"
            lines.append(f"outliers:    {where} {excess.threshold:.3f}: {counted}")
    return lines


def _format_p(p: float) -> str:
    """A p value, as a person reads it."""
    return "p < 1e-6" if p < 1e-6 else f"p = {p:.1e}" if p < 0.001 else f"p = {p:.3f}"


def format_percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f} %"

"""How long a run will still take: from what its trials took, what those that run say, and what their methods compute.

A launch writes down what each trial will roughly cost (`costs.json`), so that whoever watches need not import torch.
How fast this machine is compared with that guess shows in the trials that are done and in those that run.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster_jobs.ledger import Status
from stdac.errors import StdacError
from stdac.files import read_json, write_json
from stdac.trial import Trial, write_canonical

COSTS = "costs.json"
MOST_S = 1e10  # of a trial: what is more is no estimate of ours
LEAST_SHARE = 0.05  # of a trial that has taken longer than it was guessed to take: what is still left of it


def write_costs(run: Path, trials: Iterable[Trial], *, gpu: bool, images: int | None = None) -> None:
    """Write down what trials will roughly cost, beside those of earlier launches. Nothing depends on the file. images:
    of their data set, see `estimate_seconds`."""
    from stdac.cost import estimate_seconds

    costs = read_costs(run)
    new = {
        trial.id: round(estimate_seconds(trial, gpu=gpu, images=images), 1) for trial in trials if trial.id not in costs
    }
    if new:
        with suppress(StdacError):
            write_json(run / COSTS, costs | new)


def read_costs(run: Path) -> dict[str, float]:
    """What `write_costs` wrote, in seconds by trial id; empty where there is no such file."""
    with suppress(StdacError, OSError):
        found = read_json(run / COSTS)
        if isinstance(found, dict):
            return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float) and 0 <= v < MOST_S}
    return {}


class Pace:
    """How long trials take; those of one kind, which differ in their seed, equally long. costs: see `read_costs`."""

    def __init__(self, costs: Mapping[str, float] | None = None) -> None:
        self.costs = dict(costs or {})
        self.kinds: dict[str, str] = {}  # of the trials that have not ended
        self.ended: Counter[str] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)  # of those that are done, by kind
        self.guessed: dict[str, float] = {}  # by kind

    def add(self, trial_id: str, trial: dict[str, Any]) -> None:
        """Note a planned trial."""
        self.kinds[trial_id] = kind = sys.intern(_name_kind(trial))
        if trial_id in self.costs:
            self.guessed.setdefault(kind, self.costs.pop(trial_id))

    def end(self, status: Status) -> None:
        """Note a trial that is done or failed, once."""
        kind = self.kinds.pop(status.trial_id)
        if status.state == "done":
            self.ended[kind] += 1
            self.seconds[kind] += status.detail.get("seconds", 0.0)

    def seconds_left(self, running: Sequence[Status]) -> float | None:
        """Seconds until the run is done, as many at a time as now; None where nothing is known of what is left."""
        known = {kind: self.seconds[kind] / count for kind, count in self.ended.items()}
        for status in running:
            kind, whole = self.kinds.get(status.trial_id, ""), _extrapolate(status)
            if whole is not None and kind not in known:
                known[kind] = whole
        speed = self._compare_with_guesses(known)
        seconds = {kind: known.get(kind, speed * guess) for kind, guess in self.guessed.items()} | known

        at_work = {status.trial_id for status in running}
        waiting = [seconds.get(kind) for trial_id, kind in self.kinds.items() if trial_id not in at_work]
        begun = [_measure_left(status, seconds.get(self.kinds.get(status.trial_id, ""))) for status in running]
        told = [value for value in (*waiting, *begun) if value is not None]
        if not told:
            return None
        typical = sum(told) / len(told)
        total = sum(typical if value is None else value for value in (*waiting, *begun))
        longest = max((value for value in begun if value is not None), default=0.0)
        return max(total / max(1, len(running)), longest)

    def _compare_with_guesses(self, known: Mapping[str, float]) -> float:
        """How many seconds the trials whose time is known take for each second of their guess."""
        both = [(seconds, self.guessed[kind]) for kind, seconds in known.items() if kind in self.guessed]
        took, guessed = sum(seconds for seconds, _ in both), sum(guess for _, guess in both)
        return took / guessed if took and guessed else 1.0


def _name_kind(trial: dict[str, Any]) -> str:
    """Trials of one kind take about equally long."""
    return write_canonical({name: value for name, value in trial.items() if name not in ("seed", "needs")})


def measure_elapsed(status: Status) -> float:
    """Seconds that a running trial's attempt has taken."""
    now: float = status.detail["now"]
    return max(0.0, now - datetime.fromisoformat(status.detail["began"]).timestamp())


def _count_epochs_left(progress: Mapping[str, Any]) -> float:
    """Of the phase that a trial is in; of the epoch in progress what its steps tell."""
    into = progress["step"] / progress["steps"] if progress["steps"] else 0.0
    return float(progress["epochs"] - progress["epoch"] + 1 - min(1.0, into))


def _read_progress(status: Status) -> Mapping[str, Any] | None:
    """What a running trial says of its epochs and of the seconds that the last one took, if it says all of it."""
    progress = status.detail.get("progress") or {}
    named = {"epoch", "epochs", "step", "steps", "main", "epoch_s"} <= progress.keys()
    return progress if named and progress["epoch_s"] else None


def _extrapolate(status: Status) -> float | None:
    """What a running trial takes in all, by its main phase's epochs; None before the first of them is over."""
    progress = _read_progress(status)
    return float(progress["epochs"] * progress["epoch_s"]) if progress and progress["main"] else None


def _measure_left(status: Status, whole: float | None) -> float | None:
    """Seconds that a running trial still takes. whole: what its kind takes, if that is known."""
    progress = _read_progress(status)
    of_phase = float(_count_epochs_left(progress) * progress["epoch_s"]) if progress else None
    if of_phase is not None and progress is not None and progress["main"]:
        return of_phase
    elapsed = measure_elapsed(status)
    rest = None if whole is None else max(whole - elapsed, LEAST_SHARE * max(whole, elapsed))
    return max((value for value in (of_phase, rest) if value is not None), default=None)

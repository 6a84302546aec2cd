"""The run folder: what was asked for, and what of it is done, running, failed or waiting. Read from the files alone.

What was asked for only grows: trials.parquet, and for every later launch that adds trials trials-2.parquet and so on,
each made once by `link()`, so that two launches at the same time lose nothing of each other's.
"""

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from analysis.runs import gather_rows, look_at, read_collected, read_main_rows, write_collected
from cluster_jobs.plan import PART, Planned, encode_trials, read_trials
from stdac.errors import StdacError
from stdac.files import explain_refusal, link_once, read_file_time
from stdac.folder import TrialFolder
from stdac.layout import ATTEMPT
from stdac.leases import measure_ahead
from stdac.results import Result, read_part, take_result
from stdac.trial import Trial
from stdac.words import count_noun, shorten_paths

if TYPE_CHECKING:
    from analysis.agreement import Choice

State = Literal["done", "running", "failed", "waiting", "blocked", "paused"]
"""waiting: may be claimed now; blocked: waits for a trial that it needs."""

LEFT: tuple[State, ...] = ("waiting", "blocked", "running")
"""The states of a trial that is not over."""

AT_ONCE = 500  # trials whose rows are in memory at the same time


class Status(NamedTuple):
    """Where one trial stands.

    detail: done.json, the running attempt's lease and progress, the failure's reason, the trials that a blocked one
    waits for, or of what waits or is paused the epoch that its checkpoint holds, if any.
    """

    trial_id: str
    state: State
    detail: dict[str, Any]


class Ledger:
    """The run folder at `path`. Any number of processes may have one open: it remembers what is done, and little more.

    pause_after: trials are to stop after this epoch of their main phase. A trial whose checkpoint has reached it is
    "paused" in this ledger, where it would else be "waiting".
    """

    def __init__(self, path: Path, pause_after: int | None = None) -> None:
        self.path, self.pause_after = path, pause_after
        self._done: set[str] = set()
        self._ids: dict[str, None] = {}
        self._needs: dict[str, tuple[str, ...]] = {}  # of the trials that need others
        self._parts: set[Path] = set()

    def exists(self) -> bool:
        """Whether a run was planned here."""
        return bool(self.parts())

    def folder(self, trial_id: str) -> TrialFolder:
        """A trial's folder."""
        return TrialFolder(self.path / "trials" / trial_id)

    def plan(self, trials: Sequence[Trial], grid_text: str) -> list[str]:
        """Write down what is asked for and was not before; returns the ids of the earlier trials that `trials` lacks.

        Any number of processes may plan at once. Raises StdacError where the folder cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StdacError(
                f"cannot make the run folder {self.path}: {error.strerror}; choose another --out"
            ) from error
        planned = {trial.id: trial for trial in trials}
        while True:
            earlier = dict.fromkeys(self.ids() if self.exists() else ())
            new = [trial_id for trial_id in planned if trial_id not in earlier]
            if not new:
                return [trial_id for trial_id in earlier if trial_id not in planned]
            number = max(self.parts(), default=0) + 1
            suffix = f"-{number}" if number > 1 else ""
            part = encode_trials((trial_id, planned[trial_id].to_json()) for trial_id in new)
            if link_once(self.path / f"trials{suffix}.parquet", part):
                link_once(self.path / f"grid{suffix}.toml", grid_text.encode())

    def parts(self) -> dict[int, Path]:
        """The files that say what was asked for, by their number, ascending."""
        found = ((PART.fullmatch(path.name), path) for path in self.path.glob("trials*.parquet"))
        return dict(sorted((int(match[1] or 1), path) for match, path in found if match))

    def ids(self) -> list[str]:
        """The planned trials' ids, in order. Raises StdacError for a folder that is no run of this version."""
        for path in self._found_parts():
            if path not in self._parts:
                trials = read_trials(path)
                self._ids |= dict.fromkeys(trials)
                self._needs |= {trial_id: needs for trial_id, (_, needs) in trials.items() if needs}
                self._parts.add(path)
        return list(self._ids)

    def needers(self) -> set[str]:
        """The planned trials that need others."""
        self.ids()
        return set(self._needs)

    def needed(self) -> set[str]:
        """The trials that planned ones need."""
        self.ids()
        return {needed for needs in self._needs.values() for needed in needs}

    def result(self, trial_id: str) -> Result:
        """What a done trial hands to those that need it. Raises StdacError where it is not done."""
        return take_result(self.folder(trial_id))

    def trials(self) -> Planned:
        """The planned trials, as they are now. Raises StdacError as `ids` does."""
        parts = map(read_trials, self._found_parts())
        return Planned({trial_id: text for part in parts for trial_id, (text, _) in part.items()})

    def _found_parts(self) -> Iterable[Path]:
        found = self.parts().values()
        if not found:
            raise StdacError(f"{self.path} is not a run folder: it has no trials.parquet; stdac-grid launch makes one")
        return found

    def status(self, trial_id: str, known: Mapping[str, State] = MappingProxyType({})) -> Status:
        """Where one trial stands: failed, with the reason, where its folder cannot be looked at.

        known: the states of others, where they were looked up just now.
        """
        try:
            return self._look(trial_id, known)
        except StdacError as error:
            reason = str(error)
        except OSError as error:
            reason = f"its folder cannot be used ({error.strerror or error}): see to its owner and rights"
        return Status(trial_id, "failed", {"reason": reason, "log": str(self.folder(trial_id).path)})

    def _look(self, trial_id: str, known: Mapping[str, State]) -> Status:
        """See `status`."""
        folder = self.folder(trial_id)
        done = folder.done()
        if done is not None:
            return Status(trial_id, "done", done)
        holder = folder.holder()
        if holder is not None:
            number = holder["attempt"]
            clock = {"now": read_file_time(self.path), "silence": folder.silence(number)}
            clock["ahead"] = measure_ahead(folder.lease_path(number))
            progress = folder.read_progress(number)
            return Status(trial_id, "running", holder | folder.history() | clock | {"progress": progress})
        error = folder.error()
        if error is not None:
            reason = error.partition("\n")[0]
            return Status(trial_id, "failed", {"reason": reason, "log": str(folder.error_path)})
        held_up = self._look_at_needs(trial_id, known)
        if held_up is not None:
            return held_up
        if os.access(self.path, os.W_OK) and folder.path.exists() and not os.access(folder.path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        saved = _read_saved_epoch(folder)
        paused = self.pause_after is not None and saved.get("epoch", 0) >= self.pause_after
        return Status(trial_id, "paused" if paused else "waiting", saved)

    def _look_at_needs(self, trial_id: str, known: Mapping[str, State]) -> Status | None:
        """Where a trial stands that cannot run because of those that it needs; None where all of them are done."""
        if trial_id not in self._ids:
            self.ids()
        waits: list[str] = []
        for needed in self._needs.get(trial_id, ()):
            state = known.get(needed) or (self.state(needed, known) if needed in self._ids else None)
            if state is None:
                reason = f"not run: it needs trial {needed}, which no grid of this run has planned"
                return Status(trial_id, "failed", {"reason": reason, "log": str(self.path / "trials.parquet")})
            if state == "failed":
                reason = f"not run: trial {needed}, which it needs, failed"
                return Status(trial_id, "failed", {"reason": reason, "log": self.status(needed).detail["log"]})
            if state == "paused":
                return Status(trial_id, "paused", {})
            if state != "done":
                waits.append(needed)
        return Status(trial_id, "blocked", {"for": waits}) if waits else None

    def statuses(self) -> list[Status]:
        """Where every trial stands, in order."""
        return [self.status(trial_id) for trial_id in self.ids()]

    def state(self, trial_id: str, known: Mapping[str, State] = MappingProxyType({})) -> State:
        """In which state one trial is; that it is done is remembered until `states` misses it. known: see `status`."""
        if trial_id in self._done:
            return "done"
        state = self.status(trial_id, known).state
        if state == "done":
            self._done.add(trial_id)
        return state

    def states(self) -> dict[str, State]:
        """In which state every trial is, in order.

        Of thousands only those are looked at that were begun and not done, or that need others.
        """
        looked_at = {*self._done, *self._needs} if self.ids() else set()
        with suppress(OSError), os.scandir(self.path / "trials") as folders:
            begun = {folder.name for folder in folders}
            looked_at |= begun
            self._done &= begun  # one that a doctor has put aside meanwhile runs again
        states: dict[str, State] = {}
        for trial_id in self._ids:
            states[trial_id] = self.state(trial_id, states) if trial_id in looked_at else "waiting"
        return states

    def count(self, *states: State) -> int:
        """How many trials are in one of these states."""
        return sum(state in states for state in self.states().values())

    def retry(self) -> list[str]:
        """Forget all failures; returns the ids of the trials that will run again. What cannot be used stays failed."""
        again = []
        for trial_id in [trial_id for trial_id, state in self.states().items() if state == "failed"]:
            with suppress(StdacError, OSError):
                self.folder(trial_id).forgive()
                again.append(trial_id)
        return again

    def cancel(self) -> None:
        """Ask every worker of this run to stop, wherever it is; `resume` takes it back."""
        link_once(self.path / "cancel", b"")

    def cancelled(self) -> bool:
        """Whether this run's workers are to stop."""
        return (self.path / "cancel").exists()

    def resume(self) -> None:
        """Let workers take trials again."""
        try:
            (self.path / "cancel").unlink(missing_ok=True)
        except OSError as error:
            raise explain_refusal(error, self.path / "cancel") from error

    def best_model(self, method: str, dataset: str | None = None) -> "Choice":
        """The model.pt of the method's done trial with the lowest last loss. Raises StdacError where there is none.

        dataset: of the trials, as it was given or by the end of its path; there is one if not given.
        """
        from analysis.agreement import LEAST, Choice

        trials = self.trials()
        names = shorten_paths({trial["dataset"] for trial in trials.values()})
        losses: dict[Path, float] = {}
        for trial_id, trial in trials.items():
            folder = self.folder(trial_id)
            wanted = trial["method"] == method and dataset in (None, trial["dataset"], names[trial["dataset"]])
            seen = look_at(folder) if wanted else None
            if seen is not None and seen.done is not None:
                path = folder.attempt_path(seen.done["attempt"])
                loss = read_main_rows(path / "metrics.parquet")[-1]["loss"] if (path / "model.pt").exists() else None
                if loss is not None:
                    losses[path / "model.pt"] = loss
        if not losses:
            raise StdacError(f"{self.path} has no done {method} trial with a loss and a model: launch its grid first")
        best = min(losses, key=losses.__getitem__)
        read_part(best)
        why = f"by the lowest final loss of {count_noun(len(losses), f'{method} trial')}, {losses[best]:.4f}"
        return Choice(best, f"{why}: fewer than {LEAST} trials of the same images have clusters to compare")

    def collect(self, *, unfinished: bool = False) -> Path:
        """Write RUN/metrics.parquet, an `analysis.runs.ROWS` file: the rows of all done trials, by trial, phase, epoch.

        unfinished: also the rows so far of trials that are not done, from their newest checkpoints.
        """
        plan = self.trials()
        folders = map(self.folder, sorted(plan))
        found = gather_rows(folders, read_collected(self.path), plan, unfinished=unfinished)
        return write_collected(self.path, found)


def _read_saved_epoch(folder: TrialFolder) -> dict[str, Any]:
    """The epoch of the main phase that a trial's newest checkpoint is sure to hold, of how many; empty for none.

    From what its attempt last said of it: the checkpoint, which is large, is not read, and may be a little newer.
    """
    for checkpoint in folder.checkpoints()[:1]:
        attempt = ATTEMPT.fullmatch(checkpoint.parent.name)
        progress = (folder.read_progress(int(attempt[1])) if attempt else None) or {}
        if progress.get("saved", 0) > 0 and "epochs" in progress:
            return {"epoch": progress["saved"], "epochs": progress["epochs"]}
    return {}

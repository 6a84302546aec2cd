"""What in a run folder should not be there: how it came about, whether it matters, and how it is mended.

A run that is alive may be examined: a trial with a lease that was renewed lately is left alone. Mending deletes only
what no reader follows. A result that cannot be read is put aside into RUN/damaged/, and its trial runs again.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from cluster_jobs import ray_tune
from cluster_jobs.checks import (
    Damaged,
    Foreign,
    check_lease,
    check_result,
    check_rows,
    check_zip,
    list_folder,
    number_paths,
    parse_file,
    read_content,
    read_plan,
    read_trial,
)
from cluster_jobs.ledger import Ledger
from cluster_jobs.mending import guard_change, remove
from cluster_jobs.plan import PART, encode_trials
from stdac.errors import StdacError
from stdac.files import encode_json, is_real_folder, link_once, read_file_time
from stdac.layout import ATTEMPT, CHECKPOINT, DONE_JSON, ERROR_TXT, LEASE, PROGRESS, TRIAL_JSON
from stdac.leases import LEASE_S, give_back
from stdac.words import count_noun, escape_line, format_duration, format_time

TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp|\.now-.+", re.DOTALL)
SLURM_FILE = re.compile(r".*_submitted\..*|.*_result\.pkl.*|.*\.save_tmp|probe-.*", re.DOTALL)

RUNS_AGAIN = "put it aside into damaged/, so that the trial runs again with the next launch"
CUT_SHORT = "a write was cut short, or it was changed from outside"


class Finding(NamedTuple):
    """One thing that is wrong, in clauses. what: it is; why: how it came about, and whether it matters.

    remedy: what mending would do or, where `mend` is None, what happens or what a person can do.
    """

    path: Path
    what: str
    why: str
    remedy: str
    mend: Callable[[], None] | None = None

    def __str__(self) -> str:
        remedy = f"mending would {self.remedy}" if self.mend is not None else self.remedy
        return escape_line(f"{self.path} {self.what}: {self.why}; {remedy}")


def examine(ledger: Ledger) -> list[Finding]:
    """All that is wrong in a run folder, the plan first. Raises nothing, whatever it finds."""
    examination = Examination(ledger.path)
    return list(examination.guard_access(ledger.path, examination.find_all()))


def mend(finding: Finding) -> None:
    """Do what the finding's remedy says; nothing where it has no `mend`.

    Raises StdacError where the file system refuses, or where what was found has changed since.
    """
    if finding.mend is None:
        return
    try:
        finding.mend()
    except OSError as error:
        reason = f"{error.strerror or error}: {escape_line(str(error.filename))}"
        raise StdacError(f"cannot mend {escape_line(finding.path)} ({reason}): see to that and mend again") from error


class Examination:
    """One look at a run folder, by the clock that stamps its files."""

    def __init__(self, run: Path) -> None:
        self.run, self.now = run.resolve(), read_file_time(run)
        self.plan: dict[str, dict[str, Any]] = {}  # planned trials: id -> JSON
        self.plan_is_whole = False
        self.busy = False  # whether some attempt may be alive

    def find_all(self) -> Iterator[Finding]:
        """Every finding; where the file system refuses a look at something, that is one."""
        if not (self.run / "trials").exists() and not any(PART.fullmatch(path.name) for path in list_folder(self.run)):
            yield Finding(self.run, "is not a run folder", "it has no trials.parquet", "stdac-grid launch makes one")
            return
        folders = [self.run, self.run / "trials", self.run / "logs", self.run / "logs" / "slurm"]
        checks = [self._check_plan(), self._check_trials(), self._check_collected(), self._find_abandoned()]
        for check in [*checks, *map(self._check_folder, folders)]:
            yield from self.guard_access(self.run, check)

    def _check_folder(self, folder: Path) -> Iterator[Finding]:
        """What is left over in a folder that is no trial's."""
        yield from self._find_temporaries(list_folder(folder))

    # the plan

    def _check_plan(self) -> Iterator[Finding]:
        """Read the plan; a part of it that cannot be read is made anew from the trials that were begun."""
        damages: dict[Path, Damaged] = {}
        parts = [path for path in list_folder(self.run) if PART.fullmatch(path.name)]
        for path in sorted({self.run / "trials.parquet", *parts}):
            try:
                self.plan |= parse_file(path, read_plan, "a Parquet file")
            except Damaged as error:
                damages[path] = error
        self.plan_is_whole = not damages
        begun = self._read_begun() if damages else {}
        for path, damage in damages.items():
            if isinstance(damage, Foreign):
                why, remedy = "another version of stdac planned this run", "use the one that wrote it"
                yield Finding(path, str(damage), why, remedy)
            else:
                remedy = "put it aside and make it anew from the trials that were begun; then launch the grid once more"
                replan = guard_change(path, partial(self._replan, path, begun))
                why = (
                    CUT_SHORT if path.exists() else "it was deleted, or this is a folder of stdac train, which has none"
                )
                yield Finding(path, str(damage), why, remedy, replan)
        self.plan = begun | self.plan

    def _read_begun(self) -> dict[str, dict[str, Any]]:
        """The trials that lie in trials/ and were not read from the plan."""
        begun = {}
        for folder in list_folder(self.run / "trials"):
            with suppress(Damaged, OSError):
                if folder.name not in self.plan:
                    begun[folder.name] = read_trial(folder)
        return begun

    def _replan(self, path: Path, trials: dict[str, dict[str, Any]]) -> None:
        """Put a part of the plan aside and write one with `trials`."""
        self._put_aside(path)
        link_once(path, encode_trials(trials.items()))

    # the trials

    def _check_trials(self) -> Iterator[Finding]:
        """What is wrong in trials/."""
        folder = self.run / "trials"
        if os.path.lexists(folder) and not is_real_folder(folder):
            yield self._report_misplaced(folder)
            return
        for path in list_folder(folder):
            if path.name in self.plan:
                yield from self.guard_access(path, self._check_trial(path))
            elif self.plan_is_whole and not path.name.startswith("."):
                why = "it was copied here, or the part of the plan that named it is lost"
                remedy = "nothing reads it: launch the grid that it belongs to, or move it away"
                yield Finding(path, "is no trial that a grid of this run planned", why, remedy)

    def _check_trial(self, folder: Path) -> Iterator[Finding]:
        """What is wrong in the folder of a planned trial, unless somebody may be at work there."""
        if not is_real_folder(folder):
            yield self._report_misplaced(folder)
            return
        done = os.path.lexists(folder / DONE_JSON)  # looked for first: what it names was there before it
        paths = list_folder(folder)
        leases, attempts = number_paths(paths, LEASE), number_paths(paths, ATTEMPT)
        ahead = [path for path in leases.values() if self._measure_age(path) < -LEASE_S]
        yield from map(self._report_ahead, ahead)
        if any(self._measure_age(path) < LEASE_S for path in leases.values()):
            self.busy = True
            return
        try:
            winner = check_result(folder, attempts) if done else None
            trial_file = list(self._check_trial_file(folder, begun=done or bool(leases)))
        except Damaged as damage:
            aside = guard_change(folder, partial(self._put_aside, folder))
            yield Finding(folder, f"cannot be used, as {damage}", CUT_SHORT, RUNS_AGAIN, aside)
            return
        yield from trial_file
        for number, path in leases.items():
            yield from self._judge(path, check_lease, partial(self._stand_in, path, number))
        yield from self._check_done(paths, attempts, winner) if winner else self._check_open(folder, leases, attempts)
        yield from self._find_temporaries(paths)

    def _check_trial_file(self, folder: Path, *, begun: bool) -> Iterator[Finding]:
        """A trial.json that cannot be read says what the plan says. Raises Foreign where it is another trial's."""
        path = folder / TRIAL_JSON
        if not begun and not os.path.lexists(path):  # a worker has just made the folder
            return
        try:
            read_trial(folder)
        except Foreign:
            raise
        except Damaged as damage:
            rewrite = guard_change(path, partial(self._replace, path, encode_json(self.plan[folder.name])))
            yield Finding(path, str(damage), CUT_SHORT, "write it again as it was planned", rewrite)

    def _check_done(self, paths: Iterable[Path], attempts: Mapping[int, Path], winner: int) -> Iterator[Finding]:
        """What is left over in the folder of a done trial. paths: what is in it."""
        remedy = "delete it: no reader follows it"
        for number, path in attempts.items():
            if number != winner:
                why = f"attempt {winner} finished first, and was killed before it swept, as was this one"
                yield Finding(path, "is an attempt that lost", why, remedy, guard_change(path, partial(remove, path)))
        parts = list_folder(attempts[winner])
        yield from self._find_temporaries(parts)
        left = [path for path in parts if path.name in (CHECKPOINT, PROGRESS)]
        for path in [*left, *(path for path in paths if path.name == ERROR_TXT)]:
            why = "its process was killed between finishing and sweeping"
            yield Finding(path, "is left of a done trial", why, remedy, guard_change(path, partial(remove, path)))

    def _check_open(self, folder: Path, leases: Mapping[int, Path], attempts: Mapping[int, Path]) -> Iterator[Finding]:
        """What holds up a trial that is not done and at which nobody is at work."""
        failure = folder / ERROR_TXT
        yield from self._check_failure(failure) if failure.exists() else self._find_stale(leases)
        for path in attempts.values():
            if not is_real_folder(path):
                yield self._report_misplaced(path)
                continue
            checkpoint = path / CHECKPOINT
            if os.path.lexists(checkpoint):
                yield from self._judge(checkpoint, check_zip, partial(self._put_aside, checkpoint))
            yield from self._find_temporaries(list_folder(path))

    def _find_stale(self, leases: Mapping[int, Path]) -> Iterator[Finding]:
        """The newest lease where it was neither given back nor renewed."""
        if not leases:
            return
        path = leases[max(leases)]
        renewed = path.lstat().st_mtime
        if renewed:
            host = ""
            with suppress(Damaged):
                host = f" on {check_lease(path)['host']}"
            why = f"its process{host} was killed, or cut off from here, {format_duration(self.now - renewed)} ago"
            remedy = "nothing to mend: the next worker takes the trial over from its last checkpoint"
            yield Finding(path, "is stale", why, remedy)

    def _report_ahead(self, path: Path) -> Finding:
        """The finding for a lease that lies ahead of the clock that stamps files here."""
        what = f"lies {format_duration(-self._measure_age(path))} ahead of the file system's clock"
        why = (
            "the clock was wrong when it was renewed, or it was changed outside; whether it is held shows only in time"
        )
        renew = guard_change(path, partial(os.utime, path, follow_symlinks=False))
        return Finding(path, what, why, "renew it now, so that it lapses in a minute unless its process lives", renew)

    def _check_failure(self, path: Path) -> Iterator[Finding]:
        """error.txt of a trial that failed."""
        try:
            reason = read_content(path).decode(errors="replace").split("\n")[0]
            if not reason.strip():
                raise Damaged("gives no reason")
        except Damaged as damage:
            why, remedy = "it was not written by stdac", RUNS_AGAIN
            yield Finding(path, str(damage), why, remedy, guard_change(path, partial(self._put_aside, path)))
        else:
            remedy = "stdac-grid retry, or the next launch, tries it again"
            yield Finding(path, "says that the trial failed", escape_line(reason), remedy)

    # the run folder itself

    def _check_collected(self) -> Iterator[Finding]:
        """The collected rows where they cannot be read."""
        path = self.run / "metrics.parquet"
        if path.exists():
            remedy = "put it aside; stdac-grid collect writes it again from the trials"
            yield from self._judge(path, check_rows, partial(self._put_aside, path), remedy=remedy)

    def _find_abandoned(self) -> Iterator[Finding]:
        """What drivers leave behind, where nobody is at work any more."""
        if self.busy:
            return
        cancel = self.run / "cancel"
        if cancel.exists() and self._measure_age(cancel) > LEASE_S:
            why = "the run was cancelled, and all its workers have left"
            remedy = "delete it, as launch and retry do"
            yield Finding(cancel, "stops every worker", why, remedy, guard_change(cancel, partial(remove, cancel)))
        for path in list_folder(self.run):
            if not path.name.startswith(ray_tune.SCRATCH) or self._measure_age(path) <= LEASE_S:
                continue
            if not ray_tune.is_ours(path):
                why = "it is a link, or another user's"
                yield Finding(path, "has the name of Ray's scratch", why, "nothing reads it: its owner may delete it")
            else:
                why = "its launch was killed; Ray's own state is never read again"
                delete = guard_change(path, partial(ray_tune.remove_scratch, path))
                yield Finding(path, "is scratch of Ray", why, "delete it", delete)
        if self._is_over():
            yield from self._find_slurm_files(self.run / "logs" / "slurm")

    def _find_slurm_files(self, folder: Path) -> Iterator[Finding]:
        """What jobs of SLURM leave beside their logs."""
        found = [path for path in list_folder(folder) if SLURM_FILE.fullmatch(path.name)]
        paths = [path for path in found if self._measure_age(path) > LEASE_S]
        if paths:
            what = f"holds {count_noun(len(paths), 'file')} of SLURM jobs that are over"
            why = "their driver was killed or detached; what is done is never read from them"
            yield Finding(folder, what, why, "delete them; the logs stay", partial(remove, *paths))

    def _is_over(self) -> bool:
        """Whether every planned trial is done or failed, if only because one that it needs has."""
        over: set[str] = set()
        for trial_id, trial in self.plan.items():  # each after those that it needs
            folder, needs = self.run / "trials" / trial_id, trial.get("needs", ())
            ended = (folder / DONE_JSON).exists() or (folder / ERROR_TXT).exists()
            if ended or any(n in over and not (self.run / "trials" / n / DONE_JSON).exists() for n in needs):
                over.add(trial_id)
        return self.plan_is_whole and len(over) == len(self.plan)

    # what all of these use

    def guard_access(self, path: Path, findings: Iterable[Finding]) -> Iterator[Finding]:
        """The findings, and one more where the file system refuses a look; what vanishes meanwhile is none."""
        try:
            yield from findings
        except FileNotFoundError:
            return
        except OSError as error:
            self.busy = True  # who knows
            why, remedy = error.strerror or str(error), "examine it as a user who may read it; nothing there is touched"
            yield Finding(Path(error.filename or path), "cannot be looked at", why, remedy)

    def _judge(
        self,
        path: Path,
        check: Callable[[Path], object],
        action: Callable[[], None],
        *,
        remedy: str = "put it aside into damaged/",
    ) -> Iterator[Finding]:
        """A finding where `check` raises Damaged."""
        try:
            check(path)
        except Damaged as damage:
            yield Finding(path, str(damage), CUT_SHORT, remedy, guard_change(path, action))

    def _report_misplaced(self, path: Path) -> Finding:
        """The finding for what is no folder where one is expected."""
        aside = guard_change(path, partial(self._put_aside, path))
        return Finding(path, "is not a folder", "it was not written by stdac", "put it aside into damaged/", aside)

    def _find_temporaries(self, paths: Iterable[Path]) -> Iterator[Finding]:
        """Those of the paths that are temporary files which no living writer has."""
        for path in paths:
            if TEMPORARY.fullmatch(path.name) and path.is_file() and self._measure_age(path) > LEASE_S:
                why = f"its writer was killed {format_duration(self._measure_age(path))} ago"
                yield Finding(path, "is half-written", why, "delete it", guard_change(path, partial(remove, path)))

    def _measure_age(self, path: Path) -> float:
        """Seconds since a file was changed; those of a lease that was given back, since 1970."""
        return self.now - path.lstat().st_mtime

    def _put_aside(self, path: Path) -> None:
        """Move a file or a folder into RUN/damaged/."""
        if os.path.lexists(path):
            damaged = self.run / "damaged"
            if damaged.is_symlink():
                raise StdacError(f"{damaged} is a link, which is not followed: move it away and mend again")
            damaged.mkdir(exist_ok=True)
            name = "-".join(path.relative_to(self.run).parts).removeprefix("trials-")
            path.rename(next(to for n in count(1) if not os.path.lexists(to := damaged / f"{name}-{n}")))

    def _replace(self, path: Path, made: bytes) -> bool:
        """Put a file aside and make it anew; False where somebody else has made it meanwhile."""
        self._put_aside(path)
        return link_once(path, made)

    def _stand_in(self, path: Path, number: int) -> None:
        """Replace a lease by one that was given back: its number stays taken."""
        began = format_time(read_file_time(self.run))
        lease = {"attempt": number, "host": "unknown", "pid": 0, "process_start": None, "began": began, "log": None}
        if self._replace(path, encode_json(lease)):
            give_back(path)

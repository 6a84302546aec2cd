"""What must hold, whatever happened: while a run goes on, and when it is over."""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster_jobs.doctor import examine, mend
from cluster_jobs.ledger import Ledger
from stdac.errors import StdacError
from stdac.folder import TrialFolder
from stdac.leases import LEASE_S
from stdac.record import METRICS, TIMINGS

Outcome = dict[str, str]
"""What a trial has come to: its rows as JSON, digests of its files. Equal outcomes are equal bit for bit."""

KEPT = re.compile(
    r"(grid|trials)(-\d+)?\.(toml|parquet)|metrics\.parquet|costs\.json|collected\.json|logs/.*|trials/\w+/(trial|done|lease-\d+)\.json"
    r"|trials/\w+/attempt-\d+/((metrics|assignments)\.parquet|model\.pt|stn\.npz)"
    r"|damaged/.*checkpoint\.pt-\d+|damaged/[0-9a-f]{16}-\d+/.*"
)
"""The files of a finished run."""

TRACEBACK = re.compile(r"^Traceback .*\n(?:[ \t].*\n|\n)*(\S.*)", re.MULTILINE)  # ends with what was raised
ROW = re.compile(r"^  \w+ epoch \d+  ", re.MULTILINE)  # in a worker's log


class Violation(Exception):
    """Something that must hold does not."""


class Oracle:
    """Watches a run whose trials must come out as `expected`: id -> Outcome.

    spoiled: done trials whose results a fault has damaged, which are nobody's results until `heal`.
    """

    def __init__(self, run: Path, expected: Mapping[str, Outcome], spoiled: dict[str, bytes]) -> None:
        self.run, self.expected, self.spoiled = run, expected, spoiled
        self.ledger = Ledger(run)
        self.done: dict[str, bytes] = {}  # the done.json of each trial, as it was first seen
        self.outside: set[Path] = set()  # folders beside the run that must go with it

    def look(self) -> None:
        """Raise Violation where a result is wrong, has changed or is gone."""
        self.outside |= {link.resolve() for link in self.run.glob(".ray-*/tmp")}
        for trial_id in self.expected:
            content = self._read_done(trial_id)
            if trial_id in self.spoiled:
                self.done.pop(trial_id, None)
                if content == self.spoiled[trial_id]:
                    continue
                del self.spoiled[trial_id]  # it was put aside
            if content is None:
                if trial_id in self.done:
                    raise Violation(f"trial {trial_id} was done, and is so no more")
                continue
            if trial_id not in self.done:
                self.done[trial_id] = content
                self.compare(trial_id)
            elif content != self.done[trial_id]:
                raise Violation(f"the done.json of trial {trial_id} was {self.done[trial_id]!r} and is {content!r}")

    def compare(self, trial_id: str) -> None:
        """Raise Violation where a done trial did not come out as expected."""
        outcome = outcome_of(self.ledger.folder(trial_id))
        for part in outcome.keys() | self.expected[trial_id].keys():
            got, wanted = outcome.get(part), self.expected[trial_id].get(part)
            if got != wanted:
                raise Violation(f"the {part} of trial {trial_id} are {got}, and undisturbed {wanted}")

    def heal(self) -> list[str]:
        """Let the doctor put aside the spoiled results; what they were. Raise Violation where it overlooks one."""
        healed = sorted(self.spoiled)
        deadline = time.monotonic() + 3 * LEASE_S
        while left := [trial_id for trial_id in healed if self._is_spoiled(trial_id)]:
            if time.monotonic() > deadline:
                raise Violation(f"the doctor overlooks the damaged results of {' '.join(left)}")
            for finding in examine(self.ledger):
                if finding.path.name in left or finding.path.parent.name in left:  # such as a lease ahead of time
                    with suppress(StdacError):
                        mend(finding)
        self.look()
        return healed

    def _is_spoiled(self, trial_id: str) -> bool:
        """Whether a damaged result is still a trial's: no doctor has put it aside yet, and none was made anew."""
        return trial_id in self.spoiled and self._read_done(trial_id) == self.spoiled[trial_id]

    def _read_done(self, trial_id: str) -> bytes | None:
        """A trial's done.json as it is, or None."""
        with suppress(FileNotFoundError):
            return self.ledger.folder(trial_id).done_path.read_bytes()
        return None

    def judge(self) -> None:
        """Raise Violation where a finished run is not complete, unique and equal to the undisturbed one."""
        self.look()
        lacking = self.expected.keys() - self.done.keys()
        if lacking:
            raise Violation(f"{len(lacking)} trials are not done: {' '.join(sorted(lacking))}")
        for trial_id in self.expected:
            self.compare(trial_id)
        rows = rows_of(self.run / "metrics.parquet")
        doubled = [key for key, n in Counter((r["trial_id"], r["phase"], r["epoch"]) for r in rows).items() if n > 1]
        if doubled:
            raise Violation(f"rows are doubled in metrics.parquet: {doubled}")
        wanted = [row for trial_id in self.expected for row in json.loads(self.expected[trial_id]["rows"])]
        if sorted(map(canonical, rows)) != sorted(map(canonical, wanted)):
            raise Violation(f"metrics.parquet has {len(rows)} rows, which are not the {len(wanted)} undisturbed ones")

    def clear_away(self) -> list[str]:
        """Let the doctor mend what faults have left; what it found. Raise Violation where anything remains."""
        found = examine(self.ledger)
        for finding in found:
            with suppress(StdacError):
                mend(finding)
        remaining = [str(finding) for finding in examine(self.ledger)]
        if remaining:
            raise Violation(f"the doctor's work is not done: {remaining}")
        files = (path.relative_to(self.run).as_posix() for path in self.run.rglob("*") if not path.is_dir())
        left = [name for name in files if not KEPT.fullmatch(name)] + [str(p) for p in self.outside if p.exists()]
        if left:
            raise Violation(f"these are left behind: {' '.join(sorted(left))}")
        return [finding.what for finding in found]

    def work(self) -> tuple[int, int, int]:
        """Attempts made, epochs scored by all of them, and the epochs that there are."""
        attempts = sum(len(self.ledger.folder(trial_id).leases()) for trial_id in self.expected)
        scored = sum(len(ROW.findall(log.read_text(errors="replace"))) for log in self.run.glob("logs/*.log"))
        return attempts, scored, sum(len(json.loads(outcome["rows"])) for outcome in self.expected.values())

    def tracebacks(self) -> Counter[str]:
        """What was raised in workers without being caught, by their logs."""
        texts = [log.read_text(errors="replace") for log in self.run.glob("logs/*.log")]
        return Counter(error for text in texts for error in TRACEBACK.findall(text))


def outcomes(run: Path) -> dict[str, Outcome]:
    """What every trial of a finished run has come to."""
    ledger = Ledger(run)
    return {trial_id: outcome_of(ledger.folder(trial_id)) for trial_id in ledger.trials()}


def outcome_of(folder: TrialFolder) -> Outcome:
    """What a done trial has come to."""
    done = folder.done() or {}
    path = folder.attempt_path(done["attempt"])
    outcome = {"rows": canonical(rows_of(path / "metrics.parquet"))}
    outcome["assignments"] = digest(canonical(pq.read_table(path / "assignments.parquet").to_pydict()).encode())
    if (path / "model.pt").exists():
        outcome["model"] = digest((path / "model.pt").read_bytes())
    if (path / "stn.npz").exists():
        outcome["figures"] = digest(b"".join(parts_of(path / "stn.npz")))
    return outcome


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, the columns of METRICS without the timings."""
    columns = [name for name in METRICS.names if name not in TIMINGS]
    rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    return rows


def parts_of(path: Path) -> Iterator[bytes]:
    """Name, type, shape and content of each array in an .npz file."""
    with np.load(path) as arrays:
        for name in sorted(arrays):
            yield f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode()
            yield arrays[name].tobytes()


def canonical(value: Any) -> str:
    """JSON in which equal values are equal strings, not-a-number included."""
    return json.dumps(value, sort_keys=True)


def digest(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()

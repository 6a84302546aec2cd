"""A worker process: claims a trial, runs it, takes the next, until none is left. Every backend only starts these."""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster_jobs.display import Labels
from cluster_jobs.ledger import Ledger
from cluster_jobs.request import Options
from stdac.errors import MachineError, StdacError
from stdac.leases import RENEW_S
from stdac.observer import Observer
from stdac.trial import write_canonical

if TYPE_CHECKING:
    from stdac.folder import Attempt
    from stdac.machine import Machine
    from stdac.train import Progress


class Paused(BaseException):
    """A trial has come as far as it is to come now. No Exception: it is no failure of the trial's."""


class Worker(Observer):
    """Runs trials of one run folder until none is left to claim, or until it is told to leave.

    One process runs many trials, so that torch is imported once. A trial that fails leaves error.txt and is not tried
    again before `retry` or the next launch. Its log has a section for every attempt, from "trial ID attempt N on HOST"
    to "trial ID attempt N done", which `stdac-grid logs` finds again. It observes the trial that it runs: its steps are
    where it looks up whether it is to leave.
    """

    def __init__(self, run: Path, options: Options) -> None:
        self.ledger, self.options = Ledger(run, options.pause_after), options
        self.planned: Mapping[str, dict[str, Any]] = {}
        self.settled: set[str] = set()  # done, failed or paused: never looked at again
        self.leaving = False
        self.safe = True  # whether nothing would be lost by leaving now
        self._section = ""  # of the log: the attempt that runs
        self._attempt: Attempt | None = None
        self._label = Labels(())
        self._trained: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = {}  # by their data, one done trial
        self._looked = time.monotonic()

    def work(self) -> None:
        """Run trials. Raises StdacError where no trial is at fault: not a run folder, a full disk, no data here."""
        from stdac.machine import Machine

        machine = Machine(self.options.device, threads=self.options.threads)
        while not self.leaving and not self.ledger.cancelled():
            if not self.run_next(machine):
                if not self.has_to_wait():
                    return
                time.sleep(RENEW_S)

    def run_next(self, machine: "Machine") -> bool:
        """Run the first trial that nobody is at; False if there is none.

        Many workers look at the same moment: one that was beaten to a trial goes on to the next.
        """
        for trial_id in self.ledger.ids():
            if trial_id in self.settled:
                continue
            state = self.ledger.state(trial_id)
            if state == "waiting" and self.run(trial_id, self.trial(trial_id), machine):
                return True
            if state in ("done", "failed", "paused"):
                self.settled.add(trial_id)
        return False

    def trial(self, trial_id: str) -> dict[str, Any]:
        """What was planned under that id; read again once another launch has added trials."""
        if trial_id not in self.planned:
            self.planned = self.ledger.trials()
            self._label = Labels(self.planned.values())
        return self.planned[trial_id]

    def has_to_wait(self) -> bool:
        """Whether a trial may soon be claimed: one that another frees by its end, or one whose attempt has fallen
        silent."""
        left = [self.ledger.status(t) for t in self.ledger.ids() if t not in self.settled]
        running = [s.detail for s in left if s.state == "running"]
        silent = [detail for detail in running if detail["silence"] > 3 * RENEW_S or detail["ahead"]]
        freed = self.ledger.needers()
        return bool(silent) or any(s.state == "blocked" or (s.state == "waiting" and s.trial_id in freed) for s in left)

    def run(self, trial_id: str, trial: dict[str, Any], machine: "Machine") -> bool:
        """Run one trial; False where another worker was faster."""
        from stdac.methods import resolve
        from stdac.run import run_trial

        # `on_claim` begins a section of the log; without one the trial was another worker's
        self._refuse_other_data(trial)
        folder, options, began = self.ledger.folder(trial_id), self.options, time.monotonic()
        ending = "stopped: its worker was told to leave"
        self._section = ""
        try:
            run_trial(
                resolve(trial),
                folder,
                machine=machine,
                data_dir=options.data_dir,
                keep="all" if trial_id in self.ledger.needed() else options.keep,
                needed=[self.ledger.result(needed) for needed in trial.get("needs", ())],
                observer=self,
            )
            done = folder.done() is not None
            if done:
                self._trained[self._name_data(trial)] = trial, folder.done() or {}
            ending = f"done in {time.monotonic() - began:.1f} s" if done else "superseded: another attempt took over"
        except MachineError as error:
            ending = f"given back: {error}"
            raise
        except Paused:
            ending = f"paused after epoch {options.pause_after}"
            self.settled.add(trial_id)
        except Exception as error:  # noqa: BLE001 - whatever it was, error.txt has it and the grid goes on
            ending = f"failed: {error}"
            if not self._section:
                try:
                    folder.fail(f"trial {trial_id} cannot be run: {error}")
                except (StdacError, OSError):
                    if self.ledger.state(trial_id) != "failed":  # else its folder alone keeps it from being run
                        raise
            self.settled.add(trial_id)
        finally:
            if self._section:
                say(f"{self._section} {ending}")
        return bool(self._section)

    def _refuse_other_data(self, trial: Mapping[str, Any]) -> None:
        """Raise StdacError where a trial's data have changed since this worker has trained one on them."""
        from stdac.trial_data import refuse_changes

        if (earlier := self._trained.get(self._name_data(trial))) is not None:
            refuse_changes([earlier], self.options.data_dir)

    def _name_data(self, trial: Mapping[str, Any]) -> str:
        """What trials of the same data have in common."""
        from stdac.trial_data import DATA

        return write_canonical([trial.get(name) for name in DATA])

    def on_claim(self, attempt: "Attempt") -> None:
        """Begin the attempt's section of the log."""
        trial_id, lease = attempt.folder.path.name, attempt.folder.lease(attempt.number)
        self.safe, self._attempt = True, attempt
        self._section = f"trial {trial_id} attempt {attempt.number}"
        trial = self.trial(trial_id)
        say(f"{self._section} on {lease['host']} at {lease['began']}: {self._label(trial)}")

    def on_note(self, text: str) -> None:
        """Log it."""
        say(f"  {text}")

    def on_score(self, row: Mapping[str, Any]) -> None:
        """Log it."""
        say(_score_line(row))

    def must_save(self, epoch: int) -> bool:
        """Whether the checkpoint of an epoch is needed because the trial is left there."""
        self.safe = self.leaving or epoch == self.options.pause_after
        return self.safe

    def on_progress(self, progress: "Progress") -> None:
        """After a step: leave where that was asked for; by SIGUSR2 only once a checkpoint is written that it asked for.

        Raises Paused in the first step after the checkpoint that ends this trial for now: none was lost but that step.
        """
        if self.leaving and self.safe:
            raise KeyboardInterrupt
        self.safe = False
        last = self.options.pause_after
        if last is not None and progress.main and progress.epoch > last:
            if self._attempt is not None:
                self._attempt.paused = True
            raise Paused
        if time.monotonic() - self._looked > RENEW_S:
            self._looked = time.monotonic()
            if self.ledger.cancelled():
                raise KeyboardInterrupt

    def leave(self, _signal: int, _frame: object) -> None:
        """Stop at the next checkpoint."""
        self.leaving = True


def say(line: str) -> None:
    """A line of the log. One that cannot be written, on a disk that is full, is no trial's fault."""
    with suppress(OSError):
        print(line, flush=True)


def _score_line(row: Mapping[str, Any]) -> str:
    """A row of METRICS in a few words."""
    words = [f"  {row['phase']} epoch {row['epoch']}"]
    words += [f"{name.upper()} {row[name]:.4f}" for name in ("acc", "nmi", "ari") if row.get(name) is not None]
    words += [f"loss {row['loss']:.4f}"] if row.get("loss") is not None else []
    words += [f"{row['seconds']:.1f} s"] if row.get("seconds") is not None else []
    return "  ".join(words)


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it dies, so that none is left behind."""
    if sys.platform == "linux":
        with suppress(OSError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def interrupt(_signal: int, _frame: object) -> None:
    """Turn the first SIGTERM into the exception that gives leases back."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _read_options(_context: click.Context, _parameter: click.Parameter, text: str) -> Options:
    """A worker's options from its command line."""
    try:
        return Options.from_json(json.loads(text))
    except (ValueError, StdacError) as error:
        raise click.BadParameter(f"got {text!r}: {error}") from error


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("options", callback=_read_options)
def main(run: Path, options: Options) -> None:
    """The process that a supervisor starts: SIGTERM stops it now, SIGUSR2 after the next checkpoint."""
    parent = int(os.environ.get("STDAC_SUPERVISOR", os.getppid()))  # which may have died while this process started
    worker = Worker(run, options)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor, which decides
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGUSR2, worker.leave)
    end_with_parent()
    if os.getppid() != parent:
        sys.exit(1)
    try:
        worker.work()
    except KeyboardInterrupt:
        sys.exit(0 if worker.leaving or worker.ledger.cancelled() else 128 + signal.SIGTERM)
    except StdacError as error:
        say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()

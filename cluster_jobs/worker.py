"""A worker: claims a trial, runs it, takes the next, until none is left. Every backend only starts these."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from cluster_jobs.ledger import Ledger
from stdac.errors import StdacError


@dataclass(frozen=True)
class Options:
    """How a worker runs its trials; see `stdac.machine.Machine` and `stdac.run.run_trial`."""

    device: str = "auto"
    threads: int | None = None
    data_dir: Path | None = None
    keep: str = "all"


def work(run: Path, options: Options) -> tuple[int, int]:
    """Run trials of the run folder until none is waiting; returns how many were done and how many failed here.

    One process runs many trials, so that torch is imported and a network compiled once. A trial that fails leaves
    error.txt and is not tried again before `retry` or the next launch. Raises StdacError where the run itself is at
    fault: not a run folder, a disk that is full.
    """
    from stdac.machine import Machine
    from stdac.methods import resolve
    from stdac.run import run_trial

    ledger = Ledger(run)
    machine = Machine(options.device, threads=options.threads)
    trials = ledger.trials()
    done = failed = 0
    settled: set[str] = set()
    while (trial_id := next_waiting(ledger, trials, settled)) is not None:
        print(f"trial {trial_id}", flush=True)
        try:
            trial = resolve(trials[trial_id])
            folder = ledger.folder(trial_id)
            done += run_trial(trial, folder, machine=machine, data_dir=options.data_dir, keep=options.keep)
        except Exception as error:  # noqa: BLE001 - whatever it was, error.txt has it and the grid goes on
            print(f"trial {trial_id} failed: {error}", file=sys.stderr, flush=True)
            settled.add(trial_id)
            failed += 1
    return done, failed


def next_waiting(ledger: Ledger, trials: Iterable[str], settled: set[str]) -> str | None:
    """The first trial that nobody is at, looked up anew, so that many workers share the work; None if there is none.

    Trials seen done or failed are added to `settled` and not looked at again.
    """
    for trial_id in trials:
        if trial_id not in settled:
            state = ledger.status(trial_id).state
            if state == "waiting":
                return trial_id
            if state != "running":
                settled.add(trial_id)
    return None


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it dies, so that none is left behind."""
    if sys.platform == "linux":
        with suppress(OSError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def interrupt(_signal: int, _frame: object) -> None:
    """Turn SIGTERM into the exception that gives leases back."""
    raise KeyboardInterrupt


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--device", default="auto")
@click.option("--threads", type=int)
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--keep", default="all")
def main(run: Path, device: str, threads: int | None, data_dir: Path | None, keep: str) -> None:
    """The process that `local` starts."""
    parent = os.getppid()
    end_with_parent()
    signal.signal(signal.SIGTERM, interrupt)
    if os.getppid() != parent:
        sys.exit(1)
    try:
        work(run, Options(device, threads, data_dir, keep))
    except KeyboardInterrupt:
        sys.exit(143)
    except StdacError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

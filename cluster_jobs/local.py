"""The backend for one machine: worker processes, restarted when they die, none left behind."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster_jobs.ledger import Ledger
from cluster_jobs.worker import Options
from stdac.errors import StdacError
from stdac.files import whole

DEATHS = 3  # a trial whose process dies this often has failed
POLL_S = 0.5


class LocalWorkers:
    """`workers` processes on this machine at one run folder.

    On the CPU each gets its share of the cores: on two cores two workers of one thread finish a grid sooner than one
    of two (6.8 against 7.9 minutes an epoch of ST-DAC on MNIST with 2 STN, measured on two Zen 4 cores).
    """

    def __init__(self, run: Path, workers: int, options: Options, gpus: int = 0) -> None:
        self.run, self.workers, self.options, self.gpus = run, workers, options, gpus
        self.threads = options.threads or max(1, len(os.sched_getaffinity(0)) // workers)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.deaths: Counter[str] = Counter()

    def command(self) -> list[str]:
        """The command line of one worker."""
        words = [sys.executable, "-m", "cluster_jobs.worker", str(self.run), "--device", self.options.device]
        words += ["--threads", str(self.threads), "--keep", self.options.keep]
        return words + (["--data-dir", str(self.options.data_dir)] if self.options.data_dir is not None else [])

    def start(self, slot: int) -> None:
        """Start the worker of a slot; its output goes to RUN/logs/worker-<slot>.log."""
        logs = self.run / "logs"
        logs.mkdir(exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": import_path()}
        environment |= visible_gpu(slot, self.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
        with open(logs / f"worker-{slot}.log", "ab") as log:
            self.processes[slot] = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def watch(self, tick: Callable[[], None]) -> None:
        """Run until every trial is done or failed, calling `tick` meanwhile; on any exit end all workers."""
        ledger = Ledger(self.run)
        try:
            while self.supervise(ledger):
                tick()
                with suppress(subprocess.TimeoutExpired):
                    next(iter(self.processes.values())).wait(POLL_S)
        finally:
            self.stop()

    def supervise(self, ledger: Ledger) -> bool:
        """Start a worker in each slot that has work left; note trials that killed theirs. False when all is over."""
        for slot, process in list(self.processes.items()):
            if process.poll() is not None:
                del self.processes[slot]
                if process.returncode != 0:
                    self.note_death(ledger, slot, process)
        free = [slot for slot in range(self.workers) if slot not in self.processes]
        if free:
            waiting = sum(status.state == "waiting" for status in ledger.statuses())
            for slot in free[:waiting]:
                self.start(slot)
        return bool(self.processes)

    def note_death(self, ledger: Ledger, slot: int, process: subprocess.Popen[bytes]) -> None:
        """Give up on a trial whose process has died DEATHS times, so that it cannot hold up the grid."""
        for trial_id in ledger.trials():
            folder = ledger.folder(trial_id)
            numbers = folder.leases()
            if not numbers or folder.done() is not None or folder.lease(numbers[-1])["pid"] != process.pid:
                continue
            self.deaths[trial_id] += 1
            if self.deaths[trial_id] >= DEATHS:
                reason = f"its process ended {DEATHS} times ({describe_exit(process.returncode)})"
                text = f"{reason}: see {self.run / 'logs' / f'worker-{slot}.log'}\n"
                with whole(folder.path / "error.txt") as file:
                    file.write(text.encode())
            return
        self.deaths[""] += 1
        if self.deaths[""] >= DEATHS:
            self.stop()
            log = self.run / "logs" / f"worker-{slot}.log"
            raise StdacError(
                f"the workers end before they take a trial ({describe_exit(process.returncode)}): see {log}"
            )

    def stop(self) -> None:
        """End all workers: politely, so that they give their leases back, then for good."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()


def visible_gpu(slot: int, gpus: int, visible: str | None) -> dict[str, str]:
    """The environment that gives the worker of a slot one of several GPUs, in turn. visible: CUDA_VISIBLE_DEVICES."""
    if gpus < 2:
        return {}
    names = visible.split(",") if visible else [str(n) for n in range(gpus)]
    return {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]}


def describe_exit(code: int) -> str:
    """An exit code as a person says it."""
    return f"exit code {code}" if code >= 0 else f"{signal.Signals(-code).name}; out of memory?"


def import_path() -> str:
    """PYTHONPATH for a worker: where this code was imported from comes first."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])

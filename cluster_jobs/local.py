"""Workers on one machine: processes that are restarted when they die, and none left behind.

This is the whole of the `local` backend, and what every array task of SLURM and every Ray worker runs on its node.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cluster_jobs.ledger import LEFT, Ledger
from cluster_jobs.logs import open_log
from cluster_jobs.request import Options, Request
from cluster_jobs.worker import interrupt
from stdac.cores import count_cores
from stdac.errors import StdacError
from stdac.files import explain_refusal, require_links
from stdac.processes import make_python_environment

POLL_S = 0.2
FAULTS = 3  # workers that end with an error in a row, with no trial done in between: the run is at fault
DEATHS = 20  # the same for workers that are killed
STOP_S = 10.0


class Workers:
    """`workers` processes on this machine at one run folder, each with a log RUN/logs/<job or pid>-<host>-<slot>.log.

    On the CPU each gets its share of the cores: on two cores two workers of one thread finish a grid sooner than one
    of two (6.8 against 7.9 minutes an epoch of ST-DAC on MNIST with 2 STN, measured on two Zen 4 cores). gpus: how many
    GPUs there are to share out in turn; with one or none every process sees what this one sees.

    torch.compile keeps what it has compiled in TORCHINDUCTOR_CACHE_DIR, by default a folder of the user's below TMPDIR:
    all workers of a node share it, of whatever run, and each compiles with as many processes as it has threads.
    """

    def __init__(self, run: Path, workers: int, options: Options, *, gpus: int = 0) -> None:
        self.run, self.workers, self.options, self.gpus = run.resolve(), workers, options, gpus
        self.ledger = Ledger(self.run, options.pause_after)
        self.threads = options.threads or max(1, count_cores() // workers)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.leaving = False
        self._faults = self._deaths = self._done = 0

    def name_log(self, slot: int) -> str:
        """The log of a slot's worker, relative to the run folder."""
        return f"logs/{_read_job_id() or os.getpid()}-{socket.gethostname()}-{slot}.log"

    def _start(self, slot: int) -> None:
        """Start the worker of a slot."""
        options = replace(self.options, threads=self.threads)
        words = [str(self.run), json.dumps(options.to_json())]
        path = self.run / self.name_log(slot)
        try:
            with open_log(path) as log:
                self.processes[slot] = subprocess.Popen(
                    [sys.executable, "-m", "cluster_jobs.worker", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.make_environment(slot),
                )
        except OSError as error:
            raise explain_refusal(error, path) from error

    def make_environment(self, slot: int) -> dict[str, str]:
        """The environment of a slot's worker: this process's, with CUDA_MPS_PIPE_DIRECTORY and the like as they are."""
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": str(self.threads)} | make_python_environment()
        environment |= {"OMP_NUM_THREADS": str(self.threads)}
        environment |= {"STDAC_LOG": self.name_log(slot), "STDAC_JOB": _read_job_id() or ""}
        environment |= {"STDAC_SUPERVISOR": str(os.getpid())}
        return environment | choose_gpu(slot, self.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))

    def watch(self, tick: Callable[[], None] = lambda: None) -> None:
        """Run until no trial is left to claim, calling `tick` meanwhile; on any exit end all processes.

        Raises StdacError where workers cannot run at all, with the last line of the log, or cannot share the run.
        """
        if self.workers > 1:
            require_links(self.run)
        try:
            while self._supervise():
                tick()
                time.sleep(POLL_S)
        finally:
            self.stop()

    def _supervise(self) -> bool:
        """Start a worker in each slot that has work left. False when all is over here, and no trial may be freed by
        those that it needs."""
        for slot, process in list(self.processes.items()):
            if process.poll() is not None:
                del self.processes[slot]
                if not self.leaving:
                    self._note_end(slot, process.returncode)
        free = [slot for slot in range(self.workers) if slot not in self.processes]
        if free and not self.leaving and not self.ledger.cancelled():
            for slot in free[: self.ledger.count("waiting")]:
                self._start(slot)
        ending = self.leaving or self.ledger.cancelled()
        return bool(self.processes) or (not ending and self.ledger.count("blocked") > 0)

    def _note_end(self, slot: int, code: int) -> None:
        """Tell a worker that died at its trial, which is replaced, from one that cannot run at all."""
        done = self.ledger.count("done")
        if code == 0 or done > self._done:
            self._faults = self._deaths = 0
        self._done = done
        self._faults += code > 0
        self._deaths += code < 0
        if self._faults >= FAULTS or self._deaths >= DEATHS:
            log = self.run / self.name_log(slot)
            how = read_last_line(log) if code > 0 else f"ended by {signal.Signals(-code).name}"
            raise StdacError(f"the workers on {socket.gethostname()} cannot run: {how} (see {log})")

    def has_ended(self, trial_id: str) -> bool:
        """Whether the attempt by which a trial ended was one of our workers', or there was none at all."""
        folder, number = self.ledger.folder(trial_id), 0
        with suppress(StdacError, OSError):
            done = folder.done()
            number = done["attempt"] if done is not None else (folder.leases() or [0])[-1]
            return number == 0 or folder.lease(number).get("log") in {
                self.name_log(slot) for slot in range(self.workers)
            }
        return number == 0

    def leave(self, grace_s: float) -> None:
        """Have every worker stop at its next checkpoint, or after `grace_s` seconds at once; returns when all ended."""
        self.leaving = True
        self._send(signal.SIGUSR2)
        deadline = time.monotonic() + grace_s
        while any(process.poll() is None for process in list(self.processes.values())) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self.stop()

    def stop(self) -> None:
        """End all workers: politely, so that they give their leases back, then for good. A second Ctrl-C hurries it."""
        self.leaving = True
        try:
            self._send(signal.SIGTERM)
            self._send(signal.SIGCONT)
            deadline = time.monotonic() + STOP_S
            while any(process.poll() is None for process in list(self.processes.values())):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        finally:
            self._send(signal.SIGKILL)
            for process in list(self.processes.values()):
                process.wait()
            self.processes.clear()

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to every worker that is still there."""
        for process in list(self.processes.values()):
            with suppress(ProcessLookupError):
                process.send_signal(number)


def run_workers(request: Request, tick: Callable[[], None]) -> None:
    """Run workers on this machine until no trial is left to claim, calling `tick` meanwhile."""
    gpus = count_places(request.options.device) if uses_gpu(request.options.device) else 0
    workers = request.workers or count_trials(request)
    Workers(request.run, workers, request.options, gpus=gpus).watch(tick)


def count_trials(request: Request) -> int:
    """Trials at a time that a machine like this has room for."""
    device = request.options.device
    return count_places(device) * (request.trials_per_gpu if uses_gpu(device) else 1)


def work_here(ledger: Ledger, workers: int, options: Options, grace_s: float) -> tuple[int, int]:
    """Work at a run until no trial is left to claim; how many its workers did meanwhile, and how many failed here.

    SIGTERM ends it at once. SIGUSR2 lets the trials reach their next checkpoint, for `grace_s` seconds at most, and
    inside a SLURM job asks for the job to be queued again.
    """
    leave = threading.Event()
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGUSR2, lambda *_: leave.set())
    before = ledger.states()
    supervisor = Workers(ledger.path, workers, options)

    def tick() -> None:
        if leave.is_set() and not supervisor.leaving:
            supervisor.leave(grace_s)
            if os.environ.get("SLURM_JOB_ID") and ledger.count(*LEFT):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which SLURM ends what is queued again
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)

    supervisor.watch(tick)
    new = [trial_id for trial_id, state in ledger.states().items() if before.get(trial_id) != state]
    ended = [ledger.state(trial_id) for trial_id in new if supervisor.has_ended(trial_id)]
    return ended.count("done"), ended.count("failed")


def _read_job_id() -> str | None:
    """The SLURM job that this process belongs to, as a person reads it (12_0 in an array), or None."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def uses_gpu(device: str) -> bool:
    """Whether trials on `device` run on a GPU of this machine."""
    import torch

    from stdac.machine import find_device_fault

    if device == "auto":
        return torch.cuda.is_available() and find_device_fault("cuda", os.getpid()) is None
    return device.startswith("cuda")


def count_places(device: str) -> int:
    """The places for a worker on this machine: one a core on the CPU, one a GPU otherwise."""
    import torch

    return torch.cuda.device_count() if uses_gpu(device) else count_cores()


def choose_gpu(slot: int, gpus: int, visible: str | None) -> dict[str, str]:
    """The environment that gives the worker of a slot one of several GPUs, in turn. visible: CUDA_VISIBLE_DEVICES."""
    if gpus < 2:
        return {}
    names = visible.split(",") if visible else [str(n) for n in range(gpus)]
    return {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]}


def read_last_line(log: Path) -> str:
    """What a log ends with."""
    with suppress(OSError, IndexError):
        return log.read_text("utf-8", errors="replace").strip().splitlines()[-1]
    return "its log is empty"

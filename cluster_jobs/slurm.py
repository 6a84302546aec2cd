"""The SLURM backend: one array of workers that checkpoint and requeue themselves, and a driver that looks after it.

What is done is read from the run folder, never from SLURM, which forgets jobs, runs some twice and may not answer for a
while. The jobs of a run carry a name made from its folder: a driver may die at any moment, and the next one, on any
login node, finds them.
"""

import math
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster_jobs.ledger import LEFT, Ledger
from cluster_jobs.request import Request
from cluster_jobs.slurm_array import (
    NOT_OUR_FOLDER,
    Node,
    NotSubmitted,
    choose_signal_delay,
    is_over,
    make_log_folder,
    submit_array,
    sweep,
)
from cluster_jobs.slurm_queue import (
    Job,
    ask_slurm,
    cancel,
    describe_end,
    describe_jobs,
    describe_queue,
    find_array_limit,
    find_ends,
    list_jobs,
    list_partitions,
    name_jobs,
)
from cluster_jobs.slurm_settings import TIME_MIN, Settings, choose_settings, complete_settings, count_gpus
from stdac.errors import StdacError
from stdac.layout import CHECKPOINTS

__all__ = [
    "Settings",
    "cancel",
    "count_task_trials",
    "describe_jobs",
    "is_available",
    "list_jobs",
    "make_settings",
    "name_jobs",
    "run_workers",
]

POLL_S = 10.0  # between two questions to the controller; less at first, see `Driver._look_when_due`
LEDGER_S = 1.0  # between two looks at the run folder; more where a look takes long
LOG_S = 75.0  # a log may take this long to appear: NFS clients remember for a minute that a file was not there
END_S = 20.0  # jobs whose work is over end by themselves within this time
FRUITLESS = 3  # submissions in a row without a trial or an epoch done
NO_LOG_SIGNAL = 53  # how SLURM marks a job whose log it could not open


def is_available() -> bool:
    """Whether this is a machine from which jobs are submitted: sbatch is on the PATH, and this is no job itself."""
    return shutil.which("sbatch") is not None and "SLURM_JOB_ID" not in os.environ


def make_settings(
    flags: Mapping[str, Any], table: Mapping[str, Any], environment: Mapping[str, str], device: str
) -> Settings:
    """What was asked for, completed with what the cluster says of the partition's time limit and GPUs.

    Raises StdacError as `choose_settings` does, and where SLURM is missing or does not answer.
    """
    return complete_settings(choose_settings(flags, table, environment), list_partitions(), device)


class Interrupts:
    """Ctrl-C, as one exception and never in the middle of a submission; from then on it is ignored, until the exit."""

    def __init__(self) -> None:
        self.holding = self.pressed = False

    def __enter__(self) -> "Interrupts":
        self.before = signal.signal(signal.SIGINT, self.press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def press(self, *_: object) -> None:
        """The signal handler."""
        self.pressed = True
        if not self.holding:
            self.interrupt()

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt, once."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by scancel, too
        raise KeyboardInterrupt

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Put an interruption off until the end of the block."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.pressed:
            self.interrupt()


class Driver:
    """Sees to it that a run has jobs while it has trials. All it remembers may be lost: the next driver goes on."""

    def __init__(
        self, run: Path, asked: Settings, node: Node, tasks: int, say: Callable[[str], None], poll_s: float
    ) -> None:
        self.run, self.asked, self.node, self.tasks, self.say, self.poll_s = run, asked, node, tasks, say, poll_s
        self.ledger = Ledger(run, node.options.pause_after)
        self.interrupts = Interrupts()
        self.seen: dict[str, Job] = {}  # since the last submission
        self.submitted = time.monotonic()
        self.looked = self.glanced = -math.inf
        self.glance_s = LEDGER_S
        self.absent = 0  # looks in a row that found none of our jobs alive
        self.fruitless = 0
        self.mark: tuple[int, int] = (0, 0)
        self.no_log_since: dict[str, float] = {}
        self.said = ""

    def start(self) -> None:
        """Submit, unless jobs of this run live."""
        known = list_jobs(name_jobs(self.run))
        if known is None:
            raise StdacError("the SLURM controller does not answer (squeue failed): launch again when it does")
        living = [job for job in known if job.living]
        if living:
            self.say(f"jobs of this run are in SLURM's queue already ({len(living)}): none is submitted")
            self.seen = {job.id: job for job in living}
        else:
            self.submit()

    def submit(self) -> None:
        """Submit the array; where the controller does not answer, the next look decides."""
        waiting = self.ledger.count(*LEFT)
        tasks = min(self.tasks, math.ceil(waiting / self.node.processes), find_array_limit())
        self.seen, self.absent, self.submitted = {}, 0, time.monotonic()
        with self.interrupts.hold():
            try:
                ids = submit_array(self.run, self.asked, self.node, max(1, tasks), self.say)
            except NotSubmitted:
                return
            self.seen = {job: Job(job, "PENDING", "", "", "") for job in ids}
        count = f"{len(ids)} tasks" if len(ids) > 1 else "1 task"
        self.say(f"submitted SLURM job {ids[0].split('_')[0]} of {count}, named {name_jobs(self.run)}")

    def watch(self, tick: Callable[[], None]) -> None:
        """Look after the jobs until all trials are over, or the run is cancelled, calling `tick` twice a second."""
        self.mark = self.measure_progress()
        while not self.is_over():
            tick()
            self._look_when_due()
            time.sleep(0.5)

    def is_over(self) -> bool:
        """Whether all is over, by the run folder; looked up less often where that takes long."""
        now = time.monotonic()
        if now - self.glanced < self.glance_s:
            return False
        over = is_over(self.ledger)
        self.glanced = time.monotonic()
        self.glance_s = max(LEDGER_S, 5 * (self.glanced - now))
        return over

    def _look_when_due(self) -> None:
        """Ask the controller: every `poll_s` seconds, more often in the first ones after a submission."""
        now = time.monotonic()
        if now - self.looked >= min(self.poll_s, max(1.0, (self.looked - self.submitted) / 2)):
            self.look()
            self.looked = time.monotonic()

    def look(self) -> None:
        """Follow the jobs; submit again when, twice in a row, none is alive while trials are waiting."""
        known = list_jobs(name_jobs(self.run))
        if known is None:
            self._report("the SLURM controller does not answer; what runs goes on, waiting for it")
            return
        self.seen |= {job.id: job for job in known if job.living or job.id in self.seen}
        self.check_folder()
        living = [job for job in known if job.living]
        self._report(f"SLURM: {describe_queue(living)}" if living else "")
        self.absent = 0 if living else self.absent + 1
        if self.absent >= 2 and not self.no_log_since and self.ledger.count("waiting"):
            self.submit_again()

    def _report(self, line: str) -> None:
        """Say a line that is new."""
        if line and line != self.said:
            self.say(line)
        self.said = line

    def check_folder(self) -> None:
        """Raise StdacError where a job has ended whose log is not here: its node sees another folder, or none."""
        folder, now = make_log_folder(self.run), time.monotonic()
        for job in self.seen.values():
            code, _, number = job.exit.partition(":")
            sees_another = code == str(NOT_OUR_FOLDER) or number == str(NO_LOG_SIGNAL)
            if job.state != "FAILED":
                continue
            if (folder / f"{job.id}_0_log.out").exists():
                self.no_log_since.pop(job.id, None)
            elif now - self.no_log_since.setdefault(job.id, now) > LOG_S:
                sees_another = True
            if sees_another:
                raise StdacError(
                    f"node {job.nodes} does not share {self.run} with this machine, or cannot write it (job {job.id} "
                    "left nothing there): choose an --out on a file system that all nodes see under the same name"
                )

    def submit_again(self) -> None:
        """Submit anew. Raises StdacError where jobs ended with nothing done in between FRUITLESS times in a row."""
        ends = find_ends(self.seen)
        if ends and {job.state for job in ends} == {"CANCELLED"}:
            raise StdacError("the run's SLURM jobs were cancelled by hand: launch again to go on with the trials left")
        mark = self.measure_progress()
        self.fruitless = 0 if mark > self.mark else self.fruitless + 1
        self.mark = mark
        if self.fruitless >= FRUITLESS:
            raise StdacError(self._explain_failure(ends))
        self.submit()

    def measure_progress(self) -> tuple[int, int]:
        """Grows with every trial that is done, failed or paused, and with every epoch's checkpoint."""
        over = self.ledger.count("done", "failed", "paused")
        checkpoints = self.run.glob(CHECKPOINTS)
        return over, max((path.stat().st_mtime_ns for path in checkpoints), default=0)

    def _explain_failure(self, ends: Sequence[Job]) -> str:
        """What is known of jobs that ended for nothing, in one sentence."""
        counts = Counter(describe_end(job) for job in ends)
        how = ", ".join(f"{count} × {end}" for end, count in counts.most_common()) or "none was seen alive"
        logs = sorted(make_log_folder(self.run).glob("*_log.out"), key=lambda path: path.stat().st_mtime)
        said = f"; the last log, {logs[-1]}, says: {_read_last_word(logs[-1])}" if logs else ""
        return f"SLURM's jobs ended {FRUITLESS} times without a trial or an epoch done (the last time: {how}){said}"

    def finish(self) -> None:
        """Leave nothing behind: what waits is cancelled at once, what runs is given a moment to end by itself."""
        name, deadline = name_jobs(self.run), time.monotonic() + END_S
        ask_slurm("scancel", "--state=PENDING", f"--name={name}", f"--user={os.getuid()}")
        while (known := list_jobs(name)) is None or any(job.living for job in known):
            if time.monotonic() > deadline:
                self.abandon()
                return
            time.sleep(1)
        sweep(self.run)

    def abandon(self) -> None:
        """Cancel the jobs, and say so."""
        try:
            cancelled = cancel(self.run)
            if cancelled:
                self.say(f"SLURM jobs cancelled: {cancelled}")
            sweep(self.run)
        except StdacError as error:
            self.say(str(error))


def _read_last_word(log: Path) -> str:
    """The last line of a task's log that is not SLURM's own."""
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if not line.startswith(("srun:", "slurmstepd", "submitit"))]
    return (ours or lines or ["nothing"])[-1]


def count_task_trials(asked: Settings, request: Request) -> int:
    """Trials at a time in one task: `trials_per_gpu` on each GPU, or one a CPU where a task has no GPU."""
    return count_gpus(asked.gres or "") * request.trials_per_gpu or asked.cpus_per_task


def run_workers(
    request: Request,
    asked: Settings,
    tick: Callable[[], None],
    say: Callable[[str], None],
    *,
    detach: bool = False,
    poll_s: float = POLL_S,
) -> None:
    """Run workers as the tasks of an array until every trial is done or failed, calling `tick` about twice a second.

    There are tasks for all the request's workers; its nodes times the settings' workers_per_node if it has no number.
    detach: return after the submission. Call it in the main thread: on Ctrl-C, and on any error, it cancels the jobs; a
    driver that is killed leaves them, and the next finds them. Raises StdacError where SLURM refuses, where a node does
    not see the folder, and where the jobs end again and again with nothing done.
    """
    request = request.resolve()
    run, workers, options = request.run, request.workers, request.options
    gpus = count_gpus(asked.gres or "")
    places = count_task_trials(asked, request)
    processes = min(places, workers or places)
    options = replace(options, threads=options.threads or 1)  # on every machine the same: so are a CPU's results
    tasks = math.ceil(workers / processes) if workers else request.nodes * (asked.workers_per_node or 1)
    grace_s = choose_signal_delay(asked.time or TIME_MIN) - 15
    driver = Driver(run, asked, Node(run, processes, gpus, options, grace_s), tasks, say, poll_s)
    with driver.interrupts:
        try:
            if not is_over(driver.ledger):
                driver.start()
                if detach:
                    say(f"watch it with stdac-grid status {run} --watch, end it with stdac-grid cancel {run}")
                    return
                driver.watch(tick)
            driver.finish()
        except (KeyboardInterrupt, Exception):
            driver.abandon()
            raise

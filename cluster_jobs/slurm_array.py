"""The array of a run's workers: its batch script, its submission, and what each task does on its node.

submitit writes the script, starts Python on the node, and on the time limit's signal asks for a checkpoint and requeues
the job. Its pickles only tell a task where to work; nothing reads what it would say of the end.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cluster_jobs.ledger import LEFT, Ledger
from cluster_jobs.local import Workers
from cluster_jobs.request import Options
from cluster_jobs.slurm_queue import ask_slurm, name_jobs
from cluster_jobs.slurm_settings import TIME_MIN, Settings, clean_environment, read_partitions
from stdac.errors import StdacError
from stdac.files import is_real_folder, require_links
from stdac.processes import make_python_environment

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

SIGNAL_S = 120  # a task is told to leave this long before its time limit
REQUEUES = 1_000_000  # submitit wants a limit: a run may be requeued for ever
NOT_OUR_FOLDER = 66  # exit code of a task that does not see the launch's files
TOO_MANY = re.compile("submit limit|MaxSubmit|MaxArray|array spec", re.IGNORECASE)
NO_ANSWER = re.compile("contact slurm|timed out|refused|transmit|temporarily|try again", re.IGNORECASE)


def choose_signal_delay(time_min: int) -> int:
    """Seconds before the time limit at which a task is told to leave: SIGNAL_S, less for short limits."""
    return min(SIGNAL_S, max(30, time_min * 60 // 4))


def make_script(asked: Settings, folder: Path, name: str, tasks: int, probe: str, python: str = sys.executable) -> str:
    """The batch script of an array of `tasks` tasks, by submitit.

    folder: of submitit's files and the logs. probe: a file in it, which a task must see before it does anything.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    text: str = _make_sbatch_string(
        command=f"{quote(python)} -u -m submitit.core._submit {quote(str(folder))}",
        folder=folder,
        job_name=name,
        partition=asked.partition,
        account=asked.account,
        qos=asked.qos,
        time=asked.time or TIME_MIN,
        gres=asked.gres or None,
        mem_per_cpu=asked.mem_per_cpu,
        cpus_per_task=asked.cpus_per_task,
        constraint=asked.constraint,
        signal_delay_s=choose_signal_delay(asked.time or TIME_MIN),
        map_count=tasks,
        array_parallelism=tasks,
        wckey=None,  # type: ignore[arg-type]  # submitit's default is refused by clusters that check it
        stderr_to_stdout=True,
        setup=[
            f"[ -e {quote(str(folder / probe))} ] || exit {NOT_OUR_FOLDER}",
            "export PYTHONSAFEPATH=1",  # nothing is imported from the folder that sbatch was called in
            "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",  # srun no longer inherits it since 22.05
        ],
        srun_args=["--open-mode=append", "--export=ALL"],
        additional_parameters={"requeue": True} | {key: value or True for key, value in asked.extra.items()},
    )
    return text


class NotSubmitted(Exception):
    """The controller did not answer sbatch: it may have the job nevertheless."""


def submit_array(run: Path, asked: Settings, node: "Node", tasks: int, say: Callable[[str], None]) -> list[str]:
    """Submit an array of `tasks` tasks that run `node`, of fewer where a limit asks for it; returns their ids.

    Raises NotSubmitted where the controller does not answer, StdacError with sbatch's reason where it refuses.
    """
    from submitit.core.utils import DelayedSubmission, JobPaths

    require_links(run)
    folder = make_log_folder(run)
    probe = f"probe-{uuid.uuid4().hex[:12]}"
    (folder / probe).touch()
    # ask for as many tasks as SLURM accepts
    wanted = tasks
    while True:
        process = subprocess.run(
            ["sbatch", "--parsable"],
            input=make_script(asked, folder, name_jobs(run), tasks, probe),
            env=clean_environment(make_python_environment()),
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )
        if process.returncode == 0:
            break
        if NO_ANSWER.search(process.stderr):
            raise NotSubmitted(process.stderr)
        if tasks == 1 or not TOO_MANY.search(process.stderr):
            raise StdacError(_explain_refusal(process.stderr))
        tasks //= 2
    if tasks < wanted:
        say(f"SLURM accepts {tasks} of {wanted} jobs at a time (a submit limit): these do all the work")

    # leave each task what it is to run; whole files, as a task may start before all are written
    array = process.stdout.strip().split(";")[0]
    ids = [f"{array}_{index}" for index in range(tasks)]
    delayed = DelayedSubmission(node)
    delayed.set_timeout(asked.time or TIME_MIN, REQUEUES)
    for path in (JobPaths(folder, job).submitted_pickle for job in ids):
        delayed.dump(path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return ids


def _explain_refusal(stderr: str) -> str:
    """Why sbatch refused, and what there is, in one sentence."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in stderr.splitlines()]
    known = read_partitions(ask_slurm("sinfo", "--noheader", "--format=%P|%l|%G") or "")
    names = ", ".join(f"{name} (the default)" if part.default else name for name, part in known.items())
    return (
        f"SLURM refuses the jobs ({'; '.join(filter(None, lines))}): partitions here are {names or 'unknown'}; "
        "set --partition, --account and the like, or [slurm] in the grid's file"
    )


def make_log_folder(run: Path) -> Path:
    """RUN/logs/slurm: submitit's folder, and the logs of the tasks. Made if missing."""
    folder = run / "logs" / "slurm"
    if set(str(folder)) & set("%\\\n\"'"):
        raise StdacError(
            f"got the run folder {str(run)!r}: SLURM cannot write logs below a name with a percent sign, quote, "
            "backslash or line break; choose another --out"
        )
    for place in (folder.parent, folder):
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StdacError(f"cannot make {folder}: {error.strerror}; choose another --out") from error
        if not is_real_folder(place):
            raise StdacError(f"{place} is a link, which is not followed: move it away, or choose another --out")
    return folder


def sweep(run: Path) -> None:
    """Remove what only living jobs need; the logs stay."""
    for pattern in ("*_submitted.*", "*_result.pkl*", "probe-*"):
        for path in make_log_folder(run).glob(pattern):
            path.unlink(missing_ok=True)


class Terminated(Exception):
    """SIGTERM: the job is being cancelled, or preempted."""


@dataclass
class Node:
    """What each task of the array runs: the supervisor of the worker processes there, in the shape submitit expects.

    Signals only set flags, and one thread does the work: a handler that runs in the middle of anything is harmless.
    processes: trials at a time in this task, on its `gpus` GPUs. grace_s: from the time limit's signal to the end.
    """

    run: Path
    processes: int
    gpus: int
    options: Options
    grace_s: float
    leaving: bool = field(default=False, init=False)
    terminated: bool = field(default=False, init=False)
    code: int | None = field(default=None, init=False)

    def __call__(self) -> None:
        """Run trials until none is left to claim. Exits instead of returning: no result is to be pickled."""
        signal.signal(signal.SIGTERM, self.terminate)  # submitit would ignore it
        # submitit would refuse to checkpoint where one is left over
        for leftover in make_log_folder(self.run).glob(f"{_read_task_id()}_*.save_tmp"):
            leftover.unlink(missing_ok=True)
        threading.Thread(target=self.work, daemon=True).start()
        code = self.wait()
        if not self.terminated:
            self.clear_away()
        sys.exit(code)

    def work(self) -> None:
        """Supervise the workers; the exit code is set last."""
        workers = Workers(self.run, self.processes, self.options, gpus=self.gpus)

        def tick() -> None:
            if self.terminated:
                raise Terminated
            if self.leaving and not workers.leaving:
                workers.leave(self.grace_s)

        code = 1
        try:
            workers.watch(tick)
            code = 0
        except StdacError as error:
            print(error, file=sys.stderr, flush=True)
        except Terminated:
            code = 128 + signal.SIGTERM
        finally:
            self.code = code

    def wait(self) -> int:
        """Wait for the work to end, without holding any lock; its exit code."""
        while self.code is None:
            time.sleep(0.1)
        return self.code

    def terminate(self, _signal: int, _frame: object) -> None:
        """Stop at once, giving leases back."""
        self.terminated = True

    def checkpoint(self) -> "DelayedSubmission":
        """Stop at the next checkpoint; submitit calls this on the time limit's signal, then requeues the job."""
        from submitit.helpers import DelayedSubmission

        self.leaving = True
        self.wait()
        if is_over(Ledger(self.run, self.options.pause_after)):
            self.clear_away()
            sys.exit(0)
        return DelayedSubmission(replace(self))

    def clear_away(self) -> None:
        """Remove this task's pickle; the last one to do so removes the probes too."""
        folder = make_log_folder(self.run)
        (folder / f"{_read_task_id()}_submitted.pkl").unlink(missing_ok=True)
        if not any(folder.glob("*_submitted.pkl")):
            sweep(self.run)


def _read_task_id() -> str:
    """The id of the task that this process is in."""
    return f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"


def is_over(ledger: Ledger) -> bool:
    """Whether nothing is left to do: every trial is done, failed or paused, or the run was cancelled."""
    return ledger.cancelled() or not ledger.count(*LEFT)

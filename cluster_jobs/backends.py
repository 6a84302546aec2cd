"""The backends: who starts the workers of a run. What is done is read from the run folder, whoever does it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cluster_jobs import local, ray_tune, slurm
from cluster_jobs.display import Display
from cluster_jobs.ledger import LEFT, Ledger
from cluster_jobs.logs import open_log
from cluster_jobs.request import Request
from stdac.command import require
from stdac.cores import count_cores
from stdac.errors import StdacError
from stdac.processes import make_python_environment
from stdac.words import count_noun

CANCEL_S = 30.0
MODULES: dict[str, tuple[str, ...]] = {"local": (), "ray": ("ray",), "slurm": ("submitit",)}
Tick = Callable[[], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Backend:
    """A backend that was chosen: `start(tick, say)` runs workers until no trial is left to claim."""

    name: str
    why: str
    at_once: int
    gpu: bool
    start: Callable[[Tick, Say], None]
    detach: Callable[[], None]


def choose_backend(name: str | None, request: Request, flags: Mapping[str, Any], table: Mapping[str, Any]) -> Backend:
    """The backend of that name, or for "auto" the first that is there: Ray, SLURM, this machine; None: this machine.

    flags, table: how to ask SLURM, from the command line and from the grid's file. Raises StdacError for several nodes
    where there is no cluster, and for flags of SLURM where it is not SLURM that is asked.
    """
    why = "as asked"
    if request.simulate:
        name, why = "ray", f"--simulate: {request.nodes} Ray nodes on this machine"
    elif name is None:
        name, why = "local", _explain_staying()
    elif name == "auto":
        name, why = find_backend(request.nodes)
    require(*MODULES[name])
    given = [flag for flag, value in flags.items() if value not in (None, ())]
    if given and name != "slurm":
        flag = "sbatch" if given[0] == "extra" else given[0].replace("_", "-")
        raise StdacError(f"got --{flag}, which is for SLURM, but the backend is {name} ({why}): add --backend slurm")
    if name == "slurm":
        return _use_slurm(why, request, flags, table)
    if name == "ray":
        return use_ray(why, request)
    if request.nodes > 1:
        raise StdacError(
            f"got --nodes {request.nodes} and --backend local, which is this machine alone: {HOW_TO_GET_ONE}"
        )
    return use_this_machine(why, request)


HOW_TO_GET_ONE = (
    "start Ray on the nodes (`ray start --head` on one, `ray start --address=HEAD:6379` on the others, everywhere with "
    "RAY_AUTH_MODE=token, as Ray runs code for whoever reaches it) and set RAY_ADDRESS=HEAD:6379, or launch on a login "
    "node of a SLURM cluster, or add --simulate to try it on this machine"
)


def _explain_staying() -> str:
    """Why a launch for which nothing was asked stays on this machine, naming the cluster that was seen."""
    seen = "a Ray cluster" if ray_tune.find_cluster() else "SLURM" if slurm.is_available() else None
    return f"{seen} is here too: --nodes N uses it" if seen else "--nodes N uses a cluster"


def find_backend(nodes: int) -> tuple[str, str]:
    """The first backend that is there, and why. Raises StdacError for several nodes where there is no cluster."""
    cluster = ray_tune.find_cluster()
    if cluster is not None:
        return "ray", cluster[1]
    if slurm.is_available():
        return "slurm", "sbatch is on the PATH"
    if nodes > 1:
        raise StdacError(
            f"got --nodes {nodes}, but there is no cluster here: RAY_ADDRESS is not set, no Ray runs on this machine, "
            f"and sbatch is not on the PATH; {HOW_TO_GET_ONE}"
        )
    return "local", "no cluster was found: neither RAY_ADDRESS, nor a Ray on this machine, nor sbatch"


def use_this_machine(why: str, request: Request) -> Backend:
    """Worker processes here."""
    gpu = local.uses_gpu(request.options.device)
    at_once = request.workers or local.count_trials(request)

    def start(tick: Tick, _say: Say) -> None:
        local.run_workers(request, tick)

    return Backend("local", why, at_once, gpu, start, lambda: detach(request.run))


def use_ray(why: str, request: Request) -> Backend:
    """Workers as Tune trials on the nodes of a Ray cluster."""
    gpu = local.uses_gpu(request.options.device) and not request.simulate
    at_once = request.workers or request.nodes * _count_node_trials(request)

    def start(tick: Tick, say: Say) -> None:
        ray_tune.run_workers(request, tick, say)

    return Backend("ray", why, at_once, gpu, start, lambda: detach(request.run))


def _count_node_trials(request: Request) -> int:
    """Trials at a time on a node of a Ray cluster, if it is like this machine, or a simulated part of it."""
    return max(1, count_cores() // request.nodes) if request.simulate else local.count_trials(request)


def _use_slurm(why: str, request: Request, flags: Mapping[str, Any], table: Mapping[str, Any]) -> Backend:
    """Workers as the tasks of a SLURM array."""
    settings = slurm.make_settings(flags, table, os.environ, request.options.device)
    tasks = request.nodes * (settings.workers_per_node or 1)
    at_once = request.workers or tasks * slurm.count_task_trials(settings, request)

    def start(tick: Tick, say: Say) -> None:
        slurm.run_workers(request, settings, tick, say)

    def submit() -> None:
        slurm.run_workers(request, settings, lambda: None, lambda line: click.echo(line, err=True), detach=True)

    return Backend("slurm", why, at_once, "gpu" in (settings.gres or ""), start, submit)


def drive(ledger: Ledger, backend: Backend, display: Display) -> None:
    """Run workers until every trial is done or failed, or the run is cancelled; wait for those that others are at."""
    while not ledger.cancelled():
        backend.start(display.tick, display.say)
        while {"running", "blocked"} & (states := set(ledger.states().values())):
            if "waiting" in states or ledger.cancelled():
                break
            display.tick()
            time.sleep(1)
        if not states.intersection(LEFT):
            return


def detach(run: Path) -> None:
    """Launch again in a session of its own, which goes on when this terminal is closed."""
    words = [word for word in sys.argv[1:] if word != "--detach"]
    path = run / "logs" / f"launch-{os.getpid()}.log"
    with open_log(path) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster_jobs.commands.grid", *words, "--yes"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=make_python_environment(),
        )
    click.echo(f"process {process.pid} goes on, its output is in {path}; watch it with stdac-grid status {run} --watch")


def cancel(ledger: Ledger) -> str:
    """Stop every worker of a run, and wait until they have given their leases back; what was done, in a sentence."""
    if not ledger.count(*LEFT):
        return f"nothing to cancel: no trial of {ledger.path} is left"
    ledger.cancel()
    jobs = slurm.cancel(ledger.path)
    deadline = time.monotonic() + CANCEL_S
    while (running := ledger.count("running")) and time.monotonic() < deadline:
        time.sleep(0.5)
    open_trials = ledger.count(*LEFT)
    words = [f"{count_noun(jobs, 'SLURM job')} cancelled"] if jobs else []
    words += [f"{count_noun(running, 'trial')} still to stop, at the next step"] if running else []
    words += [f"{count_noun(open_trials, 'trial')} left: stdac-grid launch goes on with them"]
    return "; ".join(words)

"""The process that talks to Ray: one Ray Tune experiment whose trials are long-lived units of workers on the nodes.

Tune runs workers, not our trials: on two busy cores a sleep of 0.2 s took 3.3 s as a trial of Tune, which starts a
process for each, and 0.2 s as a task in a process that was there (ten of each, one after another). What is done is read
from the run folder, never from Ray's state: a unit that was lost with its node is replaced by another, which goes on.
"""

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from cluster_jobs.ledger import LEFT, Ledger, State
from cluster_jobs.local import Workers, cores
from cluster_jobs.ray_tune import Job, answers, remove
from cluster_jobs.worker import end_with_parent
from stdac.errors import StdacError

JOIN_S = 60.0
POLL_S = 0.5
LOOK_S = 1.0
STEP_S = 2.0  # how long a unit may take to notice that it is to end
HOLD_S = 30.0  # a unit that cannot work keeps its place this long, so that no other is started at the same fault
LOSSES = 3  # units lost in a row, besides one for each place, without an epoch done in between
HEAD_GONE_S = 10.0
SILENCE_S = 60.0
STOP_S = 30.0
OBJECT_STORE = 80 * 2**20  # bytes: nothing of ours is kept there

Tell = Callable[[str, str], None]


class Leave(Exception):
    """A unit is told to end."""


class UnitWorkers(Workers):
    """The workers of a unit; each has a log of its own, although one SLURM job may carry several units of a node."""

    def log(self, slot: int) -> str:
        """The log of a slot's worker, relative to the run folder."""
        return f"logs/{os.getpid()}-{socket.gethostname()}-{slot}.log"


class Unit(tune.Trainable):  # type: ignore[misc]
    """A unit of workers on one node, as a Tune trial: worker processes are supervised until no trial is left to claim.

    It asks for one whole GPU, on which several processes may run, so that units spread over all GPUs; or for CPUs.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What Ray is asked for."""
        return tune.PlacementGroupFactory([{"GPU": 1} if config["gpu"] else {"CPU": config["threads"]}])

    def setup(self, config: dict[str, Any]) -> None:
        """Start the workers; where they cannot run, the results say so."""
        job = Job(**config["job"])
        with suppress(OSError):
            os.chdir(job.cwd)
        options = replace(job.options(), device="cuda" if config["gpu"] else "cpu", threads=config["threads"])
        self.workers = UnitWorkers(Path(job.run), config["processes"], options)
        self.fault: str | None = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Supervise the workers, in a thread because `step` must return now and then."""
        try:
            self.workers.watch(self.look_up)
        except Leave:
            return
        except Exception as error:  # noqa: BLE001 - told to the launch, which decides
            self.fault = str(error)
            self.ending.wait(HOLD_S)

    def look_up(self) -> None:
        """Raise Leave once the unit is to end."""
        if self.ending.is_set():
            raise Leave

    def step(self) -> dict[str, Any]:
        """A sign of life."""
        self.thread.join(STEP_S)
        return {"done": not self.thread.is_alive(), "fault": self.fault}

    def cleanup(self) -> None:
        """End the workers; they give their leases back. Nothing is left of what Tune made for this unit."""
        self.ending.set()
        self.thread.join()
        shutil.rmtree(self.logdir, ignore_errors=True)


class Nodes:
    """The living nodes. cpus, gpus: of all. head: its address, once joined. asked: since when it owes us an answer."""

    def __init__(self, job: Job, tell: Tell) -> None:
        self.job, self.tell = job, tell
        self.head: str | None = None
        self.asked: float | None = None
        self.cpus = self.gpus = 0
        self._addresses: dict[str, str] = {}

    def connect(self) -> None:
        """Note the head's address; say how nodes that are missing can join."""
        self.head = str(ray.get_runtime_context().gcs_address)
        self.look()
        missing = self.job.nodes - len(self._addresses)
        if missing > 0:
            self.tell("say", f"{missing} of {self.job.nodes} nodes have not joined; on each of them run")
            self.tell("say", f"  {join_command(self.head)}")

    def look(self) -> None:
        """Ask the head; say which nodes have joined and which are gone."""
        self.asked = time.monotonic()
        alive = [node for node in ray.nodes() if node["Alive"]]
        self.asked = None
        self.cpus = sum(int(node["Resources"].get("CPU", 0)) for node in alive)
        self.gpus = sum(int(node["Resources"].get("GPU", 0)) for node in alive)
        earlier, self._addresses = self._addresses, {node["NodeID"]: node["NodeManagerAddress"] for node in alive}
        if earlier:
            for node in self._addresses.keys() - earlier.keys():
                self.tell("say", f"the Ray node {self._addresses[node]} has joined, {len(alive)} are there")
            for node in earlier.keys() - self._addresses.keys():
                self.tell("say", f"the Ray node {earlier[node]} is gone, {len(alive)} are left")

    def complete(self) -> bool:
        """Whether as many nodes are there as were asked for."""
        return len(self._addresses) >= self.job.nodes


class Units(Searcher):  # type: ignore[misc]
    """Suggests a further unit while a trial waits: nodes that join late get work at once, lost units are replaced.

    There is at most one unit more than the cluster has places; it waits for a node to join.
    """

    def __init__(self, job: Job, nodes: Nodes, tell: Tell, stop: threading.Event) -> None:
        super().__init__()
        self.job, self.nodes, self.tell, self.stop = job, nodes, tell, stop
        self.options = job.options()
        self.ledger = Ledger(Path(job.run), self.options.pause_after)
        self.error: str | None = None
        self._look_at = 0.0
        self._counts: Counter[State] = Counter()
        self._running: list[str] = []
        self._progress: set[Any] = set()
        self._units: dict[str, str | None] = {}  # Tune's id of a unit -> its node, once it has run for a moment
        self._faulty: set[str] = set()
        self._losses = 0
        self._said: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """What Tune may save of this: nothing, the run folder has it all."""
        return {}

    def on_gpu(self) -> bool:
        """Whether trials run on GPUs."""
        return self.options.device.startswith("cuda") or (self.options.device == "auto" and self.nodes.gpus > 0)

    def processes(self) -> int:
        """Worker processes of a unit."""
        return self.job.trials_per_gpu if self.on_gpu() else 1

    def threads(self) -> int:
        """CPU threads of a worker process."""
        share = self.nodes.cpus // max(1, self.nodes.gpus * self.processes()) if self.on_gpu() else 1
        return self.options.threads or max(1, share)

    def places(self) -> int:
        """Units that the cluster has room for, and the launch wants at a time."""
        room = self.nodes.gpus if self.on_gpu() else self.nodes.cpus // self.threads()
        return room if self.job.workers is None else min(room, -(-self.job.workers // self.processes()))

    def count(self, *states: State) -> int:
        """Trials that were in these states when last looked at."""
        return sum(self._counts[state] for state in states)

    def over(self) -> bool:
        """Whether there is nothing left to do: all trials are over, or the launch is to end."""
        now = time.monotonic()
        if now >= self._look_at:
            with suppress(Exception):  # an answer that fails is not yet a head that is gone: `guard` knows
                self.nodes.look()
            states = self.ledger.states()
            self._counts = Counter(states.values())
            self._running = [trial_id for trial_id, state in states.items() if state == "running"]
            self._look_at = time.monotonic() + max(LOOK_S, 5 * (time.monotonic() - now))
            if self.on_gpu() and not self.nodes.gpus and self.nodes.complete():
                self.error = (
                    f"got --device {self.options.device}, but no node of the Ray cluster has a GPU: leave it out"
                )
        ended = self.stop.is_set() or self.error is not None or self.ledger.cancelled()
        return ended or not self.count(*LEFT)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A further unit; None while none is needed; FINISHED when all is over."""
        if self.over():
            return str(Searcher.FINISHED)
        room = self.places() + (self.job.workers is None) - len(self._units)
        unattended = self.count(*LEFT) - len(self._units) * self.processes()
        if not self.count("waiting") or room <= 0 or unattended <= 0:
            return None
        self._units[trial_id] = None
        unit = {"gpu": self.on_gpu(), "processes": self.processes(), "threads": self.threads()}
        return {"job": asdict(self.job), **unit}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note where a unit runs, and whether it cannot work."""
        self._units[trial_id] = node = result["node_ip"]
        if result["fault"] and trial_id not in self._faulty:
            self._faulty.add(trial_id)
            self.lose(f"Ray node {node}: {result['fault']}")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that a unit has ended, by itself or with its node."""
        node = self._units.pop(trial_id, None)
        self._faulty.discard(trial_id)
        if error and not self.over():
            where = f"on the Ray node {node} was lost" if node else "did not start"
            self.lose(f"a worker {where} (see {self.job.log})")

    def lose(self, reason: str) -> None:
        """Count the loss of a unit; too many without any progress end the launch."""
        progress = self.progress()
        self._losses = 1 if progress - self._progress else self._losses + 1
        self._progress |= progress
        places = max(1, min(self.places(), self.count(*LEFT)))
        if len(self._faulty) >= places or self._losses > LOSSES + places:
            self.error = f"the workers cannot run: {reason}"
        elif reason not in self._said:
            self._said.add(reason)
            self.tell("say", reason)

    def progress(self) -> set[tuple[Any, ...]]:
        """How many trials are over, and how far those are that run: anything new in it is progress."""
        running = map(self.ledger.status, self._running)
        places = ((status.trial_id, status.detail.get("progress") or {}) for status in running)
        found = {(trial_id, place.get("phase"), place.get("epoch")) for trial_id, place in places}
        return found | {("over", self.count("done", "failed", "paused"))}


class Over(Stopper):  # type: ignore[misc]
    """Ends the experiment when the units say that all is over, whatever still runs or waits."""

    def __init__(self, units: Units) -> None:
        self.units = units

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No unit is ended by what it reports."""
        return False

    def stop_all(self) -> bool:
        """Whether to end all."""
        return self.units.over()


def join_command(head: str) -> str:
    """What to type on another machine, so that it joins the cluster at `head`."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    words = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    command = Path(sys.executable).with_name("ray")
    return " ".join([*words, str(command) if command.exists() else "ray", "start", f"--address={head}"])


@contextmanager
def cluster(job: Job) -> Iterator[None]:
    """A connection to the cluster of a job, which is started here where it names none."""
    here = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    nodes = Cluster()
    try:
        if job.simulate:
            here |= {"include_log_monitor": False, "no_monitor": True, "num_cpus": max(1, cores() // job.nodes)}
            for number in range(job.nodes):  # one after another: raylets that start together abort
                nodes.add_node(**here, node_ip_address=f"127.0.0.{number + 2}")
            ray.init(nodes.address, **quiet)
        elif job.address is None:
            ray.init("local", **here, **quiet, num_cpus=max(cores(), job.workers or 1))
        else:
            join(job, quiet)
        yield
    finally:
        ray.shutdown()
        for node in reversed(nodes.list_all_nodes()):
            nodes.remove_node(node, allow_graceful=False)


def join(job: Job, quiet: dict[str, Any]) -> None:
    """Connect to a cluster. Raises StdacError where it does not let us in."""
    try:
        ray.init(job.address, **quiet)
    except Exception as error:
        raise StdacError(
            f"the Ray cluster at {job.address} does not let this machine in (see {job.log}): run `ray start "
            f"--address={job.address}` here, with the same Ray and Python as there, and the file of its token, if it "
            "has one, in RAY_AUTH_TOKEN_PATH"
        ) from error


def reason_of(error: BaseException) -> str:
    """The first line of what was first to go wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def run_experiment(job: Job, nodes: Nodes, units: Units) -> None:
    """Run units until all is over. Raises StdacError where they cannot work or the head is lost."""
    config = tune.TuneConfig(
        search_alg=units, num_samples=-1, trial_dirname_creator=lambda trial: f"unit-{trial.trial_id}"
    )
    run_config = tune.RunConfig(
        name="units",
        storage_path=str(Path(job.scratch) / "tune"),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        stop=Over(units),
        verbose=0,
    )
    try:
        tune.Tuner(Unit, tune_config=config, run_config=run_config).fit()
    except Exception as error:
        if nodes.head is not None and not answers(nodes.head):
            raise StdacError(head_is_gone(nodes.head)) from error
        raise
    if units.error is not None:
        raise StdacError(units.error)


def guard(job: Job, nodes: Nodes, tell: Tell, stop: threading.Event) -> None:
    """End this process where it would wait in vain: for a head that is gone, for a stop that does not come.

    Runs in a thread, because Ray may keep the main one for minutes.
    """
    began = going_on = answered = time.monotonic()
    while True:
        time.sleep(POLL_S)
        now = time.monotonic()
        if os.getppid() != job.launcher:
            stop.set()
        if stop.is_set():
            if now - going_on > STOP_S:
                os._exit(1)
            continue
        going_on = now
        if nodes.head is None:
            answered = now
            if now - began > JOIN_S * (1 if job.address else job.nodes):
                where = f"at {job.address}: is it the head of a Ray cluster?" if job.address else "on this machine:"
                tell("error", f"Ray did not start to answer {where} (see {job.log})")
                os._exit(1)
        else:
            if answers(nodes.head):
                answered = now
            asked = nodes.asked
            if now - answered > HEAD_GONE_S or (asked is not None and now - asked > SILENCE_S):
                tell("error", head_is_gone(nodes.head))
                os._exit(1)


def head_is_gone(address: str) -> str:
    """The sentence for a lost head."""
    return f"the Ray head at {address} is gone: start it again and launch again; nothing done is lost"


def main() -> None:
    """The process that `ray_tune` starts. argv[1] is a Job as JSON, stdout carries lines [kind, text], stderr logs."""
    end_with_parent()
    job = Job(**json.loads(sys.argv[1]))
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(kind: str, text: str) -> None:
        with suppress(OSError):
            print(json.dumps([kind, text]), file=messages, flush=True)

    stop = threading.Event()
    nodes = Nodes(job, tell)
    threading.Thread(target=guard, args=(job, nodes, tell, stop), daemon=True).start()
    try:
        with told(job, tell), cluster(job):
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            try:
                with told(job, tell):
                    nodes.connect()
                    run_experiment(job, nodes, Units(job, nodes, tell, stop))
            finally:
                stop.set()
    finally:
        if os.getppid() != job.launcher:
            remove(Path(job.scratch))


@contextmanager
def told(job: Job, tell: Tell) -> Iterator[None]:
    """Tell the launch of an error, before anything else is tried: of several it hears the first."""
    try:
        yield
    except StdacError as error:
        tell("error", str(error))
        raise
    except Exception as error:
        tell("error", f"Ray failed ({reason_of(error)}): see {job.log}")
        raise

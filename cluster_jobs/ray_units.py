"""The units of workers on the nodes, as trials of Ray Tune: what each does, and how many there are to be."""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from cluster_jobs.ledger import LEFT, Ledger, State
from cluster_jobs.local import Workers
from cluster_jobs.ray_nodes import Nodes, Tell
from cluster_jobs.ray_tune import Job
from stdac.files import remove_folder

LOOK_S = 1.0
STEP_S = 2.0  # how long a unit may take to notice that it is to end
HOLD_S = 30.0  # a unit that cannot work keeps its place this long, so that no other is started at the same fault
LOSSES = 3  # units lost in a row, besides one for each place, without an epoch done in between


class _Leave(Exception):
    """A unit is told to end."""


class UnitWorkers(Workers):
    """The workers of a unit; each has a log of its own, although one SLURM job may carry several units of a node."""

    def name_log(self, slot: int) -> str:
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
        job = Job.from_json(config["job"])
        with suppress(OSError):
            os.chdir(job.cwd)
        device = "cuda" if config["gpu"] else "cpu"
        options = replace(job.request.options, device=device, threads=config["threads"])
        self.workers = UnitWorkers(job.request.run, config["processes"], options)
        self.fault: str | None = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        """Supervise the workers, in a thread because `step` must return now and then."""
        try:
            self.workers.watch(self._look_up)
        except _Leave:
            return
        except Exception as error:  # noqa: BLE001 - told to the launch, which decides
            self.fault = str(error)
            self.ending.wait(HOLD_S)

    def _look_up(self) -> None:
        """Raise _Leave once the unit is to end."""
        if self.ending.is_set():
            raise _Leave

    def step(self) -> dict[str, Any]:
        """A sign of life."""
        self.thread.join(STEP_S)
        return {"done": not self.thread.is_alive(), "fault": self.fault}

    def cleanup(self) -> None:
        """End the workers; they give their leases back. Nothing is left of what Tune made for this unit."""
        self.ending.set()
        self.thread.join()
        remove_folder(Path(self.logdir))


class Units(Searcher):  # type: ignore[misc]
    """Suggests a further unit while a trial waits: nodes that join late get work at once, lost units are replaced.

    There is at most one unit more than the cluster has places; it waits for a node to join.
    """

    def __init__(self, job: Job, nodes: Nodes, tell: Tell, stop: threading.Event) -> None:
        super().__init__()
        self.job, self.nodes, self.tell, self.stop = job, nodes, tell, stop
        self.options = job.request.options
        self.ledger = Ledger(job.request.run, self.options.pause_after)
        self.error: str | None = None
        self._look_at = 0.0
        self._counts: Counter[State] = Counter()
        self._running: list[str] = []
        self._progress: set[Any] = set()
        self._units: dict[str, str | None] = {}  # Tune's id of a unit -> its node, once it has run for a moment
        self._faulty: set[str] = set()
        self._losses = 0
        self._said: set[str] = set()
        self.read_error: Callable[[str], str] = lambda _: ""  # what Tune wrote down of a unit's end, by its id

    def __getstate__(self) -> dict[str, Any]:
        """What Tune may save of this: nothing, the run folder has it all."""
        return {}

    def uses_gpu(self) -> bool:
        """Whether trials run on GPUs."""
        return self.options.device.startswith("cuda") or (self.options.device == "auto" and self.nodes.gpus > 0)

    def count_processes(self) -> int:
        """Worker processes of a unit."""
        return self.job.request.trials_per_gpu if self.uses_gpu() else 1

    def count_threads(self) -> int:
        """CPU threads of a worker process."""
        share = self.nodes.cpus // max(1, self.nodes.gpus * self.count_processes()) if self.uses_gpu() else 1
        return self.options.threads or max(1, share)

    def count_places(self) -> int:
        """Units that the cluster has room for, and the launch wants at a time."""
        room = self.nodes.gpus if self.uses_gpu() else self.nodes.cpus // self.count_threads()
        workers = self.job.request.workers
        return room if workers is None else min(room, -(-workers // self.count_processes()))

    def count(self, *states: State) -> int:
        """Trials that were in these states when last looked at."""
        return sum(self._counts[state] for state in states)

    def is_over(self) -> bool:
        """Whether there is nothing left to do: all trials are over, or the launch is to end."""
        now = time.monotonic()
        if now >= self._look_at:
            with suppress(Exception):  # an answer that fails is not yet a head that is gone: `ray_driver` knows
                self.nodes.look()
            states = self.ledger.states()
            self._counts = Counter(states.values())
            self._running = [trial_id for trial_id, state in states.items() if state == "running"]
            self._look_at = time.monotonic() + max(LOOK_S, 5 * (time.monotonic() - now))
            if self.uses_gpu() and not self.nodes.gpus and self.nodes.is_complete():
                self.error = (
                    f"got --device {self.options.device}, but no node of the Ray cluster has a GPU: leave it out"
                )
        ended = self.stop.is_set() or self.error is not None or self.ledger.cancelled()
        return ended or not self.count(*LEFT)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A further unit; None while none is needed; FINISHED when all is over."""
        if self.is_over():
            return str(Searcher.FINISHED)
        room = self.count_places() + (self.job.request.workers is None) - len(self._units)
        unattended = self.count(*LEFT) - len(self._units) * self.count_processes()
        if not self.count("waiting") or room <= 0 or unattended <= 0:
            return None
        self._units[trial_id] = None
        unit = {"gpu": self.uses_gpu(), "processes": self.count_processes(), "threads": self.count_threads()}
        return {"job": self.job.to_json(), **unit}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note where a unit runs, and whether it cannot work."""
        self._units[trial_id] = node = result["node_ip"]
        if result["fault"] and trial_id not in self._faulty:
            self._faulty.add(trial_id)
            self._lose(f"Ray node {node}: {result['fault']}")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that a unit has ended, by itself or with its node."""
        node = self._units.pop(trial_id, None)
        self._faulty.discard(trial_id)
        if error and not self.is_over():
            where = f"on the Ray node {node} was lost" if node else "did not start"
            why = find_last_words(self.read_error(trial_id))
            self._lose(f"a worker {where}{f': {why}' if why else ''} (see {self.job.log})")

    def _lose(self, reason: str) -> None:
        """Count the loss of a unit; too many without any progress end the launch."""
        progress = self._find_progress()
        self._losses = 1 if progress - self._progress else self._losses + 1
        self._progress |= progress
        places = max(1, min(self.count_places(), self.count(*LEFT)))
        if len(self._faulty) >= places or self._losses > LOSSES + places:
            self.error = f"the workers cannot run: {reason}"
        elif reason not in self._said:
            self._said.add(reason)
            self.tell("say", reason)

    def _find_progress(self) -> set[tuple[Any, ...]]:
        """How many trials are over, and how far those are that run: anything new in it is progress."""
        running = map(self.ledger.status, self._running)
        places = ((status.trial_id, status.detail.get("progress") or {}) for status in running)
        found = {(trial_id, place.get("phase"), place.get("epoch")) for trial_id, place in places}
        return found | {("over", self.count("done", "failed", "paused"))}


def find_last_words(error: str) -> str:
    """What a traceback ends with: the last line that is not indented; "" for none."""
    lines = [line.strip() for line in error.splitlines() if line.strip() and not line[0].isspace()]
    missing = [line for line in lines if line.startswith("ModuleNotFoundError: ")]
    if missing:
        return f"{missing[-1].removeprefix('ModuleNotFoundError: ')}: install stdac there, as it is here"
    return lines[-1] if lines else ""


class Errors(Callback):  # type: ignore[misc]
    """Lets units look up what Tune wrote down of their ends: a Searcher is told only that there was an error."""

    def __init__(self, units: Units) -> None:
        units.read_error = self.read
        self.trials: list[Any] = []

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Remember Tune's trials."""
        self.trials = trials

    def read(self, trial_id: str) -> str:
        """The error of a unit, with its traceback; "" where there is none."""
        for trial in self.trials:
            if trial.trial_id == trial_id and trial.error_file is not None:
                with suppress(OSError):
                    return Path(trial.error_file).read_text("utf-8", errors="replace")
        return ""


class Over(Stopper):  # type: ignore[misc]
    """Ends the experiment when the units say that all is over, whatever still runs or waits."""

    def __init__(self, units: Units) -> None:
        self.units = units

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No unit is ended by what it reports."""
        return False

    def stop_all(self) -> bool:
        """Whether to end all."""
        return self.units.is_over()

"""The process that talks to Ray: one Ray Tune experiment whose trials are long-lived units of workers on the nodes.

Tune runs workers, not our trials: on two busy cores a sleep of 0.2 s took 3.3 s as a trial of Tune, which starts a
process for each, and 0.2 s as a task in a process that was there (ten of each, one after another). What is done is read
from the run folder, never from Ray's state: a unit that was lost with its node is replaced by another, which goes on.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray import tune

from cluster_jobs.ray_nodes import Nodes, Tell, open_cluster
from cluster_jobs.ray_tune import Job, can_reach, remove_scratch
from cluster_jobs.ray_units import Errors, Over, Unit, Units
from cluster_jobs.worker import end_with_parent
from stdac.errors import StdacError

JOIN_S = 60.0
POLL_S = 0.5
HEAD_GONE_S = 10.0
SILENCE_S = 60.0
STOP_S = 30.0


def main() -> None:
    """The process that `ray_tune` starts. argv[1] is a Job as JSON, stdout carries lines [kind, text], stderr logs."""
    end_with_parent()
    job = Job.from_json(json.loads(sys.argv[1]))
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)

    def tell(kind: str, text: str) -> None:
        with suppress(OSError):
            print(json.dumps([kind, text]), file=messages, flush=True)

    stop = threading.Event()
    nodes = Nodes(job, tell)
    threading.Thread(target=_guard, args=(job, nodes, tell, stop), daemon=True).start()
    try:
        with _tell_errors(job, tell), open_cluster(job):
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            try:
                with _tell_errors(job, tell):
                    nodes.connect()
                    _run_experiment(job, nodes, Units(job, nodes, tell, stop))
            finally:
                stop.set()
    finally:
        if os.getppid() != job.launcher:
            remove_scratch(job.scratch)


@contextmanager
def _tell_errors(job: Job, tell: Tell) -> Iterator[None]:
    """Tell the launch of an error, before anything else is tried: of several it hears the first."""
    try:
        yield
    except StdacError as error:
        tell("error", str(error))
        raise
    except Exception as error:
        tell("error", f"Ray failed ({_find_reason(error)}): see {job.log}")
        raise


def _run_experiment(job: Job, nodes: Nodes, units: Units) -> None:
    """Run units until all is over. Raises StdacError where they cannot work or the head is lost."""
    config = tune.TuneConfig(
        search_alg=units, num_samples=-1, trial_dirname_creator=lambda trial: f"unit-{trial.trial_id}"
    )
    run_config = tune.RunConfig(
        name="units",
        storage_path=str(job.scratch / "tune"),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        stop=Over(units),
        callbacks=[Errors(units)],
        verbose=0,
    )
    try:
        tune.Tuner(Unit, tune_config=config, run_config=run_config).fit()
    except Exception as error:
        if nodes.head is not None and not can_reach(nodes.head):
            raise StdacError(_explain_lost_head(nodes.head)) from error
        raise
    if units.error is not None:
        raise StdacError(units.error)


def _guard(job: Job, nodes: Nodes, tell: Tell, stop: threading.Event) -> None:
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
            if now - began > JOIN_S * (1 if job.address else job.request.nodes):
                where = f"at {job.address}: is it the head of a Ray cluster?" if job.address else "on this machine:"
                tell("error", f"Ray did not start to answer {where} (see {job.log})")
                os._exit(1)
        else:
            if can_reach(nodes.head):
                answered = now
            asked = nodes.asked
            if now - answered > HEAD_GONE_S or (asked is not None and now - asked > SILENCE_S):
                tell("error", _explain_lost_head(nodes.head))
                os._exit(1)


def _explain_lost_head(address: str) -> str:
    """The sentence for a lost head."""
    return f"the Ray head at {address} is gone: start it again and launch again; nothing done is lost"


def _find_reason(error: BaseException) -> str:
    """The first line of what was first to go wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"

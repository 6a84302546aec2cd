"""The Ray backend: one Ray Tune experiment whose trials are long-lived workers, spread over the cluster's nodes.

A Tune trial costs seconds to start; a worker that pulls many of our trials pays that once. What is done is read from
the run folder, never from Ray's state, so a retried worker just goes on with what is missing.
"""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster_jobs.worker import Options
from stdac.errors import StdacError

CONNECT_S = 60
SCRATCH = ".ray"


def reachable_address() -> str | None:
    """The cluster to join: RAY_ADDRESS, or None to start Ray on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


def connect() -> Any:
    """Join the cluster at RAY_ADDRESS, or start Ray here. Raises StdacError where that address does not answer."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    try:
        import ray
    except ImportError as error:
        raise StdacError("the ray backend needs Ray: pip install 'ray[tune]'") from error
    address = reachable_address()
    failure: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            failure.append(error)

    if address is None:
        join()
    else:  # joining a dead address can hang for minutes
        thread = threading.Thread(target=join, daemon=True)
        thread.start()
        thread.join(CONNECT_S)
        if thread.is_alive():
            raise StdacError(
                f"no Ray cluster answered at RAY_ADDRESS={address} within {CONNECT_S} s: unset it to run here"
            )
    if failure:
        raise StdacError(f"Ray could not be started or joined ({str(failure[0]).splitlines()[0]})") from failure[0]
    return ray


def run_workers(run: Path, workers: int, options: Options, tick: Callable[[], None]) -> None:
    """Run `workers` workers as one Tune experiment until no trial is waiting, calling `tick` meanwhile."""
    ray = connect()
    run = run.resolve()
    try:
        resources = ray.cluster_resources()
        cpus = max(1, int(resources.get("CPU", 1)))
        gpus = resources.get("GPU", 0)
        workers = min(workers, cpus)
        share = {"cpu": max(1, cpus // workers)} | ({"gpu": gpus / workers} if gpus and options.device != "cpu" else {})
        options = replace(options, threads=options.threads or int(share["cpu"]))
        thread = threading.Thread(target=tune_workers, args=(run, workers, share, options), daemon=True)
        thread.start()
        while thread.is_alive():
            tick()
            thread.join(0.5)
    finally:
        ray.shutdown()
        shutil.rmtree(run / SCRATCH, ignore_errors=True)


def tune_workers(run: Path, workers: int, share: dict[str, float], options: Options) -> None:
    """The Tune experiment itself: a grid search over worker numbers."""
    from ray import tune

    here = Path.cwd()  # Tune starts a trial in a folder of its own: relative paths to data sets would break

    def worker(_config: dict[str, Any]) -> None:
        from cluster_jobs.worker import work

        os.chdir(here)
        work(run, options)

    tune.Tuner(
        tune.with_resources(worker, share),
        param_space={"worker": tune.grid_search(list(range(workers)))},
        run_config=tune.RunConfig(
            name="workers",
            storage_path=str(run / SCRATCH),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    ).fit()

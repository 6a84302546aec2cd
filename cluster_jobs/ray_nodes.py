"""The nodes of the Ray cluster that a launch works on: started here or joined, and watched."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster_jobs.ray_tune import Job
from stdac.cores import count_cores
from stdac.errors import StdacError

OBJECT_STORE = 80 * 2**20  # bytes: nothing of ours is kept there

Tell = Callable[[str, str], None]
"""Sends the launch a message: its kind ("say" or "error") and its text."""


@contextmanager
def open_cluster(job: Job) -> Iterator[None]:
    """A connection to the cluster of a job, which is started here where it names none."""
    here = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    nodes = Cluster()
    try:
        if job.request.simulate:
            here |= {
                "include_log_monitor": False,
                "no_monitor": True,
                "num_cpus": max(1, count_cores() // job.request.nodes),
            }
            for number in range(job.request.nodes):  # one after another: raylets that start together abort
                nodes.add_node(**here, node_ip_address=f"127.0.0.{number + 2}")
            ray.init(nodes.address, **quiet)
        elif job.address is None:
            ray.init("local", **here, **quiet, num_cpus=max(count_cores(), job.request.workers or 1))
        else:
            _join(job, quiet)
        yield
    finally:
        ray.shutdown()
        for node in reversed(nodes.list_all_nodes()):
            nodes.remove_node(node, allow_graceful=False)


def _join(job: Job, quiet: dict[str, Any]) -> None:
    """Connect to a cluster. Raises StdacError where it does not let us in."""
    try:
        ray.init(job.address, **quiet)
    except Exception as error:
        raise StdacError(
            f"the Ray cluster at {job.address} does not let this machine in (see {job.log}): run `ray start "
            f"--address={job.address}` here, with the same Ray and Python as there, and the file of its token, if it "
            "has one, in RAY_AUTH_TOKEN_PATH"
        ) from error


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
        asked = self.job.request.nodes
        missing = asked - len(self._addresses)
        if missing > 0:
            self.tell("say", f"{missing} of {asked} nodes have not joined; on each of them run")
            self.tell("say", f"  {_make_join_command(self.head)}")

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

    def is_complete(self) -> bool:
        """Whether as many nodes are there as were asked for."""
        return len(self._addresses) >= self.job.request.nodes


def _make_join_command(head: str) -> str:
    """What to type on another machine, so that it joins the cluster at `head`."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    words = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    command = Path(sys.executable).with_name("ray")
    return " ".join([*words, str(command) if command.exists() else "ray", "start", f"--address={head}"])

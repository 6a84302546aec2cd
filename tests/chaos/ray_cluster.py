"""Four Ray nodes on this machine: started by `ray start`, so that they outlive a launch, or simulated by the launch."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

from cluster_jobs.local import read_last_line
from cluster_jobs.ray_tune import can_reach
from stdac.processes import make_python_environment
from tests.chaos.clusters import Cluster
from tests.chaos.faults import ANYWHERE, Fault, Find, choose, frozen, kill_at_once, name, of_role, signalled
from tests.chaos.processes import MARK, Process, descendants, processes
from tests.chaos.scene import Scene

NODES = 4
SIMULATED = 0.3  # the share of rounds whose launch starts the nodes itself
STARTS = 3
START_S = 300.0  # on a machine that is busy with other things
STARTED = "Ray runtime started"


class Ray(Cluster):
    """A head and other nodes with one CPU each at 127.0.0.2 and the following addresses, with a token."""

    name = "ray"
    quiet_s = 120.0  # Ray's agents notice after a minute that their raylet was killed

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "ray")
        self.address = f"127.0.0.2:{free_port()}"
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.simulated = False
        self.problem = ""

    def __enter__(self) -> "Ray":
        self.folder.mkdir()
        token = os.open(self.folder / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(token, "w") as file:
            file.write(secrets.token_hex(32))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def launching(self, chance: Random) -> tuple[list[str], dict[str, str]]:
        """Joining the cluster, or simulating one."""
        self.simulated = chance.random() < SIMULATED
        if self.simulated:
            return ["--backend", "ray", "--nodes", str(NODES), "--simulate"], {}
        self.mend()
        return ["--backend", "ray", "--nodes", str(NODES)], {"RAY_ADDRESS": self.address} | self.access()

    def access(self) -> dict[str, str]:
        """What a process needs to be let in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}

    def start(self, number: int) -> bool:
        """Start node `number`, the head being 0; True once it has joined."""
        log = self.folder / f"node-{number}-{time.monotonic_ns()}.log"
        words = ["--block", f"--node-ip-address=127.0.0.{number + 2}", "--num-cpus=1", "--disable-usage-stats"]
        words += [f"--object-store-memory={80 * 2**20}"]
        if number == 0:
            port = self.address.rpartition(":")[2]
            words += ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder / 'tmp'}"]
        else:
            words += [f"--address={self.address}"]
        own = {"RAY_TMPDIR": str(self.folder / "tmp"), MARK: str(self.folder)}
        own["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = f"{START_S:.0f}"
        with open(log, "wb") as file:
            self.nodes[number] = subprocess.Popen(
                [Path(sys.executable).with_name("ray"), "start", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=make_python_environment() | own | self.access(),
                process_group=0,
            )
        deadline = time.monotonic() + START_S
        while self.nodes[number].poll() is None and time.monotonic() < deadline:
            if STARTED in log.read_text(errors="replace"):
                return True
            time.sleep(0.2)
        self.problem = f"Ray node {number} did not start: {read_last_line(log)}"
        return False

    def mend(self) -> None:
        """Start the nodes that are gone; all of them where the head is. Raises RuntimeError where they do not start."""
        if self.simulated:
            return
        for _ in range(STARTS):
            if not (self.lives(0) and can_reach(self.address)):
                self.stop()
            if all(self.lives(number) or self.start(number) for number in range(NODES)):
                return
        raise RuntimeError(self.problem)

    def lives(self, number: int) -> bool:
        """Whether a node is there."""
        return number in self.nodes and self.nodes[number].poll() is None and self.raylet(number) is not None

    def raylet(self, number: int) -> Process | None:
        """A node's raylet."""
        words = f"--node_ip_address=127.0.0.{number + 2} "
        return next((raylet for raylet in self.processes("raylet") if words in raylet.command), None)

    def stop(self) -> None:
        """End what was started here."""
        for process in processes(self.folder):
            process.signal(signal.SIGKILL)
        for node in self.nodes.values():
            node.wait()
        self.nodes.clear()

    def find(self, role: str) -> Find:
        """Finds processes of a role among those of the round's cluster."""
        return lambda scene: scene.processes(role) if self.simulated else self.processes(role)

    def processes(self, role: str) -> list[Process]:
        """The cluster's processes of a role."""
        return [process for process in processes(self.folder) if process.role() == role]

    def faults(self) -> Mapping[str, Fault]:
        """Ray's own, besides those of everywhere."""
        own: dict[str, Fault] = {
            "kill a raylet": self.undone(signalled(self.find("raylet"), signal.SIGKILL)),
            "kill the Ray head": self.undone(signalled(self.find("head"), signal.SIGKILL)),
            "cut a Ray node's power": self.undone(self.cut_power),
            "freeze a raylet": frozen(self.find("raylet")),
            "freeze the Ray head": frozen(self.find("head")),
            "kill a unit of workers": signalled(self.find("unit"), signal.SIGKILL),
            "freeze a unit of workers": frozen(self.find("unit")),
            "kill the Ray driver": signalled(of_role("ray driver"), signal.SIGKILL),
            "freeze the Ray driver": frozen(of_role("ray driver")),
        }
        return {**ANYWHERE, **own}

    def cut_power(self, scene: Scene) -> str | None:
        """All that runs on a node is gone at once."""
        raylet = choose(scene, self.find("raylet"))
        if raylet is None:
            return None
        victims = [raylet, *descendants(raylet)]
        kill_at_once(victims)
        return f"{name(raylet)} and {len(victims) - 1} processes below it"

    def undone(self, fault: Fault) -> Fault:
        """The fault; what it takes away comes back after some seconds, where it does not belong to the launch."""

        def undone(scene: Scene) -> str | None:
            victim = fault(scene)
            if victim is not None and not self.simulated:
                scene.undo_later(scene.chance.uniform(2, 15), "all Ray nodes are there", self.mend)
            return victim

        return undone

    def left(self, scene: Scene) -> list[str]:
        """What of a run is still there, units on the cluster included."""
        return super().left(scene) + [f"{unit.pid} {unit.command}" for unit in self.processes("unit")]


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        port: int = probe.getsockname()[1]
        return port

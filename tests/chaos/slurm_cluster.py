"""The four-node SLURM of ../shared/slurm, whose nodes are namespaces of this machine: their processes are seen here."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from random import Random

from cluster_jobs.slurm_queue import cancel, list_jobs, name_jobs
from tests.chaos.clusters import Cluster
from tests.chaos.faults import ANYWHERE, Fault, frozen, of_role, signalled
from tests.chaos.scene import Scene
from tests.cluster.conftest import Lab, why_not

NODES = ("n1", "n2", "n3", "n4")


class Slurm(Cluster):
    """Nodes that come back by themselves, some time after they were lost."""

    name = "slurm"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lab = Lab(accounting=False)
        self.found = self.lab.up()

    def __enter__(self) -> "Slurm":
        problem = why_not()
        if problem is not None:
            raise SystemExit(problem)
        os.environ["SLURM_CONF"] = str(self.lab.conf)
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        if self.found:
            self.restart()
        else:
            self.lab.script("stop-slurm.sh", "--purge")

    def restart(self) -> None:
        """Start the nodes anew: a node sees the disks that were there when it was started, and holds on to them."""
        for node in NODES:
            self.lab.script("power-cut.sh", node)
        self.mend()

    def launching(self, chance: Random) -> tuple[list[str], dict[str, str]]:
        """An array of workers of one thread each."""
        return ["--backend", "slurm", "--nodes", str(len(NODES)), "--cpus-per-task", "1"], {}

    def mend(self) -> None:
        """Start what does not run."""
        problem = self.lab.start()
        if problem is not None:
            raise RuntimeError(f"SLURM did not come up again: {problem}")

    def end_with_driver(self) -> bool:
        """Jobs outlive their driver, and the next one finds them."""
        return False

    def left(self, scene: Scene) -> list[str]:
        """What of a run is still there, jobs included."""
        known = list_jobs(name_jobs(scene.run))
        living = ["the controller does not answer"] if known is None else [str(job) for job in known if job.living]
        return super().left(scene) + living

    def end(self, scene: Scene) -> None:
        """Leave nothing of a run, jobs included."""
        cancel(scene.run)
        super().end(scene)

    def faults(self) -> Mapping[str, Fault]:
        """SLURM's own, besides those of everywhere."""
        own: dict[str, Fault] = {
            "kill a slurmd": self.undone(self.kill_slurmd),
            "cut a node's power": self.undone(self.cut_power),
            "kill slurmctld": self.undone(self.kill_controller),
            "kill a task": signalled(of_role("task"), signal.SIGKILL),
            "terminate a task": signalled(of_role("task"), signal.SIGTERM),
            "tell a task that its time is up": signalled(of_role("task"), signal.SIGUSR2),
            "freeze a task": frozen(of_role("task")),
            "requeue a task": on_a_task("scontrol", "requeue"),
            "cancel a task": on_a_task("scancel"),
        }
        return {**ANYWHERE, **own}

    def kill_slurmd(self, scene: Scene) -> str | None:
        """A node's slurmd is gone and its jobs live on: after a while SLURM starts them elsewhere, too."""
        node = scene.chance.choice(NODES)
        return node if self.lab.script("power-cut.sh", node, "--slurmd-only").returncode == 0 else None

    def cut_power(self, scene: Scene) -> str | None:
        """All that runs on a node is gone at once."""
        node = scene.chance.choice(NODES)
        return node if self.lab.script("power-cut.sh", node).returncode == 0 else None

    def kill_controller(self, scene: Scene) -> str | None:
        """The controller is gone; what runs goes on."""
        if not self.lab.up():
            return None
        self.lab.end_controller(signal.SIGKILL)
        return "slurmctld"

    def undone(self, fault: Fault) -> Fault:
        """The fault; what it takes away comes back, sometimes only after SLURM has noticed."""

        def undone(scene: Scene) -> str | None:
            victim = fault(scene)
            if victim is not None:
                scene.undo_later(scene.chance.uniform(3, 40), "all of SLURM is there", self.mend)
            return victim

        return undone


def on_a_task(*command: str) -> Fault:
    """Has SLURM do something to one of the run's running tasks."""

    def fault(scene: Scene) -> str | None:
        running = [job.id for job in list_jobs(name_jobs(scene.run)) or [] if job.state == "RUNNING"]
        if not running:
            return None
        task = scene.chance.choice(running)
        done = subprocess.run([*command, task], capture_output=True, timeout=60, check=False)
        return f"task {task}" if done.returncode == 0 else None

    return fault

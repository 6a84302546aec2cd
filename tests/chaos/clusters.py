"""What a round runs on: how to launch on it, which faults it can meet, and how it is mended afterwards."""

from collections.abc import Mapping
from pathlib import Path
from random import Random

from tests.chaos.faults import ANYWHERE, HERE, Fault
from tests.chaos.scene import Scene


class Cluster:
    """This machine alone, and what the other clusters do differently."""

    name = "local"
    quiet_s = 60.0  # processes that have to end must have done so by then

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def launching(self, chance: Random) -> tuple[list[str], dict[str, str]]:
        """How to launch the next round: further words of the command, and its environment."""
        return ["--backend", "local", "--workers", "2"], {}

    def faults(self) -> Mapping[str, Fault]:
        """The faults that the round can meet, by kind."""
        return ANYWHERE | HERE

    def mend(self) -> None:
        """Bring back what is gone."""

    def end_with_driver(self) -> bool:
        """Whether no worker of the round may outlive the launch that started it."""
        return True

    def left(self, scene: Scene) -> list[str]:
        """What of a run is still there, in words."""
        return [f"{process.pid} {process.command[:200]}" for process in scene.processes()]

    def end(self, scene: Scene) -> None:
        """Leave nothing of a run."""
        scene.end()

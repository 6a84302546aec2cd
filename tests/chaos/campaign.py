"""A campaign: rounds on one backend until there were enough faults."""

import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from random import Random

import torch

from stdac.files import read_json, write_json
from tests.chaos.clusters import Cluster
from tests.chaos.oracle import Oracle, Outcome, Violation, outcomes
from tests.chaos.rounds import Round
from tests.chaos.scene import ROOT, Scene, Volume

UNDISTURBED_S = 1200


class Campaign:
    """Rounds of a grid on a cluster. keep: where the folders of rounds that failed go. pause_s: between two faults.

    light: whether the trials only pretend to train.
    """

    def __init__(self, cluster: Cluster, volume: Volume, grid: Path, keep: Path, pause_s: float, light: bool) -> None:
        self.cluster, self.volume, self.grid, self.keep, self.pause_s = cluster, volume, grid, keep, pause_s
        self.light = light
        self.kinds: Counter[str] = Counter()
        self.failures: list[str] = []
        self.rounds = 0

    def run(self, faults: int, seed: int) -> None:
        """Rounds until `faults` faults were injected; the first takes `seed`, the next seed + 1 and so on."""
        expected = undisturbed(self.grid, self.light)
        while self.kinds.total() < faults:
            self.round(expected, faults - self.kinds.total(), seed + self.rounds)
            say(f"{self.kinds.total()} faults in {self.rounds} rounds, {len(self.failures)} of them failed")

    def round(self, expected: Mapping[str, Outcome], budget: int, seed: int) -> None:
        """One round; where it fails, its folder is kept."""
        chance = Random(seed)
        run, said = self.volume.path / f"run-{seed}", self.volume.path.parent / f"said-{seed}"
        said.mkdir()
        say(f"round {self.rounds + 1} with seed {seed} in {run}")
        words, environment = self.cluster.launching(chance)
        scene = Scene(run, self.grid, words, environment, chance, self.volume, said)
        chaos = Round(self.cluster, scene, Oracle(run, expected, scene.spoiled), budget, self.pause_s, say)
        try:
            chaos.run()
        except Exception as error:
            reason = str(error) if isinstance(error, Violation) else traceback.format_exc()
            say(f"FAILED: {reason}")
            self.failures.append(f"seed {seed}: {reason.strip().splitlines()[-1]}")
            for folder in filter(Path.exists, (run, said)):
                shutil.copytree(folder, self.keep / folder.name, symlinks=True, dirs_exist_ok=True)
        finally:
            self.cluster.end(scene)
            shutil.rmtree(run, ignore_errors=True)
        self.rounds += 1  # only what was judged counts
        self.kinds += chaos.kinds

    def report(self) -> str:
        """How many faults of which kinds there were, and what did not hold."""
        name = self.cluster.name + (" with light trials" if self.light else "")
        head = f"{name}: {self.kinds.total()} faults in {self.rounds} rounds, {len(self.failures)} failed"
        return "\n".join([head, *(f"{n:5} {kind}" for kind, n in self.kinds.most_common()), *self.failures])


def undisturbed(grid: Path, light: bool) -> dict[str, Outcome]:
    """What the trials of a grid come to where nothing happens; remembered for this code and this torch."""
    sources = [grid, *sorted((ROOT / "stdac").rglob("*.py")), *sorted(Path(__file__).parent.glob("light/*.py"))]
    parts = [f"{torch.__version__} {light}".encode(), *(path.read_bytes() for path in sources)]
    key = sha256(b"".join(parts)).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"stdac-undisturbed-{key}.json"
    if not path.exists():
        say("an undisturbed run")
        with tempfile.TemporaryDirectory(prefix="stdac-undisturbed-") as folder:
            where, words = Path(folder), ["--backend", "local"]
            scene = Scene(where / "run", grid, words, {}, Random(0), Volume(where), where)
            launch = scene.launch()
            if launch.process.wait(UNDISTURBED_S) != 0:
                raise Violation(f"an undisturbed run fails: {launch}")
            write_json(path, outcomes(scene.run))
    expected: dict[str, Outcome] = read_json(path)
    return expected


def say(line: str) -> None:
    """A line of the campaign's log."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

"""Faults at random in the middle of a grid, from a seed: nothing is lost, doubled or different. See tests/chaos."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from tests.chaos.oracle import KEPT
from tests.chaos.processes import Process, descendants
from tests.cluster.conftest import why_not
from tests.waiting import LONG_S, wait_for

ROOT = Path(__file__).parents[1]

GRID = """
[defaults]
dataset = "digits"
limit = 150
[[trials]]
method = "kmeans"
[[trials]]
epochs = 3
seeds = 2
params = { stn = [0, 1], width = 0.1, macro_batch = 100 }
"""


def chaos(keep: Path, *words: str, seconds: int) -> str:
    """Run a campaign; what it says."""
    command = [sys.executable, "-m", "tests.chaos", "--keep", str(keep), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_few_faults_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    words = ("--faults", "3", "--seed", "7", "--pause", "1.5", "--grid", str(tmp_path / "grid.toml"))
    said = chaos(tmp_path / "failed", *words, seconds=600)
    assert "local: 3 faults" in said and " 0 failed" in said


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "ray", "slurm"])
def test_many_faults(backend: str, tmp_path: Path) -> None:
    if backend == "ray" and find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    if backend == "slurm" and (problem := why_not()) is not None:
        pytest.skip(problem)
    said = chaos(tmp_path, "--backend", backend, "--faults", "30", "--seed", "1", seconds=3600)
    assert f"{backend}: 30 faults" in said and " 0 failed" in said


def test_what_a_finished_run_may_hold() -> None:
    kept = ["grid.toml", "trials-2.parquet", "logs/1-vm-0.log", "trials/ab/lease-3.json", "trials/ab/attempt-3/stn.npz"]
    assert all(KEPT.fullmatch(name) for name in kept)
    left = ["cancel", ".ray-x/token", "trials/ab/error.txt", "trials/ab/attempt-3/checkpoint.pt", "trials/ab/.now-vm-1"]
    assert not any(KEPT.fullmatch(name) for name in left)


def test_a_worker_whose_supervisor_died_while_it_started_ends(tmp_path: Path) -> None:
    """Found by killing drivers: the worker took init for its supervisor, and ran the whole grid on its own."""
    (tmp_path / "grid.toml").write_text(GRID)
    grid = load_grid(str(tmp_path / "grid.toml"))
    Ledger(tmp_path / "run").plan(grid.trials, grid.text)
    command = [sys.executable, "-m", "cluster_jobs.worker", str(tmp_path / "run"), "{}"]
    environment = os.environ | {"STDAC_SUPERVISOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=LONG_S, check=False)
    assert done.returncode == 1
    assert not list(tmp_path.glob("run/trials/*/lease-*"))


def test_descendants_are_children_and_theirs() -> None:
    shell = subprocess.Popen(["sh", "-c", "sh -c 'echo ready; sleep 60; true'; true"], stdout=subprocess.PIPE)
    assert shell.stdout is not None and shell.stdout.readline() == b"ready\n"
    start = int(Path(f"/proc/{shell.pid}/stat").read_text().rpartition(")")[2].split()[19])
    below = descendants(Process(shell.pid, start, ""))
    assert 1 <= len(below) <= 2 and shell.pid not in {process.pid for process in below}
    for process in [*below, Process(shell.pid, start, "")]:
        process.signal(9)
    shell.wait()
    wait_for(lambda: not any(process.alive() for process in below))

"""The command lines as a user runs them: grids that finish, die, and go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster_jobs.ledger import Ledger
from stdac.record import TIMINGS

GRID = """
[defaults]
dataset = "digits"
limit = 200
[[trials]]
method = "kmeans"
[[trials]]
epochs = 3
seeds = 2
params = { stn = [0, 1], width = 0.1, macro_batch = 100 }
"""


def command(*words: object) -> list[str]:
    """A command of ours, in this Python."""
    module = {"stdac": "stdac.cli", "stdac-grid": "cluster_jobs.cli"}[str(words[0])]
    return [sys.executable, "-c", f"from {module} import main; main()", *map(str, words[1:])]


def run(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    return subprocess.run(command(*words), cwd=cwd, env=env, capture_output=True, text=True, timeout=400, check=False)


def launched(cwd: Path, *words: str) -> dict[str, object]:
    """Launch the grid; the rows by key and the model files' bytes of the finished run."""
    (cwd / "grid.toml").write_text(GRID)
    done = run("stdac-grid", "launch", "grid.toml", "--out", "run", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return outcome(cwd / "run")


def outcome(path: Path) -> dict[str, object]:
    rows = pq.read_table(path / "metrics.parquet").drop_columns(list(TIMINGS)).to_pylist()
    keys = [(r["trial_id"], r["phase"], r["epoch"]) for r in rows]
    assert len(set(keys)) == len(keys)
    models = {p.parts[-3]: p.read_bytes() for p in path.glob("trials/*/attempt-*/model.pt")}
    return {"rows": dict(zip(keys, rows, strict=True)), "models": models}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return launched(tmp_path_factory.mktemp("undisturbed"), "--workers", "2")


def test_a_grid_runs_to_its_end(undisturbed: dict[str, object]) -> None:
    assert len(undisturbed["models"]) == 5
    assert len(undisturbed["rows"]) == 2 + 4 * 5  # kmeans: one row and its deployed one; epochs 0-3 and deployed


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_moment_it_goes_on_to_the_same_result(
    seed: int, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    words = command("stdac-grid", "launch", "grid.toml", "--out", "run", "--workers", "2")
    driver = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    chance = random.Random(seed)
    while not list(tmp_path.glob("run/trials/*/attempt-*/checkpoint.pt")) and driver.poll() is None:
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 2))
    leases = [json.loads(p.read_text()) for p in tmp_path.glob("run/trials/*/lease-*.json")]
    victims = [driver.pid] if seed == 2 else [lease["pid"] for lease in leases]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if seed == 2:
        driver.wait()
        deadline = time.monotonic() + 30
        while any(alive(lease["pid"]) for lease in leases):  # workers end with their driver
            assert time.monotonic() < deadline
            time.sleep(0.1)
    else:
        assert driver.wait(300) == 0  # the driver restarts what died
    assert launched(tmp_path, "--workers", "2") == undisturbed


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_ray_gives_the_same_rows_as_local(undisturbed: dict[str, object], tmp_path: Path) -> None:
    assert launched(tmp_path, "--workers", "2", "--backend", "ray") == undisturbed
    assert not (tmp_path / "run" / ".ray").exists()


def test_ctrl_c_ends_every_process_and_gives_the_leases_back(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    words = command("stdac-grid", "launch", "grid.toml", "--out", "run", "--workers", "2")
    driver = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    while not list(tmp_path.glob("run/trials/*/lease-*.json")):
        assert driver.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.kill(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 1 and b"Traceback" not in said
    assert "running" not in {s.state for s in Ledger(tmp_path / "run").statuses()}
    with pytest.raises(ProcessLookupError):
        os.killpg(driver.pid, 0)


def test_a_failing_trial_does_not_stop_the_grid(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID + '[[trials]]\ndataset = "nowhere.npy"\nn_clusters = 3\n')
    done = run("stdac-grid", "launch", "grid.toml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "1 trials failed" in done.stderr and "nowhere.npy" in done.stderr
    states = [s.state for s in Ledger(tmp_path / "run").statuses()]
    assert states.count("done") == 5 and states.count("failed") == 1
    assert "FAILED" in done.stderr


def test_a_long_grid_asks_first(tmp_path: Path) -> None:
    done = run("stdac-grid", "launch", "--out", "run", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 1 and "launch quick" in done.stderr and not (tmp_path / "run").exists()


def test_several_nodes_without_a_cluster_say_how_to_get_one(tmp_path: Path) -> None:
    done = run("stdac-grid", "launch", "quick", "--nodes", "4", cwd=tmp_path, RAY_ADDRESS="")
    assert done.returncode == 1 and "RAY_ADDRESS" in done.stderr


@pytest.mark.parametrize("tool", ["stdac", "stdac-grid"])
def test_help_costs_less_than_three_tenths_of_a_second(tool: str, tmp_path: Path) -> None:
    """CPU time, not the clock: what is counted is what is imported."""
    heavy = "import atexit, sys\nslow = {'torch', 'ray', 'sklearn', 'pyarrow', 'numpy'}\n"
    heavy += "atexit.register(lambda: print(len(slow & set(sys.modules))))"
    code = command(tool)[2]
    done = subprocess.run(
        [sys.executable, "-c", f"{heavy}\n{code}", "--help"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "0"

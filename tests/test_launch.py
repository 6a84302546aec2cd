"""The command lines as a user runs them: grids that finish, die, and go on."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster_jobs import backends, ray_tune, slurm
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.request import Options, Request
from cluster_jobs.worker import Worker
from stdac.errors import StdacError
from stdac.record import TIMINGS
from tests.traps import is_untouched, set_traps
from tests.waiting import LONG_S, wait_for

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
    module = {"stdac": "cluster_jobs.commands.stdac", "stdac-grid": "cluster_jobs.commands.grid"}[str(words[0])]
    return [sys.executable, "-P", "-c", f"from {module} import main; main()", *map(str, words[1:])]


def run(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    return subprocess.run(
        command(*words), cwd=cwd, env=env, capture_output=True, text=True, timeout=LONG_S, check=False
    )


def launched(cwd: Path, *words: str) -> dict[str, object]:
    """Launch the grid; the rows by key and the model files' bytes of the finished run."""
    (cwd / "grid.toml").write_text(GRID)
    words = words if "--backend" in words else (*words, "--backend", "local")
    done = run("stdac-grid", "launch", "grid.toml", "--out", "run", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return outcome(cwd / "run")


def begin(cwd: Path, *words: object) -> subprocess.Popen[bytes]:
    """Start a command of ours and go on."""
    (cwd / "grid.toml").write_text(GRID)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(*words), cwd=cwd, env=env, stderr=subprocess.PIPE, start_new_session=True)


LAUNCH = ("stdac-grid", "launch", "grid.toml", "--out", "run", "--backend", "local", "--workers", "2")


def outcome(path: Path) -> dict[str, object]:
    """All rows without their timings, and the SHA-256 of every model: pytest takes hours to compare the bytes."""
    rows = pq.read_table(path / "metrics.parquet").drop_columns(list(TIMINGS)).to_pylist()
    keys = [(r["trial_id"], r["phase"], r["epoch"]) for r in rows]
    assert len(set(keys)) == len(keys)
    models = {p.parts[-3]: sha256(p.read_bytes()).hexdigest() for p in path.glob("trials/*/attempt-*/model.pt")}
    return {"rows": dict(zip(keys, rows, strict=True)), "models": models}


def work_alone(folder: Path, grid: str) -> dict[str, object]:
    """What a grid comes to in this process, without a launch."""
    (folder / "grid.toml").write_text(grid)
    planned, ledger = load_grid(str(folder / "grid.toml")), Ledger(folder / "run")
    ledger.plan(planned.trials, planned.text)
    Worker(ledger.path, Options("cpu", 1)).work()
    ledger.collect()
    return outcome(ledger.path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    set_traps(folder)
    launched(folder, "--workers", "2")
    assert is_untouched(folder)
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> dict[str, object]:
    return outcome(finished)


def test_a_grid_runs_to_its_end(undisturbed: dict[str, object]) -> None:
    assert len(undisturbed["models"]) == 5
    assert len(undisturbed["rows"]) == 2 + 4 * 5  # kmeans: one row and its deployed one; epochs 0-3 and deployed


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_killed_at_a_random_moment_it_goes_on_to_the_same_result(
    seed: int, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    driver = begin(tmp_path, *LAUNCH)
    chance = random.Random(seed)
    wait_for(lambda: list(tmp_path.glob("run/trials/*/attempt-*/checkpoint.pt")), of=driver)
    time.sleep(chance.uniform(0, 2))
    leases = [json.loads(p.read_text()) for p in tmp_path.glob("run/trials/*/lease-*.json")]
    victims = [driver.pid] if seed == 2 else [lease["pid"] for lease in leases]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if seed == 2:
        driver.communicate()
        wait_for(lambda: not any(alive(lease["pid"]) for lease in leases))  # workers end with their driver
    else:
        assert driver.communicate(timeout=LONG_S) and driver.returncode == 0  # the driver restarts what died
    assert launched(tmp_path, "--workers", "2") == undisturbed


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow  # tests/cluster/test_ray.py has it for Linux
def test_ray_gives_the_same_rows_as_local(undisturbed: dict[str, object], tmp_path: Path) -> None:
    assert launched(tmp_path, "--workers", "2", "--backend", "ray") == undisturbed
    assert not (tmp_path / "run" / ".ray").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_every_process_and_gives_the_leases_back(times: int, tmp_path: Path) -> None:
    driver = begin(tmp_path, *LAUNCH)
    wait_for(lambda: list(tmp_path.glob("run/trials/*/lease-*.json")), of=driver)
    time.sleep(1)
    for _ in range(times):
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        time.sleep(0.1)
    _, said = driver.communicate(timeout=LONG_S)
    assert driver.returncode == 1 and b"Traceback" not in said
    assert "running" not in {s.state for s in Ledger(tmp_path / "run").statuses()}
    with pytest.raises(ProcessLookupError):
        os.killpg(driver.pid, 0)


def test_two_launches_on_one_folder_at_once_do_no_harm(undisturbed: dict[str, object], tmp_path: Path) -> None:
    drivers = [begin(tmp_path, *LAUNCH) for _ in range(2)]
    for driver in drivers:
        _, said = driver.communicate(timeout=LONG_S)
        assert driver.returncode == 0, said
    assert outcome(tmp_path / "run") == undisturbed


def test_a_detached_launch_is_cancelled_and_goes_on(undisturbed: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    said = run(*LAUNCH, "--detach", cwd=tmp_path)
    assert said.returncode == 0 and "--watch" in said.stdout
    ledger = Ledger(tmp_path / "run")
    wait_for(lambda: any(s.state == "running" for s in ledger.statuses()))
    done = run("stdac-grid", "cancel", "run", cwd=tmp_path)
    assert done.returncode == 0 and "stdac-grid launch goes on" in done.stdout
    wait_for(lambda: not any(s.state == "running" for s in ledger.statuses()))
    assert any(s.state == "waiting" for s in ledger.statuses())
    refused = run("stdac-grid", "work", "run", cwd=tmp_path)
    assert refused.returncode == 1 and "stdac-grid retry" in refused.stderr
    assert launched(tmp_path, "--workers", "2") == undisturbed


def test_work_needs_no_launch_and_leaves_at_a_checkpoint(undisturbed: dict[str, object], tmp_path: Path) -> None:
    """What a batch system does to it: SIGUSR2 before the time limit, then it is started again."""
    words = ("stdac-grid", "work", "run", "--grid", "grid.toml", "--workers", "2", "--device", "cpu")
    worker = begin(tmp_path, *words)
    wait_for(lambda: list(tmp_path.glob("run/trials/*/attempt-*/checkpoint.pt")), of=worker)
    worker.send_signal(signal.SIGUSR2)
    _, said = worker.communicate(timeout=LONG_S)
    assert worker.returncode == 0, said
    states = {s.state for s in Ledger(tmp_path / "run").statuses()}
    assert "running" not in states and "waiting" in states
    left = [json.loads(p.read_text()) for p in tmp_path.glob("run/trials/*/attempt-*/progress.json")]
    assert left and all(progress["step"] <= 1 for progress in left)
    begin(tmp_path, *words).communicate(timeout=LONG_S)
    assert outcome(tmp_path / "run") == undisturbed


def test_a_pause_survives_a_kill_leaves_paused_trials_alone_and_is_ended_by_the_next_launch(
    undisturbed: dict[str, object], tmp_path: Path
) -> None:
    driver = begin(tmp_path, *LAUNCH, "--pause-after", "2")
    wait_for(lambda: list(tmp_path.glob("run/trials/*/attempt-*/checkpoint.pt")), of=driver)
    leases = [json.loads(p.read_text()) for p in tmp_path.glob("run/trials/*/lease-*.json")]
    os.kill(leases[-1]["pid"], signal.SIGKILL)
    _, said = driver.communicate(timeout=LONG_S)
    assert driver.returncode == 0 and b"paused: 4 trials" in said
    again = run("stdac-grid", "work", "run", "--workers", "2", "--pause-after", "1", cwd=tmp_path)
    assert again.returncode == 0 and "0 trials done here, 0 failed" in again.stdout
    statuses = Ledger(tmp_path / "run").statuses()
    assert [s.detail for s in statuses if s.state == "waiting"] == [{"epoch": 2, "epochs": 3}] * 4
    assert sum(len(list(p.glob("lease-*.json"))) for p in tmp_path.glob("run/trials/*")) <= 5 + 2
    assert "after epoch 2/3" in run("stdac-grid", "status", "run", cwd=tmp_path).stdout
    assert launched(tmp_path, "--workers", "2") == undisturbed


def test_logs_and_status_say_what_happened(finished: Path) -> None:
    trial_id = next(s.trial_id for s in Ledger(finished).statuses())
    said = run("stdac-grid", "logs", "run", trial_id[:8], "-f", cwd=finished.parent)
    assert f"trial {trial_id} attempt 1 done" in said.stdout and "epoch" in said.stdout
    status = run("stdac-grid", "status", "run", cwd=finished.parent).stdout
    assert "5 of 5 done" in status and socket.gethostname() in status
    assert run("stdac-grid", "doctor", "run", cwd=finished.parent).stdout.startswith("nothing to mend")


def test_a_failing_trial_does_not_stop_the_grid(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((2, 28, 28), np.uint8))
    three = '[defaults]\ndataset = "digits"\nlimit = 50\n[[trials]]\nmethod = "kmeans"\nseeds = 3\n'
    (tmp_path / "grid.toml").write_text('[[trials]]\ndataset = "few.npy"\nn_clusters = 3\n' + three)
    done = run("stdac-grid", "launch", "grid.toml", "--out", "run", "--backend", "local", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "1 trial failed" in done.stderr and "got 3 clusters for 2 images" in done.stderr
    states = [s.state for s in Ledger(tmp_path / "run").statuses()]
    assert states.count("done") == 3 and states.count("failed") == 1
    assert "FAILED" in done.stderr


def test_a_long_grid_asks_first(tmp_path: Path) -> None:
    done = run("stdac-grid", "launch", "--out", "run", "--device", "cpu", "--backend", "local", cwd=tmp_path)
    assert done.returncode == 1 and "launch quick" in done.stderr and not (tmp_path / "run").exists()


def test_several_nodes_without_a_cluster_say_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tune, "find_cluster", lambda: None)
    monkeypatch.setattr(slurm, "is_available", lambda: False)
    with pytest.raises(StdacError, match=r"RAY_ADDRESS.*no Ray runs.*sbatch.*--simulate"):
        backends.find_backend(4)
    assert backends.find_backend(1)[0] == "local"
    done = run("stdac-grid", "launch", "quick", "--nodes", "4", "--backend", "local", cwd=tmp_path)
    assert done.returncode == 1 and "this machine alone" in done.stderr and not (tmp_path / "run").exists()


def test_a_launch_stays_here_and_says_which_cluster_it_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tune, "CURRENT_CLUSTER", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(slurm, "is_available", lambda: True)
    request = Request(tmp_path / "run", Options("cpu"))
    chosen = backends.choose_backend(None, request, {"partition": None, "extra": ()}, {})
    assert (chosen.name, chosen.why) == ("local", "SLURM is here too: --nodes N uses it")
    monkeypatch.setattr(ray_tune, "find_cluster", lambda: ("head:6379", "RAY_ADDRESS is set"))
    assert "a Ray cluster is here too" in backends.choose_backend(None, request, {}, {}).why
    with pytest.raises(StdacError, match="got --partition, which is for SLURM, but the backend is local"):
        backends.choose_backend(None, request, {"partition": "gpu"}, {})


@pytest.mark.parametrize("tool", ["stdac", "stdac-grid"])
def test_help_costs_less_than_three_tenths_of_a_second(tool: str, tmp_path: Path) -> None:
    """CPU time, not the clock: what is counted is what is imported."""
    heavy = "import atexit, sys\nslow = {'torch', 'ray', 'sklearn', 'pyarrow', 'numpy'}\n"
    heavy += "atexit.register(lambda: print(len(slow & set(sys.modules))))"
    code = command(tool)[-1]
    done = subprocess.run(
        [sys.executable, "-c", f"{heavy}\n{code}", "--help"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "0"

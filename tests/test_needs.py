"""Trials that need others: planned after them, started when they are done, told apart when they fail."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import LEFT, Ledger
from cluster_jobs.worker import Options, Worker
from stdac.errors import StdacError
from stdac.folder import TrialFolder
from stdac.methods import METHODS, add_needs, resolve
from stdac.model_file import load_model
from stdac.run import run_trial
from tests.conftest import CPU, results_of
from tests.test_launch import command, outcome
from tests.toys.follower import FOLLOWER, SLOW_TOY
from tests.waiting import LONG_S, wait_for

GRID = """
[[trials]]
method = "follower"
dataset = "digits"
limit = 100
seeds = 2
params = { share = [0.5, 0.8] }
"""
TESTS = Path(__file__).parent
ENVIRONMENT = {"PYTHONPATH": f"{TESTS.parent}:{TESTS / 'toys' / 'path'}", "OMP_NUM_THREADS": "1", "STDAC_LEASE_S": "6"}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tests' methods are among METHODS; a folder in which a test holds them up or breaks them."""
    monkeypatch.setitem(METHODS, "slow-toy", SLOW_TOY)
    monkeypatch.setitem(METHODS, "follower", FOLLOWER)
    folder = tmp_path / "toys"
    folder.mkdir()
    monkeypatch.setenv("STDAC_TOYS", str(folder))
    return folder


def plan(folder: Path) -> Ledger:
    """The run folder of GRID."""
    folder.mkdir(exist_ok=True)
    (folder / "grid.toml").write_text(GRID)
    grid = load_grid(str(folder / "grid.toml"))
    ledger = Ledger(folder / "run")
    ledger.plan(grid.trials, grid.text)
    return ledger


def work(ledger: Ledger, **options: Any) -> Worker:
    """A worker in this process, until nothing is left."""
    worker = Worker(ledger.path, Options("cpu", 1, **options))
    worker.work()
    return worker


@contextmanager
def launched(folder: Path, toys: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A launch of the grid that goes on meanwhile."""
    (folder / "grid.toml").write_text(GRID)
    words = ("launch", "grid.toml", "--out", "run", "--device", "cpu", *words)
    environment = os.environ | ENVIRONMENT | {"STDAC_TOYS": str(toys)}
    with subprocess.Popen(
        command("stdac-grid", *words), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as driver:
        try:
            yield driver
        finally:
            driver.terminate()


def test_the_grid_adds_what_is_needed_once_and_before(toys: Path, tmp_path: Path) -> None:
    ledger = plan(tmp_path)
    methods = [ledger.trials()[trial_id]["method"] for trial_id in ledger.ids()]
    assert methods == ["slow-toy", "follower", "follower", "slow-toy", "follower", "follower"]
    toy, *followers = ledger.ids()[:3]
    assert all(ledger.trials()[follower]["needs"] == [toy] for follower in followers)
    assert [ledger.state(trial_id) for trial_id in ledger.ids()[:3]] == ["waiting", "blocked", "blocked"]
    assert ledger.status(followers[0]).detail == {"for": [toy]}
    assert len({trial.id for trial in add_needs([resolve(ledger.trials()[followers[0]])])}) == 2


def test_a_trial_is_given_what_it_needs(toys: Path, tmp_path: Path) -> None:
    ledger = plan(tmp_path)
    work(ledger, keep="metrics")
    assert set(ledger.states().values()) == {"done"}
    toy, follower, other = ledger.ids()[:3]
    _, toy_path = results_of(ledger.folder(toy))
    assert (toy_path / "model.pt").exists(), "what others need is kept"
    _, path = results_of(ledger.folder(follower))
    assert sorted(p.name for p in path.iterdir()) == ["metrics.parquet"]
    rows = pq.read_table(path / "metrics.parquet")
    assert rows["noise"].to_pylist() == [0.5] and rows["main"].to_pylist() == [True]
    assert pq.read_table(results_of(ledger.folder(other))[1] / "metrics.parquet")["noise"].to_pylist() == [0.2]


def test_an_encoder_is_a_model_that_does_not_cluster(toys: Path, tmp_path: Path) -> None:
    from export.convert.to_onnx import export_model

    ledger = plan(tmp_path)
    work(ledger)
    _, path = results_of(ledger.folder(ledger.ids()[1]))
    model, config = load_model(path / "model.pt")
    assert not config.clusters and type(model).__name__ == "Encoder"
    assert (path / "stn.npz").exists()
    info = export_model(path / "model.pt", tmp_path / "model.onnx").info
    assert (info.k, info.trial["method"]) == (0, "follower") and info.embedding > 0


def test_a_failed_need_is_told_and_a_retry_runs_both(toys: Path, tmp_path: Path) -> None:
    (toys / "broken").touch()
    ledger = plan(tmp_path)
    work(ledger)
    toy, follower = ledger.ids()[:2]
    assert set(ledger.states().values()) == {"failed"} and not ledger.count(*LEFT)
    assert ledger.status(toy).detail["reason"] == "the toy is broken"
    assert ledger.status(follower).detail["reason"] == f"not run: trial {toy}, which it needs, failed"
    assert not ledger.folder(follower).path.exists()
    (toys / "broken").unlink()
    assert len(ledger.retry()) == 6
    assert ledger.state(follower) == "blocked"
    work(ledger)
    assert set(ledger.states().values()) == {"done"}


def test_a_need_that_no_grid_has_planned_is_told(toys: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    ledger.plan([resolve({"method": "follower", "dataset": "digits", "limit": 100})], "")
    work(ledger)
    (trial_id,) = ledger.ids()
    (needed,) = ledger.trials()[trial_id]["needs"]
    reason = f"not run: it needs trial {needed}, which no grid of this run has planned"
    assert ledger.status(trial_id).detail["reason"] == reason


def test_a_trial_refuses_results_that_are_not_what_it_needs(toys: Path, tmp_path: Path) -> None:
    trial = resolve({"method": "follower", "dataset": "digits", "limit": 100})
    with pytest.raises(StdacError, match=f"needs the trials {trial.needs[0]}, got none: run it through stdac train"):
        run_trial(trial, TrialFolder(tmp_path / trial.id), machine=CPU)
    ledger = plan(tmp_path)
    work(ledger)
    others = [ledger.result(ledger.ids()[3])]
    with pytest.raises(StdacError, match=f"got {ledger.ids()[3]}"):
        run_trial(trial, TrialFolder(tmp_path / "other"), machine=CPU, needed=others)


def test_a_paused_need_pauses_what_needs_it(toys: Path, tmp_path: Path) -> None:
    ledger = plan(tmp_path)
    work(ledger, pause_after=2)
    assert set(Ledger(ledger.path, 2).states().values()) == {"paused"}
    assert ledger.count("waiting", "blocked") == 6
    work(ledger)
    assert set(ledger.states().values()) == {"done"}


def test_stdac_train_runs_what_is_needed_first(toys: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from cluster_jobs.commands.stdac import main

    words = ["train", "--dataset", "digits", "--method", "follower", "--limit", "100", "--out", str(tmp_path / "one")]
    done = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "slow-toy on digits, 10 clusters, seed 0, which" in done.output
    assert len(list((tmp_path / "one" / "trials").iterdir())) == 2
    assert CliRunner().invoke(main, words).output.count("already done") == 2


def kill_worker(ledger: Ledger, trial_id: str) -> None:
    """Kill the worker that runs a trial; on a node with processes of its own, its lease has the number it has there."""
    number = str(ledger.folder(trial_id).holder()["pid"])
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            numbers = re.search(r"NSpid:(.*)", (path / "status").read_text())
            ours = str(ledger.path) in (path / "cmdline").read_bytes().decode(errors="replace")
            if ours and numbers and numbers[1].split()[-1] == number:
                os.kill(int(path.name), 9)
                return
    raise AssertionError("there is no such worker")


def check_backend(folder: Path, toys: Path, *words: str) -> None:
    """A launch whose needed trials fail; then one that tries again, and of which a needed trial's worker is killed."""
    ledger = Ledger(folder / "run")
    (toys / "broken").touch()
    with launched(folder, toys, *words) as driver:
        _, said = driver.communicate(timeout=LONG_S)
        assert driver.returncode == 1 and "6 trials failed" in said, said
    assert {s.detail["reason"].partition(":")[0] for s in ledger.statuses()} == {"the toy is broken", "not run"}
    (toys / "broken").unlink()
    for path in toys.glob("begun-*"):
        path.unlink()
    (toys / "wait").touch()
    with launched(folder, toys, *words) as driver:
        wait_for(lambda: len(list(toys.glob("begun-*"))) == 2, of=driver)
        assert ledger.count("running") == 2 and ledger.count("blocked") == 4
        running = next(t for t, state in ledger.states().items() if state == "running")
        kill_worker(ledger, running)
        wait_for(lambda: len(list(toys.glob("begun-*"))) == 3, of=driver)
        (toys / "wait").unlink()
        _, said = driver.communicate(timeout=LONG_S)
        assert driver.returncode == 0, said
    assert set(ledger.states().values()) == {"done"}
    undisturbed = plan(folder / "undisturbed")
    work(undisturbed)
    undisturbed.collect()
    assert outcome(ledger.path) == outcome(undisturbed.path)


def test_local_workers_wait_for_a_need_and_survive_its_failure_and_death(toys: Path, tmp_path: Path) -> None:
    check_backend(tmp_path, toys, "--backend", "local", "--workers", "2")

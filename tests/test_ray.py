"""The Ray backend's own decisions, without a cluster: which to join, what it leaves behind, how many units it wants."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster_jobs import backends, local, ray_tune
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.ray_tune import Job, can_reach, check_address, find_cluster, make_environment, make_scratch, sweep
from cluster_jobs.request import Options, Request
from stdac.errors import StdacError
from stdac.leases import LEASE_S
from stdac.methods import resolve
from tests.test_grid import pause
from tests.waiting import LONG_S

GRID = """
[[trials]]
method = "kmeans"
dataset = "digits"
limit = 50
seeds = 6
"""


@contextmanager
def listening() -> Iterator[str]:
    """The address of something that listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A launch of one node on this machine."""
    request = Request(tmp_path / "run", Options())
    return Job(request, os.getpid(), tmp_path / "scratch", tmp_path, tmp_path / "log", address=None)


def ask(job: Job, **changes: Any) -> Job:
    """The same launch, asked for something else."""
    options = {name: changes.pop(name) for name in ("device", "threads", "pause_after") if name in changes}
    return replace(job, request=replace(job.request, options=replace(job.request.options, **options), **changes))


def test_a_job_crosses_to_the_other_process_as_json(job: Job) -> None:
    asked = ask(job, nodes=4, workers=2, simulate=True, threads=3)
    assert Job.from_json(json.loads(json.dumps(asked.to_json()))) == asked
    with pytest.raises(StdacError, match="unknown key 'colour' in Options, expected some of device, threads"):
        Job.from_json(asked.to_json() | {"request": asked.request.to_json() | {"options": {"colour": "red"}}})


def test_ray_address_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert find_cluster() == ("head:6379", "RAY_ADDRESS is set")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_cluster() is None


@pytest.mark.parametrize("asked", ["", "auto"])
def test_a_ray_on_this_machine_is_found_only_while_it_listens(
    asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noted = tmp_path / "ray_current_cluster"
    monkeypatch.setenv("RAY_ADDRESS", asked)
    monkeypatch.setattr(ray_tune, "CURRENT_CLUSTER", str(noted))
    assert find_cluster() is None
    with listening() as address:
        noted.write_text(address)
        assert find_cluster() == (address, "a Ray cluster runs on this machine")
    assert find_cluster() is None


@pytest.mark.parametrize("address", ["", "host", "host:port", "127.0.0.1:99999999", "no.such.host.invalid:1"])
def test_what_is_no_address_does_not_answer(address: str) -> None:
    assert not can_reach(address)


def test_a_dead_or_a_client_address_is_one_sentence() -> None:
    with pytest.raises(StdacError, match="nothing answers at RAY_ADDRESS="):
        check_address("127.0.0.1:1")
    with pytest.raises(
        StdacError, match=r"got RAY_ADDRESS=ray://127\.0\.0\.1:10001, an address for Ray Client: launch on a node"
    ):
        check_address("ray://127.0.0.1:10001")


def test_a_scratch_folder_holds_a_secret_and_goes_with_its_launch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), make_scratch(tmp_path) as scratch:
        token, sockets = scratch / "token", (scratch / "tmp").resolve()
        assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
        assert sockets.is_dir() and len(str(sockets)) < 31
        sweep(tmp_path)
        assert token.exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir()) and not sockets.exists()


def test_what_a_killed_launch_left_is_swept(tmp_path: Path) -> None:
    code = "import os, pathlib; from cluster_jobs.ray_tune import make_scratch\n"
    code += f"with make_scratch(pathlib.Path({str(tmp_path)!r})): os._exit(9)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], timeout=LONG_S, check=False)
    (scratch,) = tmp_path.iterdir()
    sockets = (scratch / "tmp").resolve()
    assert sockets.exists()
    sweep(tmp_path)
    assert not list(tmp_path.iterdir()) and not sockets.exists()


def test_another_machine_s_scratch_is_left_until_it_falls_silent(tmp_path: Path) -> None:
    scratch = tmp_path / ".ray-elsewhere"
    scratch.mkdir()
    (scratch / "owner.json").write_text('{"namespace": "another machine", "pid": 1, "process_start": 1}')
    sweep(tmp_path)
    assert scratch.exists()
    long_ago = scratch.stat().st_mtime - LEASE_S - 1
    os.utime(scratch, (long_ago, long_ago))
    sweep(tmp_path)
    assert not scratch.exists()


def test_a_ray_started_here_is_private(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    alone, head = make_environment(job), make_environment(ask(job, nodes=2))
    for names in (alone, head):
        assert names["RAY_AUTH_MODE"] == "token" and names["RAY_AUTH_TOKEN_PATH"] == f"{job.scratch}/token"
        assert names["RAY_USAGE_STATS_ENABLED"] == "0" and not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & set(names)
    assert alone["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # the loopback
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in head


def test_a_cluster_is_joined_with_the_token_of_its_user(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    names = make_environment(replace(job, address="head:6379"))
    assert names["RAY_AUTH_MODE"] == "token" and names["RAY_AUTH_TOKEN"] == "mine" and "RAY_TMPDIR" not in names


class Fixed:
    """A cluster of a given size, in place of asking Ray's head."""

    def __init__(self, cpus: int, gpus: int = 0) -> None:
        self.cpus, self.gpus = cpus, gpus

    def look(self) -> None:
        pass

    def is_complete(self) -> bool:
        return True


def units(job: Job, nodes: Fixed) -> tuple[Any, list[str]]:
    """Units of a run with six trials that wait, and what they say."""
    pytest.importorskip("ray.tune", reason="Ray is not installed")
    from cluster_jobs.ray_units import Units

    grid = job.cwd / "grid.toml"
    grid.write_text(GRID)
    loaded = load_grid(str(grid))
    Ledger(job.request.run).plan(loaded.trials, loaded.text)
    said: list[str] = []
    return Units(job, nodes, lambda _kind, text: said.append(text), threading.Event()), said


def wanted(found: Any, prefix: str = "unit") -> list[dict[str, Any]]:
    """The units that are suggested one after another until none is; they are called unit-0, unit-1 ..."""
    suggestions: list[dict[str, Any]] = []
    while isinstance(unit := found.suggest(f"{prefix}-{len(suggestions)}"), dict):
        suggestions.append(unit)
    return suggestions


@pytest.mark.parametrize(
    ("cpus", "gpus", "changes", "count", "kind"),
    [
        (2, 0, {}, 3, (False, 1, 1)),  # one more than there are places waits for a node to join
        (2, 0, {"threads": 2}, 2, (False, 1, 2)),
        (16, 0, {}, 6, (False, 1, 1)),  # no more than there are trials
        (16, 0, {"workers": 4}, 4, (False, 1, 1)),
        (16, 2, {}, 3, (True, 1, 8)),
        (16, 4, {"trials_per_gpu": 2}, 3, (True, 2, 2)),
        (16, 2, {"device": "cpu"}, 6, (False, 1, 1)),
        (0, 0, {}, 1, (False, 1, 1)),
    ],
)
def test_units_fit_the_cluster_and_the_work(
    cpus: int, gpus: int, changes: dict[str, Any], count: int, kind: tuple[bool, int, int], job: Job
) -> None:
    suggestions = wanted(units(ask(job, **changes), Fixed(cpus, gpus))[0])
    assert [(u["gpu"], u["processes"], u["threads"]) for u in suggestions] == [kind] * count


def test_a_node_that_joins_gets_a_unit_and_a_lost_unit_is_replaced(job: Job) -> None:
    nodes = Fixed(2)
    found, said = units(job, nodes)
    assert len(wanted(found)) == 3
    nodes.cpus = 3
    assert len(wanted(found, "late")) == 1
    found.on_trial_result("unit-0", {"node_ip": "10.0.0.1", "fault": None})
    found.on_trial_complete("unit-0", error=True)
    assert len(wanted(found, "new")) == 1 and "10.0.0.1 was lost" in said[0]


def test_units_that_are_lost_without_any_progress_end_the_launch(job: Job) -> None:
    found, _ = units(job, Fixed(1))
    for _ in range(5):
        assert found.error is None
        assert len(wanted(found)) == 2
        found.on_trial_complete("unit-0", error=True)
        found.on_trial_complete("unit-1")
    assert found.error is not None and found.error.startswith("the workers cannot run: a worker did not start")
    assert found.suggest("unit") == "FINISHED"


def test_why_a_unit_did_not_start_is_said(job: Job, tmp_path: Path) -> None:
    """On a node where stdac is not installed Ray cannot unpickle the unit; the launch said "see" a log of thousands."""
    pytest.importorskip("ray")
    from types import SimpleNamespace

    from cluster_jobs.ray_units import Errors, find_last_words

    found, said = units(job, Fixed(1))
    path = tmp_path / "error.txt"
    path.write_text(
        "Failure # 1 (occurred at 2026-12-01)\nThe actor died because of an error raised in its creation task\n"
        "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'cluster_jobs'\n"
        "During handling of the above exception, another exception occurred:\nRuntimeError: the actor cannot be made\n"
    )
    trials = [SimpleNamespace(trial_id="unit-0", error_file=str(path)), SimpleNamespace(trial_id="a", error_file=None)]
    Errors(found).on_step_begin(1, trials)
    assert len(wanted(found)) == 2
    found.on_trial_complete("unit-0", error=True)
    assert said == [
        f"a worker did not start: No module named 'cluster_jobs': install stdac there, as it is here (see {job.log})"
    ]
    assert find_last_words("") == "" and find_last_words("a\nValueError: b\n  c\n") == "ValueError: b"


def test_a_node_at_fault_is_named_and_ends_the_launch_only_where_there_is_no_other(job: Job) -> None:
    found, said = units(job, Fixed(2))
    assert len(wanted(found)) == 3
    for _ in range(2):
        found.on_trial_result("unit-0", {"node_ip": "10.0.0.1", "fault": "no such folder"})
    assert said == ["Ray node 10.0.0.1: no such folder"] and found.error is None
    found.on_trial_result("unit-1", {"node_ip": "10.0.0.2", "fault": "no such folder"})
    assert found.error == "the workers cannot run: Ray node 10.0.0.2: no such folder"


def test_a_cancelled_run_and_a_missing_gpu_end_the_launch(job: Job) -> None:
    found, _ = units(job, Fixed(2))
    Ledger(job.request.run).cancel()
    assert found.suggest("unit") == "FINISHED" and found.error is None
    found, _ = units(ask(job, device="cuda"), Fixed(2))
    assert found.suggest("unit") == "FINISHED" and "no node of the Ray cluster has a GPU" in found.error


def test_units_are_over_when_every_trial_is_paused(job: Job) -> None:
    found, _ = units(ask(job, pause_after=2), Fixed(2))
    for trial_id, trial in found.ledger.trials().items():
        pause(found.ledger.folder(trial_id), resolve(trial), 2)
    assert found.options.pause_after == 2
    assert found.suggest("unit") == "FINISHED" and found.error is None
    assert isinstance(units(job, Fixed(2))[0].suggest("unit"), dict)


@pytest.mark.parametrize(
    ("gpus", "changes", "expected"),
    [
        (0, {}, 4 * 8),
        (2, {}, 4 * 2),
        (2, {"trials_per_gpu": 3}, 4 * 2 * 3),
        (2, {"trials_per_gpu": 3, "workers": 5}, 5),
        (0, {"trials_per_gpu": 3}, 4 * 8),
        (2, {"trials_per_gpu": 3, "simulate": True}, 4 * 2),  # without GPUs: the nodes share the cores
    ],
)
def test_trials_at_once_count_those_that_share_a_gpu(
    gpus: int, changes: dict[str, Any], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "uses_gpu", lambda _device: gpus > 0)
    monkeypatch.setattr(local, "count_places", lambda _device: gpus or 8)
    monkeypatch.setattr(backends, "count_cores", lambda: 8)
    backend = backends.use_ray("", replace(Request(tmp_path, Options(), nodes=4), **changes))
    assert backend.at_once == expected and backend.gpu == (gpus > 0 and "simulate" not in changes)

"""The Ray backend on four real Ray nodes of this machine: the same rows as locally, whatever befalls it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest

from cluster_jobs.ledger import Ledger
from tests.chaos.processes import MARK, Process, descendants, processes
from tests.test_launch import command, outcome, run, work_alone
from tests.test_needs import check_backend, toys
from tests.traps import is_untouched, set_traps
from tests.waiting import LONG_S, wait_for

__all__ = ["toys"]  # a fixture

pytest.importorskip("ray.tune", reason="Ray is not installed")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="four nodes on one machine need Linux's loopback addresses"),
]

LAUNCH = ("stdac-grid", "launch", "grid.toml", "--out", "run", "--backend", "ray", "--device", "cpu")
GRID = """
[defaults]
dataset = "digits"
limit = 200
[[trials]]
method = "kmeans"
[[trials]]
epochs = 8
seeds = 3
params = { stn = [0, 1], width = 0.1, macro_batch = 100 }
"""
LONG = GRID.replace("epochs = 8", "epochs = 60")
SLEEPING = """
[[trials]]
method = "kmeans"
dataset = "digits"
limit = 50
seeds = 24
params = { restarts = 1 }
"""
SLEEP_S = 10
SLEEP = f"""
import sys
if "cluster_jobs.worker" in sys.orig_argv:
    import time
    from dataclasses import replace
    from stdac.methods import METHODS
    real = METHODS["kmeans"]
    METHODS["kmeans"] = replace(real, fit=lambda *words: (time.sleep({SLEEP_S}), real.fit(*words))[1])
"""
STAND_INS = {
    "scontrol": """
        case "$1 $3" in
          "show n1") echo "   NodeAddr=127.0.0.2 NodeHostName=n1";;
          "show n2") echo "   NodeAddr=127.0.0.3 NodeHostName=n2";;
          *) echo "$@" >>"$STAND_IN_LOG";;
        esac""",
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        echo $$ >"$STAND_IN_LOG.srun"
        SLURMD_NODENAME=n2 exec "$@" """,
    "scancel": """
        kill -TERM "$(cat "$STAND_IN_LOG.srun")" """,
}
"""What slurm/ray.sh calls of SLURM, for an allocation of the nodes n1 and n2 that are both this machine."""

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the grid comes to without Ray."""
    return work_alone(tmp_path_factory.mktemp("local"), GRID)


@contextmanager
def launching(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A launch that is going on, and no more when the test is over; what it says is in folder/said."""
    (folder / "grid.toml").write_text(GRID)
    with open(folder / "said", "w") as output:
        driver = subprocess.Popen(
            command(*LAUNCH, *words),
            cwd=folder,
            env=ENVIRONMENT | {MARK: str(folder)},
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()
        print(said(folder))  # shown where the test fails


def said(folder: Path) -> str:
    return (folder / "said").read_text()


def go_on(folder: Path, *words: str) -> dict[str, object]:
    """Launch to the end."""
    (folder / "grid.toml").write_text(GRID)
    done = run(*LAUNCH, *words, cwd=folder, **{MARK: str(folder)})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "WARN" not in done.stderr
    return outcome(folder / "run")


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("run/trials/*/attempt-*/checkpoint.pt"))


def of_role(folder: Path, role: str) -> list[Process]:
    return [process for process in processes(folder) if process.role() == role]


def nothing_is_left(folder: Path, seconds: float = 30) -> None:
    """No process that a launch there has started, no scratch in it, no folder of sockets of a launch that is over."""
    wait_for(lambda: not processes(folder), seconds)
    assert not list(folder.glob("run/.*"))


@pytest.mark.slow  # the others have the same of two nodes, and of four of which one is killed
def test_four_nodes_give_the_same_rows_as_one_machine(local: dict[str, object], tmp_path: Path) -> None:
    set_traps(tmp_path)
    assert go_on(tmp_path, "--simulate", "--nodes", "4") == local and is_untouched(tmp_path)
    assert sum(any(log.read_text().split()) for log in tmp_path.glob("run/logs/[0-9]*.log")) == 4
    nothing_is_left(tmp_path)


def test_alone_it_listens_on_the_loopback_only(local: dict[str, object], tmp_path: Path) -> None:
    with launching(tmp_path, "--workers", "2") as driver:
        wait_for(lambda: checkpoints(tmp_path), of=driver)
        pids = {process.pid for process in processes(tmp_path)}
        listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
        ours = [line.split()[3] for line in listening if pids & set(map(int, re.findall(r"pid=(\d+)", line)))]
        assert ours and not [address for address in ours if "127.0.0.1" not in address]
        assert driver.wait(LONG_S) == 0
    assert outcome(tmp_path / "run") == local
    nothing_is_left(tmp_path)


def test_a_raylet_that_is_killed_costs_no_row(local: dict[str, object], tmp_path: Path) -> None:
    set_traps(tmp_path)
    with launching(tmp_path, "--simulate", "--nodes", "4") as driver:
        wait_for(lambda: checkpoints(tmp_path), of=driver)
        (victim,) = (p for p in of_role(tmp_path, "raylet") if "--node_ip_address=127.0.0.4 " in p.command)
        victim.signal(signal.SIGKILL)
        assert driver.wait(LONG_S) == 0
    assert outcome(tmp_path / "run") == local and is_untouched(tmp_path)
    assert sum(any(log.read_text().split()) for log in tmp_path.glob("run/logs/[0-9]*.log")) >= 2
    nothing_is_left(tmp_path)


@pytest.mark.slow  # Ray's own agents need minutes to see that they are alone
@pytest.mark.parametrize("role", ["launch", "ray driver"])
def test_a_killed_driver_leaves_nothing_and_the_next_launch_goes_on(
    role: str, local: dict[str, object], tmp_path: Path
) -> None:
    with launching(tmp_path, "--simulate", "--nodes", "2") as driver:
        wait_for(lambda: checkpoints(tmp_path), of=driver)
        victims = [driver.pid] if role == "launch" else [process.pid for process in of_role(tmp_path, role)]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert driver.wait(LONG_S) != 0
        nothing_is_left(tmp_path, 150)  # an agent that was still starting looks for its dead head for over a minute
    assert "running" not in {status.state for status in Ledger(tmp_path / "run").statuses()}
    assert go_on(tmp_path, "--simulate", "--nodes", "2") == local


@pytest.mark.slow
def test_a_head_that_dies_is_told_in_one_sentence(local: dict[str, object], tmp_path: Path) -> None:
    with launching(tmp_path, "--simulate", "--nodes", "2") as driver:
        wait_for(lambda: checkpoints(tmp_path), of=driver)
        for head in of_role(tmp_path, "head"):
            head.signal(signal.SIGKILL)
        assert driver.wait(LONG_S) == 1
    assert re.search(r"the Ray head at 127\.0\.0\.2:\d+ is gone: start it again and launch again", said(tmp_path))
    assert "Traceback" not in said(tmp_path)
    nothing_is_left(tmp_path)
    assert go_on(tmp_path, "--simulate", "--nodes", "2") == local


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_all_and_gives_the_leases_back(times: int, tmp_path: Path) -> None:
    with launching(tmp_path, "--simulate", "--nodes", "2") as driver:
        wait_for(lambda: checkpoints(tmp_path), of=driver)
        for _ in range(times):
            driver.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(0.5)
        assert driver.wait(LONG_S) == 1
        nothing_is_left(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert "running" not in {status.state for status in Ledger(tmp_path / "run").statuses()}


@pytest.mark.slow
def test_a_node_that_joins_late_gets_work(local: dict[str, object], tmp_path: Path) -> None:
    """By the command that the launch prints for it."""
    with launching(tmp_path, "--nodes", "2") as driver:
        wait_for(lambda: "ray start --address" in said(tmp_path), of=driver)
        join = next(line.strip() for line in said(tmp_path).splitlines() if "ray start --address" in line)
        assert re.match(rf"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={re.escape(str(tmp_path))}/run/\S+/token ", join)
        joined = subprocess.Popen(
            ["bash", "-c", f"exec env {join} --num-cpus=1 --node-ip-address=127.0.0.9 --block"],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: "127.0.0.9 has joined, 2 are there" in said(tmp_path), of=driver)
            wait_for(lambda: {p.pid for p in of_role(tmp_path, "worker")} & {p.pid for p in below(joined.pid)})
            assert driver.wait(LONG_S) == 0
        finally:
            joined.terminate()
            joined.wait(LONG_S)
    assert outcome(tmp_path / "run") == local
    nothing_is_left(tmp_path)


def below(pid: int) -> list[Process]:
    """The descendants of a process."""
    return descendants(Process(pid, 0, ""))


@pytest.mark.slow
def test_a_cluster_that_is_joined_is_left_as_it_was(local: dict[str, object], tmp_path: Path) -> None:
    temporary, token = Path("/tmp") / f"stdac-test-{os.getpid()}", tmp_path / "token"
    token.write_text("0" * 64)
    own = {"RAY_TMPDIR": str(temporary), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    words = ["--head", "--port=6411", "--node-ip-address=127.0.0.2", "--num-cpus=2", "--include-dashboard=false"]
    with open(tmp_path / "head", "w") as log:
        head = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", *words, "--block", "--disable-usage-stats"],
            env=ENVIRONMENT | own,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: "Ray runtime started" in (tmp_path / "head").read_text(), of=head)
        (tmp_path / "grid.toml").write_text(GRID)
        before = {process.pid for process in below(head.pid)}
        access = {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_ADDRESS": "127.0.0.2:6411"}
        done = run(*LAUNCH[:5], cwd=tmp_path, **access)
        assert done.returncode == 0 and "backend ray (RAY_ADDRESS is set)" in done.stderr, done.stderr
        assert before <= {process.pid for process in below(head.pid)}
        assert outcome(tmp_path / "run") == local
        (tmp_path / "grid.toml").write_text(GRID.replace("seeds = 3", "seeds = 4"))
        refused = run(*LAUNCH[:5], cwd=tmp_path, **access | {"RAY_AUTH_MODE": "disabled"})
    finally:
        head.terminate()
        head.wait(LONG_S)
        subprocess.run(["rm", "-rf", temporary], check=False)
    assert refused.returncode == 1 and "does not let this machine in" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
def test_four_sleeping_workers_are_nearly_four_times_one(tmp_path: Path) -> None:
    """From the first trial's begin to the last one's end, against all their times in a row."""
    (tmp_path / "grid.toml").write_text(SLEEPING)
    (tmp_path / "sitecustomize.py").write_text(SLEEP)
    path = f"{tmp_path}{os.pathsep}{REPOSITORY}"
    done = run(*LAUNCH, "--simulate", "--nodes", "4", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    ends = [json.loads(path.read_text()) for path in tmp_path.glob("run/trials/*/done.json")]
    begins = [json.loads(path.read_text())["began"] for path in tmp_path.glob("run/trials/*/lease-*.json")]
    finished = max(datetime.fromisoformat(end["finished"]) for end in ends)
    wall = (finished - min(map(datetime.fromisoformat, begins))).total_seconds()
    assert len(ends) == 24
    assert 24 * SLEEP_S / wall >= 3.6


@pytest.mark.slow
def test_a_batch_script_is_requeued_when_its_head_dies_and_ends_when_all_is_done(tmp_path: Path) -> None:
    with allocation(tmp_path) as job:
        wait_for(lambda: checkpoints(tmp_path), of=job)
        for head in of_role(tmp_path, "head"):
            head.signal(signal.SIGKILL)
        assert job.wait(LONG_S) == 0
    assert (tmp_path / "calls").read_text() == "requeue 4711\n"
    nothing_is_left(tmp_path, 90)  # Ray's agents take a minute to notice; SLURM does not wait for them
    with allocation(tmp_path) as job:
        wait_for(lambda: of_role(tmp_path, "worker"), of=job)
        job.send_signal(signal.SIGUSR2)
        assert job.wait(LONG_S) == 0
    assert (tmp_path / "calls").read_text() == "requeue 4711\n" * 2
    nothing_is_left(tmp_path)
    with allocation(tmp_path) as job:
        assert job.wait(LONG_S) == 0
    assert (tmp_path / "calls").read_text() == "requeue 4711\n" * 2
    (tmp_path / "local").mkdir()
    assert outcome(tmp_path / "run") == work_alone(tmp_path / "local", LONG)
    nothing_is_left(tmp_path)


@contextmanager
def allocation(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """slurm/ray.sh in an allocation of two nodes with one CPU each."""
    (folder / "grid.toml").write_text(LONG)
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in STAND_INS.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/bash{text}\n")
        program.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "n1", "SLURM_CPUS_PER_TASK": "1"}
    own = slurm | {MARK: str(folder), "STAND_IN_LOG": str(folder / "calls")}
    own |= {"PATH": os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])}
    with open(folder / "said", "w") as output:
        job = subprocess.Popen(
            ["bash", REPOSITORY / "slurm" / "ray.sh", "grid.toml", "run"],
            cwd=folder,
            env=ENVIRONMENT | own,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield job
    finally:
        job.terminate()
        job.wait(LONG_S)
        print(said(folder))


def test_trials_that_need_others_wait_for_them_and_survive_their_failure_and_death(tmp_path: Path, toys: Path) -> None:
    check_backend(tmp_path, toys, "--backend", "ray", "--simulate", "--nodes", "2")

"""The SLURM backend on a real SLURM: grids that finish as they do locally, whatever befalls jobs, nodes and drivers."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_jobs.ledger import Ledger
from cluster_jobs.slurm_queue import find_ends, list_jobs, name_jobs
from tests.cluster.conftest import Lab, with_and_without_accounting
from tests.test_launch import command, outcome, run, work_alone
from tests.test_needs import check_backend, toys
from tests.traps import is_untouched, set_traps
from tests.waiting import LONG_S, wait_for

__all__ = ["toys"]  # a fixture

pytestmark = pytest.mark.cluster

LAUNCH = ("stdac-grid", "launch", "grid.toml", "--out", "run", "--backend", "slurm", "--nodes", "4")
GRID = """
[defaults]
dataset = "digits"
limit = 200
[[trials]]
epochs = 3
seeds = 2
params = { stn = 1, width = 0.1, macro_batch = 100 }
"""
LONG = """
[defaults]
dataset = "digits"
limit = 1000
[[trials]]
epochs = 100
seeds = 2
params = { stn = 1, width = 0.2, macro_batch = 500 }
"""
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the grid comes to on one machine."""
    return work_alone(tmp_path_factory.mktemp("local"), GRID)


def begin(folder: Path, *words: object, grid: str = GRID) -> subprocess.Popen[str]:
    """Start a command of ours and go on."""
    (folder / "grid.toml").write_text(grid)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*words), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def end(driver: subprocess.Popen[str], seconds: float = LONG_S) -> str:
    """What a command said on stderr, once it has ended with 0."""
    _, said = driver.communicate(timeout=seconds)
    assert driver.returncode == 0, said
    return said


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes, on any node, that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def nothing_is_left(lab: Lab, folder: Path) -> bool:
    """Whether no job, process or scratch file of a run remains; the logs do."""
    name = name_jobs(folder)
    scratch = [p.name for p in folder.glob("logs/slurm/*") if not p.name.endswith("_log.out")]
    return not (any(name in job for job in lab.queue()) or processes_of(folder) or scratch)


def trials_begun(folder: Path) -> bool:
    return bool(list(folder.glob("trials/*/attempt-*/checkpoint.pt")))


def test_a_grid_comes_to_the_same_as_locally_and_leaves_nothing(
    slurm: Lab, local: dict[str, object], tmp_path: Path
) -> None:
    set_traps(tmp_path)
    said = end(begin(tmp_path, *LAUNCH))
    assert "submitted SLURM job" in said and "running on n1" in said and is_untouched(tmp_path)
    assert outcome(tmp_path / "run") == local
    wait_for(lambda: nothing_is_left(slurm, tmp_path / "run"))


def test_a_killed_driver_leaves_its_jobs_and_the_next_finds_them(
    slurm: Lab, local: dict[str, object], tmp_path: Path
) -> None:
    name = name_jobs(tmp_path / "run")
    driver = begin(tmp_path, *LAUNCH)
    wait_for(lambda: any(job.state == "RUNNING" for job in list_jobs(name) or []), of=driver)
    driver.kill()
    driver.communicate()
    said = end(begin(tmp_path, *LAUNCH))
    assert "in SLURM's queue already" in said and "submitted SLURM job" not in said
    assert outcome(tmp_path / "run") == local
    wait_for(lambda: nothing_is_left(slurm, tmp_path / "run"))


@pytest.mark.parametrize("presses", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ctrl_c_cancels_the_jobs_and_the_next_launch_goes_on(
    presses: int, slurm: Lab, local: dict[str, object], tmp_path: Path
) -> None:
    driver = begin(tmp_path, *LAUNCH)
    wait_for(lambda: list(tmp_path.glob("run/trials/*/lease-*.json")), of=driver)
    for _ in range(presses):
        os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=LONG_S)
    assert driver.returncode == 1 and re.search(r"SLURM jobs cancelled: \d", said) and "Traceback" not in said
    wait_for(lambda: nothing_is_left(slurm, tmp_path / "run"))
    states = {status.state for status in Ledger(tmp_path / "run").statuses()}
    assert "running" not in states and "waiting" in states
    end(begin(tmp_path, *LAUNCH))
    assert outcome(tmp_path / "run") == local


def test_detached_it_goes_on_alone_and_cancel_ends_it_from_anywhere(slurm: Lab, tmp_path: Path) -> None:
    said = end(begin(tmp_path, *LAUNCH, "--detach", grid=LONG))
    assert "stdac-grid status" in said and "stdac-grid cancel" in said
    wait_for(lambda: trials_begun(tmp_path / "run"))
    status = run("stdac-grid", "status", tmp_path / "run", cwd=Path("/"))
    assert re.search(r"SLURM: \d running on n1", status.stdout)
    cancelled = run("stdac-grid", "cancel", tmp_path / "run", cwd=Path("/"))
    assert cancelled.returncode == 0 and "2 SLURM jobs cancelled" in cancelled.stdout, cancelled.stderr
    name = name_jobs(tmp_path / "run")
    wait_for(lambda: not any(name in job for job in slurm.queue()) and not processes_of(tmp_path / "run"))
    assert {status.state for status in Ledger(tmp_path / "run").statuses()} == {"waiting"}  # cancelled, not finished


def test_a_wrong_partition_is_told_with_those_that_are(slurm: Lab, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    done = run(*LAUNCH, "--partition", "gpus", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "invalid partition specified: gpus" in done.stderr and "partitions here are gpu (the default)" in done.stderr


@pytest.fixture(params=["empty", "stale copy", "read-only"])
def unshared(request: pytest.FixtureRequest, slurm: Lab, tmp_path: Path) -> Iterator[str]:
    """Every node has another file system at the run's place, or may not write the common one."""
    (tmp_path / "run" / "logs" / "slurm").mkdir(parents=True)
    for node in ("n1", "n2", "n3", "n4"):
        if request.param == "read-only":
            slurm.on_node(node, "mount", "--bind", "-o", "ro", str(tmp_path / "run"), str(tmp_path / "run"))
        else:
            slurm.on_node(node, "mount", "-t", "tmpfs", "none", str(tmp_path / "run"))
        if request.param == "stale copy":
            slurm.on_node(node, "mkdir", "-p", str(tmp_path / "run" / "logs" / "slurm"))
    yield request.param
    for node in ("n1", "n2", "n3", "n4"):
        slurm.on_node(node, "umount", str(tmp_path / "run"))


def test_a_folder_that_nodes_do_not_share_is_told_with_node_and_job(unshared: str, slurm: Lab, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    done = run(*LAUNCH, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(rf"node n\d does not share {tmp_path}/run .* \(job \d+_\d left nothing there\)", done.stderr)
    wait_for(lambda: nothing_is_left(slurm, tmp_path / "run"))


@with_and_without_accounting
def test_the_end_of_a_job_is_known_with_and_without_accounting(slurm: Lab, tmp_path: Path) -> None:
    name = name_jobs(tmp_path)
    words = ["sbatch", f"--job-name={name}", "--array=0-1", "--mem-per-cpu=100M", "--output=/dev/null"]
    subprocess.run([*words, "--wrap", "exit 7"], check=True, capture_output=True)

    def seen() -> dict[str, str]:
        return {job.id.partition("_")[2]: job.exit for job in list_jobs(name) or [] if not job.living}

    wait_for(lambda: seen() == {"0": "7:0", "1": "7:0"})
    known = {job.id: job for job in list_jobs(name) or []}
    assert {job.exit for job in find_ends(known)} == {"7:0"}
    if slurm.accounting:  # the controller forgets, sacct does not
        forgotten = {job: known[job]._replace(state="RUNNING", exit="") for job in known}
        wait_for(lambda: {job.state for job in find_ends(forgotten)} == {"FAILED"})


def test_ablation_sh_works_as_it_stands(slurm: Lab, local: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "stdac-grid"
    program.write_text("#!/bin/sh\nexec " + " ".join(f"'{w}'" for w in command("stdac-grid")) + ' "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    words = ["sbatch", "--parsable", str(REPOSITORY / "slurm" / "ablation.sh"), "grid.toml", "run"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    array = done.stdout.strip()
    wait_for(lambda: not any(job.startswith(f"{array}_") for job in slurm.queue()))
    said = [path.read_text() for path in tmp_path.glob("*.log")]
    assert run("stdac-grid", "collect", "run", cwd=tmp_path).returncode == 0, said
    assert outcome(tmp_path / "run") == local, said


@pytest.mark.slow
def test_a_time_limit_of_two_minutes_is_survived(slurm: Lab, tmp_path: Path) -> None:
    said = end(begin(tmp_path, *LAUNCH, "--time", "2", grid=LONG), 1200)
    attempts = [status.detail["attempts"] for status in Ledger(tmp_path / "run").statuses()]
    assert max(attempts) > 1 and said.count("submitted SLURM job") == 1  # requeued, not submitted again
    (tmp_path / "local").mkdir()
    assert outcome(tmp_path / "run") == work_alone(tmp_path / "local", LONG)
    wait_for(lambda: nothing_is_left(slurm, tmp_path / "run"))


@pytest.mark.slow
def test_a_nodes_power_cut_costs_the_epoch_in_progress(slurm: Lab, tmp_path: Path) -> None:
    driver = begin(tmp_path, *LAUNCH, grid=LONG)
    wait_for(lambda: trials_begun(tmp_path / "run"), of=driver)
    slurm.power_cut("n1")
    try:
        end(driver, 900)
    finally:
        assert slurm.start() is None
    attempts = [status.detail["attempts"] for status in Ledger(tmp_path / "run").statuses()]
    assert max(attempts) > 1
    (tmp_path / "local").mkdir()
    assert outcome(tmp_path / "run") == work_alone(tmp_path / "local", LONG)


@pytest.mark.slow
def test_while_the_controller_is_away_work_goes_on(slurm: Lab, local: dict[str, object], tmp_path: Path) -> None:
    driver = begin(tmp_path, *LAUNCH)
    wait_for(lambda: list(tmp_path.glob("run/trials/*/lease-*.json")), of=driver)
    slurm.end_controller(signal.SIGKILL)
    try:
        wait_for(lambda: all(s.state == "done" for s in Ledger(tmp_path / "run").statuses()))
    finally:
        slurm.start_controller()
    end(driver)
    assert outcome(tmp_path / "run") == local
    wait_for(lambda: nothing_is_left(slurm, tmp_path / "run"))


@pytest.mark.slow
def test_thousands_of_trials_go_through_a_small_queue(slurm: Lab, tmp_path: Path) -> None:
    """5,000 trials that do next to nothing, MaxArraySize 1001, and with accounting at most 100 jobs of a user."""
    grid = '[[trials]]\ndataset = "digits"\nlimit = 50\nmethod = "kmeans"\nseeds = 5000\n'
    if slurm.accounting:
        for words in ("add account lab", "add user root account=lab", "modify user root set MaxSubmitJobs=100"):
            subprocess.run(["sacctmgr", "-i", *words.split()], check=False, capture_output=True)
        slurm.end_controller(signal.SIGTERM)
        slurm.start_controller("AccountingStorageEnforce=limits")
    words = ("--workers", "5000", "--device", "cpu", "--cpus-per-task", "1", "--mem-per-cpu", "4000M")
    said = end(begin(tmp_path, *LAUNCH, *words, "--keep", "metrics", grid=grid), 2400)
    assert not slurm.accounting or "SLURM accepts 62 of 1001 jobs" in said
    assert len(outcome(tmp_path / "run")["rows"]) == 2 * 5000
    wait_for(lambda: nothing_is_left(slurm, tmp_path / "run"))


def test_trials_that_need_others_wait_for_them_and_survive_their_failure_and_death(
    slurm: Lab, tmp_path: Path, toys: Path
) -> None:
    check_backend(tmp_path, toys, *LAUNCH[5:])

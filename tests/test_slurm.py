"""The SLURM backend's pure parts: settings, the batch script, what SLURM's words mean. The rest is in tests/cluster."""

import math
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from submitit.helpers import DelayedSubmission

from cluster_jobs import slurm
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.request import Options
from cluster_jobs.slurm import Driver, Interrupts
from cluster_jobs.slurm_array import (
    Node,
    choose_signal_delay,
    clean_environment,
    is_over,
    make_log_folder,
    make_script,
    sweep,
)
from cluster_jobs.slurm_queue import Job, describe_end, describe_queue, name_jobs, read_job
from cluster_jobs.slurm_settings import (
    Partition,
    Settings,
    choose_settings,
    complete_settings,
    count_gpus,
    parse_minutes,
    read_partitions,
)
from stdac.errors import StdacError
from stdac.methods import resolve
from tests.test_grid import pause

FROZEN = Path(__file__).parent / "frozen"

PARTITIONS = {
    "gpu": Partition(time=120, gpus=4, default=True),
    "long": Partition(time=None, gpus=0, default=False),
}


def scripts() -> dict[str, str]:
    """Batch scripts as they are frozen: regenerate with python -m tests.test_slurm."""
    folder = Path("/shared/my runs/paper/logs/slurm")
    plain = Settings(time=240, gres="gpu:1", workers_per_node=4)
    full = choose_settings(
        {"partition": "gpu", "account": "lab", "time": "0:02:00", "extra": ("reservation=friday", "exclusive")},
        {"qos": "low", "gres": "gpu:a100:2", "mem_per_cpu": "4G", "cpus_per_task": 8, "constraint": "a100&ib"},
        {},
    )
    return {
        "slurm_plain.sh": make_script(plain, folder, "stdac-paper-0a1b2c", 8, "probe-1", python="/env/bin/python"),
        "slurm_full.sh": make_script(full, folder, "stdac-paper-0a1b2c", 1, "probe-1", python="/env/bin/python"),
    }


@pytest.mark.parametrize("name", ["slurm_plain.sh", "slurm_full.sh"])
def test_the_batch_script_is_frozen(name: str) -> None:
    assert scripts()[name] == (FROZEN / name).read_text()


def test_flags_win_over_the_environment_over_the_table_over_the_defaults() -> None:
    table = {"partition": "table", "account": "table", "qos": "table", "extra": {"nice": 5, "reservation": "table"}}
    environment = {"SBATCH_PARTITION": "environment", "SBATCH_ACCOUNT": "environment", "SBATCH_TIMELIMIT": "1-0"}
    flags = {"partition": "flag", "time": None, "extra": ("reservation=flag",)}
    asked = choose_settings(flags, table, environment)
    assert (asked.partition, asked.account, asked.qos, asked.time) == ("flag", "environment", "table", 1440)
    assert asked.extra == {"nice": "5", "reservation": "flag"}
    assert (asked.mem_per_cpu, asked.cpus_per_task, asked.constraint) == ("2000M", 2, None)


@pytest.mark.parametrize(
    ("flags", "table", "said"),
    [
        ({}, {"partitoin": "gpu"}, "'partitoin'.*partition, account"),
        ({}, {"cpus_per_task": 0}, "cpus_per_task = 0.*at least 1"),
        ({}, {"workers_per_node": "four"}, "'four'.*whole number"),
        ({"time": "two hours"}, {}, "'two hours'.*H:M:S"),
        ({"time": "0"}, {}, "at least one minute"),
        ({"extra": ("partition=gpu",)}, {}, "'partition'.*of its own"),
        ({}, {"extra": {"mem_per_cpu": "1G"}}, "'mem-per-cpu'.*of its own"),
        ({"extra": ("--output=x",)}, {}, "'output'.*set it itself"),
        ({}, {"extra": {"comment=x #\nid > P #": "y"}}, r"named 'comment=x #\\nid > P #'.*small letters"),
        ({}, {"extra": {"comment": "a\\'\" #\nid > P #"}}, "comment = .* expected it without"),
        ({}, {"extra": {"comment": "one\rtwo"}}, r"expected it without '\\r'"),
        ({}, {"extra": {"comment": ["a"]}}, "one text or number"),
        ({}, {"extra": "comment"}, "expected a table"),
        ({}, {"partition": "gpu\n#SBATCH --wrap=id"}, "partition = .* expected it without"),
        ({}, {"gres": "gpu:1' id"}, "gres = .* expected it without"),
        ({"account": "a\nb"}, {}, "account = .* expected it without"),
        ({}, {"extra": {"export": "LD_PRELOAD=/tmp/x.so"}}, "'export'.*on the command line"),
        ({}, {"extra": {"container_image": "docker://x"}}, "'container-image'.*on the command line"),
        ({"extra": ("comment=a\nb",)}, {}, "expected it without"),
        ({}, {"extra": {"export-f": "/x"}}, "'export-f'.*on the command line"),
        ({}, {"extra": {"wra": "id"}}, "'wra'.*on the command line"),
        ({}, {"extra": {"contain": "x"}}, "'contain'.*on the command line"),
        ({}, {"extra": {"outp": "/x"}}, "'outp'.*set it itself"),
        ({"extra": ("no-req",)}, {}, "'no-req'.*set it itself"),
        ({}, {"extra": {"parti": "x"}}, "'parti'.*of its own"),
        ({}, {"extra": {"exclusive": True}}, "one text or number"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(flags: dict[str, object], table: dict[str, object], said: str) -> None:
    with pytest.raises(StdacError, match=said):
        choose_settings(flags, table, {})


def test_a_hostile_grid_sets_nothing() -> None:
    grid = load_grid(str(FROZEN / "hostile.toml"))
    with pytest.raises(StdacError):
        choose_settings({}, grid.slurm, {})
    for key, value in grid.slurm["extra"].items():
        with pytest.raises(StdacError):
            choose_settings({}, {"extra": {key: value}}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), (90, 90), ("30:00", 30), ("0:30", 1), ("1:30:00", 90), ("1-12", 2160), ("1-12:30", 2190),
     ("2-0:0:1", 2881), (" 5 ", 5)],
)  # fmt: skip
def test_times_are_read_as_slurm_writes_them(text: str | int, expected: int) -> None:
    assert parse_minutes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("(null)", 0), ("", 0), ("gpu:2", 2), ("gpu", 1), ("gpu:a100:4(S:0-1)", 4), ("gpu:a100:2,gpu:v100:1,shard:8", 3)],
)
def test_gpus_are_counted_in_any_gres(text: str, expected: int) -> None:
    assert count_gpus(text) == expected


def test_partitions_are_read_from_sinfo() -> None:
    text = "gpu*|1-00:00:00|gpu:2(S:0)\ngpu*|1-00:00:00|gpu:a100:8(S:0-1)\nlong|infinite|(null)\n"
    assert read_partitions(text) == {"gpu": Partition(1440, 8, True), "long": Partition(None, 0, False)}


def test_the_cluster_completes_what_was_not_asked_for() -> None:
    asked = complete_settings(Settings(), PARTITIONS, "auto")
    assert (asked.time, asked.gres, asked.workers_per_node) == (120, "gpu:1", 4)
    asked = complete_settings(Settings(gres="gpu:2"), PARTITIONS, "cuda")
    assert (asked.gres, asked.workers_per_node) == ("gpu:2", 2)
    asked = complete_settings(Settings(), PARTITIONS, "cpu")
    assert (asked.gres, asked.workers_per_node) == ("", 1)
    asked = complete_settings(Settings(partition="long"), PARTITIONS, "auto")
    assert (asked.time, asked.gres, asked.workers_per_node) == (240, "", 1)
    asked = complete_settings(Settings(partition="hidden", time=7, workers_per_node=3), PARTITIONS, "auto")
    assert (asked.time, asked.gres, asked.workers_per_node) == (7, "", 3)


@pytest.mark.parametrize(("limit", "expected"), [(1, 30), (2, 30), (4, 60), (8, 120), (1440, 120)])
def test_the_signal_comes_early_enough_and_not_too_early(limit: int, expected: int) -> None:
    assert choose_signal_delay(limit) == expected


def test_sbatch_sees_nothing_that_would_override_its_script() -> None:
    environment = {"SBATCH_PARTITION": "x", "SBATCH_NO_REQUEUE": "1", "SLURM_MEM_PER_NODE": "9", "SBATCH_OUTPUT": "x"}
    kept = {"SBATCH_RESERVATION": "friday", "SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin"}
    assert clean_environment(environment | kept) == kept


def test_the_jobs_name_is_the_folders_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "my run, 100%")
    name = name_jobs(tmp_path / "my run, 100%")
    assert name == name_jobs(tmp_path / "link") == name_jobs(tmp_path / "x" / ".." / "my run, 100%")
    assert name != name_jobs(tmp_path / "sub" / "my run, 100%")
    assert name.startswith("stdac-my-run-100-") and not set(name) & set(" ,%")


@pytest.mark.parametrize("name", ["100%", "it's", "two\nlines"])
def test_a_folder_that_slurm_cannot_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StdacError, match="choose another --out"):
        make_log_folder(tmp_path / name)


def test_squeues_lines_are_read_in_old_and_new_form() -> None:
    line = "12_3   |FAILED   |n1   |NonZeroExitCode |16896  |"
    assert read_job(line) == Job("12_3", "FAILED", "n1", "NonZeroExitCode", "66:0")
    assert read_job(line.replace("16896", "66:0")) == read_job(line)
    assert read_job(line.replace("16896", "4021")).exit.endswith(":53")
    assert not read_job(line).living and read_job(line.replace("FAILED", "COMPLETING")).living


def test_the_queue_is_one_line() -> None:
    known = [Job("1_0", "PENDING", "", "Resources", "0:0"), Job("1_1", "PENDING", "", "Priority", "0:0")]
    known += [Job(f"2_{n}", "RUNNING", f"n{n}", "None", "0:0") for n in (2, 1)]
    known += [Job("3_0", "FAILED", "n1", "", "1:0")]
    assert describe_queue(known) == "2 running on n1 n2, 2 pending (Priority, Resources)"
    assert describe_queue(known[-1:]) == ""


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [("FAILED", "1:0", "FAILED with exit code 1"), ("FAILED", "0:9", "FAILED by signal 9"),
     ("TIMEOUT", "0:0", "TIMEOUT"), ("OUT_OF_MEMORY", "0:125", "OUT_OF_MEMORY"), ("RUNNING", "0:0", "lost")],
)  # fmt: skip
def test_an_end_is_a_few_words(state: str, status: str, said: str) -> None:
    assert describe_end(Job("1_0", state, "n1", "", status)) == said


def test_where_there_is_no_slurm_nothing_is_asked_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.is_available()
    assert slurm.describe_jobs(tmp_path) == ""
    assert slurm.cancel(tmp_path) == 0
    said = "there is no SLURM here \\(sinfo is not on the PATH\\): launch on a login node"
    with pytest.raises(StdacError, match=said):
        slurm.make_settings({}, {}, {}, "cpu")


def test_inside_a_job_no_jobs_are_submitted_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm.is_available()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not slurm.is_available()


def new_node(run: Path) -> Node:
    return Node(run, processes=1, gpus=0, options=Options(device="cpu"), grace_s=5)


def test_a_task_survives_its_pickle_without_what_it_was_doing(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.leaving, node.code = True, 0
    (tmp_path / "trials" / "x").mkdir(parents=True)
    DelayedSubmission(node).dump(tmp_path / "node.pkl")
    assert DelayedSubmission.load(tmp_path / "node.pkl").function == node


def test_the_last_task_clears_all_away_and_keeps_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_log_folder(tmp_path)
    for name in ("1_0_submitted.pkl", "1_1_submitted.pkl", "probe-1", "1_0_0_log.out"):
        (folder / name).touch()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1")
    for task, left in ((0, {"1_1_submitted.pkl", "probe-1", "1_0_0_log.out"}), (1, {"1_0_0_log.out"})):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        new_node(tmp_path).clear_away()
        assert {path.name for path in folder.iterdir()} == left


def test_sweeping_leaves_the_logs(tmp_path: Path) -> None:
    folder = make_log_folder(tmp_path)
    names = ["1_0_submitted.pkl", "1_0_submitted.pkl.save_tmp", "1_1_submitted.new", "1_0_0_result.pkl", "probe-1"]
    for name in [*names, "1_0_0_log.out"]:
        (folder / name).touch()
    sweep(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["1_0_0_log.out"]


def test_ctrl_c_waits_for_a_submission_and_comes_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    reached = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        with interrupts.hold():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            reached.append("the end of the submission")
        reached.append("beyond")
    assert reached == ["the end of the submission"]
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(KeyboardInterrupt), Interrupts():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)  # ignored: what cleans up is not interrupted
            reached.append("clean")
    assert reached[-1] == "clean"


def ended(state: str, status: str = "0:0") -> dict[str, Job]:
    return {"1_0": Job("1_0", state, "n1", "", status)}


PROGRAMS = {
    "sbatch": "cat > script; echo >> submissions; [ ! -e refusal ] || { cat refusal >&2; exit 1; }; echo 7",
    "squeue": "cat queue",
    "scancel": 'echo "$@" >> cancelled',
    "sinfo": "echo 'gpu*|1-00:00:00|gpu:2'",
    "sacct": "echo accounting is disabled >&2; exit 1",
    "scontrol": "echo MaxArraySize = 3",
}
"""Stand-ins for SLURM's programs: squeue prints a file, and does not answer where there is none."""


class Cluster(NamedTuple):
    """A SLURM of shell scripts, and a driver of a run with one trial that waits."""

    folder: Path
    driver: Driver
    said: list[str]

    def queue(self, state: str, exit_code: str = "0:0") -> None:
        """Have the controller know one job of ours."""
        (self.folder / "queue").write_text(f"7_0|{state}|n1||{exit_code}|\n")

    def submissions(self) -> int:
        path = self.folder / "submissions"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    folder, said = tmp_path / "cluster", list[str]()
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    run = tmp_path / "run"
    Ledger(run).plan([resolve({"dataset": "digits", "method": "kmeans", "seed": seed}) for seed in range(9)], "")
    driver = Driver(run, Settings(), new_node(run), 8, said.append, poll_s=1)
    driver.mark = driver.measure_progress()
    return Cluster(folder, driver, said)


def test_a_submission_is_the_script_and_a_pickle_for_each_task(cluster: Cluster) -> None:
    cluster.driver.start()
    assert "--array=0-2%3" in (cluster.folder / "script").read_text()  # MaxArraySize 3
    names = {path.name for path in make_log_folder(cluster.driver.run).iterdir() if not path.name.startswith("probe-")}
    assert names == {f"7_{task}_submitted.pkl" for task in range(3)}
    assert set(cluster.driver.seen) == {"7_0", "7_1", "7_2"}
    assert cluster.said == [f"submitted SLURM job 7 of 3 tasks, named {name_jobs(cluster.driver.run)}"]


def test_jobs_that_live_are_found_and_none_is_submitted(cluster: Cluster) -> None:
    cluster.queue("RUNNING")
    cluster.driver.start()
    assert cluster.submissions() == 0 and "SLURM's queue already (1)" in cluster.said[0]


def test_a_submit_limit_halves_the_array_until_it_fits(cluster: Cluster) -> None:
    (cluster.folder / "refusal").write_text("sbatch: error: AssocMaxSubmitJobLimit\n")
    with pytest.raises(StdacError, match=r"refuses the jobs \(AssocMaxSubmitJobLimit\).*gpu \(the default\)"):
        cluster.driver.start()
    assert cluster.submissions() == 2 and "--array=0-0%1" in (cluster.folder / "script").read_text()


def test_a_controller_that_does_not_answer_sbatch_may_have_the_job(cluster: Cluster) -> None:
    (cluster.folder / "refusal").write_text("sbatch: error: Unable to contact slurm controller (connect failure)\n")
    cluster.driver.start()
    assert cluster.submissions() == 1 and not cluster.said


def test_jobs_that_end_for_nothing_are_not_submitted_for_ever(cluster: Cluster) -> None:
    for _ in range(2):
        cluster.driver.seen = ended("OUT_OF_MEMORY")
        cluster.driver.submit_again()
    cluster.driver.seen = ended("OUT_OF_MEMORY")
    with pytest.raises(
        StdacError, match=r"3 times without a trial or an epoch done \(the last time: 1 × OUT_OF_MEMORY\)"
    ):
        cluster.driver.submit_again()


def test_an_epoch_done_is_progress(cluster: Cluster) -> None:
    for attempt in range(1, 6):
        cluster.driver.seen = ended("NODE_FAIL")
        cluster.driver.submit_again()
        checkpoint = cluster.driver.run / "trials" / "t" / f"attempt-{attempt}" / "checkpoint.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
    assert cluster.submissions() == 5


def test_jobs_cancelled_by_hand_stay_cancelled(cluster: Cluster) -> None:
    cluster.driver.seen = ended("CANCELLED")
    with pytest.raises(StdacError, match="cancelled by hand: launch again"):
        cluster.driver.submit_again()


@pytest.mark.parametrize("status", ["66:0", "0:53"])
def test_a_node_that_does_not_share_the_folder_is_named(status: str, cluster: Cluster) -> None:
    cluster.driver.start()
    cluster.queue("FAILED", status)
    with pytest.raises(StdacError, match=f"node n1 does not share {cluster.driver.run} .*job 7_0.*--out"):
        cluster.driver.look()


def test_a_log_may_take_its_time_to_appear(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, log = cluster.driver, make_log_folder(cluster.driver.run) / "1_0_0_log.out"
    driver.seen = ended("FAILED", "1:0")
    driver.check_folder()
    assert driver.no_log_since
    log.touch()
    driver.check_folder()
    assert not driver.no_log_since
    log.unlink()
    monkeypatch.setattr("cluster_jobs.slurm.LOG_S", -1)
    with pytest.raises(StdacError, match=f"node n1 does not share {driver.run} with this machine, or cannot write it"):
        driver.check_folder()


def test_while_the_controller_is_silent_nothing_is_submitted(cluster: Cluster) -> None:
    cluster.driver.start()
    (cluster.folder / "queue").unlink()
    for _ in range(3):
        cluster.driver.look()
    assert cluster.submissions() == 1 and "does not answer" in cluster.said[1] and len(cluster.said) == 2
    assert slurm.describe_jobs(cluster.driver.run) == "the controller does not answer"
    (cluster.folder / "queue").touch()
    cluster.driver.look()
    assert cluster.submissions() == 1  # none alive, once
    cluster.driver.look()
    assert cluster.submissions() == 2


def test_an_end_leaves_nothing_in_the_queue(cluster: Cluster) -> None:
    cluster.driver.start()
    cluster.driver.finish()
    assert not list(make_log_folder(cluster.driver.run).iterdir())
    assert "--state=PENDING" in (cluster.folder / "cancelled").read_text()


def test_a_driver_and_its_nodes_are_over_when_every_trial_is_paused(cluster: Cluster) -> None:
    run = cluster.driver.run
    node = replace(new_node(run), options=Options(device="cpu", pause_after=2))
    driver = Driver(run, Settings(), node, 8, cluster.said.append, poll_s=1)
    assert not driver.is_over()
    for trial_id, trial in driver.ledger.trials().items():
        pause(driver.ledger.folder(trial_id), resolve(trial), 2)
    driver.glanced = -math.inf
    assert driver.is_over() and not is_over(cluster.driver.ledger)
    node.work()
    assert node.code == 0 and not (run / "logs").exists()


def test_a_node_stops_when_it_is_told_to(tmp_path: Path) -> None:
    """With no trial there the work ends at once; the exit code is what SLURM shows."""
    Ledger(tmp_path).plan([], "")
    (tmp_path / "cancel").touch()
    node = new_node(tmp_path)
    thread = threading.Thread(target=node.work)
    thread.start()
    assert node.wait() == 0
    thread.join()


if __name__ == "__main__":
    for name, text in scripts().items():
        (FROZEN / name).write_text(text)

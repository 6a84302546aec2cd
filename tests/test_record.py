"""The trial folder: whole files, attempts that fence, and what happens when the disk is full."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest

from stdac import files
from stdac import folder as folders
from stdac.errors import DiskFull, StdacError
from stdac.files import atomic_write, link_once, write_json
from stdac.folder import Superseded, TrialFolder
from stdac.methods import resolve
from stdac.record import METRICS, make_metrics
from stdac.run import run_trial
from tests.conftest import CPU, small

TRIAL = resolve(small("kmeans"))


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    made = TrialFolder(tmp_path / "trial")
    made.create(TRIAL.to_json())
    return made


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"new, half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_link_makes_a_file_once(tmp_path: Path) -> None:
    assert link_once(tmp_path / "done", b"first") and not link_once(tmp_path / "done", b"second")
    assert (tmp_path / "done").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


def test_one_attempt_at_a_time(folder: TrialFolder) -> None:
    attempt = folder.claim({})
    with attempt:
        assert attempt.number == 1 and folder.claim({}) is None
        assert folder.holder()["pid"] == os.getpid()
    with folder.claim({}) as second:  # given back
        assert second.number == 2


def test_of_two_claims_at_the_same_moment_one_succeeds(tmp_path: Path) -> None:
    """Another attempt takes the number after our look at the leases, before our own link."""
    other = TrialFolder(tmp_path / "trial")
    other.create(TRIAL.to_json())

    class Slow(TrialFolder):
        def leases(self) -> list[int]:
            numbers = super().leases()
            if not numbers:
                assert other.claim({}) is not None
            return numbers

    assert Slow(other.path).claim({}) is None and other.leases() == [1]


def test_the_lease_of_a_dead_process_may_be_taken_over_at_once(folder: TrialFolder) -> None:
    folder.claim({})
    path = folder.path / "lease-1.json"
    lease = json.loads(path.read_text())
    process = subprocess.Popen(["true"])
    process.wait()
    path.write_text(json.dumps(lease | {"pid": process.pid}))
    assert folder.holder() is None and folder.claim({}).number == 2


def test_a_reused_process_id_is_not_the_same_process(folder: TrialFolder) -> None:
    folder.claim({})
    path = folder.path / "lease-1.json"
    lease = json.loads(path.read_text())
    path.write_text(json.dumps(lease | {"process_start": lease["process_start"] - 1}))
    assert folder.holder() is None


def test_a_frozen_process_of_this_host_may_be_superseded(folder: TrialFolder) -> None:
    attempt = folder.claim({})
    long_ago = time.time() - folders.LEASE_S - 5
    os.utime(folder.path / "lease-1.json", (long_ago, long_ago))
    second = folder.claim({})
    assert second.number == 2
    with pytest.raises(Superseded):
        attempt.check()


def test_a_process_in_another_container_of_this_host_is_judged_by_its_lease(folder: TrialFolder) -> None:
    folder.claim({})
    path = folder.path / "lease-1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"namespace": "another", "pid": 2**22 + 1}))
    assert folder.holder() is not None


def test_a_host_whose_clock_is_an_hour_off_takes_over_nothing(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases are judged by the clock of the file system that stamps them."""
    folder.claim({})
    path = folder.path / "lease-1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
    monkeypatch.setattr(files, "_clocks", {})
    real = time.time
    for hour in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda hour=hour: real() + hour)
        assert folder.holder() is not None
    old = real() - folders.LEASE_S - 5
    os.utime(path, (old, old))
    assert folder.holder() is None


def test_a_trial_finished_between_look_and_claim_is_not_begun_again(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, real = folder.claim({}), folder.done
    attempt.__exit__(None, None, None)
    answers = iter([None, {"attempt": 1}])
    monkeypatch.setattr(folder, "done", lambda: next(answers, real()))
    assert folder.claim({}) is None and not (folder.path / "attempt-2").exists() and folder.holder() is None


def test_a_trial_that_kills_its_process_again_and_again_has_failed(folder: TrialFolder) -> None:
    for number in range(1, folders.CRASHES + 1):
        assert folder.claim({}).number == number
        crash(folder, number)
    assert folder.claim({}) is None
    assert "died 5 times in a row" in folder.error()
    folder.forgive()
    assert folder.error() is None and folder.claim({}).number == folders.CRASHES + 1


def test_crashes_before_a_checkpoint_count_no_more(folder: TrialFolder) -> None:
    for number in range(1, folders.CRASHES + 1):
        attempt = folder.claim({})
        if number == 2:
            attempt.save_checkpoint({})
        crash(folder, number)
    assert folder.crashes() == [5, 4, 3] and folder.claim({}) is not None


def crash(folder: TrialFolder, number: int) -> None:
    """Make the lease that of a process that is gone."""
    path = folder.path / f"lease-{number}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"process_start": -1}))


def test_what_an_interruption_has_cost_is_written_down(folder: TrialFolder) -> None:
    with folder.claim({}) as first:
        first.save_checkpoint({})
        first.progress({"epoch": 2})
    path = folder.path / "attempt-1"
    saved = (path / "checkpoint.pt").stat().st_mtime
    os.utime(path / "progress.json", (saved + 12, saved + 12))
    with folder.claim({}) as second:
        assert second.finish({})
    assert folder.done() | {"finished": 0} == {
        "attempt": 2,
        "attempts": 2,
        "finished": 0,
        "hosts": [socket.gethostname()] * 2,
        "lost_seconds": 12.0,
        "sha256": {},
    }


def test_a_superseded_attempt_marks_nothing_as_failed(folder: TrialFolder) -> None:
    attempt = folder.claim({})
    attempt.fail(ValueError("early"), {})
    assert folder.error() is not None
    folder.clear_error()
    (folder.path / "lease-2.json").write_bytes((folder.path / "lease-1.json").read_bytes())
    attempt.fail(ValueError("late"), {})
    assert folder.error() is None


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial, folder = resolve(small("st-dac")), TrialFolder(tmp_path / "trial")
    folder.create(trial.to_json())
    for number in (1, 2):
        with folder.claim({}):
            (folder.path / f"attempt-{number}" / "checkpoint.pt").write_bytes(b"PK\x03\x04, and then nothing")
    assert run_trial(trial, folder, machine=CPU)
    assert folder.done()["attempt"] == 3 and "going on without it" in capsys.readouterr().err


def test_a_lease_of_another_host_lives_while_it_is_renewed(folder: TrialFolder) -> None:
    folder.claim({})
    path = folder.path / "lease-1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
    assert folder.holder() is not None
    long_ago = time.time() - folders.LEASE_S - 5
    os.utime(path, (long_ago, long_ago))
    assert folder.holder() is None


def test_a_running_attempt_renews_its_lease(folder: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "RENEW_S", 0.05)
    with folder.claim({}) as attempt:
        os.utime(folder.path / "lease-1.json", (1, 1))
        attempt.progress({"epoch": 3})
        deadline = time.monotonic() + 10
        while folder.progress() is None or (folder.path / "lease-1.json").stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert folder.progress() == {"epoch": 3}


def test_done_is_made_once_and_the_loser_is_swept(folder: TrialFolder) -> None:
    first, path = folder.claim({}), folder.path
    (path / "lease-2.json").write_bytes((path / "lease-1.json").read_bytes())
    second = folders.Attempt(folder, 2)
    second.write_table("metrics.parquet", make_metrics([]))
    assert second.finish({}) and not first.finish({})
    assert folder.done()["attempt"] == 2 and (path / "attempt-2" / "metrics.parquet").exists()
    assert not (path / "attempt-1").exists()
    with pytest.raises(Superseded):
        first.save_checkpoint({})


def test_a_folder_of_another_schema_version_is_refused(folder: TrialFolder) -> None:
    path = folder.path / "trial.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(StdacError, match="schema version 99, this stdac reads 1"):
        folder.trial()
    with pytest.raises(StdacError, match="schema version 99, this stdac reads 1: use the stdac that wrote it"):
        run_trial(TRIAL, folder, machine=CPU)
    assert sorted(p.name for p in folder.path.iterdir()) == ["trial.json"]


def test_rows_with_unknown_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        make_metrics([{"colour": 1}])
    assert make_metrics([{"epoch": 1}]).schema.equals(METRICS)


def test_a_failed_trial_leaves_its_reason(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "trial")
    trial = resolve(small("kmeans", dataset=str(tmp_path / "gone.npy"), n_clusters=3))
    with pytest.raises(StdacError, match=rf"^unknown data set '{tmp_path}/gone\.npy': expected one of digits, "):
        run_trial(trial, folder, machine=CPU)
    lines = folder.error().splitlines()
    assert "gone.npy" in lines[0] and lines[1].startswith("attempt 1 on ")
    assert json.loads(lines[2]) == trial.to_json()
    assert folder.done() is None and folder.holder() is None


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 600 KiB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small tmpfs could not be mounted: this needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(small_disk: Path) -> None:
    path = small_disk / "earlier.json"
    write_json(path, {"kept": True})
    with pytest.raises(StdacError, match=r"no space left for .*earlier\.json"), atomic_write(path) as file:
        file.write(bytes(2_000_000))
    assert json.loads(path.read_text()) == {"kept": True}
    assert [p.name for p in small_disk.iterdir()] == ["earlier.json"]


def test_a_disk_that_fills_up_during_a_trial_costs_only_that_trial(small_disk: Path) -> None:
    done = TrialFolder(small_disk / "done")
    assert run_trial(TRIAL, done, machine=CPU, keep="metrics")
    folder = TrialFolder(small_disk / "trial")
    with pytest.raises(DiskFull, match="no space left"):
        run_trial(resolve(small("st-dac")), folder, machine=CPU)
    assert folder.error() is None  # the trial is not to blame
    assert done.done() is not None and not list(small_disk.rglob("*.tmp"))
    assert folder.done() is None
    metrics = done.path / "attempt-1" / "metrics.parquet"
    assert pa.parquet.read_table(metrics).num_rows == 2

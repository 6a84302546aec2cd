"""The trial folder: whole files, attempts that fence, and what happens when the disk is full."""

import errno
import gc
import json
import os
import random
import socket
import subprocess
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from analysis.runs import read_metrics
from cluster_jobs.ledger import Ledger
from cluster_jobs.local import Workers
from cluster_jobs.request import Options
from stdac import files, leases
from stdac import folder as folders
from stdac.checkpoints import load_checkpoint
from stdac.errors import DiskFull, StdacError
from stdac.files import MOST_SMALL, atomic_write, link_once, read_plain, require_links, write_json
from stdac.folder import Superseded, TrialFolder
from stdac.methods import resolve
from stdac.model_file import load_model
from stdac.record import METRICS, make_metrics
from stdac.results import take_result
from stdac.run import _load_newest_checkpoint, run_trial
from tests.conftest import CPU, small
from tests.waiting import wait_for

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


def test_a_file_of_any_size_is_read_whole_or_refused(tmp_path: Path) -> None:
    for size in (0, 1, MOST_SMALL - 1, MOST_SMALL, MOST_SMALL + 1, 3 * MOST_SMALL):
        content = os.urandom(size)
        (tmp_path / "file").write_bytes(content)
        assert read_plain(tmp_path / "file", size) == read_plain(tmp_path / "file") == content
        if size:
            with pytest.raises(StdacError, match=f"has more than {size - 1} bytes"):
                read_plain(tmp_path / "file", size - 1)


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
        wait_for(lambda: folder.progress() is not None and (folder.path / "lease-1.json").stat().st_mtime >= 2)
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
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    trial = resolve(small("kmeans", dataset=str(tmp_path / "bad.npy"), n_clusters=3))
    with pytest.raises(StdacError, match=r"bad\.npy"):
        run_trial(trial, folder, machine=CPU)
    lines = folder.error().splitlines()
    assert "bad.npy" in lines[0] and lines[1].startswith("attempt 1 on ")
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
    gc.collect()  # torch closes a file that it could not write to when it is collected
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


# what others put into a run folder, or take out of it

CHECKPOINT = {"phases": {"cluster": {"w": torch.arange(300.0)}}, "rows": [{"epoch": 1}], "protocol": None}
CHECKPOINT |= {"fingerprint": "f"}


def flip_bit(path: Path, chance: random.Random) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    place = chance.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def test_a_checkpoint_with_a_flipped_bit_is_what_it_was_or_is_not_loaded(tmp_path: Path) -> None:
    path, refused = tmp_path / "checkpoint.pt", 0
    torch.save(CHECKPOINT, path)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(150):
        path.write_bytes(whole)
        flip_bit(path, chance)
        try:
            loaded = load_checkpoint(path)
        except StdacError as error:
            refused += 1
            assert "cannot be used" in str(error)
        else:
            assert torch.equal(loaded["phases"]["cluster"]["w"], CHECKPOINT["phases"]["cluster"]["w"])
            assert {k: loaded[k] for k in ("rows", "protocol", "fingerprint")} == {
                k: CHECKPOINT[k] for k in ("rows", "protocol", "fingerprint")
            }
    assert refused > 50


def test_of_two_checkpoints_the_older_is_used_where_the_newer_is_damaged(
    folder: TrialFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        with folder.claim({}) as attempt:
            torch.save(CHECKPOINT | {"fingerprint": str(number)}, attempt.path / "checkpoint.pt")
    newer = folder.checkpoint_path(2)
    data = bytearray(newer.read_bytes())
    at = data.index(torch.arange(300.0).numpy().tobytes()) + 400
    data[at] ^= 1
    newer.write_bytes(data)
    attempt = folder.claim({})
    assert _load_newest_checkpoint(attempt)["fingerprint"] == "1"
    assert f"{newer} cannot be used" in capsys.readouterr().err


def test_torch_s_advice_to_unpickle_reaches_nobody(folder: TrialFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with folder.claim({}) as attempt:
        torch.save({"phases": Path()}, attempt.path / "checkpoint.pt")
    assert _load_newest_checkpoint(folder.claim({})) is None
    said = capsys.readouterr().err
    assert "weights_only" not in said and "it is not a checkpoint of ours): going on without it" in said


def test_a_model_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "trial")
    assert run_trial(TRIAL, folder, machine=CPU)
    path = folder.attempt_path(1) / "model.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # among the centres
    path.write_bytes(data)
    with pytest.raises(StdacError, match="cannot be used"):
        load_model(path)
    with pytest.raises(StdacError, match="is not what its attempt wrote"):
        take_result(folder).load_model()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody's that must stay as it is."""
    path = tmp_path / "outside"
    path.mkdir()
    for name in ("checkpoint.pt", "error.txt", "progress.json", "metrics.parquet"):
        (path / name).write_text("mine")
    return path


def is_untouched(outside: Path) -> bool:
    names = ["checkpoint.pt", "error.txt", "metrics.parquet", "progress.json"]
    return {path.name: path.read_text() for path in outside.iterdir()} == dict.fromkeys(names, "mine")


@pytest.mark.parametrize("name", [f"trials/{TRIAL.id}", "trials"])
def test_a_link_in_the_place_of_a_trial_s_folder_is_not_followed(name: str, tmp_path: Path, outside: Path) -> None:
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(outside)
    folder = TrialFolder(run / "trials" / TRIAL.id)
    with pytest.raises(StdacError, match="is a link, which is not followed"):
        run_trial(TRIAL, folder, machine=CPU)
    for act in (folder.done, folder.error, folder.forgive, folder.clear_error, folder.leases, lambda: folder.fail("x")):
        with pytest.raises(StdacError, match="is a link, which is not followed"):
            act()
    assert is_untouched(outside)


def test_an_attempt_writes_only_into_a_folder_that_it_has_made(folder: TrialFolder, outside: Path) -> None:
    folder.attempt_path(1).symlink_to(outside)
    folder.attempt_path(2).mkdir()
    (folder.attempt_path(2) / "metrics.parquet").write_text("old")
    with folder.claim({}) as attempt:
        assert attempt.number == 3 and folder.checkpoints() == [] and folder.read_progress(1) is None
        attempt.save_checkpoint(CHECKPOINT)
        attempt.write_table("metrics.parquet", make_metrics([]))
        assert attempt.finish({})
    assert folder.attempt_path(1).is_symlink() and is_untouched(outside) and not folder.attempt_path(2).exists()


def test_an_attempt_s_folder_that_appears_in_the_moment_of_the_claim_is_left_to_itself(
    folder: TrialFolder, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = folder.done

    def plant() -> None:
        if folder.leases() and not folder.attempt_path(1).is_symlink():
            folder.attempt_path(1).symlink_to(outside)
        return real()

    monkeypatch.setattr(folder, "done", plant)
    assert folder.claim({}) is None and is_untouched(outside)
    assert folder.claim({}).number == 2


def test_another_user_s_folder_is_never_removed(folder: TrialFolder) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    folder.attempt_path(1).mkdir()
    os.chown(folder.attempt_path(1), 65534, 65534)
    with folder.claim({}) as attempt:
        assert attempt.finish({})
    assert folder.attempt_path(1).exists()


def test_the_checkpoint_of_a_lease_that_was_deleted_by_hand_is_found(folder: TrialFolder) -> None:
    first = folder.claim({})
    first.save_checkpoint(CHECKPOINT)
    folder.lease_path(1).unlink()
    assert folder.holder() is None and folder.progress() is None
    second = folder.claim({})
    assert second.number == 2 and folder.checkpoints() == [folder.checkpoint_path(1)]
    with pytest.raises(Superseded):
        first.check()
    assert second.finish({}) and folder.done()["attempts"] == 1


def test_what_vanishes_between_look_and_open_is_not_there(folder: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.claim({})
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    assert folder.done() is None and folder.error() is None and folder.progress() is None
    monkeypatch.setattr(folder, "leases", lambda: [1, 2])  # the second lease was deleted meanwhile
    assert folder.holder() is None and folder.progress() is None and folder.crashes() == []


@pytest.mark.parametrize("name", ["done.json", "trial.json", "error.txt", "lease-1.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "brackets", "list", "huge"])
def test_a_hostile_file_is_one_sentence_at_once(name: str, kind: str, folder: TrialFolder) -> None:
    path = folder.path / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.write_text("[" * 200_000 if kind == "brackets" else "[1]")
    read = {
        "done.json": folder.done,
        "trial.json": folder.trial,
        "error.txt": folder.error,
        "lease-1.json": folder.holder,
    }
    began = time.process_time()
    if name == "error.txt" and kind in ("brackets", "list", "huge"):
        assert len(folder.error()) <= 2**20
    else:
        with pytest.raises(StdacError, match=str(path)):
            read.get(name, folder.holder)()
    assert time.process_time() - began < 5


@pytest.mark.parametrize("attempt", ["../../outside", None, True, 1.5, [1]])
def test_a_done_json_names_an_attempt_by_its_number(attempt: object, folder: TrialFolder) -> None:
    write_json(folder.done_path, {"attempt": attempt})
    with pytest.raises(StdacError, match=r"done\.json does not say attempt as stdac writes it"):
        folder.result()


def test_numbers_that_nobody_counts_to_are_refused(folder: TrialFolder) -> None:
    """A number of ten digits would be no lease to the next claim: the trial would be taken again and again."""
    folder.lease_path(999_999_999).write_text("{}")
    with pytest.raises(StdacError, match="has an attempt 999999999"):
        folder.claim({})


def from_elsewhere(folder: TrialFolder, number: int = 1, **changes: object) -> Path:
    """Make a lease that of another host."""
    path = folder.lease_path(number)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"} | changes))
    return path


def test_a_lease_ahead_of_time_is_judged_by_whether_it_changes(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.claim({})
    path, ahead = from_elsewhere(folder), time.time() + 3 * 3600
    os.utime(path, (ahead, ahead))
    clock = time.monotonic()
    monkeypatch.setattr(files, "_clocks", {})  # what is read by this clock is not for others
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    assert folder.holder() is not None and folder.claim({}) is None and folder.silence(1) == 0
    assert leases.measure_ahead(path) == pytest.approx(3 * 3600, abs=60)
    clock += leases.LEASE_S - 1
    assert folder.holder() is not None
    os.utime(path, (ahead + 5, ahead + 5))  # somebody renews it: it lives for another lease
    clock += 2
    assert folder.holder() is not None
    clock += leases.LEASE_S + 1
    assert folder.holder() is None and folder.claim({}).number == 2


def test_a_lease_ahead_of_time_has_cost_no_hours(folder: TrialFolder) -> None:
    folder.claim({})
    path, ahead = from_elsewhere(folder), time.time() + 3 * 3600
    os.utime(path, (ahead, ahead))
    leases._watched[path] = (path.stat().st_mtime, time.monotonic() - 2 * leases.LEASE_S)
    with folder.claim({}) as second:
        assert second.finish({}) and folder.done()["lost_seconds"] <= 2 * leases.LEASE_S


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system as exFAT is."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("without_links")
def test_a_trial_is_trained_where_there_are_no_hard_links(tmp_path: Path) -> None:
    assert link_once(tmp_path / "once", b"first") and not link_once(tmp_path / "once", b"second")
    assert (tmp_path / "once").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1
    folder = TrialFolder(tmp_path / "trial")
    assert run_trial(TRIAL, folder, machine=CPU, keep="metrics") and folder.done()["attempt"] == 1
    assert not run_trial(TRIAL, folder, machine=CPU)


@pytest.mark.usefixtures("without_links")
def test_several_workers_are_refused_where_there_are_no_hard_links(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Ledger(run).plan([TRIAL], "")
    with pytest.raises(StdacError, match=r"has no hard links, .*give --workers 1 .*or choose a folder on another disk"):
        Workers(run, 2, Options("cpu", 1)).watch()
    with pytest.raises(StdacError, match="has no hard links"):
        require_links(run)
    assert sorted(path.name for path in run.iterdir()) == ["grid.toml", "trials.parquet"]


def test_hard_links_are_found_where_they_are(tmp_path: Path) -> None:
    require_links(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_probe_for_the_time_follows_no_link(
    folder: TrialFolder, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f".now-{socket.gethostname()}-{threading.get_native_id()}"
    (folder.path / name).symlink_to(outside / "new")
    monkeypatch.setattr(files, "_clocks", {})
    assert files.read_file_time(folder.path) == pytest.approx(time.time(), abs=5)
    assert is_untouched(outside) and (folder.path / name).is_symlink()


def test_rows_that_were_collected_are_taken_only_as_they_were_written(tmp_path: Path) -> None:
    trials = [resolve(small("kmeans", seed=seed, limit=60)) for seed in range(2)]
    ledger = Ledger(tmp_path)
    ledger.plan(trials, "")
    for trial in trials:
        run_trial(trial, ledger.folder(trial.id), machine=CPU)
    path = ledger.collect()
    rows = pq.read_table(path)
    content = path.read_bytes()
    assert ledger.collect().read_bytes() == content  # from what was collected
    changed = rows.set_column(rows.schema.get_field_index("acc"), "acc", pa.array([0.999] * len(rows)))
    for table in (changed, rows.slice(0, 1), pa.concat_tables([rows, rows])):
        pq.write_table(table, path)
        assert read_metrics(tmp_path).equals(rows)
        assert ledger.collect().read_bytes() == content


@pytest.mark.parametrize(
    "change", [{"limit": "x"}, {"dataset": 5}, {"epochs": 10**400}, {"n_clusters": 7}, {"seed": None}]
)
def test_a_trial_that_was_changed_outside_is_left_out_and_stops_no_other(
    change: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [resolve(small("kmeans", seed=seed, limit=60)) for seed in range(2)]
    folders = [TrialFolder(tmp_path / "trials" / trial.id) for trial in trials]
    for trial, folder in zip(trials, folders, strict=True):
        run_trial(trial, folder, machine=CPU)
    folders[0].trial_path.write_text(json.dumps(trials[0].to_json() | change))
    assert set(read_metrics(tmp_path)["trial_id"].to_pylist()) == {trials[1].id}
    assert f"{folders[0].path} is left out" in capsys.readouterr().err


@pytest.mark.parametrize("value", [10**400, float("nan"), -(2**63), "x"])
def test_numbers_of_records_are_those_that_stdac_writes(value: object, tmp_path: Path) -> None:
    (tmp_path / "done.json").write_text(json.dumps({"attempt": 1, "images": value}))
    with pytest.raises(StdacError, match="does not say images as stdac writes it"):
        TrialFolder(tmp_path).done()


def test_a_member_that_is_marked_as_a_folder_is_damage(tmp_path: Path) -> None:
    torch.save({"rows": [], "x": torch.ones(9)}, tmp_path / "checkpoint.pt")
    data = bytearray((tmp_path / "checkpoint.pt").read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))
    data[entry + 38] ^= 0x10
    (tmp_path / "checkpoint.pt").write_bytes(data)
    with pytest.raises(StdacError, match="damaged"):
        load_checkpoint(tmp_path / "checkpoint.pt", ["rows"])

"""Logs: an attempt's section is found in whatever worker's log it is, and followed from host to host."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_jobs import logs
from cluster_jobs.ledger import Ledger
from cluster_jobs.request import Options
from cluster_jobs.worker import Worker
from stdac.errors import StdacError
from stdac.folder import Attempt
from stdac.methods import resolve
from tests.conftest import small
from tests.waiting import LONG_S, wait_for

GRID = [resolve(small("kmeans", seed=seed)) for seed in range(3)]
FIRST, SECOND, THIRD = (trial.id for trial in GRID)
RESULT = {"seconds": 1.0, "device": "cpu", "trial_id": FIRST}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    planned = Ledger(tmp_path / "run")
    planned.plan(GRID, "")
    (planned.path / "logs").mkdir()
    return planned


def claim(ledger: Ledger, log: str | None, monkeypatch: pytest.MonkeyPatch, trial_id: str = FIRST) -> Attempt:
    """An attempt of a worker that writes this log."""
    monkeypatch.delenv("STDAC_LOG", raising=False)
    if log is not None:
        monkeypatch.setenv("STDAC_LOG", log)
    folder = ledger.folder(trial_id)
    folder.create(ledger.trials()[trial_id])
    attempt = folder.claim({})
    assert attempt is not None
    return attempt


def give_back(attempt: Attempt) -> None:
    os.utime(attempt.folder.lease_path(attempt.number), (0, 0))


def begin(number: int = 1, trial_id: str = FIRST) -> str:
    return f"trial {trial_id} attempt {number} on n1 at 2026-01-01T00:00:00Z: kmeans on digits"


def end(number: int = 1, trial_id: str = FIRST, how: str = "done in 1.0 s") -> str:
    return f"trial {trial_id} attempt {number} {how}"


def write(ledger: Ledger, log: str, *lines: str, mode: str = "a") -> None:
    with (ledger.path / log).open(mode) as file:
        file.writelines(f"{line}\n" for line in lines)


def test_a_trial_is_named_by_the_beginning_of_its_id(ledger: Ledger) -> None:
    for trial_id in (FIRST, SECOND, THIRD):
        assert logs.resolve(ledger, trial_id[:6]) == logs.resolve(ledger, trial_id) == trial_id
    with pytest.raises(StdacError, match=rf"no trial 'zz'.*{FIRST}"):
        logs.resolve(ledger, "zz")
    with pytest.raises(StdacError, match=rf"3 trials begin: .*{SECOND}"):
        logs.resolve(ledger, "")


def test_many_trials_are_not_all_named(tmp_path: Path) -> None:
    many = Ledger(tmp_path / "run")
    many.plan([resolve(small("kmeans", seed=seed)) for seed in range(20)], "")
    with pytest.raises(StdacError, match="and 12 more"):
        logs.resolve(many, "zz")


def test_the_sections_of_a_real_worker(ledger: Ledger, capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("STDAC_LOG", "logs/1-n1-0.log")
    Worker(ledger.path, Options("cpu", 1)).work()
    (ledger.path / "logs" / "1-n1-0.log").write_text(capfd.readouterr().out)
    for trial_id in (FIRST, SECOND, THIRD):
        lines = list(logs.read(ledger, trial_id))
        assert lines == list(logs.follow(ledger, trial_id))
        assert lines[0].startswith(f"trial {trial_id} attempt 1 on ") and "kmeans on digits" in lines[0]
        assert lines[-1].startswith(f"trial {trial_id} attempt 1 done") and any("ACC" in line for line in lines)


def test_attempts_come_in_order_from_their_own_logs(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    give_back(claim(ledger, "logs/a.log", monkeypatch))
    give_back(claim(ledger, "logs/b.log", monkeypatch))
    third = claim(ledger, "logs/a.log", monkeypatch)
    other = [begin(1, SECOND), "not ours", end(1, SECOND)]
    first = [begin(), "one", "", "two", end(how="stopped: its worker was told to leave")]
    second = [begin(2), "killed here"]
    last = [begin(3), "three", end(3)]
    write(ledger, "logs/a.log", "no section", *other, *first, "between", *other, *last, *other)
    write(ledger, "logs/b.log", *second, *other)
    third.finish(RESULT)
    assert list(logs.read(ledger, FIRST)) == [*first, *second, *last]


def test_a_section_ends_where_another_begins(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(ledger, "logs/a.log", monkeypatch)
    write(ledger, "logs/a.log", begin(), "trial and error", begin(1, SECOND), "not ours")
    assert list(logs.read(ledger, FIRST)) == [begin(), "trial and error"]


def test_a_failure_comes_last(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = claim(ledger, "logs/a.log", monkeypatch)
    write(ledger, "logs/a.log", begin(), end(how="failed: no such file"))
    attempt.fail(ValueError("no such file"), {})
    give_back(attempt)
    lines = list(logs.read(ledger, FIRST))
    assert lines[:3] == [begin(), end(how="failed: no such file"), "ValueError: no such file"]
    assert lines == list(logs.follow(ledger, FIRST))


def test_what_was_not_kept_is_said(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "waits for a worker" in next(logs.read(ledger, FIRST))
    give_back(claim(ledger, None, monkeypatch))
    give_back(claim(ledger, "logs/gone.log", monkeypatch))
    give_back(claim(ledger, "logs/empty.log", monkeypatch))
    give_back(claim(ledger, "logs/folder.log", monkeypatch))
    write(ledger, "logs/empty.log", "nothing of it")
    (ledger.path / "logs" / "folder.log").mkdir()
    by_hand, gone, empty, folder, waits = logs.read(ledger, FIRST)
    assert "attempt 1 ran in a worker started by hand" in by_hand and "waits for a worker" in waits
    assert "attempt 2" in gone and "gone.log" in gone
    assert "attempt 3" in empty and "empty.log" in empty
    assert "attempt 4" in folder and "folder.log" in folder


def test_bytes_that_are_no_text_and_a_last_line_without_an_end(ledger: Ledger, monkeypatch) -> None:
    claim(ledger, "logs/a.log", monkeypatch)
    (ledger.path / "logs" / "a.log").write_bytes(begin().encode() + b"\r\ncaf\xe9\nhalf a li")
    assert list(logs.read(ledger, FIRST)) == [begin(), "caf\ufffd", "half a li"]


class Follower:
    """Follows a trial in a thread, as a person would in a terminal."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines: list[str] = []
        self.thread = threading.Thread(target=lambda: self.lines.extend(lines), daemon=True)
        self.thread.start()

    def waits_for(self, line: str) -> None:
        wait_for(lambda: any(line in said for said in self.lines))

    def ends(self) -> list[str]:
        self.thread.join(LONG_S)
        assert not self.thread.is_alive(), self.lines
        return self.lines


@pytest.fixture
def quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.01)


@pytest.mark.usefixtures("quick_look")
def test_a_trial_is_followed_from_attempt_to_attempt(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(logs.follow(ledger, FIRST))
    follower.waits_for("waits for a worker")
    first = claim(ledger, "logs/a.log", monkeypatch)
    write(ledger, "logs/a.log", begin(), "one")
    follower.waits_for("one")
    with (ledger.path / "logs" / "a.log").open("a") as file:
        file.write("half")
    write(ledger, "logs/a.log", " and half", begin(1, SECOND), "not ours")
    give_back(first)
    second = claim(ledger, "logs/b.log", monkeypatch)
    follower.waits_for("half and half")
    write(ledger, "logs/b.log", begin(2), "two")
    follower.waits_for("two")
    second.finish(RESULT)
    write(ledger, "logs/b.log", end(2))
    said = [line for line in follower.ends()[1:] if "not here" not in line]
    assert said == [begin(), "one", "half and half", begin(2), "two", end(2)]


@pytest.mark.usefixtures("quick_look")
def test_a_log_that_becomes_shorter_is_read_from_its_beginning(ledger: Ledger, monkeypatch) -> None:
    attempt = claim(ledger, "logs/a.log", monkeypatch)
    write(ledger, "logs/a.log", "x" * 1000, begin(), "one")
    follower = Follower(logs.follow(ledger, FIRST))
    follower.waits_for("one")
    write(ledger, "logs/a.log", begin(), "after", mode="w")
    follower.waits_for("after")
    attempt.finish(RESULT)
    write(ledger, "logs/a.log", end())
    said = follower.ends()
    assert said[:2] == [begin(), "one"] and "cut short" in said[2] and said[3:] == [begin(), "after", end()]


@pytest.mark.usefixtures("quick_look")
def test_a_follower_does_not_wait_for_ever_for_last_words(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LAST_WORDS_S", 0.05)
    attempt = claim(ledger, "logs/a.log", monkeypatch)
    write(ledger, "logs/a.log", begin())
    attempt.finish(RESULT)
    assert Follower(logs.follow(ledger, FIRST)).ends() == [begin()]


@pytest.mark.usefixtures("quick_look")
def test_a_follower_ends_where_the_run_is_cancelled(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = claim(ledger, "logs/a.log", monkeypatch)
    write(ledger, "logs/a.log", begin())
    follower = Follower(logs.follow(ledger, FIRST))
    follower.waits_for(begin())
    ledger.cancel()
    give_back(attempt)
    assert "waits for a worker" in follower.ends()[-1]


def test_a_log_is_not_written_where_a_link_leads(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "logs").symlink_to(outside)
    with pytest.raises(StdacError, match="logs is a link, which is not followed"):
        logs.open_log(run / "logs" / "1-host-0.log")
    (run / "logs").unlink()
    with logs.open_log(run / "logs" / "1-host-0.log") as log:
        log.write(b"one\n")
    (run / "logs" / "2-host-0.log").symlink_to(outside / "file")
    with pytest.raises(StdacError, match="cannot write"):
        logs.open_log(run / "logs" / "2-host-0.log")
    assert not list(outside.iterdir())

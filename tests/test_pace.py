"""The time left of a run: from the trials that are done, from those that run, and from what methods compute."""

from pathlib import Path
from typing import Any

import pytest

from cluster_jobs.display import summarize
from cluster_jobs.ledger import Status
from cluster_jobs.pace import Pace, read_costs, write_costs
from stdac.methods import resolve
from stdac.words import format_time

NOW = 1_800_000_000.0


def plan(pace: Pace, **kinds: int) -> None:
    """Plan so many trials of each kind: kmeans_0, kmeans_1 …"""
    for kind, count in kinds.items():
        for seed in range(count):
            pace.add(f"{kind}_{seed}", {"method": kind, "seed": seed})


def run(trial_id: str, elapsed: float, progress: dict[str, Any] | None = None) -> Status:
    detail = {"now": NOW, "began": format_time(NOW - elapsed), "progress": progress}
    return Status(trial_id, "running", detail)


def at(epoch: int, epochs: int, epoch_s: float | None, step: int = 0, *, main: bool = True) -> dict[str, Any]:
    return {"epoch": epoch, "epochs": epochs, "epoch_s": epoch_s, "step": step, "steps": 100, "main": main}


def end(pace: Pace, trial_id: str, seconds: float) -> None:
    pace.end(Status(trial_id, "done", {"seconds": seconds}))


def test_trials_that_run_tell_by_their_own_epochs() -> None:
    pace = Pace()
    plan(pace, kmeans=1, stdac=4)
    end(pace, "kmeans_0", 1.0)
    running = [run("stdac_0", 320.0, at(5, 14, 60.0, 50)), run("stdac_1", 310.0, at(5, 14, 60.0, 50))]
    # 9.5 epochs of a minute in each of the two, then two whole trials of 14 minutes, two at a time
    assert pace.seconds_left(running) == pytest.approx(9.5 * 60 + 14 * 60)
    assert "about 23 min 30 s left" in summarize(["done", "running", "running", "waiting", "waiting"], pace, running)


def test_the_last_one_running_is_not_shared_out() -> None:
    pace = Pace()
    plan(pace, stdac=2)
    running = [run("stdac_0", 10.0, at(14, 14, 60.0, 90)), run("stdac_1", 10.0, at(4, 14, 60.0))]
    assert pace.seconds_left(running) == pytest.approx(11 * 60)


def test_before_an_epoch_is_over_the_guess_counts_and_nothing_is_said_without_one() -> None:
    pace = Pace()
    plan(pace, stdac=2)
    assert pace.seconds_left([run("stdac_0", 30.0)]) is None
    pace = Pace({"stdac_0": 600.0, "stdac_1": 600.0})
    plan(pace, stdac=2)
    assert pace.seconds_left([run("stdac_0", 100.0, at(1, 14, None))]) == pytest.approx(500 + 600)


def test_guesses_are_held_against_what_trials_took() -> None:
    pace = Pace({"dec_0": 100.0, "stdac_0": 1000.0})
    plan(pace, dec=1, stdac=1)
    end(pace, "dec_0", 50.0)  # this machine takes half of what was guessed
    assert pace.seconds_left([]) == pytest.approx(500)
    assert pace.seconds_left([run("stdac_0", 2000.0)]) == pytest.approx(100)  # longer than expected: never nothing


def test_pre_training_is_not_taken_for_the_whole() -> None:
    pace = Pace({"dec_0": 1000.0})
    plan(pace, dec=1)
    assert pace.seconds_left([run("dec_0", 100.0, at(50, 100, 2.0, main=False))]) == pytest.approx(900)


def test_costs_of_several_launches_are_kept_and_what_is_no_cost_is_passed_over(tmp_path: Path) -> None:
    first, second = (resolve({"dataset": "digits", "seed": seed, "limit": 200}) for seed in range(2))
    write_costs(tmp_path, [first], gpu=False)
    write_costs(tmp_path, [second], gpu=False)
    costs = read_costs(tmp_path)
    assert set(costs) == {first.id, second.id} and all(cost > 0 for cost in costs.values())
    (tmp_path / "costs.json").write_text('{"a": "b", "c": 1}')
    assert read_costs(tmp_path) == {"c": 1.0}
    (tmp_path / "costs.json").write_text("[")
    assert read_costs(tmp_path) == {}

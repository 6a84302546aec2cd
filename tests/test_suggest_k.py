"""Choosing K: curves against numbers worked out by hand, what is suggested and doubted, and a study that goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import analysis.k_study
from analysis.k_figure import describe_study, draw_study
from analysis.k_study import Assigned, Scores, estimate_error, measure_silhouette, score_study, score_trials, suggest
from cluster_jobs.commands.suggest_k import Study, make_grid, parse_ks, suggest_k_command
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from stdac.command import Commands
from stdac.errors import StdacError
from stdac.methods import METHODS, add_needs, resolve
from stdac.record import ASSIGNMENTS
from tests.waiting import wait_for


def curve(k: int, agreement: float, silhouette: float, error: float = 0.02) -> Scores:
    """Three seeds of one K."""
    near = (silhouette - 0.01, silhouette, silhouette + 0.01)  # standard error .0058
    return Scores(k, (agreement,) * 3, error, near, (0.5,) * 3, (k,) * 3)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2..5", [2, 3, 4, 5]),
        ("2..20..6", [2, 8, 14, 20]),
        ("10,2, 5", [2, 5, 10]),
        ("2..4,8", [2, 3, 4, 8]),
        ("5,5,6", [5, 6]),
    ],
)
def test_ranges_and_lists_of_k_are_understood(text: str, numbers: list[int]) -> None:
    assert parse_ks(text) == numbers


@pytest.mark.parametrize("text", ["", "5", "1..4", "5..2", "2..9..0", "2-5", "2...5", "a", "2,,3", "٢..٥,", "9" * 30])
def test_any_other_k_is_one_sentence(text: str) -> None:
    with pytest.raises(StdacError, match=r"expected at least two numbers from 2 up"):
        parse_ks(text)


def test_the_error_of_agreement_is_the_jackknife_over_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {(0, 1): 0.1, (0, 2): 0.2, (1, 2): 0.6}
    monkeypatch.setattr(analysis.k_study, "measure_agreement", lambda a, b: found[int(a[0]), int(b[0])])
    clusters = [np.array([seed]) for seed in range(3)]
    # leaving out a seed leaves one pair: .6, .2, .1, of mean .3 and variance (.09 + .01 + .04) / 3
    assert estimate_error(clusters) == pytest.approx((2 * 0.14 / 3) ** 0.5)
    assert np.isnan(estimate_error(clusters[:2]))


def test_silhouette_is_the_one_worked_out_by_hand() -> None:
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    assert measure_silhouette(points, np.array([0, 0, 1, 1])) == pytest.approx(1 - (1 / 10.5 + 1 / 9.5) / 2)
    assert np.isnan(measure_silhouette(points, np.array([3, 3, 3, 3])))


def test_agreement_is_one_for_renamed_clusters_and_confidence_is_zero_at_chance() -> None:
    one, two = np.array([0, 0, 1, 1, 2, 2]), np.array([2, 2, 0, 0, 1, 1])
    found = score_trials(4, [Assigned(one, 0.25), Assigned(two, 1.0), Assigned(one * 0, float("nan"))], np.eye(6))
    assert found.agreement == (1.0, 0.0, 0.0) and found.confidence == (0.0, 1.0) and found.used == (3, 3, 1)
    assert np.isnan(found.silhouette[2])


def test_a_peak_of_both_curves_is_suggested_without_doubts() -> None:
    found = suggest([curve(k, a, s) for k, a, s in ((2, 0.5, 0.1), (4, 0.7, 0.2), (6, 0.9, 0.3), (8, 0.6, 0.2))])
    assert (found.k, found.candidates, found.firm) == (6, (6,), True)
    assert "agree most at K = 6 (adjusted Rand index .900)" in found.reasons[0] and "best there too" in found.reasons[1]


def test_among_equal_agreement_the_silhouette_decides() -> None:
    found = suggest([curve(k, a, s) for k, a, s in ((2, 0.89, 0.1), (4, 0.9, 0.3), (6, 0.5, 0.2), (8, 0.4, 0.1))])
    assert (found.k, found.candidates, found.firm) == (4, (2, 4), True)


def test_of_equals_the_smallest_is_suggested_and_the_others_are_named() -> None:
    found = suggest([curve(k, a, s) for k, a, s in ((2, 0.5, 0.1), (4, 0.89, 0.299), (6, 0.9, 0.3), (8, 0.4, 0.1))])
    assert (found.k, found.candidates, found.firm) == (4, (4, 6), True)
    assert "of equals the smallest" in found.reasons[1]


def test_curves_that_contradict_each_other_give_candidates_and_doubts() -> None:
    found = suggest([curve(k, a, s) for k, a, s in ((2, 0.9, 0.1), (4, 0.6, 0.2), (6, 0.5, 0.4), (8, 0.4, 0.2))])
    assert (found.k, found.candidates, found.firm) == (2, (2, 6), False)
    assert any("contradict each other: the silhouette is best at K = 6" in reason for reason in found.reasons)
    assert "perhaps K = 2, with doubts; candidates are 2 and 6" in describe_study([], found).lower().replace(
        "k =", "K ="
    )


def test_flat_curves_give_no_suggestion() -> None:
    found = suggest([curve(k, 0.8, 0.1 + k / 100, error=0.1) for k in (2, 4, 6)])
    assert found.k is None and found.candidates == (2, 4, 6) and not found.firm
    assert "decides nothing" in found.reasons[0] and "No suggestion" in describe_study([], found)


def test_poor_agreement_everywhere_is_said() -> None:
    found = suggest([curve(k, a, s) for k, a, s in ((2, 0.1, 0.1), (4, 0.3, 0.2), (6, 0.1, 0.1))])
    assert found.k == 4 and not found.firm and any("poor" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("ks", "best", "way"), [((4, 6, 8), 4, "smaller"), ((4, 6, 8), 8, "larger"), ((2, 3, 4), 2, None)]
)
def test_a_best_at_the_end_of_the_range_asks_for_more(ks: tuple[int, ...], best: int, way: str | None) -> None:
    found = suggest([curve(k, 0.9 if k == best else 0.6, 0.3 if k == best else 0.2) for k in ks])
    assert found.k == best and found.firm == (way is None)
    assert way is None or any(f"look at {way} K" in reason for reason in found.reasons)


def test_one_k_is_no_curve() -> None:
    assert suggest([curve(4, 0.9, 0.2)]).k is None and suggest([]).k is None


def test_methods_without_confidence_and_trials_of_one_cluster_leave_gaps(tmp_path: Path) -> None:
    curves = [curve(k, 0.5 + k / 100, 0.1)._replace(confidence=(), silhouette=(float("nan"),) * 3) for k in (2, 3, 4)]
    found = suggest(curves)
    rows = describe_study(curves, found).splitlines()[2:5]
    assert [row.split()[5:7] for row in rows] == [["-", "-"]] * 3
    assert draw_study(curves, found, tmp_path / "k.png", title="few").read_bytes().startswith(b"\x89PNG")


def finished_trial(run: Path, k: int, seed: int, clusters: list[int]) -> str:
    """A done trial with no more than the study reads."""
    trial = resolve({"dataset": "x.npz", "n_clusters": k, "seed": seed})
    attempt = run / "trials" / trial.id / "attempt-1"
    attempt.mkdir(parents=True)
    columns = {name: [None] * len(clusters) for name in ASSIGNMENTS.names} | {"cluster": clusters}
    pq.write_table(pa.table(columns, schema=ASSIGNMENTS), attempt / "assignments.parquet")
    (attempt.parent / "trial.json").write_text(json.dumps(trial.to_json()))
    (attempt.parent / "done.json").write_text(json.dumps({"attempt": 1, "trial_id": trial.id}))
    return trial.id


def test_a_study_reads_the_finished_trials_that_were_asked_for(tmp_path: Path) -> None:
    images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 1, 2, 2)
    ids = [finished_trial(tmp_path, 2, seed, [0, 0, 0, 1, 1, 1]) for seed in range(3)]
    ids += [finished_trial(tmp_path, 3, seed, [0, 0, 1, 1, 2, 2]) for seed in range(2)]
    ids += [finished_trial(tmp_path, 4, 0, [0, 1, 2, 3, 3, 3])]  # a single seed agrees with nobody
    finished_trial(tmp_path, 2, 9, [0, 1, 0, 1, 0, 1])
    found = score_study(tmp_path, ids, images)
    assert [(s.k, s.agreement, len(s.used)) for s in found] == [(2, (1.0,) * 3, 3), (3, (1.0,), 2)]
    with pytest.raises(StdacError, match="has 6 images, expected 5"):
        score_study(tmp_path, ids, images[:5])
    (tmp_path / "trials" / ids[0] / "attempt-1" / "assignments.parquet").write_text("hello")
    with pytest.raises(
        StdacError,
        match=r"cannot read .*/assignments\.parquet: take that trial's folder away and launch the study again",
    ):
        score_study(tmp_path, ids, images)


def test_the_run_folder_is_named_after_the_input_and_its_settings() -> None:
    asked = Study("/data/My Photos", "st-dac", 8, 1000, 16, {})
    assert asked.folder().name.startswith("my-photos-") and asked.folder() == asked._replace().folder()
    assert asked.folder() != asked._replace(epochs=9).folder()


def test_the_epochs_of_a_study_follow_from_its_images(tmp_path: Path) -> None:
    asked = Study("/x", "st-dac", None, 2000, None, dict(METHODS["st-dac"].small))
    assert {t.epochs for t in make_grid(asked, tmp_path, [2, 3], 3, 2000).trials} == {11}  # of two passes each
    assert {t.epochs for t in make_grid(asked, tmp_path, [2, 3], 3, 100).trials} == {214}


@pytest.mark.parametrize(
    "method", [*(name for name, m in METHODS.items() if m.small and m.takes_k and not m.follows), "kmeans"]
)
def test_the_grid_that_is_kept_with_the_run_says_the_same_trials(method: str, tmp_path: Path) -> None:
    asked = Study("digits", method, 8, 1000, 28, dict(METHODS[method].small))
    grid = make_grid(asked, tmp_path / 'é "quoted" 漢', [2, 5], 3, 1000)
    (tmp_path / "grid.toml").write_text(grid.text, "utf-8")
    assert load_grid(str(tmp_path / "grid.toml")).trials == add_needs(grid.trials)
    assert [(t.n_clusters, t.seed) for t in grid.trials] == [(k, seed) for seed in range(3) for k in (2, 5)]


def test_no_number_is_suggested_to_a_method_that_takes_none(tmp_path: Path) -> None:
    with pytest.raises(
        StdacError, match=r"^method vae-dbscan is not given the number of clusters, so none can be sugg"
    ):
        make_grid(Study("digits", "vae-dbscan", 8, 1000, 28, {}), tmp_path, [2, 5], 3, 1000)


COMMAND = """
from stdac.command import Commands
from cluster_jobs.commands.suggest_k import suggest_k_command
main = Commands("stdac")
main.add_command(suggest_k_command)
main()
"""


def run(folder: Path, *given: object) -> Result:
    """The command in this process, which has torch imported already; its workers are processes of their own."""
    main = Commands("stdac")
    main.add_command(suggest_k_command)
    return CliRunner().invoke(main, ["suggest-k", str(folder / "three.npz"), *map(str, given), "--device", "cpu"])


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """150 images of three kinds, 8x8, with wrong labels."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 256, (3, 8, 8))
    images = np.clip(kinds[np.arange(150) % 3] + rng.normal(0, 20, (150, 8, 8)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "three.npz", images=images, labels=np.arange(150) // 75)
    return tmp_path


def test_three_kinds_are_found_and_launching_again_adds_only_what_is_missing(three: Path) -> None:
    given = ("--method", "kmeans", "--set", "restarts=1", "--image-size", 8, "--workers", 1, "--out", three / "run")
    done = run(three, *given, "--k", "2..4")
    assert done.exit_code == 0, done.output
    assert "Suggested is K = 3" in done.output and "9 to run: roughly" in done.output
    assert "the same command goes on" in done.output and "ACC" not in done.output
    assert "its models can be exported, as that of K = 3, seed 0: stdac export " in done.output
    assert (three / "run" / "suggest-k.png").read_bytes().startswith(b"\x89PNG")
    with np.load(three / "run" / "images.npz") as arrays:
        assert arrays.files == ["images"]
    again = run(three, *given, "--k", "2..4")
    assert again.exit_code == 0 and "to run" not in again.output
    assert again.output.partition("K  ")[2] == done.output.partition("K  ")[2]
    more = run(three, *given, "--k", "2..5")
    assert more.exit_code == 0 and "3 to run" in more.output
    other = run(three, *given, "--k", "2..4", "--limit", 100)
    assert other.exit_code == 1 and "choose another --out" in other.output


def test_ctrl_c_loses_nothing(three: Path) -> None:
    given = ["--k", "2,3", "--workers", "2", "--epochs", "4", "--image-size", "8", "--set", "width=0.1"]
    given += ["--out", str(three / "run")]
    words = [sys.executable, "-c", COMMAND, "suggest-k", str(three / "three.npz"), *given, "--device", "cpu"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE) as process:
        wait_for(lambda: list(three.glob("run/trials/*/done.json")), of=process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == 1 and "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("Error: stopped; what is done is kept")
    states = [status.state for status in Ledger(three / "run").statuses()]
    assert "running" not in states and 1 <= states.count("done") < 6
    done = run(three, *given)
    assert done.exit_code == 0 and f"{6 - states.count('done')} to run" in done.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--data-dir", "x", "--method", "dbc"), "unknown method 'dbc'"),
        (("--set", "widht=1"), "unknown parameter"),
        (("--set", "width"), "NAME=VALUE"),
        (("--k", "2..200"), "200 for 150 images"),
        (("--method", "dac-star"), "at least 22x22"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_trained(three: Path, given: tuple[str, ...], said: str) -> None:
    done = run(three, *given, "--out", three / "run")
    last = done.output.strip().splitlines()[-1]
    assert done.exit_code == 1 and last.startswith("Error: ") and said in last, done.output
    assert "unexpected" not in done.output and not (three / "run").exists()


def test_an_input_that_is_not_there_is_one_sentence_and_leaves_no_folder(tmp_path: Path) -> None:
    done = run(tmp_path, "--out", tmp_path / "run")
    assert done.exit_code == 1 and "three.npz" in done.output and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_five_kinds_of_images_are_found_by_small_networks(tmp_path: Path) -> None:
    from scipy.ndimage import gaussian_filter, shift

    rng = np.random.default_rng(7)
    kinds = [(p - p.min()) / np.ptp(p) for p in (gaussian_filter(rng.normal(size=(16, 16)), 2) for _ in range(5))]
    moved = [shift(kinds[i % 5], rng.uniform(-1, 1, 2), order=1, mode="nearest") for i in range(600)]
    images = np.clip(np.stack(moved) + rng.normal(0, 0.12, (600, 16, 16)), 0, 1) * 255
    np.savez(tmp_path / "three.npz", images=images.astype(np.uint8))
    done = run(tmp_path, "--k", "3..8", "--workers", 2, "--out", tmp_path / "run")
    assert done.exit_code == 0 and "Suggested is K = 5" in done.output, done.output

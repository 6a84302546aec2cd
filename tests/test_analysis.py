"""Tables and figures from finished folders: against numbers worked out by hand."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from analysis.cells import make_cells
from analysis.figures import draw_curves, draw_stn_pictures, spread_out, write_figures
from analysis.intervals import estimate_difference, estimate_mean
from analysis.published import Published, find_published, find_published_curve
from analysis.runs import ROWS, SETTINGS, read_metrics
from analysis.table import format_results, show, show_signed
from cluster_jobs.doctor import examine
from cluster_jobs.ledger import Ledger
from stdac.errors import StdacError
from stdac.methods import resolve
from stdac.record import METRICS, make_metrics
from stdac.trial import SCHEMA_VERSION, Trial, write_canonical


def rows_of(trial: Trial, accs: list[float | None], deployed: float | None = None) -> list[dict[str, Any]]:
    common = {name: getattr(trial, name) for name in ("method", "dataset", "seed")}
    common |= {"trial_id": trial.id, "params": write_canonical(trial.to_json()["params"])}
    common |= {"schema_version": SCHEMA_VERSION}
    rows = [
        common
        | {
            "phase": "cluster",
            "epoch": e,
            "clusters_used": 10,
            "acc": acc,
            "nmi": acc and acc / 2,
            "ari": acc and acc / 5,
        }
        for e, acc in enumerate(accs)
    ]
    return [*rows, common | {"phase": "deployed", "epoch": len(accs) - 1, "acc": deployed}]


def write_trial(
    run: Path, spec: dict[str, Any], accs: list[float | None], deployed: float | None = None, *, attempt: int = 1
) -> Path:
    """A finished trial's folder; returns that of its attempt."""
    trial = resolve(spec)
    folder = run / "trials" / trial.id
    (folder / f"attempt-{attempt}").mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps(trial.to_json()))
    rows = rows_of(trial, accs, deployed)
    pq.write_table(make_metrics(rows), folder / f"attempt-{attempt}" / "metrics.parquet")
    (folder / "done.json").write_text(json.dumps({"attempt": attempt, "trial_id": trial.id}))
    return folder / f"attempt-{attempt}"


def write_unfinished(run: Path, spec: dict[str, Any], accs: list[float | None], *, attempt: int = 1) -> Path:
    """The folder of a trial that has scored some epochs and is not done; returns its checkpoint."""
    trial = resolve(spec)
    folder = run / "trials" / trial.id
    (folder / f"attempt-{attempt}").mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps(trial.to_json()))
    for number in range(1, attempt + 1):
        (folder / f"lease-{number}.json").write_text("{}")
    checkpoint = folder / f"attempt-{attempt}" / "checkpoint.pt"
    torch.save({"phases": {"cluster": {"state": torch.zeros(9)}}, "rows": rows_of(trial, accs)[:-1]}, checkpoint)
    return checkpoint


def write_trace(attempt: Path, epochs: int = 3, stn: int = 2, channels: int = 1) -> Path:
    rng = np.random.default_rng(0)
    np.savez_compressed(
        attempt / "stn.npz",
        theta_mean=rng.random((epochs + 1, stn, 6), np.float32),
        straightened=rng.integers(0, 256, (epochs + 1, 5, channels, 8, 8), np.uint8),
        images=rng.integers(0, 256, (5, channels, 8, 8), np.uint8),
        index=np.arange(5),
    )
    return attempt / "stn.npz"


def digits(stn: int, seed: int = 0, epochs: int = 2, **params: Any) -> dict[str, Any]:
    return {"dataset": "digits", "seed": seed, "epochs": epochs, "params": {"stn": stn, **params}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Digits: k-means over 2 seeds, 0 STN over 1, 2 STN over 2."""
    path = tmp_path / "a run"
    for seed, acc in enumerate((0.78, 0.80)):
        write_trial(path, {"dataset": "digits", "method": "kmeans", "seed": seed}, [acc], acc)
    write_trial(path, digits(0), [0.2, 0.5, 0.6], 0.6)
    write_trace(write_trial(path, digits(2, 0), [0.2, 0.9, 0.8], 0.81))
    write_trial(path, digits(2, 1), [0.3, 0.7, 0.9], 0.88)
    return path


def test_mean_std_and_best_are_those_worked_out_by_hand(run: Path) -> None:
    cells = make_cells(read_metrics(run))
    assert [cell.label for cell in cells] == ["k-means", "ST-DAC, 0 STN", "ST-DAC, 2 STN"]
    cell = cells[2]
    assert (cell.n, cell.seeds) == (2, (0, 1))
    assert cell.mean("acc") == pytest.approx(0.85)  # last epochs .8 and .9
    assert cell.std("acc") == pytest.approx(0.05)  # ddof = 0
    assert cell.mean("nmi") == pytest.approx(0.425) and cell.std("ari") == pytest.approx(0.01)
    assert cell.mean("acc_best") == pytest.approx(0.9)  # .9 and .9
    assert cell.mean("acc_deployed") == pytest.approx(0.845)
    assert cell.gap == pytest.approx(-0.02)
    assert cell.curves == {0: [0.2, 0.3], 1: [0.9, 0.7], 2: [0.8, 0.9]}
    assert cells[0].mean("acc_best") is None and not cell.published


def test_the_table_says_who_wins_and_what_is_not_settled(run: Path) -> None:
    write_trial(run, digits(1), [0.2, 0.5, 0.5], 0.5)
    text = format_results(make_cells(read_metrics(run)))
    row = next(line for line in text.splitlines() if line.startswith("ST-DAC, 2 STN"))
    expected = ["ST-DAC, 2 STN", ".850 ± .050 (2)", ".425 ± .025", ".170 ± .010", ".845", ".900"]
    assert re.split(r" {2,}", row) == expected
    assert "Highest mean ACC on digits: ST-DAC, 2 STN, .850 (n = 2); k-means has .790." in text
    assert "With fewer than 10 seeds the ranking of 1 and 2 STN is not settled." in text
    assert "differ by more than .005 (deployed less protocol, widest seed): ST-DAC, 2 STN (-.020)." in text
    assert "paper " not in row and "†" not in text
    markdown = format_results(make_cells(read_metrics(run)), markdown=True)
    assert "| ST-DAC, 2 STN | .850 ± .050 (2) |" in markdown


def test_the_table_admits_that_k_means_wins(tmp_path: Path) -> None:
    write_trial(tmp_path, {"dataset": "digits", "method": "kmeans"}, [0.8], 0.8)
    write_trial(tmp_path, digits(2), [0.2, 0.5, 0.6], 0.6)
    text = format_results(make_cells(read_metrics(tmp_path)))
    assert (
        "Highest mean ACC on digits: k-means, .800 (n = 1); the best learned method is ST-DAC, 2 STN with .600" in text
    )
    assert "not settled" not in text and "differ by more" not in text


def test_intervals_are_those_of_scipy() -> None:
    ours, theirs = [0.97, 0.98, 0.955], [0.9, 0.95, 0.96, 0.91, 0.97]
    wanted = stats.ttest_1samp(ours, 0).confidence_interval()
    assert estimate_mean(ours) == pytest.approx((wanted.low, min(1, wanted.high)))
    paper = Published(float(np.mean(theirs)), float(np.std(theirs)), "a table (5 runs)")
    wanted = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert estimate_difference(ours, paper) == pytest.approx((wanted.low, wanted.high))


def test_there_is_no_interval_of_two_seeds_or_against_an_unknown_spread() -> None:
    paper = find_published("ST-DAC, 2 STN", "mnist", "acc")
    assert paper is not None and paper.n == 10
    for few in ([], [0.9], [0.9, 0.8]):
        assert estimate_mean(few) is None and estimate_difference(few, paper) is None
    assert estimate_difference([0.9, 0.8, 0.7], paper._replace(std=None)) is None
    assert estimate_difference([0.9, 0.8, 0.7], paper._replace(source="a table")) is None
    assert estimate_mean([0.5] * 3) == (0.5, 0.5) and estimate_mean([0.0, 0.5, 1.0]) == (0, 1)
    assert estimate_difference([0.98] * 3, paper._replace(std=0.0)) == pytest.approx((0, 0))


def test_the_table_has_intervals_where_there_are_seeds(tmp_path: Path) -> None:
    for seed, acc in enumerate((0.97, 0.98, 0.99)):
        write_trial(tmp_path, {"dataset": "mnist", "seed": seed, "params": {"stn": 2}}, [0.2] * 10 + [acc], acc)
    write_trial(tmp_path, {"dataset": "mnist", "params": {"stn": 0}}, [0.2] * 10 + [0.95], 0.95)
    cells = make_cells(read_metrics(tmp_path))
    text = format_results(cells)
    assert re.search(r"\nST-DAC, 2 STN  \.955 to 1\.000  -\.021 to \+\.021\n", text)  # t(.975, 2) = 4.303
    assert "n < 3: no interval of ST-DAC, 0 STN." in text
    assert max(map(len, text.splitlines()[3:8])) <= 120
    assert "| .980 ± .008 (3) | .955 to 1.000 | .980 ± .007 | +.000 | -" in format_results(cells, markdown=True)


def test_published_values_and_curves() -> None:
    value = find_published("ST-DAC, 2 STN", "mnist", "acc")
    assert value is not None and (value.mean, value.std) == (0.980, 0.007) and "Table 6" in value.source
    assert find_published("ST-DAC+3STN", "Fashion-MNIST", "ari") is not None
    dac = find_published("DAC*", "mnist", "acc")
    assert dac is not None and dac.of_best_epoch and not value.of_best_epoch
    dec = find_published("DEC", "fashion-mnist", "acc")
    assert dec is not None and (dec.mean, dec.std) == (0.518, None)
    assert (
        find_published("ST-DAC, 2 STN", "digits", "acc") is None and find_published("k-means", "mnist", "acc") is None
    )
    curve = find_published_curve("ST-DAC, 2 STN", "mnist")
    assert (curve[0], curve[1], curve[10]) == (0.22, 0.75, 0.98) and list(curve) == sorted(curve)
    assert find_published_curve("DAC*", "mnist") == {}


def test_the_published_value_stands_beside_the_papers_recipe_only(tmp_path: Path) -> None:
    full: list[float | None] = [0.2] + [0.9] * 9 + [0.975]
    mnist = {"dataset": "mnist", "params": {"stn": 2}}
    write_trial(tmp_path, mnist, full, 0.975)
    write_trial(tmp_path, mnist | {"limit": 5000}, full, 0.975)
    write_trial(tmp_path, mnist | {"epochs": 3}, full[:4], 0.9)
    write_trial(tmp_path, {"dataset": "mnist", "params": {"stn": 2, "width": 0.5}}, full, 0.975)
    write_trial(tmp_path, {"dataset": "mnist", "params": {"stn": 2, "preset": "text"}}, full, 0.975)
    cells = make_cells(read_metrics(tmp_path))
    assert {cell.label: bool(cell.published) for cell in cells} == {
        "ST-DAC, 2 STN, preset code, width 1, epochs 10, limit none": True,
        "ST-DAC, 2 STN, preset code, width 1, epochs 10, limit 5000": False,
        "ST-DAC, 2 STN, preset code, width 1, epochs 3, limit none": False,
        "ST-DAC, 2 STN, preset code, width 0.5, epochs 10, limit none": False,
        "ST-DAC, 2 STN, preset text, width 1, epochs 10, limit none": True,
    }
    text = format_results(cells)
    assert ".975 (1)  .980 ± .007  -.005" in text


def test_dac_star_is_compared_by_its_best_epoch_as_the_paper_did(tmp_path: Path) -> None:
    trial = {"dataset": "mnist", "method": "dac-star"}
    write_trial(tmp_path, trial, [0.2] + [0.984] + [0.96] * (resolve(trial).epochs - 1), 0.96)
    (cell,) = make_cells(read_metrics(tmp_path))
    assert cell.mean("acc") == pytest.approx(0.96) and cell.mean("acc_best") == pytest.approx(0.984)
    assert cell.difference == pytest.approx(0.984 - 0.974)
    text = format_results([cell])
    assert ".974 ± .004 †" in text and "+.010" in text and "† The paper took the best epoch" in text


def test_unfinished_trials_and_losing_attempts_are_left_out(run: Path) -> None:
    write_unfinished(run, digits(3), [0.2, 0.1])
    winner = write_trial(run, digits(1), [0.1, 0.4, 0.5], attempt=2)
    (winner.parent / "attempt-1").mkdir()
    loser = rows_of(resolve(digits(1)), [0.1, 0.4, 0.99])
    pq.write_table(make_metrics(loser), winner.parent / "attempt-1" / "metrics.parquet")
    cells = {cell.label: cell for cell in make_cells(read_metrics(run))}
    assert "ST-DAC, 3 STN" not in cells
    assert cells["ST-DAC, 1 STN"].mean("acc") == 0.5


def test_a_collected_file_gives_the_same_table(run: Path, tmp_path: Path) -> None:
    rows = read_metrics(run)
    assert rows.schema.equals(ROWS)
    collected = tmp_path / "collected"
    collected.mkdir()
    expected = format_results(make_cells(rows))
    for columns in (ROWS.names, [*METRICS.names, *SETTINGS], METRICS.names):  # now, and by earlier versions
        pq.write_table(rows.select(columns), collected / "metrics.parquet")
        assert format_results(make_cells(read_metrics(collected))) == expected
        assert format_results(make_cells(read_metrics(collected / "metrics.parquet"))) == expected


def test_collect_writes_what_a_reader_needs_to_know_of_every_trial(run: Path) -> None:
    grid = [digits(2, 0), digits(2, 1), digits(3), digits(1)]
    ledger = Ledger(run)
    ledger.plan([resolve(spec) for spec in grid], "")
    write_unfinished(run, digits(3), [0.2, 0.3])
    rows = pq.read_table(ledger.collect())
    assert rows.schema.equals(ROWS) and set(rows["trial_id"].to_pylist()) == {resolve(spec).id for spec in grid[:2]}
    assert set(rows["epochs"].to_pylist()) == {2} and set(rows["limit"].to_pylist()) == {None}
    rows = pq.read_table(ledger.collect(unfinished=True))
    assert rows.filter(rows["finished"])["epoch"].to_pylist() == [0, 1, 2, 2] * 2
    assert rows.filter(~np.array(rows["finished"]))["acc"].to_pylist() == [0.2, 0.3]
    assert rows.equals(read_metrics(run / "metrics.parquet", unfinished=True))
    assert not [finding for finding in examine(ledger) if finding.path == run / "metrics.parquet"]


def test_a_collected_trial_whose_size_is_unknown_has_no_published_value(tmp_path: Path) -> None:
    accs: list[float | None] = [0.9] * 11
    for limit in (None, 1000):
        rows = rows_of(resolve({"dataset": "mnist", "params": {"stn": 2}, "limit": limit}), accs)
        pq.write_table(make_metrics(rows), tmp_path / "metrics.parquet")
        (cell,) = make_cells(read_metrics(tmp_path))
        assert bool(cell.published) is (limit is None)


def test_an_unfinished_cell_stands_beside_the_papers_value_after_the_same_epoch(tmp_path: Path) -> None:
    write_unfinished(tmp_path, {"dataset": "mnist", "params": {"stn": 2}}, [0.25, 0.78, 0.9, 0.95])
    (cell,) = make_cells(read_metrics(tmp_path, unfinished=True))
    assert (cell.epoch, cell.done, cell.mean("acc"), cell.mean("acc_deployed")) == (3, 0, 0.95, None)
    assert cell.published["acc"].mean == 0.94 and cell.difference == pytest.approx(0.01)  # Fig. 15, not the final .980
    text = format_results([cell])
    assert re.search(r"ST-DAC, 2 STN +3 of 10 +\.950 \(1\) +\.940 at epoch 3 +\+\.010 ", text)
    assert "ST-DAC, 2 STN (after 3 of 10 epochs). The paper's value" in text
    assert "n < 3: no interval." in text and "Highest" not in text and ".980" not in text


def test_no_published_value_stands_beside_an_epoch_at_which_the_figure_was_not_read(tmp_path: Path) -> None:
    write_unfinished(tmp_path, {"dataset": "mnist", "params": {"stn": 2}}, [0.25] + [0.95] * 7)
    (cell,) = make_cells(read_metrics(tmp_path, unfinished=True))
    assert cell.epoch == 7 and not cell.published and cell.difference is None


def test_seeds_at_different_epochs_are_shown_at_the_last_that_all_have(run: Path) -> None:
    write_unfinished(run, digits(2, 2), [0.1, 0.5])
    cell = make_cells(read_metrics(run, unfinished=True))[2]
    assert (cell.n, cell.done, cell.epoch) == (3, 2, 1)
    assert cell.scores["acc"] == [0.9, 0.7, 0.5] and "acc_deployed" not in cell.scores
    assert cell.curves == {0: [0.2, 0.3, 0.1], 1: [0.9, 0.7, 0.5]}
    text = format_results(make_cells(read_metrics(run, unfinished=True)))
    assert "ST-DAC, 2 STN (after 1 of 2 epochs; 2 of 3 seeds are finished)." in text
    assert "Highest mean ACC on digits among what is finished: k-means, .790" in text
    assert make_cells(read_metrics(run))[2].epoch is None


def test_of_a_damaged_checkpoint_the_one_before_counts(tmp_path: Path) -> None:
    write_unfinished(tmp_path, digits(2), [0.2, 0.3])
    trial = resolve(digits(2)).id
    (tmp_path / "trials" / trial / "lease-2.json").write_text("{}")
    newest = tmp_path / "trials" / trial / "attempt-2" / "checkpoint.pt"
    newest.parent.mkdir()
    newest.write_bytes((newest.parents[1] / "attempt-1" / "checkpoint.pt").read_bytes()[:-100])
    assert read_metrics(tmp_path, unfinished=True)["acc"].to_pylist() == [0.2, 0.3]


def test_a_trial_without_a_scored_epoch_is_left_out(run: Path) -> None:
    expected = read_metrics(run)
    write_unfinished(run, digits(3), [])
    assert read_metrics(run, unfinished=True).equals(expected)
    with pytest.raises(StdacError, match="no trial with a scored epoch"):
        read_metrics(run / "trials" / resolve(digits(3)).id, unfinished=True)


def test_one_trials_folder_is_a_run_of_one(run: Path) -> None:
    folder = next((run / "trials").iterdir())
    assert set(read_metrics(folder)["trial_id"].to_pylist()) == {folder.name}


def test_images_without_ground_truth_have_a_row_without_scores(tmp_path: Path) -> None:
    write_trial(tmp_path, {"dataset": "/photos", "n_clusters": 3, "epochs": 1}, [None, None])
    cells = make_cells(read_metrics(tmp_path))
    assert cells[0].mean("acc") is None and "ST-DAC, 2 STN" in format_results(cells)
    with pytest.raises(StdacError, match="no trial has accuracies"):
        draw_curves(make_cells(read_metrics(tmp_path)), tmp_path / "curves.png")


def test_a_seed_that_stopped_early_keeps_its_last_score(tmp_path: Path) -> None:
    write_trial(tmp_path, digits(2, 0), [0.2, 0.4])
    write_trial(tmp_path, digits(2, 1), [0.2, 0.5, 0.6])
    (cell,) = make_cells(read_metrics(tmp_path))
    assert cell.curves[2] == [0.4, 0.6] and cell.mean("acc") == pytest.approx(0.5)


@pytest.mark.parametrize("what", ["missing", "no run", "unfinished", "version", "not Parquet", "not ours"])
def test_what_is_no_run_is_told_in_one_sentence(what: str, tmp_path: Path) -> None:
    path, expected = tmp_path / "run", "is not a run: expected a folder"
    if what == "no run":
        path.mkdir()
    if what == "unfinished":
        write_unfinished(path, digits(2), [0.1, 0.2])
        expected = "no finished trial: .*--unfinished"
    if what in ("version", "not Parquet", "not ours"):
        path = tmp_path / "metrics.parquet"
        rows = [row | {"schema_version": 99} for row in rows_of(resolve(digits(2)), [0.1])]
        pq.write_table(make_metrics(rows), path)
        expected = "schema version 99, expected"
    if what == "not Parquet":
        path.write_text("trial_id,acc")
        expected = "cannot read .* as Parquet"
    if what == "not ours":
        pq.write_table(pq.read_table(path).select(["acc"]), path)
        expected = "schema version None"
    with pytest.raises(StdacError, match=expected) as caught:
        read_metrics(path)
    assert "\n" not in str(caught.value)


def test_figures_are_written_and_hold_something(run: Path, tmp_path: Path) -> None:
    write_trial(run, {"dataset": "mnist", "params": {"stn": 2}}, [0.2] + [0.9] * 10, 0.9)
    paths = write_figures(run, tmp_path / "new" / "figures")
    assert [path.name for path in paths] == ["accuracy-by-epoch.png", "digits-st-dac-2-stn.png"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    svg = draw_curves(make_cells(read_metrics(run)), tmp_path / "curves.svg")
    assert b"<svg" in svg.read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_figures_of_unfinished_trials_say_so(run: Path, tmp_path: Path) -> None:
    assert len(write_figures(run, tmp_path, unfinished=True)) == 2
    write_unfinished(run, digits(3), [0.2, 0.4])
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        svg = draw_curves(make_cells(read_metrics(run, unfinished=True)), tmp_path / "curves.svg").read_text()
    assert "ST-DAC, 3 STN  .400, epoch 1" in svg and "ST-DAC, 2 STN  .850<" in svg


def test_pictures_of_one_epoch_and_in_colour(tmp_path: Path) -> None:
    trace = write_trace(tmp_path, epochs=1, stn=3, channels=3)
    assert draw_stn_pictures(trace, tmp_path / "a.png").stat().st_size > 5_000
    assert draw_stn_pictures(tmp_path, tmp_path / "b.svg").stat().st_size > 5_000


def test_figures_refuse_what_they_cannot_draw(run: Path, tmp_path: Path) -> None:
    with pytest.raises(StdacError, match=r"ends in .png, .svg, .pdf"):
        draw_curves(make_cells(read_metrics(run)), tmp_path / "curves.bmp")
    with pytest.raises(StdacError, match="trace of transformers"):
        draw_stn_pictures(tmp_path, tmp_path / "a.png")
    (tmp_path / "stn.npz").write_bytes(b"not a zip")
    with pytest.raises(StdacError, match="trace of transformers"):
        draw_stn_pictures(tmp_path, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_numbers_as_the_tables_print_them() -> None:
    assert show(0.98, 0.007) == ".980 ± .007" and show(0.9996) == "1.000" and show(0.0) == ".000" and show(None) == "-"
    assert show_signed(0.003) == "+.003" and show_signed(-0.0123) == "-.012" and show_signed(-0.0001) == "+.000"
    assert spread_out([0.5, 0.98, 0.97], 0.1) == pytest.approx([0.5, 1.0, 0.9])
    assert spread_out([0.79, 0.8], 0.1) == pytest.approx([0.745, 0.845])

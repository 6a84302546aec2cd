"""Studies of one number: what is one, its table beside the published values, its figures, confusion matrices."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from analysis.cells import make_cells
from analysis.report import write_report
from analysis.runs import read_metrics
from analysis.studies import align, draw_study, find_studies, format_studies, make_study_rows, read_matrices
from cluster_jobs.commands.grid import main as grid
from stdac.errors import StdacError
from stdac.methods import resolve
from stdac.record import ASSIGNMENTS, make_metrics
from stdac.trial import SCHEMA_VERSION, write_canonical

CONFIGURATIONS = {"dkm-a": (0.01, 0.1, 0.5, 1), "dkm-p": (3, 30, 150, 300)}


def write_trial(run: Path, acc: float, *, relabelled: float | None = None, **changes: Any) -> Path:
    """A finished trial of Deep K-Means on MNIST that has that score; returns the folder of its attempt."""
    trial = resolve({"method": "dkm-p", "dataset": "mnist", **changes})
    folder = run / "trials" / trial.id
    (folder / "attempt-1").mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps(trial.to_json()))
    common = {name: getattr(trial, name) for name in ("method", "dataset", "seed")}
    common |= {"trial_id": trial.id, "params": write_canonical(trial.to_json()["params"]), "main": True}
    scores = {"acc": acc, "nmi": acc / 2, "ari": acc / 5, "purity": acc, "clusters_used": trial.n_clusters}
    scores["acc_relabelled"] = acc if relabelled is None else relabelled
    rows = [common | scores | {"phase": "cluster", "epoch": e, "schema_version": SCHEMA_VERSION} for e in (0, 1)]
    pq.write_table(make_metrics(rows), folder / "attempt-1" / "metrics.parquet")
    (folder / "done.json").write_text(json.dumps({"attempt": 1, "trial_id": trial.id}))
    return folder / "attempt-1"


def write_clusters(attempt: Path, labels: list[int], clusters: list[int]) -> None:
    n = len(labels)
    columns = [range(n), clusters, clusters, [0.5] * n, labels]
    pq.write_table(
        pa.table(dict(zip(ASSIGNMENTS.names, columns, strict=True)), schema=ASSIGNMENTS),
        attempt / "assignments.parquet",
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Both studies, two seeds each, as one run."""
    folder = tmp_path / "run"
    for seed in (0, 1):
        for method, alphas in CONFIGURATIONS.items():
            for number, alpha in enumerate(alphas):
                params = {"alpha": alpha, "epochs_per_alpha": 1}
                write_trial(folder, 0.4 + 0.1 * number + 0.02 * seed, method=method, seed=seed, params=params)
        for k in (2, 5, 20):
            params = {"alpha": 150, "epochs_per_alpha": 1}
            relabelled = 0.55 if k == 20 else None
            attempt = write_trial(folder, 0.5, relabelled=relabelled, n_clusters=k, seed=seed, params=params)
            write_clusters(attempt, [i % 10 for i in range(40)], [i % k for i in range(40)])
    return folder


def test_cells_that_differ_in_one_number_are_a_study(run: Path) -> None:
    by_alpha, by_k = find_studies(make_cells(read_metrics(run)))
    assert (by_alpha.setting, by_alpha.symbol, list(by_alpha.lines)) == ("alpha", "α", ["DKM_a", "DKM_p"])
    assert [cell.settings["alpha"] for cell in by_alpha.cells] == [0.01, 0.1, 0.5, 1, 3, 30, 150, 300]
    assert (by_k.symbol, list(by_k.lines)) == ("K", ["DKM_p, α 150"])
    assert [cell.settings["n_clusters"] for cell in by_k.cells] == [2, 5, 10, 20]


def test_two_values_or_two_differences_are_none(tmp_path: Path) -> None:
    write_trial(tmp_path, 0.5, params={"alpha": 3})
    write_trial(tmp_path, 0.5, params={"alpha": 30})
    write_trial(tmp_path, 0.5, params={"alpha": 150, "batch": 128})
    write_trial(tmp_path, 0.5, params={"alpha": 300}, epochs=7)
    assert find_studies(make_cells(read_metrics(tmp_path))) == []


def test_the_table_has_the_values_of_the_report(run: Path) -> None:
    by_alpha, by_k = find_studies(make_cells(read_metrics(run)))
    header, *rows = make_study_rows(by_alpha)
    assert header[:3] == ["α", "method", "ACC (n)"] and not any("relabelled" in name for name in header)
    papers = [row[header.index("paper's ACC")] for row in rows]
    assert papers == [".394", ".737", ".307", ".209", ".361", ".839", ".850", ".849"]
    assert rows[1][:3] == ["0.1", "DKM_a, α₀ 0.1", ".510 ± .010 (2)"] and rows[1][header.index("diff.")] == "-.227"
    header, *rows = make_study_rows(by_k)
    told = {row[0]: (row[header.index("paper's ACC")], row[header.index("paper's relabelled ACC")]) for row in rows}
    assert told == {"2": (".210", ".210"), "5": (".490", ".490"), "10": (".850", ".860"), "20": ("-", ".560")}
    assert [row[header.index("relabelled ACC")] for row in rows][3] == ".550 ± .000"
    assert "| 20 | DKM_p, α 150, n_clusters 20 | .500 ± .000 (2) |" in format_studies([by_k], markdown=True)


def test_results_and_report_show_studies_and_confusion_matrices(run: Path, tmp_path: Path) -> None:
    printed = CliRunner().invoke(grid, ["results", str(run), "--figures", str(tmp_path / "figures")])
    assert printed.exit_code == 0, printed.output
    assert "ACC by α on mnist\n" in printed.output and "ACC by K on mnist\n" in printed.output
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"mnist-by-alpha.png", "mnist-by-n-clusters.png", "mnist-by-n-clusters-confusion.png"} <= names
    page = write_report(run).read_text()
    assert "<h2>ACC by α on mnist</h2>" in page and "Confusion matrices by K on mnist" in page
    assert write_report(run, tmp_path / "again.html").read_text().count("<svg") == page.count("<svg")


def test_a_figure_has_the_published_points(run: Path, tmp_path: Path) -> None:
    by_alpha, _ = find_studies(make_cells(read_metrics(run)))
    assert draw_study(by_alpha, tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(StdacError, match=r"ends in .png, .svg, .pdf"):
        draw_study(by_alpha, tmp_path / "a.bmp")


def test_the_matrices_are_of_those_that_kept_their_clusters(run: Path) -> None:
    by_alpha, by_k = find_studies(make_cells(read_metrics(run)))
    matrices = read_matrices(run, by_k)
    assert [matrix.title.split(",")[0] for matrix in matrices] == ["K = 2", "K = 5", "K = 20"]
    assert matrices[0].counts.tolist() == [[4, 0] if c % 2 == 0 else [0, 4] for c in range(10)]
    assert read_matrices(run, by_alpha) == []


def test_columns_stand_in_the_order_of_their_classes() -> None:
    counts = np.array([[0, 9, 2, 0], [0, 0, 1, 6], [5, 1, 8, 0]])
    assert align(counts).tolist() == [[9, 0, 2, 0], [0, 6, 1, 0], [1, 0, 8, 5]]
    assert align(counts[:, :2]).tolist() == [[9, 0], [0, 0], [1, 5]]


def test_rows_of_before_have_no_relabelled_score(tmp_path: Path) -> None:
    for k in (5, 10, 20):
        path = write_trial(tmp_path, 0.5, n_clusters=k) / "metrics.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["acc_relabelled", "acc_majority"]), path)
    (study,) = find_studies(make_cells(read_metrics(tmp_path)))
    assert not study.has_more_clusters and draw_study(study, tmp_path / "k.png").exists()


def test_transformers_are_no_study(tmp_path: Path) -> None:
    for stn in (1, 2, 3):
        write_trial(tmp_path, 0.5, method="st-dac", params={"stn": stn})
    assert not find_studies(make_cells(read_metrics(tmp_path)))

"""UMAP + GMM: equal bytes, few and equal images, on another trial's embedding, and without its library."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.cells import make_cells
from analysis.runs import read_metrics
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.request import Options
from cluster_jobs.worker import Worker
from stdac.data import Dataset, load
from stdac.errors import NotHere, StdacError
from stdac.folder import TrialFolder
from stdac.methods import resolve
from stdac.methods.method import Fitted
from stdac.methods.umap_gmm import find_copies, fit_kmeans, fit_mixture
from stdac.run import Scorer, fit, run_trial
from tests.conftest import CPU, results_of, small
from tests.test_methods import digest

ROOT = Path(__file__).parents[1]
DIGITS = load("digits").images[:60]
TWO = np.repeat([0.0, 10.0], 50)[:, None] + np.random.default_rng(0).normal(size=(100, 2))


def run_fit(images: Any, k: int, **params: Any) -> Fitted:
    trial = resolve(small("umap-gmm", n_clusters=k, params=params))
    return fit(trial, images, Scorer(trial, Dataset(images, None), "cpu"), CPU, {})


# the clusterers


def test_a_mixture_finds_two_heaps_and_is_surest_in_their_middles() -> None:
    z = np.concatenate([TWO, [[0.0, 0.0], [4.0, 0.0], [10.0, 10.0]]])
    labels, confidence, terms = fit_mixture(z, 2, 3, 0)
    assert len(set(labels[:50])) == len(set(labels[50:100])) == 1 and labels[0] != labels[50]
    assert confidence[100] > 0.9 and confidence[101] < 0.5 and confidence.dtype == np.float32
    assert list(terms) == ["term_likelihood"]


def test_the_likeliest_start_is_kept() -> None:
    one, many = (fit_mixture(TWO, 5, starts, 3).terms["term_likelihood"] for starts in (1, 8))
    assert many >= one


def test_k_means_is_as_sure_as_its_own_centre_is_nearer_than_the_next() -> None:
    z = np.array([[0.0], [2.0], [10.0], [12.0], [5.0]])
    labels, confidence, terms = fit_kmeans(z, 2, 5, 0)  # centres 7/3 and 11
    assert labels[0] == labels[1] == labels[4] != labels[2] == labels[3]
    expected = [1 - (7 / 3) / 11, 1 - (1 / 3) / 9, 1 - 1 / (23 / 3), 1 - 1 / (29 / 3), 1 - (8 / 3) / 6]
    assert confidence == pytest.approx(expected)
    squares = (7 / 3) ** 2 + (1 / 3) ** 2 + 1 + 1 + (8 / 3) ** 2
    assert terms == {"term_inertia": pytest.approx(squares / 5)}


def test_copies_are_found() -> None:
    first, copy_of = find_copies(np.array([[1, 2], [0, 0], [1, 2], [3, 4], [0, 0]], np.float32))
    assert first.tolist() == [0, 1, 3] and copy_of.tolist() == [0, 1, 0, 2, 1]


# few images, and equal ones


@pytest.mark.parametrize(("n", "k"), [(2, 2), (3, 2), (5, 5), (11, 3), (12, 12), (13, 3), (21, 10), (60, 60)])
@pytest.mark.parametrize("clusterer", ["gmm", "kmeans"])
def test_few_images(n: int, k: int, clusterer: str) -> None:
    fitted = run_fit(DIGITS[:n], k, clusterer=clusterer, dimensions=10, neighbours=20)
    assert fitted.labels.min() >= 0 and fitted.labels.max() < k
    assert fitted.figures["embedding"].shape[0] == n and fitted.confidence is not None
    if n == k:
        assert len(fitted.labels.unique()) == k


def test_a_picture_a_thousand_times_is_one_picture() -> None:
    images = np.concatenate([np.repeat(DIGITS[:1], 1000, 0), DIGITS])
    fitted = run_fit(images, 4)
    assert (fitted.labels[:1001] == fitted.labels[0]).all() and len(fitted.labels.unique()) == 4
    assert torch.equal(fitted.labels[1000:], run_fit(DIGITS, 4).labels)


def test_equal_images_are_told() -> None:
    with pytest.raises(StdacError, match=r"got 2 clusters for 1 different image: expected at most as many"):
        run_fit(np.repeat(DIGITS[:1], 30, 0), 2)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"clusterer": "dbscan"}, "got clusterer = 'dbscan', expected one of gmm, kmeans"),
        ({"neighbours": 1}, "got neighbours = 1, expected at least 2"),
        ({"min_distance": 2.0}, "got min_distance = 2.0, expected a number from 0 to 1"),
    ],
)
def test_parameters_out_of_range_are_told(params: dict[str, Any], said: str) -> None:
    with pytest.raises(StdacError, match=said):
        resolve({"dataset": "digits", "method": "umap-gmm", "params": params})


# equal bytes, whatever the threads


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    made = []
    for threads in ("1", "2"):
        words = ["train", "--dataset", "digits", "--limit", "300", "--method", "umap-gmm", "--out", threads]
        code = "from cluster_jobs.commands.stdac import main; main()"
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        command = [sys.executable, "-c", code, *words, "--device", "cpu", "--threads", threads]
        ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        assert "Warning" not in ran.stderr
        path = tmp_path / ran.stdout.splitlines()[-1]
        made.append([digest(path / name) for name in ("assignments.parquet", "stn.npz")])
    assert made[0] == made[1]


# on another trial's embedding

GRID = """
[[trials]]
method = "umap-gmm"
dataset = "digits"
limit = 200
seeds = 2
[trials.params]
dimensions = 3
starts = 2
[trials.params.on]
method = "METHOD"
params = PARAMS
"""


@pytest.mark.parametrize(
    ("method", "params", "size"), [("pca-kmeans", {"components": 7}, 7), ("autoencoder", {"dimensions": 5}, 5)]
)
def test_it_lays_out_the_embedding_of_a_trial_that_a_grid_adds(
    method: str, params: dict[str, Any], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stdac.methods import umap_gmm

    seen: list[tuple[int, ...]] = []
    embed = umap_gmm.embed
    monkeypatch.setattr(umap_gmm, "embed", lambda x, *more: (seen.append(x.shape), embed(x, *more))[1])
    inner = small(method, params=params)
    table = ", ".join(f"{name} = {value}" for name, value in inner["params"].items())
    text = GRID.replace("METHOD", method).replace("PARAMS", f"{{ {table} }}")
    text += f"epochs = {inner['epochs']}\n" if "epochs" in inner else ""
    (tmp_path / "grid.toml").write_text(text)
    ledger, grid = Ledger(tmp_path / "run"), load_grid(str(tmp_path / "grid.toml"))
    ledger.plan(grid.trials, grid.text)
    Worker(ledger.path, Options("cpu", 1)).work()
    assert set(ledger.states().values()) == {"done"} and seen == [(200, size)] * 2
    rows, path = results_of(ledger.folder(grid.trials[1].id))
    assert grid.trials[1].needs == (grid.trials[0].id,)
    assert np.load(path / "stn.npz")["embedding"].shape == (200, 3) and rows["term_likelihood"][0].is_valid
    labels = [cell.label for cell in make_cells(read_metrics(ledger.path))]
    assert len(labels) == (1 if method == "autoencoder" else 2)  # which is no row of a table
    assert not any(trial.id in label for label in labels for trial in grid.trials)


def test_what_has_no_model_or_takes_other_images_is_told(tmp_path: Path) -> None:
    def plan(name: str, on: str) -> str:
        (tmp_path / f"{name}.toml").write_text(
            "[[trials]]\nmethod = 'umap-gmm'\ndataset = 'digits'\nlimit = 60\nn_clusters = 3\n"
            f"[trials.params]\ndimensions = 2\non = {on}\n"
        )
        ledger, grid = Ledger(tmp_path / name), load_grid(str(tmp_path / f"{name}.toml"))
        ledger.plan(grid.trials, grid.text)
        Worker(ledger.path, Options("cpu", 1)).work()
        return str(ledger.status(grid.trials[-1].id).detail["reason"])

    said = plan("without", "{ method = 'umap-gmm', params = { dimensions = 2 } }")
    assert "has no model, as none of method umap-gmm has: name one of a method that makes one" in said
    said = plan("other", "{ method = 'pca-kmeans', image_size = 8, params = { restarts = 1, components = 5 } }")
    assert "takes other images than these of 1×28×28" in said


def test_without_its_library_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(NotHere, match=r"needs umap, which is not installed: pip install 'stdac\[umap\]'"):
        run_trial(resolve(small("umap-gmm")), TrialFolder(tmp_path / "trial"), machine=CPU)

"""One contract over all methods."""

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stdac.data import Dataset, load
from stdac.folder import Attempt, TrialFolder
from stdac.methods import METHODS, resolve
from stdac.methods.autoencoder import RECIPES
from stdac.model_file import load_model
from stdac.record import ASSIGNMENTS, METRICS, drop_terms
from stdac.results import Result
from stdac.run import Scorer, fit, run_trial
from stdac.train import Progress
from stdac.trial import Trial
from tests.conftest import CLUSTERING, CPU, Watch, results_of, small

Folders = Callable[[str], TrialFolder]
Needed = Callable[[Trial], list[Result]]


class PowerCut(BaseException):
    """Ends a trial where it stands."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, find_needed: Needed) -> dict[str, TrialFolder]:
    folders = {}
    for method in [*CLUSTERING, "autoencoder"]:
        folders[method] = TrialFolder(tmp_path_factory.mktemp(method) / "trial")
        trial = resolve(small(method))
        assert run_trial(trial, folders[method], machine=CPU, needed=find_needed(trial))
    return folders


@pytest.mark.parametrize("method", CLUSTERING)
def test_a_trial_leaves_rows_assignments_and_a_model_that_agree(
    method: str, undisturbed: dict[str, TrialFolder]
) -> None:
    _, path = results_of(undisturbed[method])
    rows = pq.read_table(path / "metrics.parquet")
    assert drop_terms(rows.schema).equals(METRICS)
    moved = rows.filter(rows["main"])["term_moved"].to_pylist() if METHODS[method].epochs else [None]
    assert moved[0] is None and all(0 <= share <= 1 for share in moved[1:])
    keys = list(zip(rows["phase"].to_pylist(), rows["epoch"].to_pylist(), strict=True))
    assert len(set(keys)) == len(keys)
    assert "cluster" in {phase for phase, _ in keys}
    assigned = pq.read_table(path / "assignments.parquet")
    assert assigned.schema.equals(ASSIGNMENTS) and assigned.num_rows == 200
    if METHODS[method].build is None:
        assert keys == [("cluster", 0)] and not (path / "model.pt").exists()
        assert not assigned["protocol_confidence"].null_count and rows["mean_confidence"][0].as_py() > 0
        return
    assert keys[-1][0] == "deployed"
    model, config = load_model(path / "model.pt")
    images = torch.from_numpy(load("digits", limit=200).images)
    with torch.no_grad():
        scores = model(images.float() / 255)
    assert scores.shape == (200, 10) and scores.dtype == torch.float32
    assert torch.allclose(scores.sum(1), torch.ones(200), atol=1e-5)
    np.testing.assert_array_equal(scores.argmax(1).numpy(), assigned["cluster"].to_numpy())
    assert config.trial == resolve(small(method)) and config.shape == (1, 28, 28)


@pytest.mark.parametrize("method", CLUSTERING)
def test_the_same_trial_gives_the_same_bytes(
    method: str, undisturbed: dict[str, TrialFolder], find_needed: Needed, new_folder: Folders
) -> None:
    again, trial = new_folder("again"), resolve(small(method))
    torch.rand(7)  # the caller's random state must not matter
    run_trial(trial, again, machine=CPU, needed=find_needed(trial))
    assert_equal(again, undisturbed[method])


@pytest.mark.parametrize("method", [m for m in (*CLUSTERING, "autoencoder") if METHODS[m].epochs])
@pytest.mark.parametrize("stop_at", [1, 2])
def test_stopped_and_resumed_equals_uninterrupted(
    method: str, stop_at: int, undisturbed: dict[str, TrialFolder], find_needed: Needed, new_folder: Folders
) -> None:
    folder, trial = new_folder("cut"), resolve(small(method))

    def cut(progress: Progress) -> None:
        if progress.epoch == stop_at and progress.step == 1 and progress.main:
            raise PowerCut

    needed = find_needed(trial)
    with pytest.raises(PowerCut):
        run_trial(trial, folder, machine=CPU, needed=needed, observer=Watch(progress=cut))
    assert folder.done() is None
    assert run_trial(trial, folder, machine=CPU, needed=needed)
    assert_equal(folder, undisturbed[method])


@pytest.mark.parametrize("phase", ["layer-1", "layer-3", "pretrain"])
def test_a_trial_of_many_phases_stopped_in_any_of_them_resumes_too(
    phase: str, new_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "dcn", RECIPES["dcn"]._replace(layer_epochs=2))
    trial, whole, cut_off = resolve(small("autoencoder", params={"recipe": "dcn"})), new_folder("a"), new_folder("b")
    run_trial(trial, whole, machine=CPU)

    def cut(progress: Progress) -> None:
        if (progress.phase, progress.epoch) == (phase, 2):
            raise PowerCut

    with pytest.raises(PowerCut):
        run_trial(trial, cut_off, machine=CPU, observer=Watch(progress=cut))
    run_trial(trial, cut_off, machine=CPU)
    assert_equal(cut_off, whole)


def test_an_autoencoder_leaves_losses_and_codes_and_no_clusters(undisturbed: dict[str, TrialFolder]) -> None:
    rows, path = results_of(undisturbed["autoencoder"])
    assert rows["phase"].to_pylist() == ["pretrain"] * 2 and rows["main"].to_pylist() == [True] * 2
    assert (
        not rows["loss_reconstruction"].null_count and rows["acc"].null_count == rows["clusters_used"].null_count == 2
    )
    assert not (path / "assignments.parquet").exists()
    model, config = load_model(path / "model.pt")
    assert not config.clusters and model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def assert_equal(folder: TrialFolder, other: TrialFolder) -> None:
    rows, path = results_of(folder)
    other_rows, other_path = results_of(other)
    assert rows.equals(other_rows)
    for name in ("model.pt", "assignments.parquet", "stn.npz"):
        assert (path / name).exists() == (other_path / name).exists()
        if (path / name).exists():
            assert digest(path / name) == digest(other_path / name), name


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("method", CLUSTERING)
def test_ground_truth_changes_no_weight_and_no_cluster(method: str, find_needed: Needed) -> None:
    dataset, trial = load("digits", limit=200), resolve(small(method))
    needed = find_needed(trial)
    permuted = Dataset(dataset.images, np.random.default_rng(0).permutation(dataset.labels))
    kept = []
    for data in (dataset, permuted, Dataset(dataset.images, None)):
        fitted = fit(trial, data.images, Scorer(trial, data, "cpu"), CPU, {}, needed=needed)
        kept.append({"labels": fitted.labels} | ({} if fitted.model is None else fitted.model.state_dict()))
    for name, tensor in kept[0].items():
        assert torch.equal(tensor, kept[1][name]) and torch.equal(tensor, kept[2][name]), name


def test_seeds_differ() -> None:
    images, trials = load("digits", limit=200).images, [resolve(small("st-dac", seed=s)) for s in (0, 1)]
    dataset = Dataset(images, None)
    a, b = (fit(t, images, Scorer(t, dataset, "cpu"), CPU, {}).model.state_dict() for t in trials)
    assert not torch.equal(a["net.conv1.weight"], b["net.conv1.weight"])


def test_a_resumed_trial_refuses_other_images(new_folder: Folders, tmp_path) -> None:
    images = load("digits", limit=120).images
    np.save(tmp_path / "set.npy", images)
    spec = small("st-dac", dataset=str(tmp_path / "set.npy"), n_clusters=10, limit=None)
    folder = new_folder("cut")

    def cut(progress: Progress) -> None:
        if progress.epoch == 2:
            raise PowerCut

    with pytest.raises(PowerCut):
        run_trial(resolve(spec), folder, machine=CPU, observer=Watch(progress=cut))
    np.save(tmp_path / "set.npy", images[::-1])
    with pytest.raises(Exception, match="are not those that trial"):
        run_trial(resolve(spec), folder, machine=CPU)
    assert "are not those" in folder.error()


def test_an_attempt_that_was_superseded_stops_writing(new_folder: Folders) -> None:
    folder, trial = new_folder("split"), resolve(small("st-dac"))

    def supersede(progress: Progress) -> None:
        if progress.epoch == 2 and progress.step == 1 and len(folder.leases()) == 1:
            (folder.path / "lease-2.json").write_text((folder.path / "lease-1.json").read_text())
            Attempt(folder, 2)

    assert not run_trial(trial, folder, machine=CPU, observer=Watch(progress=supersede))
    assert folder.done() is None and folder.error() is None

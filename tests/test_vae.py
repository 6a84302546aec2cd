"""The VAE, and VAE + t-SNE + DBSCAN: sizes, losses by hand, restarts, the choice of eps, what leaves as ONNX."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from analysis.cells import make_cells
from analysis.published import find_published, is_comparable
from analysis.runs import ROWS
from analysis.table import format_results
from cluster_jobs.grid import load_grid
from export.clusterer import Clusterer
from export.convert.to_onnx import export_model
from stdac.data import load
from stdac.errors import StdacError
from stdac.folder import TrialFolder
from stdac.methods import METHODS, add_needs, resolve
from stdac.methods.autoencoder import AUTOENCODER
from stdac.methods.method import Task
from stdac.methods.vae import (
    CPU_EPOCHS,
    EPOCHS,
    VariationalAutoencoder,
    build,
    combine_losses,
    elbo_loss,
    measure_maps,
)
from stdac.methods.vae_dbscan import TSNE_GRID, VAEDBSCANParams, cluster, lay_out, list_radii, measure_reach, rate
from stdac.model_file import load_model
from stdac.record import METRICS, make_metrics
from stdac.results import take_result
from stdac.run import run_trial
from stdac.train import Progress
from stdac.trial import Trial
from tests.conftest import CPU, Watch, results_of, small

Folders = Callable[[str], TrialFolder]


def count_parameters(module: nn.Module) -> int:
    """As Keras counts: with the running averages."""
    return sum(t.numel() for name, t in module.state_dict().items() if not name.endswith("num_batches_tracked"))


@pytest.mark.parametrize(("network", "encoder", "decoder"), [("dense", 237_972, 237_456), ("conv", 25_385, 24_924)])
def test_the_networks_have_the_published_numbers_of_parameters(network: str, encoder: int, decoder: int) -> None:
    model = VariationalAutoencoder((1, 28, 28), network)
    assert (count_parameters(model.encoder), count_parameters(model.decoder)) == (encoder, decoder)
    trainable = sum(p.numel() for p in model.parameters())
    assert encoder + decoder - trainable == (1536 if network == "dense" else 0)


@pytest.mark.parametrize("network", ["dense", "conv"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 21, 30), (1, 4, 4)])
def test_images_of_any_size_come_back_in_it(network: str, shape: tuple[int, int, int]) -> None:
    model = VariationalAutoencoder(shape, network, 2, 0.1).eval()
    z = model(torch.rand(3, *shape))
    assert z.shape == (3, 2) and model.decoder(z).shape == (3, *shape)


def test_images_too_small_for_the_convolutions_are_refused() -> None:
    with pytest.raises(StdacError, match="images are 3x28 pixels, but the convolutional VAE needs at least 4x4"):
        measure_maps((1, 3, 28))


def test_the_loss_by_hand() -> None:
    """Two images of two pixels. Logit 0 costs ln 2 whatever the pixel; ln 3 is probability 3/4: -ln 3/4 for a 1.

    KL of N(1, 1): 1/2; of N(0, 4): (4 - 1 - ln 4) / 2, the mean of which over the images is added, over twice 2 pixels.
    """
    logits = torch.tensor([[[[0.0, math.log(3)]]], [[[0.0, 0.0]]]])
    x = torch.tensor([[[[1.0, 1.0]]], [[[0.5, 0.0]]]])
    mean, log_variance = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, math.log(4)]])
    loss, reconstruction, divergence = combine_losses(logits, x, mean, log_variance)
    crossed = (3 * math.log(2) + math.log(4 / 3)) / 4
    kl = (1 / 2 + (3 - math.log(4)) / 2) / 2
    assert reconstruction.item() == pytest.approx(crossed, rel=1e-6)
    assert divergence.item() == pytest.approx(kl, rel=1e-6)
    assert loss.item() == pytest.approx((2 * crossed + kl) / 4, rel=1e-6)


def test_codes_are_drawn_around_their_mean() -> None:
    model = VariationalAutoencoder((1, 4, 4), "conv", 2)
    nn.init.zeros_(model.encoder.mean.weight)
    nn.init.constant_(model.encoder.mean.bias, 3.0)
    nn.init.zeros_(model.encoder.log_variance.weight)
    nn.init.constant_(model.encoder.log_variance.bias, 2 * math.log(0.5))
    seen: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    elbo_loss(model, torch.rand(20_000, 1, 4, 4))
    assert seen[0].mean().item() == pytest.approx(3, abs=0.02) and seen[0].std().item() == pytest.approx(0.5, abs=0.01)


def test_running_averages_are_those_of_keras() -> None:
    """Momentum .99: after one batch a hundredth of its mean."""
    model = VariationalAutoencoder((1, 4, 4), "dense").train()
    norm = next(m for m in model.encoder.modules() if isinstance(m, nn.BatchNorm1d))
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(torch.rand(50, 1, 4, 4))
    torch.testing.assert_close(norm.running_mean, 0.01 * seen[0].mean(0))
    assert norm.eps == 1e-3


def test_epochs_and_rates_are_those_of_the_source_or_the_budget() -> None:
    spec: dict[str, Any] = {"method": "vae", "dataset": "mnist"}
    assert resolve(spec).epochs == EPOCHS == 500
    assert resolve(spec | {"params": {"budget": "cpu"}}).epochs == CPU_EPOCHS == 50
    assert resolve(spec | {"params": {"budget": "cpu"}, "epochs": 7}).epochs == 7
    assert resolve(spec).params.lr == 1e-3 and resolve(spec | {"params": {"network": "conv"}}).params.lr == 1e-4
    assert METHODS["vae"].fill_title({"budget": "cpu", "dimensions": 2}) == "VAE, dense, 2-d, cpu budget"


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("vae", {"network": "deep"}, "got network = 'deep', expected one of dense, conv"),
        ("vae", {"budget": "gpu"}, "got budget = 'gpu', expected one of published, cpu"),
        ("vae", {"batch": 1}, "got batch = 1, expected at least 2"),
        ("vae-dbscan", {"layout": "UMAP"}, "got layout = 'UMAP', expected one of t-SNE, PCA, none"),
        ("vae-dbscan", {"choose_eps": "labels"}, "got choose_eps = 'labels', expected one of clusters, silhouette"),
        ("vae-dbscan", {"eps": 0.0}, "got eps = 0.0, expected a number above 0"),
        ("vae-dbscan", {"budget": "gpu"}, "got budget = 'gpu', expected one of published, cpu"),
    ],
)
def test_parameters_out_of_range_are_told(method: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(StdacError) as caught:
        resolve({"method": method, "dataset": "digits", "params": params})
    assert str(caught.value) == said


class PowerCut(BaseException):
    """Ends a trial where it stands."""


@pytest.mark.parametrize("network", ["dense", "conv"])
def test_stopped_and_resumed_equals_uninterrupted(network: str, new_folder: Folders) -> None:
    trial = resolve(small("vae", epochs=3, limit=101, params={"network": network}))  # the last batch has one image

    def cut(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (3, 1):
            raise PowerCut

    assert run_trial(trial, new_folder("whole"), machine=CPU)
    with pytest.raises(PowerCut):
        run_trial(trial, new_folder("cut"), machine=CPU, observer=Watch(progress=cut))
    assert run_trial(trial, new_folder("cut"), machine=CPU)
    (rows, path), (others, other) = results_of(new_folder("whole")), results_of(new_folder("cut"))
    assert rows.equals(others) and (path / "model.pt").read_bytes() == (other / "model.pt").read_bytes()
    losses = rows["loss"].to_pylist()
    assert rows["phase"].to_pylist() == ["train"] * 3 and losses[-1] < losses[0]
    assert not (path / "assignments.parquet").exists() and rows["acc"].null_count == 3


@pytest.mark.parametrize(
    ("method", "params"),
    [("vae", {}), ("vae", {"network": "conv"}), ("autoencoder", {}), ("autoencoder", {"network": "conv"})],
)
def test_an_embedding_model_is_exported_as_torch_has_it(
    method: str, params: dict[str, Any], new_folder: Folders, tmp_path: Path
) -> None:
    trial = resolve(small(method, epochs=1, params=params))
    assert run_trial(trial, new_folder("one"), machine=CPU)
    path = results_of(new_folder("one"))[1] / "model.pt"
    report = export_model(path, tmp_path / "model.onnx")
    assert (report.info.k, report.info.embedding, report.info.cluster_names) == (0, 10, ())
    clusterer, model = Clusterer(tmp_path / "model.onnx", "cpu"), load_model(path)[0]
    assert [y.name for y in clusterer._session.get_outputs()] == ["embedding"]
    images = load("digits", limit=50).images
    with torch.no_grad():
        expected = model(torch.from_numpy(images).float() / 255).numpy()
    np.testing.assert_allclose(clusterer.embed(images), expected, atol=1e-4)
    with pytest.raises(StdacError, match=rf"is an embedding model \(method {method}\), which sorts nothing"):
        clusterer.predict(images)
    with pytest.raises(StdacError, match="export it with --precision fp32"):
        export_model(path, tmp_path / "other.onnx", precision="int8")
    assert not (tmp_path / "other.onnx").exists()


# t-SNE and DBSCAN


def blobs(*sizes: int, spread: float = 0.1) -> np.ndarray:
    """Points around (0, 0), (10, 0), (20, 0) …, (N, 2)."""
    rng = np.random.default_rng(0)
    parts = [rng.normal((10 * i, 0), spread, (size, 2)) for i, size in enumerate(sizes)]
    return np.concatenate(parts).astype(np.float32)


def test_a_clustering_is_rated_by_its_large_clusters_or_its_silhouette() -> None:
    labels = np.array([0] * 49 + [1] * 49 + [2, -1])  # the third has 1 %
    assert rate(np.zeros((100, 2)), labels, "clusters") == (2, 99)
    z = np.array([[0.0], [0.0], [1.0], [1.0], [9.0]])
    assert rate(z, np.array([0, 0, 1, 1, -1]), "silhouette") == (pytest.approx(4 / 5),)  # noise counts 0
    assert rate(z, np.array([0, 0, 0, 0, -1]), "silhouette") == (-1.0,)


def test_eps_is_the_distance_from_which_a_point_is_a_core_point() -> None:
    z = np.array([[0.0], [1.0], [3.0]], np.float32)
    assert measure_reach(z, 2).tolist() == [1, 1, 2] and measure_reach(z, 5).tolist() == [3, 2, 3]
    assert len(list_radii(measure_reach(z, 2), "t-SNE")) == 31
    assert list_radii(np.arange(101.0), "none")[::30] == pytest.approx([40, 99])


@pytest.mark.parametrize("choose_eps", ["clusters", "silhouette"])
def test_dense_groups_are_found_without_their_number(choose_eps: str) -> None:
    z = np.concatenate([blobs(200, 200, 200), [[5, 5], [15, -7]]]).astype(np.float32)
    found = cluster(z, VAEDBSCANParams(layout="none", choose_eps=choose_eps))
    labels = found.labels
    groups = [set(labels[i : i + 200].tolist()) - {-1} for i in (0, 200, 400)]
    assert not groups[0] & groups[1] and not groups[1] & groups[2] and labels[-2:].tolist() == [-1, -1]
    assert list(map(len, groups)) == [1, 1, 1] or choose_eps == "clusters"  # which may take one apart
    assert found.confidence[labels < 0].max() == 0 and 0 < found.confidence[labels >= 0].min() <= 1
    core = measure_reach(z, 10) <= found.eps
    assert (found.confidence[core] >= 0.5).all() and (found.confidence[~core] < 0.5).all()


def test_a_given_eps_is_taken() -> None:
    found = cluster(blobs(30, 30), VAEDBSCANParams(eps=50.0))
    assert found.eps == 50 and set(found.labels.tolist()) == {0}


@pytest.mark.parametrize(("layout", "width"), [("t-SNE", 2), ("PCA", 2), ("none", 6)])
def test_layouts_are_the_same_for_equal_seeds(layout: str, width: int) -> None:
    codes = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    a, b = (lay_out(codes, VAEDBSCANParams(layout=layout), 3) for _ in range(2))
    assert a.shape == (40, width) and a.dtype == np.float32 and np.array_equal(a, b)


def test_the_vae_sees_all_images_and_the_clusters_are_of_some() -> None:
    trial = resolve({"method": "vae-dbscan", "dataset": "mnist", "params": {"budget": "cpu"}})
    (vae,) = METHODS["vae-dbscan"].needs(trial)
    assert isinstance(vae, Trial) and (vae.method, vae.limit, vae.epochs, vae.n_clusters) == ("vae", None, 50, 0)
    assert vae == resolve({"method": "vae", "dataset": "mnist", "params": {"budget": "cpu"}})
    assert (trial.limit, trial.n_clusters, trial.epochs) == (5000, 0, 0)
    layouts = [{"layout": layout, "budget": "cpu"} for layout in ("t-SNE", "PCA", "none")]
    trials = [resolve({"method": "vae-dbscan", "dataset": "mnist", "params": params}) for params in layouts]
    assert [t.method for t in add_needs(trials)] == ["vae", *["vae-dbscan"] * 3]
    assert resolve(trial.to_json()) == trial and resolve(trial.to_json() | {"limit": None}).limit is None
    assert resolve({"method": "vae-dbscan", "dataset": "mnist", "limit": 100}).limit == 100


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, TrialFolder, TrialFolder]:
    """A trial of VAE + t-SNE + DBSCAN and its folder, and one of the same that was run again."""
    folder = tmp_path_factory.mktemp("vae")
    trial = resolve(small("vae-dbscan"))
    (vae,) = METHODS["vae-dbscan"].needs(trial)
    assert isinstance(vae, Trial)
    run_trial(vae, TrialFolder(folder / "vae"), machine=CPU)
    for name in ("first", "again"):
        needed = [take_result(TrialFolder(folder / "vae"))]
        assert run_trial(trial, TrialFolder(folder / name), machine=CPU, needed=needed)
    return trial, TrialFolder(folder / "first"), TrialFolder(folder / "again")


def test_a_trial_leaves_clusters_a_layout_and_how_well_neighbours_are_found(
    clustered: tuple[Trial, TrialFolder, TrialFolder],
) -> None:
    rows, path = results_of(clustered[1])
    (row,) = rows.to_pylist()
    assigned = pq.read_table(path / "assignments.parquet")
    with np.load(path / "stn.npz") as figures:
        assert figures["embedding"].shape == (200, 2)
        np.testing.assert_array_equal(figures["clusters"], assigned["cluster"].to_numpy())
    assert (assigned["cluster"].to_numpy() < 0).mean() == row["noise"] and not (path / "model.pt").exists()
    assert row["term_eps"] in TSNE_GRID and 0 < row["acc_majority"] <= row["purity"]
    assert 0 < row["term_precision_layout"] <= 1 and 0 < row["term_precision_codes"] <= 1
    assert row["term_precision_pixels"] > 0.8  # of 200 digits


def test_equal_seeds_give_equal_bytes(clustered: tuple[Trial, TrialFolder, TrialFolder]) -> None:
    (rows, path), (others, other) = map(results_of, clustered[1:])
    assert rows.equals(others)
    for name in ("assignments.parquet", "stn.npz"):
        assert (path / name).read_bytes() == (other / name).read_bytes()


# tables


def make_row(**changes: Any) -> dict[str, Any]:
    """A row of a finished trial of MNIST, as `analysis.runs.ROWS` has it."""
    trial = resolve({"method": "vae-dbscan", "dataset": "mnist", "params": changes.pop("params", {})})
    values = {name: getattr(trial, name) for name in ("method", "dataset", "seed", "limit", "image_size", "epochs")}
    values |= {"trial_id": trial.id, "phase": "cluster", "epoch": 0, "main": True, "n_clusters": 0}
    scores = {"acc": 0.5, "nmi": 0.5, "ari": 0.4, "noise": 0.1, "acc_majority": 0.8, "acc_relabelled": 0.5}
    return values | scores | {"clusters_used": 9, "params": json.dumps(trial.to_json()["params"])} | changes


@pytest.mark.parametrize(
    ("params", "published"),
    [
        ({"budget": "cpu"}, 0.822),
        ({"dimensions": 2, "layout": "none"}, 0.759),
        ({"layout": "PCA"}, None),
    ],
)
def test_the_published_accuracy_stands_beside_ours_in_its_own_column(
    params: dict[str, Any], published: float | None
) -> None:
    row = make_row(params=params)
    assert is_comparable(row) and not is_comparable(row | {"limit": None}) and not is_comparable(row | {"limit": 400})
    system = METHODS["vae-dbscan"].name_system(params)
    found = find_published(system, "mnist", "acc_majority", limit=5000)
    assert (found and found.mean) == published
    assert find_published(system, "mnist", "acc", limit=5000) is None
    assert find_published(system, "mnist", "acc_majority") is None


def test_the_accuracies_of_other_papers_are_shown_where_they_say_something() -> None:
    def table(**changes: Any) -> str:
        row = make_row(**changes)
        names = [f for f in ROWS if f.name not in METRICS.names]
        rows = make_metrics([{k: v for k, v in row.items() if k in METRICS.names}])
        values = {"finished": True, "background": "black"} | row
        for f in names:
            rows = rows.append_column(f, pa.array([values.get(f.name)], f.type))
        return format_results(make_cells(rows))

    told = table()
    assert "majority" in told and ".800" in told and ".822" in told and "VAE(10-d) + t-SNE + DBSCAN" in told
    assert "relabelled" not in told
    told = table(acc_relabelled=0.55)
    assert "relabelled" in told and ".550" in told
    told = table(noise=0.0, params={"layout": "PCA"})
    assert "majority" not in told and "relabelled" not in told


def test_the_grid_of_latent_sizes_shares_its_vaes() -> None:
    trials = load_grid("latent-study").trials
    studied = [trial for trial in trials if trial.method == "vae-dbscan"]
    kinds = {(t.params.dimensions, t.params.layout) for t in studied}  # type: ignore[attr-defined]
    assert kinds == {(d, layout) for d in (2, 10) for layout in ("t-SNE", "PCA", "none")}
    seeds = {t.seed for t in studied}
    assert len([t for t in trials if t.method == "vae"]) == 2 * len(seeds) and len(trials) == 8 * len(seeds)


def test_the_encoder_is_part_of_the_cost() -> None:
    trial = resolve({"method": "vae", "dataset": "mnist"})
    cost = METHODS["vae"].estimate(Task(0, (1, 28, 28), 60_000, trial.params, 500))
    assert cost.macs == pytest.approx(3 * 2 * (784 * 256 + 256 * 128 + 2 * 1280) * 60_000 * 500)
    assert cost.steps == 60_000 and build(0, (1, 28, 28), trial.params).training and AUTOENCODER.takes_k is False

"""DCN, Deep K-Means and VaDE: their losses, updates and schedules against numbers worked out by hand."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.published import find_published, is_comparable
from cluster_jobs.ledger import Ledger
from cluster_jobs.worker import Options, Worker
from export.convert import verify
from export.convert.to_onnx import export_model
from stdac.autoencoders import Autoencoder, EncoderWithCentres
from stdac.errors import StdacError
from stdac.methods import METHODS, add_needs, deep_kmeans, fill_title, resolve
from stdac.methods.dcn import START_COUNT, move_centres, network_loss
from stdac.methods.deep_kmeans import DKMAParams, DKMPParams, joint_loss, soften_assignment
from stdac.methods.vade import EncoderWithMixture, encode, evidence_loss, measure_divergence
from stdac.train import Trainer
from stdac.trial import Trial, write_canonical
from tests.conftest import results_of, small

FAMILY = ("dcn", "vade", "dkm-a", "dkm-p")


class Identity(nn.Module):
    """A code of two pixels, and pixels of a code, that are what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.standardize = nn.Identity()

    def embed(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def scale(self, x: Tensor) -> Tensor:
        return x

    def reconstruct(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (1, 1, 2)) + torch.tensor([0.0, 0.5])


X = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 1.0]]]])  # two images of two pixels
ERROR = 0.25  # of each: .5 in the second pixel


def test_the_loss_of_dcn_by_hand() -> None:
    centre = torch.tensor([[1.0, 0.0], [2.0, 1.0]])  # squared distances 4 and 4
    loss, log = network_loss(Identity(), Identity(), 0.1, X, centre)
    assert loss.item() == pytest.approx(ERROR + 0.1 * 4)
    assert (log["loss_reconstruction"].item(), log["loss_clustering"].item()) == pytest.approx((ERROR, 4))


def test_the_centres_of_dcn_move_as_one_image_after_another_moves_them() -> None:
    centres, counts = torch.tensor([[0.0, 0.0], [10.0, 10.0], [5.0, 5.0]]), torch.full((3,), float(START_COUNT))
    z, clusters = torch.tensor([[1.01, 0.0], [2.02, 0.0], [0.0, 0.0]]), torch.tensor([0, 0, 1])
    moved, after = move_centres(centres, counts, z, clusters)
    first = 0 + (1.01 - 0) / 101  # .01, then
    torch.testing.assert_close(moved[0], torch.tensor([first + (2.02 - first) / 102, 0.0]))
    torch.testing.assert_close(moved[1], torch.tensor([10 - 10 / 101, 10 - 10 / 101]))
    assert moved[2].tolist() == [5, 5] and after.tolist() == [102, 101, 100]


def test_a_step_of_dcn_assigns_anew_with_the_network_that_it_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The centre that the loss is given is the image's; what moves the centres comes after."""
    from stdac.methods import dcn

    seen: list[Any] = []

    def run_phase(_trainer: object, _name: str, state: nn.ModuleDict, optimizer: Any, **rest: Any) -> None:
        members, before = state["members"], model.assign.centres.clone()
        for x, centre in rest["batches"](1):
            seen.append((x, centre, members.clusters.clone(), model.assign.centres.clone(), before))
            with torch.no_grad():
                model.encoder[0].bias.add_(1000)  # the step: all codes are elsewhere
        seen.append((None, None, members.clusters.clone(), model.assign.centres.clone(), before))

    monkeypatch.setattr(dcn, "phase", run_phase)
    torch.manual_seed(0)
    images, params = (
        torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8),
        dcn.DCNParams(width=0.01).resolved("digits"),
    )
    model, autoencoder = EncoderWithCentres(3, (1, 4, 4), width=0.01), Autoencoder((1, 4, 4), width=0.01)
    model.assign.centres.data.copy_(model.embed(images[:3].float() / 255).detach()).requires_grad_(False)
    autoencoder.encoder = model.encoder
    dcn.cluster(model, autoencoder, images, params, SimpleNamespace(epochs=1))  # type: ignore[arg-type]
    (x, centre, clusters, centres, before), (_, _, later, moved, _) = seen
    index = [int((images.float() / 255 == one).all((1, 2, 3)).nonzero()) for one in x]  # which images they are
    assert torch.equal(centres, before) and torch.equal(centre, before[clusters[index]])
    assert not torch.equal(moved, before), "codes of the network after its step"
    z = model.embed(images.float() / 255).detach()
    torch.testing.assert_close(moved, move_centres(before, torch.full((3,), 100.0), z, later)[0])


def test_the_assignment_of_deep_k_means_by_hand() -> None:
    distance = torch.tensor([[1.0, 2.0], [500.0, 100.0]])
    g = soften_assignment(distance, torch.tensor(2.0))
    wanted = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(g, torch.tensor([[wanted, 1 - wanted], [0.0, 1.0]]))
    assert bool(soften_assignment(distance * 1e4, torch.tensor(1000.0)).isfinite().all())


def test_the_loss_of_deep_k_means_and_its_gradient_by_hand() -> None:
    model = EncoderWithCentres(2, (1, 1, 2), dimensions=2, width=0.001)
    model.assign.centres.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    model.embed = lambda x: x.flatten(1)  # type: ignore[method-assign]
    x = torch.tensor([[[[0.5, 1.0]]], [[[0.0, 1.0]]]])  # squared distances 1.25, 1.25 and 1, 2
    loss, log = joint_loss(model, Identity(), 3.0, x, torch.tensor(2.0))
    g = 1 / (1 + math.exp(-2))
    spread = (1.25 + g * 1 + (1 - g) * 2) / 2
    assert loss.item() == pytest.approx(ERROR + 3 * spread) and log["term_alpha"].item() == 2
    log["loss_clustering"].backward()
    # d/dr of G_1 d_1 + G_2 d_2, with dG_1 / dd_1 = -α G_1 G_2: the second image's share of the first representative
    of_second = (g + -2 * g * (1 - g) * (1 - 2)) * -2 * (1.0 - 0.0)
    of_first = (0.5 + -2 * 0.25 * 0.0) * -2 * (1.0 - 0.0)
    assert float(model.assign.centres.grad[0, 1]) == pytest.approx((of_first + of_second) / 2, rel=1e-5)


@pytest.mark.parametrize(("start", "end"), [(0.01, 2.81), (0.1, 28.1), (0.5, 140.7), (1, 281.3)])
def test_the_alphas_of_dkm_a_end_where_the_report_has_them(start: float, end: float) -> None:
    alphas = DKMAParams(alpha=start).list_alphas()
    assert len(alphas) == 40 and alphas[1] / alphas[0] == pytest.approx(4.23, abs=0.005)
    assert alphas[-1] == pytest.approx(end, rel=2e-3)


def test_an_epoch_has_its_alpha_however_many_there_are() -> None:
    params = DKMAParams(alpha=1).resolved("mnist")
    alphas = params.list_alphas()
    assert [params.find_alpha(epoch) for epoch in (1, 5, 6, 200, 201, 999)] == [
        *(alphas[0], alphas[0], alphas[1], alphas[39], alphas[39], alphas[39])
    ]
    assert set(DKMPParams(alpha=30).list_alphas()) == {30}


@pytest.mark.parametrize(
    ("method", "params", "epochs"),
    [
        ("dkm-a", {}, 200),
        ("dkm-a", {"epochs_per_alpha": 1}, 40),
        ("dkm-a", {"budget": "cpu", "alpha_values": 7}, 7),
        ("dkm-p", {}, 100),
        ("dkm-p", {"budget": "cpu"}, 20),
        ("vade", {}, 300),
        ("vade", {"budget": "cpu"}, 30),
        ("dcn", {"budget": "cpu"}, 50),
    ],
)
def test_epochs_follow_from_the_parameters_unless_they_are_given(
    method: str, params: dict[str, Any], epochs: int
) -> None:
    spec = {"method": method, "dataset": "mnist", "params": params}
    trial = resolve(spec)
    assert trial.epochs == epochs and resolve({**spec, "epochs": 3}).epochs == 3
    assert resolve(trial.to_json()) == trial


GAUSSIANS = {"means": [[0.0], [2.0]], "log_variances": [[0.0], [math.log(4)]], "logits": [0.0, math.log(3)]}


def tiny_mixture() -> EncoderWithMixture:
    """Two Gaussians on codes of one dimension: .25 N(0, 1) + .75 N(2, 4)."""
    model = EncoderWithMixture(2, (1, 1, 2), 0.001, 1, 1.0)
    for name, values in GAUSSIANS.items():
        getattr(model.assign, name).data.copy_(torch.tensor(values))
    return model


def density(z: float, mean: float, variance: float) -> float:
    return math.exp(-((z - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def test_the_posterior_of_vade_by_hand() -> None:
    first, second = 0.25 * density(1, 0, 1), 0.75 * density(1, 2, 4)
    gamma = tiny_mixture().classify(torch.tensor([[1.0], [1e4]]))
    assert gamma[0].tolist() == pytest.approx([first / (first + second), second / (first + second)], rel=1e-5)
    assert gamma[1].tolist() == [0, 1], "far from both: no 0 / 0"


def test_the_divergence_of_vade_by_hand() -> None:
    z, mean, variance = 1.0, 0.5, 0.25
    joint = [0.25 * density(z, 0, 1), 0.75 * density(z, 2, 4)]
    gammas = [p / sum(joint) for p in joint]
    wanted = -0.5 * (1 + math.log(variance))
    for gamma, m, v, weight in zip(gammas, (0, 2), (1, 4), (0.25, 0.75), strict=True):
        wanted += gamma * 0.5 * (math.log(2 * math.pi) + math.log(v) + variance / v + (mean - m) ** 2 / v)
        wanted += gamma * (math.log(gamma) - math.log(weight))
    values = (torch.tensor([[value]]) for value in (z, mean, math.log(variance)))
    assert measure_divergence(tiny_mixture().assign, *values).item() == pytest.approx(wanted, rel=1e-5)


def test_the_loss_of_vade_is_of_a_code_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mixture()
    spread = nn.Linear(model.encoder[-1].in_features, 1)
    autoencoder = Autoencoder((1, 1, 2), width=0.001, dimensions=1)
    autoencoder.encoder = model.encoder
    x = torch.tensor([[[[0.25, 1.0]]]])
    mean, log_variance = encode(model, spread, x)
    torch.testing.assert_close(mean, model.embed(x))
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, 2.0))
    z = mean + 2 * (log_variance / 2).exp()
    y = autoencoder.reconstruct(z).sigmoid().flatten().tolist()
    error = -(0.25 * math.log(y[0]) + 0.75 * math.log(1 - y[0]) + math.log(y[1]))  # a sum over pixels
    divergence = measure_divergence(model.assign, z, mean, log_variance).item()
    loss, log = evidence_loss(model, autoencoder, spread, x)
    assert float(log["loss_reconstruction"]) == pytest.approx(error, rel=1e-5)
    assert loss.item() == pytest.approx(error + divergence, rel=1e-5)


def test_the_networks_have_the_sizes_of_the_papers() -> None:
    layers = [784 * 500 + 500, 500 * 500 + 500, 500 * 2000 + 2000, 2000 * 10 + 10]
    for method in FAMILY:
        trial = resolve({"method": method, "dataset": "mnist"})
        model: Any = METHODS[method].build(10, (1, 28, 28), trial.params)  # type: ignore[misc]
        assert sum(p.numel() for p in model.encoder.parameters()) == sum(layers) == 1_665_010, method
    assert sum(p.numel() for p in model.assign.parameters()) == 100
    mixture: Any = METHODS["vade"].build(10, (1, 28, 28), resolve({"method": "vade", "dataset": "mnist"}).params)  # type: ignore[misc]
    assert sum(p.numel() for p in mixture.assign.parameters()) == 10 + 100 + 100


def test_those_that_start_from_an_autoencoder_share_it() -> None:
    specs = [{"method": m, "dataset": "mnist", "n_clusters": k} for m in ("dcn", "dkm-p", "ae-kmeans") for k in (5, 10)]
    trials = add_needs(resolve(spec) for spec in specs)
    assert [trial.method for trial in trials].count("autoencoder") == 1 and len(trials) == 7
    (needed,) = METHODS["vade"].needs(resolve({"method": "vade", "dataset": "mnist"}))
    assert isinstance(needed, Trial) and needed.params.output == "sigmoid" and needed.epochs == 100  # type: ignore[attr-defined]
    assert resolve({"method": "dkm-a", "dataset": "mnist"}).needs == ()
    layered = resolve({"method": "dcn", "dataset": "mnist", "params": {"recipe": "dcn"}})
    assert METHODS["dcn"].needs(layered)[0].epochs == 250  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("dcn", {"beta": -1.0}, "got beta = -1.0, expected at least 0"),
        ("dcn", {"optimizer": "sgd"}, "got optimizer = 'sgd', expected adam or nesterov"),
        ("dkm-a", {"alpha": 0.0}, "got alpha = 0.0, expected a number above 0"),
        ("dkm-a", {"budget": "gpu"}, "got budget = 'gpu', expected one of published, cpu"),
        ("dkm-p", {"epochs_per_alpha": 0}, "got epochs_per_alpha = 0, expected at least 1"),
        ("dkm-p", {"restarts": 0}, "got restarts = 0, expected at least 1"),
        ("vade", {"starts": 0}, "got starts = 0, expected at least 1"),
        ("vade", {"recipe": "dec"}, r"got recipe = 'dec', expected one that leaves pixels in \[0, 1\]"),
    ],
)
def test_parameters_out_of_range_are_refused(method: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(StdacError, match=said):
        resolve({"method": method, "dataset": "digits", "params": params})


# trials, and their models


def finish(folder: Path, *specs: dict[str, Any]) -> Ledger:
    """A run folder with these trials, and those that they need, done."""
    ledger = Ledger(folder)
    ledger.plan(add_needs(map(resolve, specs)), "")
    Worker(ledger.path, Options("cpu", 1)).work()
    assert set(ledger.states().values()) == {"done"}
    return ledger


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """A small trial of VaDE, and its autoencoder."""
    return finish(tmp_path_factory.mktemp("family") / "run", small("vade"))


def test_a_mixture_is_exported(done: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have the model of DEC."""
    monkeypatch.setattr(verify, "LARGEST_BATCH", 100)
    _, path = results_of(done.folder(resolve(small("vade")).id))
    export_model(path / "model.pt", tmp_path / "model.onnx")  # which compares it with torch


# published values


def row_of(**changes: Any) -> dict[str, Any]:
    """What `is_comparable` reads of a trial's row."""
    trial = resolve({"dataset": "mnist", **changes})
    told = {name: getattr(trial, name) for name in ("method", "dataset", "limit", "image_size", "n_clusters", "epochs")}
    return told | {"params": write_canonical(trial.to_json()["params"])}


@pytest.mark.parametrize(
    ("method", "alpha", "published"),
    [
        *(("dkm-a", 0.01, 0.39377), ("dkm-a", 0.1, 0.73666), ("dkm-a", 0.5, 0.30717), ("dkm-a", 1, 0.20893)),
        *(("dkm-p", 3, 0.36127), ("dkm-p", 30, 0.83896), ("dkm-p", 150, 0.85026), ("dkm-p", 300, 0.849)),
    ],
)
def test_the_configurations_of_the_report_are_found(method: str, alpha: float, published: float) -> None:
    for params in ({"alpha": alpha, "epochs_per_alpha": 1}, {"alpha": alpha}, {"alpha": alpha, "budget": "cpu"}):
        row = row_of(method=method, params=params)
        assert is_comparable(row)
    value = find_published(fill_title(method, {"alpha": alpha}), "mnist", "acc")
    assert value is not None and value.mean == published


def test_a_number_of_clusters_has_a_published_value_of_its_own() -> None:
    label = fill_title("dkm-p", {"alpha": 150})
    found = {k: find_published(label, "mnist", "acc", k=k) for k in (2, 5, 10, 20)}
    assert [value and value.mean for value in found.values()] == [0.21, 0.49, 0.85026, None]
    relabelled = find_published(label, "mnist", "acc_relabelled", k=20)
    assert relabelled is not None and relabelled.mean == 0.56
    assert find_published("DEC", "mnist", "acc", k=5) is None
    assert is_comparable(row_of(method="dkm-p", n_clusters=5, params={"alpha": 150}))


@pytest.mark.parametrize(("method", "acc"), [("dcn", 0.83), ("vade", 0.945)])
def test_dcn_and_vade_have_their_published_values(method: str, acc: float) -> None:
    value = find_published(fill_title(method, {}), "mnist", "acc")
    assert value is not None and value.mean == acc
    assert is_comparable(row_of(method=method)) and is_comparable(row_of(method=method, params={"budget": "cpu"}))
    assert not is_comparable(row_of(method=method, epochs=7))
    assert fill_title(method, {"budget": "cpu"}).endswith(", cpu budget")


def test_dkm_a_begins_at_glorot_weights_and_uniform_representatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """One set of weights, of the autoencoder: the encoder that is trained is the one that was initialised."""
    seen: list[Any] = []
    monkeypatch.setattr(deep_kmeans, "train", lambda *given: seen.append(given))
    torch.manual_seed(0)
    trial = resolve({"method": "dkm-a", "dataset": "digits"})
    deep_kmeans.fit_annealed(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), 10, trial.params, Trainer(0, 1, None))  # type: ignore[arg-type]
    model, autoencoder = seen[0][:2]
    assert model.encoder is autoencoder.encoder
    assert float(model.encoder[2].weight.std().detach()) == pytest.approx((2 / 1000) ** 0.5, rel=0.02)
    assert not model.encoder[2].bias.any() and float(model.assign.centres.abs().max().detach()) <= 1

"""The autoencoder that a family of methods starts from: its networks, its recipes, and who shares it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.cells import make_cells
from analysis.published import is_comparable
from analysis.runs import read_metrics
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.worker import Options, Worker
from stdac.autoencoders import Autoencoder, ConvDecoder, ConvEncoder, EncoderWithCentres, measure_maps
from stdac.errors import StdacError
from stdac.methods import METHODS, add_needs, fill_params, resolve
from stdac.methods.autoencoder import (
    AutoencoderParams,
    Recipe,
    build,
    follow_recipe,
    layer_loss,
    make_optimizer,
    reconstruction_loss,
)
from stdac.methods.dec import divergence_loss
from stdac.methods.method import BUDGETS
from stdac.results import take_result
from stdac.trial import write_canonical
from tests.conftest import PRETRAINED


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_dense_autoencoder_has_the_published_layers() -> None:
    model = Autoencoder((1, 28, 28))
    assert [tuple(p.shape) for p in model.encoder.parameters() if p.ndim == 2] == [
        (500, 784), (500, 500), (2000, 500), (10, 2000)
    ]  # fmt: skip
    assert count(model.encoder) == 784 * 500 + 500 + 500 * 500 + 500 + 500 * 2000 + 2000 + 2000 * 10 + 10
    assert count(model.decoder) == 10 * 2000 + 2000 + 2000 * 500 + 500 + 500 * 500 + 500 + 500 * 784 + 784


def test_the_convolutional_autoencoder_has_the_published_size() -> None:
    encoder, decoder = ConvEncoder((1, 28, 28), 10), ConvDecoder((1, 28, 28), 10)
    assert count(encoder) == 832 + 51_264 + 73_856 + 11_530
    assert count(encoder) + count(decoder) == 275_979  # .276 million
    assert measure_maps((1, 28, 28)) == [(28, 28), (14, 14), (7, 7), (3, 3)]
    assert measure_maps((1, 32, 32)) == [(32, 32), (16, 16), (8, 8), (4, 4)]  # 32 divides by 8: padded, too


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (9, 9), (10, 17), (22, 30), (40, 33)])
def test_the_convolutional_autoencoder_gives_back_the_size_that_it_got(size: tuple[int, int]) -> None:
    shape = (3, *size)
    x = torch.rand(2, *shape)
    z = ConvEncoder(shape, 5, 0.1)(x)
    assert z.shape == (2, 5) and ConvDecoder(shape, 5, 0.1)(z).shape == x.shape


def test_padding_is_that_of_same_convolutions() -> None:
    """TensorFlow pads 28 pixels for 5×5 with stride 2 by 1 before and 2 after: the first output sees pixels 0 to 3."""
    encoder = ConvEncoder((1, 28, 28), 10, 0.1)
    with torch.no_grad():
        for conv in encoder.convs:
            conv.weight.fill_(1)
            conv.bias.zero_()
    seen = []
    encoder.convs[0].register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 3, 3], x[0, 0, 4, 4] = 1, 10
    encoder(x)
    padded, y = seen[0]
    assert padded.shape[2:] == (31, 31) and y.shape[2:] == (14, 14)
    assert y[0, 0, 0, 0] == 1 and y[0, 0, 1, 1] == 11


def test_too_small_images_are_told() -> None:
    with pytest.raises(
        StdacError, match=r"^images are 8x4 pixels, but the convolutional autoencoder needs at least 9x9"
    ):
        ConvEncoder((1, 8, 4), 10)


# losses, by hand


def tiny() -> Autoencoder:
    """Two pixels, a code of one number: z = 2a + b, and back (z, 3z)."""
    model = Autoencoder((1, 1, 2), dimensions=1)
    model.encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1, bias=False))
    model.decoder = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Unflatten(1, (1, 1, 2)))
    with torch.no_grad():
        model.encoder[1].weight.copy_(torch.tensor([[2.0, 1.0]]))
        model.decoder[0].weight.copy_(torch.tensor([[1.0], [3.0]]))
    return model


X = torch.tensor([[[[0.5, 0.0]]], [[[0.0, 1.0]]]])  # codes 1 and 1; reconstructions (1, 3)


def test_the_reconstruction_loss_is_the_one_worked_out_by_hand() -> None:
    loss, log = reconstruction_loss(tiny(), AutoencoderParams(), X)
    # (.5² + 3² + 1² + 2²) / 4
    assert float(loss.detach()) == float(log["loss_reconstruction"].detach()) == pytest.approx(14.25 / 4)
    loss, _ = reconstruction_loss(tiny(), AutoencoderParams(output="sigmoid"), X)
    s1, s3 = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))
    by_hand = -(0.5 * np.log(s1) + 0.5 * np.log(1 - s1) + np.log(1 - s3) + np.log(1 - s1) + np.log(s3)) / 4
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-5)


def test_the_loss_of_idec_is_the_one_worked_out_by_hand() -> None:
    autoencoder = tiny()
    model = EncoderWithCentres(2, (1, 1, 2), dimensions=1)
    model.encoder = autoencoder.encoder
    model.assign.centres.data.copy_(torch.tensor([[1.0], [2.0]]))  # q = (1, 1/2) / 1.5 for both
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    kl = (np.log(1 / (2 / 3)) + 0.5 * np.log(0.5 / (2 / 3)) + 0.5 * np.log(0.5 / (1 / 3))) / 2
    loss, log = divergence_loss(model, autoencoder, "none", 0.0, X, p)
    assert float(loss.detach()) == pytest.approx(kl, rel=1e-5) and set(log) == {"loss_clustering"}
    loss, log = divergence_loss(model, autoencoder, "none", 10.0, X, p)
    assert float(loss.detach()) == pytest.approx(kl + 10 * 14.25 / 4, rel=1e-5)
    assert float(log["loss_reconstruction"].detach()) == pytest.approx(14.25 / 4)


def test_a_layer_alone_is_linear_only_at_the_code_and_at_the_pixels() -> None:
    pair = torch.nn.ModuleDict({"encode": torch.nn.Linear(1, 1, False), "decode": torch.nn.Linear(1, 1, False)})
    pair["encode"].weight.data.fill_(-1)
    pair["decode"].weight.data.fill_(1)
    x = torch.tensor([[2.0]])  # code -2, or 0 behind a ReLU
    assert float(layer_loss(pair, 0.0, (False, True), x)[0].detach()) == 4  # (0 - 2)²
    assert float(layer_loss(pair, 0.0, (True, True), x)[0].detach()) == 16  # (-2 - 2)²
    assert float(layer_loss(pair, 0.0, (True, False), x)[0].detach()) == 4


def test_a_recipe_sets_rate_and_momentum_before_each_step() -> None:
    layer = torch.nn.Linear(1, 1)
    recipe = Recipe("normal", "nesterov", 0.1, decay_steps=4, warm_up=2)
    optimizer = make_optimizer(layer, recipe)
    seen = [
        [(round(g["lr"], 6), g["momentum"], g["nesterov"]) for g in optimizer.param_groups]
        for epoch in (1, 2)
        for _ in follow_recipe(iter([torch.zeros(1)] * 3), optimizer, recipe, epoch, 3)
    ]
    weights, biases = zip(*seen, strict=True)
    assert weights == ((0.1, 0.0, False),) * 2 + ((0.1, 0.9, True),) * 2 + ((0.01, 0.9, True),) * 2
    assert [rate for rate, _, _ in biases] == [0.2] * 4 + [0.02] * 2


def test_weights_are_drawn_as_a_recipe_says() -> None:
    torch.manual_seed(0)
    for recipe, spread in (("dec", 0.01), ("dcn", 500**-0.5), ("sgd", 500**-0.5 / 3**0.5), ("adam", (2 / 1000) ** 0.5)):
        model = build(0, (1, 28, 28), AutoencoderParams(recipe=recipe))
        assert float(model.encoder[2].weight.std().detach()) == pytest.approx(spread, rel=0.05), recipe
        assert not model.encoder[2].bias.any()
    assert float(build(0, (1, 28, 28), AutoencoderParams(recipe="dec")).scale(torch.ones(()))) == pytest.approx(5.1)


# who shares it


def name(method: str, **more: Any) -> str:
    params = {"budget": "cpu"} | more.pop("params", {})
    return resolve({"method": method, "dataset": "mnist", "params": params} | more).needs[0]


def test_methods_of_one_seed_share_an_autoencoder_whatever_their_k() -> None:
    shared = [name(m, n_clusters=k) for m in ("ae-kmeans", "dec", "idec") for k in (2, 10, 20)]
    assert len(set(shared)) == 1
    others = [name("fcdec-da"), name("convdec-da"), name("dec", seed=1), name("dec", params={"dimensions": 5})]
    assert len({*shared, *others}) == 5
    trials = add_needs([resolve({"method": m, "dataset": "mnist", "params": {"budget": "cpu"}}) for m in PRETRAINED])
    assert sum(t.method == "autoencoder" for t in trials) == 4  # with VaDE's, whose output is a sigmoid
    assert all(t.n_clusters == 0 and t.epochs == 50 + 50 * (t.params.augmentation != "none") for t in trials[:1])


def test_the_published_budget_has_the_sources_pretraining() -> None:
    for method, recipe, epochs in (("ae-kmeans", "adam", 50), ("dec", "sgd", 500), ("convdec-da", "adam", 500)):
        params: Any = resolve({"method": method, "dataset": "mnist"}).params
        assert (params.recipe, params.pretrain_epochs) == (recipe, epochs), method


def test_a_budget_that_shortens_nothing_is_none() -> None:
    for method in ("ae-kmeans", "dcn"):
        published, cpu = (
            resolve({"method": method, "dataset": "mnist", "params": {"budget": budget}}) for budget in BUDGETS
        )
        assert published == cpu
    layers = {"recipe": "dcn", "budget": "cpu"}
    assert resolve({"method": "dcn", "dataset": "mnist", "params": layers}).params.budget == "cpu"


def test_a_budget_stands_in_the_title_beside_the_published_value() -> None:
    method = METHODS["dec"]
    assert method.fill_title({}) == "DEC" and method.fill_title({"budget": "cpu"}) == "DEC, cpu budget"
    assert method.name_system({"budget": "cpu"}) == "DEC"

    def comparable(**params: Any) -> bool:
        trial = resolve({"method": "dec", "dataset": "mnist", "params": params})
        row = {"dataset": "mnist", "limit": None, "image_size": None, "method": "dec", "n_clusters": 10, "epochs": 125}
        return is_comparable(row | {"params": write_canonical(fill_params("dec", trial.to_json()["params"]))})

    assert comparable() and comparable(budget="cpu")
    assert not comparable(width=0.5) and not comparable(budget="cpu", pretrain_epochs=7)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"method": "dec", "params": {"budget": "gpu"}}, "got budget = 'gpu', expected one of published, cpu"),
        ({"method": "autoencoder", "n_clusters": 10}, "got n_clusters = 10, but method autoencoder is not given"),
        ({"method": "autoencoder", "params": {"recipe": "x"}}, "got recipe = 'x', expected one of adam, sgd, dec, dcn"),
        ({"method": "autoencoder", "params": {"network": "conv", "recipe": "dec"}}, "got recipe = 'dec' for network"),
        ({"method": "idec", "params": {"pretrain_epochs": 0}}, "got pretrain_epochs = 0, expected at least 1"),
        ({"method": "dec", "params": {"optimizer": "lion"}}, "got optimizer = 'lion', expected sgd or adam"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(StdacError) as caught:
        resolve({"dataset": "digits"} | spec)
    assert str(caught.value).startswith(said)


def test_a_grid_over_k_pretrains_once_a_seed(tmp_path: Path) -> None:
    (tmp_path / "k.toml").write_text(
        '[[trials]]\nmethod = "ae-kmeans"\ndataset = "digits"\nlimit = 100\nn_clusters = [2, 5]\nseeds = 2\n'
        "params = { width = 0.05, pretrain_epochs = 2, restarts = 2 }\n"
        '[[trials]]\nmethod = "committee"\ndataset = "digits"\nlimit = 100\n'
        'params.members = [{ method = "kmeans" }, { method = "autoencoder", params = { width = 0.05 }, epochs = 2 }]\n'
    )
    ledger, grid = Ledger(tmp_path / "run"), load_grid(str(tmp_path / "k.toml"))
    methods = [t.method for t in grid.trials]
    assert methods.count("autoencoder") == 2 and methods.count("ae-kmeans") == 4
    ledger.plan(grid.trials, grid.text)
    Worker(ledger.path, Options("cpu", 1)).work()
    failed = ledger.status(grid.trials[-1].id)
    assert failed.state == "failed" and "of method autoencoder clusters nothing" in str(failed.detail["reason"])
    labels = [cell.label for cell in make_cells(read_metrics(ledger.path))]
    assert labels == ["k-means", "AE + k-means, n_clusters 2", "AE + k-means, n_clusters 5"]
    codes = [take_result(ledger.folder(t.id)).load_model() for t in grid.trials if t.method == "autoencoder"][:2]
    assert not torch.equal(codes[0].encoder[0].weight, codes[1].encoder[0].weight)

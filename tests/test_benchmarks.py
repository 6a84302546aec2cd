"""The benchmarks compare the same algorithm, and their floors are what the sources say."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import floor, methods, plain, step_profile, theirs, train
from stdac.augment import AUGMENTATIONS, augment
from stdac.methods import resolve
from stdac.methods.pairwise import CleanPass
from stdac.methods.st_dac import STDACParams, loss
from stdac.networks import STDACNet
from stdac.train import Trainer

WIDTH = 0.1
STNS = pytest.mark.parametrize("stn", [0, 1, 2, 3])


def twins(stn: int) -> tuple[STDACNet, plain.PlainNet]:
    """Our network and the plain one with the same weights, away from their starts and without dropout."""
    torch.manual_seed(stn)
    ours = STDACNet(10, (1, 28, 28), stn=stn, width=WIDTH, dropout=0.0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    theirs = plain.PlainNet(10, (1, 28, 28), stn=stn, width=WIDTH, dropout=0.0)
    theirs.load_state_dict(dict(ours.named_parameters()))
    return ours, theirs


def digits(n: int) -> Tensor:
    """Images (n, 1, 28, 28) float32, standardised, that are smooth: samplers agree on them as closely as they can."""
    torch.manual_seed(n)
    coarse = torch.rand(n, 1, 7, 7)
    x = torch.nn.functional.interpolate(coarse, 28, mode="bilinear")
    return x - x.mean()


def run() -> Trainer:
    return Trainer(0, 1, recorder=None)  # type: ignore[arg-type]  # nothing is recorded here


@STNS
def test_the_plain_network_has_stdacs_parameters_and_label_features(stn: int) -> None:
    ours, theirs = twins(stn)
    images = digits(96)
    expected = CleanPass(ours, 32, run())(images)
    torch.testing.assert_close(plain.label_features(theirs, images), expected, atol=1e-5, rtol=1e-4)


@STNS
def test_a_step_of_the_plain_network_has_stdacs_loss_and_gradients(stn: int) -> None:
    ours, theirs = twins(stn)
    clean, index, tau = digits(64), torch.arange(5, 37), torch.tensor(0.9)
    labels = torch.randn(64, 10).mul(3).softmax(1)
    params = resolve({"dataset": "mnist", "params": {"stn": stn, "width": WIDTH, "augmentation": "none"}}).params
    assert isinstance(params, STDACParams)
    expected, _ = loss(ours, params, index, clean, labels, tau)
    value = plain.loss(theirs(clean[index]), labels[index], tau)
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    expected.backward()
    value.backward()
    whole = torch.stack([p.grad.norm() for p in ours.parameters() if p.grad is not None]).norm()
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None, name
        # bilinear sampling has kinks: a coordinate that rounds to the other side of a pixel has another gradient;
        # a bias before batch normalisation has none but rounding
        assert (parameter.grad - other.grad).norm() <= 0.1 * parameter.grad.norm() + 1e-4 * whole, name


def test_the_plain_augmentation_draws_and_computes_what_stdacs_does() -> None:
    images = digits(200)
    torch.manual_seed(3)
    expected = augment(images, AUGMENTATIONS["dac-mnist"])
    torch.manual_seed(3)
    differs = (plain.augment(images) - expected).abs() > 1e-6
    assert differs.float().mean() < 1e-4, "more than a coordinate on the edge between two pixels, here and there"


def test_plain_training_lowers_its_loss() -> None:
    torch.manual_seed(0)
    net, images = plain.PlainNet(10, (1, 28, 28), stn=2, width=WIDTH), digits(320)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    take = partial(plain.steps, net, optimizer, images, plain.label_features(net, images), 0.9)
    first = torch.stack(list(take())).mean()
    for _ in range(4):
        last = torch.stack(list(take())).mean()
    assert last < first


def test_the_floor_of_st_dac_is_the_sources() -> None:
    cost = floor.st_dac(2)
    assert cost.steps == 21_700
    assert cost.update.bytes == pytest.approx(1.1e9, rel=0.01)
    gpu = floor.H200["bfloat16"]
    assert gpu.floor(cost.update) == pytest.approx(0.25e-3, rel=0.03)
    assert gpu.floor(cost.update) * cost.steps == pytest.approx(6, abs=0.5)
    assert sum(work.flop for work in cost.trial) == pytest.approx(0.53e15, rel=0.02)  # 0.52 and two passes more


def test_the_floor_of_dac_star_is_the_sources() -> None:
    cost = floor.dac_star()
    assert cost.steps == 56_000
    assert sum(work.flop for work in cost.trial) == pytest.approx(2.7e15, rel=0.02)


def test_arithmetic_and_memory_at_once_take_no_longer_than_in_turn() -> None:
    rates = floor.Rates("test", 2.0, 1.0)
    work = floor.Work(6.0, 5.0)
    assert rates.floor(work) == 5
    assert rates.in_turn(work) == 8
    assert rates.floor(work, work.times(2)) == 15


def measurement(kind: str, **found: object) -> dict[str, object]:
    """A run as `benchmarks.train` writes it to its file."""
    setting = {"stn": 2, "device": "cpu", "precision": "float32", "threads": 2}
    about = {"device": "a CPU", "date": "2026-01-01", "commit": "abc"}
    rates = {"name": "a CPU", "flop": 1e11, "bytes": 2e10}
    return {"kind": kind, "setting": setting, "about": about, "rates": rates, **found}


def test_contenders_are_compared_within_a_round_and_with_the_floor() -> None:
    times = {"ours": {"step": [0.2, 0.4], "label": [2.0, 4.0]}, "a": {"step": [0.4, 1.2], "label": [5.0, 8.0]}}
    text = train.tables({"contenders, 2 STN": measurement("contenders", seconds=times)})
    assert "| 800 (400–1,200) | 2.50 (2.00–3.00)× | 5.8× | 6,500 (5,000–8,000) | 2.25 (2.00–2.50)× |" in text
    assert "floor at 100 GFLOP/s, 20 GB/s (in turn) | 138 (217) |" in text


def test_processes_are_compared_by_what_they_do_together() -> None:
    times = {"1": {"step": [0.1, 0.1], "label": [1.0, 1.0]}, "2": {"step": [0.1, 0.2], "label": [1.0, 2.0]}}
    text = train.tables({"2 STN": measurement("processes", seconds=times, threads={"1": 2, "2": 1})})
    assert "| 1 × 2 | 320 | 1.00 (1.00–1.00)× | 992 | 1.00 (1.00–1.00)× |" in text
    assert "| 2 × 1 | 480 | 1.50 (1.00–2.00)× | 1.49e+03 | 1.50 (1.00–2.00)× |" in text


@pytest.mark.parametrize(
    ("name", "chain", "part"),
    [
        ("aten::convolution_backward kernel 5", [], "convolutions of the localisation nets"),
        ("aten::mkldnn_convolution", [], "convolutions"),
        ("aten::addmm", [], "dense layers"),
        ("aten::mm small", [], "dense layers of the localisation nets, grids"),
        ("aten::copy_", ["aten::copy_", "Optimizer.step#Adam.step"], "Adam"),
        ("graph_1_cpp_fused_clone_gather_index_round_2", [], "augmentation"),
        (
            "graph_1_cpp_fused__native_batch_norm_legit_convolution_backward_relu_9",
            [],
            "batch norm, pooling, ReLU, dropout",
        ),
        ("aten::grid_sampler_2d_backward", [], "sampling (and what is fused with it)"),
        ("Torch-Compiled Region: 1/0", [], step_profile.REST),
    ],
)
def test_the_profile_knows_which_part_an_event_belongs_to(name: str, chain: list[str], part: str) -> None:
    assert step_profile.part_of(name, chain) == part


# --- ours and ClustPy's

FEW = methods.Setting(limit=100, batch=32, threads=1, dataset="digits")


@pytest.mark.parametrize("method", methods.METHOD)
def test_an_epoch_of_ours_is_as_many_mini_batches_as_the_images_are(method: str) -> None:
    """Of the network of the sources: 784-500-500-2000-10, and the way back."""
    trial = methods.make_trial(method, FEW, epochs=7, pretrain=3, seed=5)
    params: Any = trial.params
    assert (trial.epochs, trial.seed, params.batch, params.width, params.dimensions) == (7, 5, 32, 1.0, 10)
    assert getattr(params, "update_interval", 4) == 4 and getattr(params, "pretrain_epochs", 3) == 3


def test_ours_takes_turns_and_answers_the_seconds_of_each_epoch() -> None:
    found = methods.measure("DEC", FEW, 2, ["ours"])
    assert set(found) == {"ours"} and all(len(seconds) == 2 for seconds in found["ours"].values())
    alone, evaluated = found["ours"]["cpu"], found["ours"]["cpu_evaluated"]
    assert all(0 < less < more for less, more in zip(alone, evaluated, strict=True))


def test_an_autoencoder_is_shared_by_those_that_start_from_it() -> None:
    labels = methods.cluster_by_ours(["DEC", "DeepKMeansP"], FEW, 2, 1, 0)
    assert {name: (found.shape, int(found.max()) < 10) for name, found in labels.items()} == {
        "DEC": ((100,), True),
        "DeepKMeansP": ((100,), True),
    }


def test_speed_is_compared_within_a_round() -> None:
    seconds = {
        "ours": {"clock": [1.0, 2.0], "cpu": [1.0, 1.0]},
        "compiled": {"clock": [0.5, 1.0], "cpu": [0.5, 0.5]},
        "clustpy": {"clock": [3.0, 2.0], "cpu": [2.0, 4.0]},
    }
    evaluated = {
        kind: found | {"cpu_evaluated": [1.0, 1.0], "clock_evaluated": [2.0, 2.0]} for kind, found in seconds.items()
    }
    text = methods.write_speed({"pretrain": seconds, "DEC": evaluated})
    expected = "| 1.00 | 0.50 | 3.00 | 3.00 (2.00–4.00)× | 2.00 (1.00–3.00)× | 6.00 (4.00–8.00)× | 4.00 (2.00–6.00)× |"
    assert f"| pre-training {expected}" in text and f"| DEC {expected}" in text
    assert "| DEC, with the pass for its targets | 1.00 | 1.00 | 1.00 | 1.00 (1.00–1.00)× |" in text


def test_accuracies_stand_side_by_side() -> None:
    text = methods.write_accuracy([{"DEC": {"ours": 0.8, "clustpy": 0.7}}, {"DEC": {"ours": 0.6, "clustpy": 0.7}}])
    assert "| DEC | 0.800 0.600 | 0.700 | 0.700 0.700 | 0.700 |" in text


@pytest.mark.skipif("STDAC_CLUSTPY" not in os.environ, reason="STDAC_CLUSTPY names no folder that ClustPy lies in")
@pytest.mark.parametrize("method", methods.METHOD)
def test_clustpys_network_is_ours_and_an_epoch_of_it_trains(method: str) -> None:
    deep = theirs.import_clustpy(Path(os.environ["STDAC_CLUSTPY"]))
    sizes = [p.numel() for p in theirs.make_network(deep, method == "VaDE", 0).parameters()]
    ours = methods.METHODS["autoencoder"].build
    assert ours is not None
    trial = methods.make_trial("pretrain", FEW, epochs=1)
    spread = 2000 * 10 + 10 if method == "VaDE" else 0  # the head for the codes' variances
    assert sum(sizes) == sum(p.numel() for p in ours(0, (1, 28, 28), trial.params).parameters()) + spread
    epoch = theirs.prepare_epoch(deep, method, torch.from_numpy(FEW.load().images), 32)
    epoch()

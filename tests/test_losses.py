"""Losses and schedules against numbers worked out by hand."""

import math

import pytest
import torch

from stdac.data import Dataset, load
from stdac.methods import resolve
from stdac.methods.dec import clustering_loss, sharpen_targets
from stdac.methods.pairwise import CleanPass, fall_threshold, pair_batches, pair_targets
from stdac.methods.st_dac import auxiliary_loss, pair_loss
from stdac.networks import STDACNet
from stdac.run import Scorer, fit
from stdac.train import Trainer
from tests.conftest import CPU, small

Y = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.2, 0.8]])


def cosine(i: int, j: int) -> float:
    a, b = Y[i].tolist(), Y[j].tolist()
    return (a[0] * b[0] + a[1] * b[1]) / math.hypot(*a) / math.hypot(*b)


def test_pair_targets_are_cosines_above_the_threshold() -> None:
    r, positive = pair_targets(Y, torch.tensor(0.9))
    assert cosine(0, 1) > 0.9 > cosine(1, 2)
    assert r.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert float(positive) == pytest.approx(2 / 6)  # of the pairs of two different images


def test_pair_loss_by_hand() -> None:
    r = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    same, other = math.log(cosine(0, 1)), [math.log(1 - cosine(0, 2)), math.log(1 - cosine(1, 2))]
    diagonal = 3 * math.log(1 - 1e-7)
    expected = -(2 * same + 2 * sum(other) + diagonal) / 9
    assert float(pair_loss(Y, r, "bce")) == pytest.approx(expected, rel=1e-4)
    squares = 2 * (1 - cosine(0, 1)) ** 2 + 2 * cosine(0, 2) ** 2 + 2 * cosine(1, 2) ** 2
    assert float(pair_loss(Y, r, "mse")) == pytest.approx(squares / 9, rel=1e-5)


def test_auxiliary_loss_by_hand() -> None:
    y, clean = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.6, 0.8]])  # the target has unit length already
    terms = [0.6 * math.log(0.7) + 0.4 * math.log(0.3), 0.8 * math.log(0.3) + 0.2 * math.log(0.7)]
    assert float(auxiliary_loss(y, clean)) == pytest.approx(-sum(terms) / 2, rel=1e-5)


def test_target_distribution_and_its_divergence_by_hand() -> None:
    q = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    torch.testing.assert_close(sharpen_targets(q), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    expected = 0.9 * math.log(0.9 / 0.75) + 0.1 * math.log(0.1 / 0.25)
    assert float(clustering_loss(sharpen_targets(q), q)) == pytest.approx(expected, rel=1e-5)


def test_thresholds_of_the_first_and_last_epoch() -> None:
    assert fall_threshold(1, 10, 0.99, 0.80) == 0.99
    assert fall_threshold(10, 10, 0.99, 0.80) == pytest.approx(0.819)
    assert fall_threshold(10, 10, 0.99, 0.90) == pytest.approx(0.909)
    assert fall_threshold(20, 20, 0.9, 0.5) == pytest.approx(0.52)


@pytest.mark.parametrize(
    ("n", "macro", "passes", "batch", "drop_last", "sizes"),
    [
        (2000, 1000, 1, 32, True, [32] * 62),  # 31 of each 1000; 8 images skipped, as released
        (1000, 1000, 5, 128, False, ([128] * 7 + [104]) * 5),
        (130, 64, 1, 32, True, [32] * 4),
        (129, 64, 1, 32, False, [32, 32, 32, 32]),  # the left-over image joins a macro-batch; alone it is skipped
    ],
)
def test_an_epoch_has_the_papers_batches(
    n: int, macro: int, passes: int, batch: int, drop_last: bool, sizes: list[int]
) -> None:
    net = STDACNet(10, (1, 28, 28), stn=0, width=0.05)
    clean_pass = CleanPass(net, 32, Trainer(0, 1, None))  # type: ignore[arg-type]
    images = torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8)
    options = {"macro_batch": macro, "passes": passes, "batch": batch, "drop_last": drop_last}
    order = torch.randperm(n)
    found = list(pair_batches(images, 0.1, clean_pass, order, 0.9, **options))
    assert [len(index) for index, _, _, _ in found] == sizes
    assert net.training
    assert all(len(x) == len(y) > index.max() and not y.requires_grad for index, x, y, _ in found)


def test_an_untrained_network_knows_something_and_its_transforms_start_zoomed_in() -> None:
    """Acceptance checks of the recipe: batch statistics make a random net informative; theta_ii = tanh(1)."""
    dataset = load("digits")
    trial = resolve(small("st-dac", limit=None, epochs=1, params={"width": 0.25, "macro_batch": 600}))
    scorer = Scorer(trial, Dataset(dataset.images, dataset.labels), "cpu")
    fitted = fit(trial, dataset.images, scorer, CPU, {})
    rows = [row for row in scorer.rows if row["main"]]
    assert 0.2 < rows[0]["acc"] < 0.4 < rows[1]["acc"]
    assert rows[1]["clusters_used"] == 10
    theta = fitted.figures["theta_mean"]  # (epochs + 1, transformers, 6)
    assert theta[0, :, [0, 4]] == pytest.approx(math.tanh(1), abs=1e-6)
    assert abs(theta[0, :, [1, 2, 3, 5]]).max() == 0

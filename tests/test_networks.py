"""The networks against the papers' sizes, and BatchNorm's three ways of taking statistics."""

import pytest
import torch
import torch.nn.functional as F

from stdac.errors import StdacError
from stdac.methods import METHODS, resolve
from stdac.methods.method import count_forward
from stdac.methods.pairwise import predict_in_groups
from stdac.networks import AllConvNet, BatchNorm, SoftAssignment, STDACNet, calibrate

MNIST = (1, 28, 28)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


RELEASED = [(0, 39.25, 68.2), (1, 39.31, 68.9), (2, 39.39, 72.1), (3, 39.53, 73.3)]


@pytest.mark.parametrize(("stn", "millions", "macs"), RELEASED)
def test_st_dac_has_the_released_size(stn: int, millions: float, macs: float) -> None:
    assert parameters(STDACNet(10, MNIST, stn=stn)) / 1e6 == pytest.approx(millions, abs=0.01)
    params = resolve({"dataset": "mnist", "params": {"stn": stn}}).params
    assert count_forward(METHODS["st-dac"].build(10, MNIST, params), MNIST) / 1e6 == pytest.approx(macs, abs=0.1)


def test_table3_pools_a_third_time() -> None:
    net = STDACNet(10, MNIST, stn=0, architecture="table3")
    assert net.dense1.in_features == 2304
    assert net(torch.rand(4, *MNIST)).shape == (4, 10)


def test_dac_star_has_the_authors_size() -> None:
    assert parameters(AllConvNet(10, MNIST)) / 1e6 == pytest.approx(0.447, abs=0.002)
    params = resolve({"dataset": "mnist", "method": "dac-star"}).params
    assert count_forward(METHODS["dac-star"].build(10, MNIST, params), MNIST) / 1e6 == pytest.approx(56.4, abs=0.1)


def test_too_small_images_say_how_large_they_must_be() -> None:
    with pytest.raises(StdacError, match=r"12x12 pixels.*16x16"):
        STDACNet(10, (1, 12, 12), stn=3)
    with pytest.raises(StdacError, match=r"20x20 pixels.*22x22"):
        AllConvNet(10, (1, 20, 20))


@pytest.mark.parametrize("shape", [(64, 6), (64, 6, 5, 5)])
def test_grouped_statistics_are_those_of_each_group_alone(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm, x = BatchNorm(6), torch.randn(shape) * 3 + 1
    torch.nn.init.uniform_(norm.weight)
    norm.eval()
    alone = torch.cat(
        [F.batch_norm(part, None, None, norm.weight, norm.bias, True, 0.0, norm.eps) for part in x.split(16)]
    )
    torch.testing.assert_close(norm(x, 16), alone, atol=1e-5, rtol=1e-5)


def test_one_left_over_image_joins_the_group_before_it() -> None:
    seen: list[tuple[int, int]] = []

    def predict(x: torch.Tensor, group: int) -> torch.Tensor:
        seen.append((len(x), group))
        return x

    for n in (97, 100, 96, 33, 5):
        torch.testing.assert_close(predict_in_groups(predict, torch.arange(n), 32), torch.arange(n))
    assert seen == [(64, 32), (33, 33), (96, 32), (4, 4), (96, 32), (33, 33), (5, 5)]


def test_calibration_stores_the_statistics_of_all_images_together() -> None:
    torch.manual_seed(0)
    norm, x = BatchNorm(3), torch.randn(90, 3, 4, 4) * 2 + 5
    calibrate(norm, x.split(40))
    torch.testing.assert_close(norm.mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.var, x.var((0, 2, 3), correction=0))
    norm.eval()
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])  # a cluster does not depend on its neighbours


def test_soft_assignment_by_hand() -> None:
    assign = SoftAssignment(2, 1)
    assign.centres.data = torch.tensor([[0.0], [2.0]])
    torch.testing.assert_close(assign(torch.tensor([[1.0], [0.0]])), torch.tensor([[0.5, 0.5], [5 / 6, 1 / 6]]))

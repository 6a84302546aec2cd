"""The spatial transformer against torch's own grid and against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stdac.stn import LocalisationNet, SpatialTransformer, make_affine_grid

IDENTITY = torch.tensor([[1.0, 0, 0, 0, 1, 0]])


def transformer(height: int, width: int, channels: int = 1) -> SpatialTransformer:
    torch.manual_seed(0)
    return SpatialTransformer(channels, height, width)


def ramp(height: int, width: int) -> Tensor:
    """(1, 1, H, W): the value of a pixel is 10 row + column + 1."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (10.0 * rows + columns + 1)[None, None]


@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 7), (6, 9)])
def test_grid_is_torchs_affine_grid_moved_by_half_a_pixel(height: int, width: int) -> None:
    theta = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1
    matrix, shift = make_affine_grid(height, width)
    ours = (theta @ matrix).view(5, height, width, 2)
    torch.testing.assert_close(ours, F.affine_grid(theta.view(5, 2, 3), [5, 1, height, width], align_corners=True))
    assert shift.view(height, width, 2)[2, 3].tolist() == pytest.approx([1 / width, 1 / height])


def test_source_pixel_is_half_the_width_times_coordinate_plus_one() -> None:
    """On 5x5, theta = 1/2 on the diagonal reads x_s = -.5, -.25, 0, .25, .5: pixels (x_s + 1) 5/2 = 1.25, ... 3.75."""
    out = transformer(5, 5).sample(ramp(5, 5), torch.tensor([[0.5, 0, 0, 0, 0.5, 0]]))
    pixels = torch.tensor([1.25, 1.875, 2.5, 3.125, 3.75])
    torch.testing.assert_close(out[0, 0], 10 * pixels[:, None] + pixels[None, :] + 1)


def test_theta_is_row_major_and_x_is_horizontal() -> None:
    """tx = .4 alone reads column (.4 + 1) 5/2 = 3.5 at the centre, ty = -.4 row 1.5."""
    sample = transformer(5, 5).sample
    assert sample(ramp(5, 5), torch.tensor([[0.0, 0, 0.4, 0, 0, 0]]))[0, 0, 2, 2] == pytest.approx(25 + 3.5 + 1)
    assert sample(ramp(5, 5), torch.tensor([[0.0, 0, 0, 0, 0, -0.4]]))[0, 0, 2, 2] == pytest.approx(15 + 2.5 + 1)


def test_off_diagonal_entries_mix_the_axes() -> None:
    """theta = (0 .5 0; .5 0 0) is the transpose at half the scale: out[i, j] reads row (x_j/2+1) 5/2, column of i."""
    sample = transformer(5, 5).sample
    swapped = sample(ramp(5, 5), torch.tensor([[0.0, 0.5, 0, 0.5, 0, 0]]))
    straight = sample(ramp(5, 5), torch.tensor([[0.5, 0, 0, 0, 0.5, 0]]))
    torch.testing.assert_close(swapped, straight.transpose(2, 3))


def test_samples_beyond_the_border_are_exactly_zero() -> None:
    """The identity reads pixels 0, W/(W-1), ... W: the last row and column lie outside, all others inside."""
    out = transformer(8, 8).sample(torch.ones(1, 1, 8, 8), IDENTITY)[0, 0]
    assert not out[-1].any() and not out[:, -1].any()
    torch.testing.assert_close(out[:-1, :-1], torch.ones(7, 7), atol=1e-5, rtol=0)
    far = transformer(8, 8).sample(torch.ones(1, 1, 8, 8), torch.tensor([[0.1, 0, 3, 0, 0.1, 0]]))
    assert torch.count_nonzero(far) == 0


def test_first_transform_is_a_zoom_by_tanh_of_one() -> None:
    x = torch.rand(3, 1, 28, 28)
    theta = transformer(28, 28).localisation(x)
    expected = torch.tensor([0.7616, 0, 0, 0, 0.7616, 0]).expand(3, 6)
    torch.testing.assert_close(theta, expected, atol=1e-4, rtol=0)
    assert theta[:, [1, 2, 3, 5]].abs().max() == 0


def test_theta_bias_is_undone_by_tanh() -> None:
    theta = LocalisationNet(1, 28, 28, theta_bias=math.atanh(0.99))(torch.zeros(1, 1, 28, 28))
    torch.testing.assert_close(theta, 0.99 * IDENTITY)


def test_theta_stays_below_one_whatever_the_weights() -> None:
    net = transformer(28, 28).localisation
    torch.nn.init.normal_(net.theta.weight)
    theta = net(torch.randn(16, 1, 28, 28))
    assert theta.abs().max() < 1
    torch.nn.init.normal_(net.theta.weight, std=1e4)
    assert net(1e3 * torch.randn(16, 1, 28, 28)).abs().max() <= 1  # float32 rounds the tanh


@pytest.mark.parametrize(("side", "channels", "flat"), [(28, 1, 980), (14, 128, 180), (7, 256, 20)])
def test_localisation_net_has_the_papers_sizes(side: int, channels: int, flat: int) -> None:
    net = LocalisationNet(channels, side, side)
    assert (net.dense.in_features, net.dense.out_features, net.theta.out_features) == (flat, 50, 6)
    assert net(torch.zeros(2, channels, side, side)).shape == (2, 6)


@pytest.mark.parametrize(("height", "width", "channels"), [(28, 28, 1), (9, 14, 3)])
def test_output_has_the_inputs_shape_and_one_transform_for_all_channels(height: int, width: int, channels: int) -> None:
    x = torch.rand(2, 1, height, width).expand(2, channels, height, width)
    out = transformer(height, width, channels)(x)
    assert out.shape == x.shape
    assert all(torch.equal(out[:, 0], out[:, c]) for c in range(channels))


def test_gradients_reach_every_parameter_and_the_input() -> None:
    x = torch.rand(4, 1, 28, 28, requires_grad=True)
    layer = transformer(28, 28)
    torch.nn.init.normal_(layer.localisation.theta.weight, std=0.1)
    layer(x).square().sum().backward()
    assert x.grad is not None and x.grad.any()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_grid_is_no_part_of_the_saved_state() -> None:
    assert not {"matrix", "shift"} & set(transformer(28, 28).state_dict())

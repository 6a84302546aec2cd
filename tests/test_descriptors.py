"""Orientations and colours against numbers worked out by hand, and the models that are made of them."""

from math import cos, pi

import numpy as np
import pytest
import torch
from torch import Tensor

from stdac.data import Dataset
from stdac.errors import StdacError
from stdac.methods import METHODS, resolve
from stdac.methods.descriptors import HOG, ColourHistogram
from stdac.run import Scorer, fit
from tests.conftest import CPU, small

RAMP = torch.linspace(0, 1, 4)
EDGE = torch.tensor([0.0, 0.0, 1.0, 1.0])


def describe(image: Tensor, cells: int = 1) -> list[float]:
    """Four orientations of an image (H, W): their doubled angles are a right angle apart, and none votes for two."""
    with torch.no_grad():
        return HOG((1, *image.shape), cells, 4)(image[None, None])[0].tolist()


@pytest.mark.parametrize(
    ("image", "bin_"),
    [(EDGE.expand(4, 4), 0), (EDGE.expand(4, 4).T, 2), (1 - EDGE.expand(4, 4), 0), (1 - EDGE.expand(4, 4).T, 2)],
)
def test_an_edge_votes_for_its_orientation_whichever_side_is_bright(image: Tensor, bin_: int) -> None:
    """Of the 16 pixels the four inside vote, each with a gradient of 1."""
    expected = [0.25 if i == bin_ else 0.0 for i in range(4)]
    assert describe(image) == pytest.approx(expected, abs=1e-4)


def test_a_slope_has_its_angle_and_its_steepness() -> None:
    """A slope of 1/6 a pixel both ways has gradients of 2/6 each: 45°, and a size of √2/3, in four of 16 pixels."""
    slope = (RAMP[:, None] + RAMP) / 2
    assert describe(slope) == pytest.approx([0.0, 2**0.5 / 12, 0.0, 0.0], abs=1e-4)
    assert describe(slope.flip(0)) == pytest.approx([0.0, 0.0, 0.0, 2**0.5 / 12], abs=1e-4)


def test_a_vote_between_two_bins_goes_to_both() -> None:
    """Doubled, 22.5° is 45°: half-way between 0° and 90°, whose cosines are √½ each."""
    x = RAMP + 2**0.5 * RAMP[:, None] - RAMP[:, None]  # gy / gx = √2 - 1 = tan 22.5°
    first, second, *rest = describe(x / 2)
    size = 2 / 3 / 2 / cos(pi / 8)  # of gx = 2/3 / 2
    assert (first, second) == pytest.approx((size * 0.5**0.5 / 4,) * 2, abs=1e-4) and max(rest) < 1e-6


def test_each_cell_has_a_histogram() -> None:
    """In cells of 3 pixels columns 2 and 3 vote, of one cell each; rows 1 and 2 of the upper, 3 of the lower ones."""
    image = torch.zeros(5, 5)
    image[:, 3:] = 1.0
    votes = HOG((1, 5, 5), 2, 4)(image[None, None])[0].view(4, 2, 2)
    assert votes[0].flatten().tolist() == pytest.approx([2 / 9, 2 / 9, 1 / 9, 1 / 9], abs=1e-4)
    assert votes[1:].abs().max() < 1e-4


def test_gray_from_colour_and_flat_images() -> None:
    gray = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    colour = HOG((3, 9, 9), 3, 9)(gray.expand(-1, 3, -1, -1))
    assert torch.allclose(HOG((1, 9, 9), 3, 9)(gray), colour, atol=1e-5)
    assert not HOG((1, 9, 9), 3, 9)(torch.ones(1, 1, 9, 9)).any()


def test_colours_are_counted() -> None:
    """Two pixels black, one pure red, one of 127 in all channels: shares of 1/2, 1/4, 1/4."""
    x = torch.zeros(1, 3, 2, 2)
    x[0, 0, 0, 1] = 1.0
    x[0, :, 1, 1] = 127 / 255
    expected = torch.zeros(64)
    expected[0], expected[3 * 16], expected[1 * 16 + 1 * 4 + 1] = 0.5, 0.25, 0.25
    assert torch.equal(ColourHistogram()(x)[0], expected)


@pytest.mark.parametrize(
    ("value", "level"), [(0, 0), (63, 0), (64, 1), (127, 1), (128, 2), (191, 2), (192, 3), (255, 3)]
)
def test_levels_are_quarters_and_gray_is_a_colour(value: int, level: int) -> None:
    z = ColourHistogram()(torch.full((1, 1, 3, 3), value / 255))[0]
    assert z.argmax() == 21 * level and z.max() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 30, 17), (1, 3, 3), (3, 64, 64)])
def test_models_of_any_size(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), dtype=np.uint8)
    for method in ("hog-kmeans", "colour-kmeans"):
        trial = resolve(small(method, n_clusters=3))
        fitted = fit(trial, images, Scorer(trial, Dataset(images, None), "cpu"), CPU, {})
        assert len(fitted.labels.unique()) == 3


def test_colours_part_what_is_red_from_what_is_blue() -> None:
    images = np.random.default_rng(0).integers(0, 60, (20, 3, 8, 8), dtype=np.uint8)
    images[::2, 0] += 180
    images[1::2, 2] += 180
    trial = resolve(small("colour-kmeans", n_clusters=2))
    labels = fit(trial, images, Scorer(trial, Dataset(images, None), "cpu"), CPU, {}).labels
    assert len(set(labels[::2].tolist())) == len(set(labels[1::2].tolist())) == 1 and labels[0] != labels[1]


def test_parameters_out_of_range_are_told() -> None:
    for params, said in (({"cells": 0}, "got cells = 0, expected at least 1"), ({"bins": 2}, "got bins = 2, expected")):
        with pytest.raises(StdacError, match=said):
            resolve({"dataset": "digits", "method": "hog-kmeans", "params": params})
    with pytest.raises(StdacError, match="images are 2x9 pixels, but hog-kmeans needs at least 3x3"):
        HOG((1, 2, 9), 7, 9)
    assert METHODS["hog-kmeans"].is_floor and METHODS["colour-kmeans"].is_floor

"""The batched augmentation against a plain one-image version of Keras 1's ImageDataGenerator."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from stdac.augment import AUGMENTATIONS, Augmentation, augment, draw_affine, sample_nearest

Image = NDArray[np.float64]


def keras_matrix(side: int, angle: float, shift: Sequence[float], zoom: Sequence[float]) -> Image:
    """(3, 3): output (row, column, 1) -> input; rotation . shift . zoom about side / 2 + 1/2. angle in radians."""
    o = side / 2 + 0.5
    rotation = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    translation = [[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]]
    scaling = np.diag([zoom[0], zoom[1], 1.0])
    to_centre, back = np.array([[1, 0, o], [0, 1, o], [0, 0, 1]]), np.array([[1, 0, -o], [0, 1, -o], [0, 0, 1]])
    matrix: Image = to_centre @ np.array(rotation) @ np.array(translation) @ scaling @ back
    return matrix


def keras_affine(image: Image, matrix: Image) -> Image:
    """Each output pixel takes the nearest input pixel, beyond the border the edge's."""
    out, last = np.empty_like(image), len(image) - 1
    for row in range(len(image)):
        for column in range(len(image)):
            r, c, _ = np.rint(matrix @ [row, column, 1]).astype(int)
            out[row, column] = image[min(max(r, 0), last), min(max(c, 0), last)]
    return out


def drawing(side: int = 28) -> Image:
    """(side, side): every pixel has a value of its own."""
    return np.arange(side**2, dtype=np.float64).reshape(side, side)


def sampled(image: Image, matrix: Image) -> Image:
    """The batched sampler's answer for one matrix."""
    x, affine = torch.tensor(image)[None, None], torch.tensor(matrix[None, :2])
    return sample_nearest(x, affine)[0, 0].numpy()


TRANSFORMS = {
    "identity": (0.0, (0, 0), (1, 1)),
    "quarter turn": (math.pi / 2, (0, 0), (1, 1)),
    "shift": (0.0, (2, -3), (1, 1)),
    "zoom": (0.0, (0, 0), (1.15, 0.85)),
    "all": (0.3, (2.3, -1.7), (0.93, 1.11)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_sampler_is_the_one_image_reference(name: str) -> None:
    matrix = keras_matrix(28, *TRANSFORMS[name])
    np.testing.assert_array_equal(sampled(drawing(), matrix), keras_affine(drawing(), matrix))


@pytest.mark.parametrize("name", ["shift", "zoom", "all"])
def test_reference_is_what_scipy_does_for_keras(name: str) -> None:
    matrix = keras_matrix(28, *TRANSFORMS[name])
    scipys = affine_transform(drawing(), matrix[:2, :2], matrix[:2, 2], order=0, mode="nearest")
    np.testing.assert_array_equal(keras_affine(drawing(), matrix), scipys)


def test_a_quarter_turn_is_about_pixel_14_5() -> None:
    """Input (r, c) = (14.5 - (column - 14.5), 14.5 + (row - 14.5)): pixel (10, 20) takes (9, 10)."""
    turned = sampled(drawing(), keras_matrix(28, math.pi / 2, (0, 0), (1, 1)))
    assert turned[10, 20] == drawing()[9, 10]


def test_a_shift_moves_the_input_pixel_and_repeats_the_edge() -> None:
    moved = sampled(drawing(), keras_matrix(28, 0.0, (2, 0), (1, 1)))
    np.testing.assert_array_equal(moved[:26], drawing()[2:])
    np.testing.assert_array_equal(moved[26:], drawing()[[27, 27]])


def test_zoom_above_one_shrinks_the_object() -> None:
    square = np.zeros((28, 28))
    square[8:20, 8:20] = 1
    areas = [sampled(square, keras_matrix(28, 0.0, (0, 0), (z, z))).sum() for z in (0.8, 1.0, 1.25)]
    assert areas[0] > areas[1] == 144 > areas[2]


def test_random_maps_are_keras_matrices_of_the_numbers_drawn() -> None:
    ranges = Augmentation(rotation_deg=20.0, shift=0.18, zoom=(0.85, 1.15))
    torch.manual_seed(3)
    affine = draw_affine(50, ranges, 28, 28)
    torch.manual_seed(3)
    u = torch.rand(5, 50).double().numpy()
    for i in range(50):
        angle = math.radians(20) * (2 * u[0, i] - 1)
        shift, zoom = (0.18 * 28 * (2 * u[1:3, i] - 1)).tolist(), (0.85 + 0.3 * u[3:5, i]).tolist()
        np.testing.assert_allclose(affine[i].numpy(), keras_matrix(28, angle, shift, zoom)[:2], atol=1e-5)


def test_random_maps_fill_their_ranges_independently() -> None:
    torch.manual_seed(0)
    n, height, width = 20_000, 28, 20
    ranges = Augmentation(rotation_deg=10.0, shift=0.1, zoom=(0.95, 1.05))
    affine = draw_affine(n, ranges, height, width).double()
    angle = torch.atan2(affine[:, 1, 0], affine[:, 0, 0])
    zoom = affine[:, :, :2].norm(dim=1)  # columns of R diag(z)
    centre = torch.tensor([height / 2 + 0.5, width / 2 + 0.5]).double()
    moved = affine[:, :, :2] @ centre + affine[:, :, 2] - centre  # R t
    back = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).view(n, 2, 2)
    shift = (back @ moved[:, :, None])[:, :, 0]
    drawn = torch.cat([angle[:, None].rad2deg(), shift, zoom], 1)  # (n, 5)
    low, high = torch.tensor([[-10, -2.8, -2.0, 0.95, 0.95], [10, 2.8, 2.0, 1.05, 1.05]]).double()
    unit = (drawn - low) / (high - low)
    assert unit.min() > -1e-4 and unit.max() < 1 + 1e-4
    torch.testing.assert_close(unit.mean(0), torch.full((5,), 0.5).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(unit.std(0), torch.full((5,), 12**-0.5).double(), atol=0.01, rtol=0)
    assert (torch.corrcoef(unit.T) - torch.eye(5)).abs().max() < 0.04


def test_channel_shift_is_one_offset_clipped_to_the_images_own_range() -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 3, 8, 8) * 0.5 - 0.2
    y = augment(x, Augmentation(channel_shift=0.1))
    low, high = x.amin((1, 2, 3)), x.amax((1, 2, 3))
    assert (y.amin((1, 2, 3)) >= low).all() and (y.amax((1, 2, 3)) <= high).all()
    offset = (y - x).flatten(1)
    largest = offset.gather(1, offset.abs().argmax(1, keepdim=True))
    free = (y > low.view(-1, 1, 1, 1)) & (y < high.view(-1, 1, 1, 1))
    torch.testing.assert_close(offset[free.flatten(1)], largest.expand_as(offset)[free.flatten(1)], atol=1e-6, rtol=0)
    assert 0.08 < largest.abs().max() <= 0.1 + 1e-6 and largest.min() < 0 < largest.max()


def test_half_of_the_images_are_mirrored_left_to_right() -> None:
    torch.manual_seed(0)
    x = torch.rand(4000, 1, 3, 4)
    y = augment(x, Augmentation(flip=True))
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    assert ((y == x).flatten(1).all(1) ^ mirrored).all()
    assert 0.46 < mirrored.float().mean() < 0.54


def test_rescale_comes_after_the_channel_shift_is_clipped() -> None:
    """A constant image stays constant under a clipped shift, so that only the factor is left."""
    x = torch.full((16, 1, 8, 8), 0.8)
    torch.testing.assert_close(augment(x, Augmentation(channel_shift=0.1, rescale=0.95)), 0.95 * x)


def test_no_augmentation_leaves_images_as_they_are() -> None:
    x = torch.rand(5, 3, 9, 14)
    assert torch.equal(augment(x, AUGMENTATIONS["none"]), x)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_preset_keeps_shape_and_type_and_follows_the_seed(name: str) -> None:
    x = torch.rand(6, 3, 28, 20)
    outputs = []
    for _ in range(2):
        torch.manual_seed(4)
        outputs.append(augment(x, AUGMENTATIONS[name]))
    assert outputs[0].shape == x.shape and outputs[0].dtype == torch.float32
    assert torch.equal(*outputs)


def test_presets_are_the_papers() -> None:
    assert AUGMENTATIONS["dac-mnist"] == Augmentation(10, 0.1, (0.95, 1.05), 0.05, False, 0.975)
    assert AUGMENTATIONS["dac-cifar"] == Augmentation(20, 0.18, (0.85, 1.15), 0.1, True, 0.95)
    assert AUGMENTATIONS["dec-da"] == Augmentation(10, 0.1)

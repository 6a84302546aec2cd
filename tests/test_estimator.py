"""STDAC keeps scikit-learn's contract, and its answers do not depend on how the images are handed over."""

import io
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from stdac import STDAC
from stdac.data import load

ONE_CLUSTER = "it asks for one cluster, which is refused: there is nothing to learn from pairs that are all alike"
NOT_FOR_IMAGES = {
    "check_dont_overwrite_parameters": ONE_CLUSTER,
    "check_methods_subset_invariance": ONE_CLUSTER
    + "; with two clusters: test_an_image_is_scored_alone_as_among_others",
    "check_fit2d_1feature": ONE_CLUSTER,
    "check_fit2d_predict1d": ONE_CLUSTER,
    "check_methods_sample_order_invariance": "float32 scores: the last digits depend on the place in the batch",
}


def small(**changed: Any) -> STDAC:
    """An estimator that trains in a fraction of a second."""
    values = {
        "n_clusters": 3,
        "stn": 1,
        "width": 0.05,
        "epochs": 2,
        "macro_batch": 64,
        "device": "cpu",
        "random_state": 0,
    }
    return STDAC(**(values | changed))  # type: ignore[arg-type]  # the values are of mixed types


@pytest.fixture(scope="module")
def x() -> NDArray[np.uint8]:
    """(100, 28, 28) uint8 digits."""
    return load("digits", limit=100).images[:, 0]


@pytest.fixture(scope="module")
def fitted(x: NDArray[np.uint8]) -> STDAC:
    """A small estimator fitted to x."""
    return small().fit(x)


# The checks fit tables of a few columns, which are laid out on 8x8 pixels with a warning.
@pytest.mark.filterwarnings("ignore:rows of:UserWarning")
@parametrize_with_checks(
    [STDAC(2, stn=1, width=0.1, epochs=5, device="cpu")],
    expected_failed_checks=lambda _: NOT_FOR_IMAGES,
    xfail_strict=False,  # the order of images may happen not to change any rounding
)
def test_scikit_learn_estimator_check(estimator: STDAC, check: Callable[[STDAC], None]) -> None:
    check(estimator)


def test_same_random_state_same_labels(x: NDArray[np.uint8], fitted: STDAC) -> None:
    again = small(random_state=np.random.RandomState(0)).fit(x)
    np.testing.assert_array_equal(again.labels_, fitted.labels_)
    np.testing.assert_array_equal(again.transform(x), fitted.transform(x))
    assert (small(random_state=1).fit(x).transform(x) != fitted.transform(x)).any()


def test_labels_are_what_predict_says_of_the_training_images(x: NDArray[np.uint8], fitted: STDAC) -> None:
    assert fitted.labels_.shape == (100,) and fitted.labels_.dtype == np.int64
    np.testing.assert_array_equal(fitted.predict(x), fitted.labels_)
    np.testing.assert_array_equal(small().fit_predict(x), fitted.labels_)


def test_transform_gives_scores_that_sum_to_one(x: NDArray[np.uint8], fitted: STDAC) -> None:
    scores = fitted.transform(x)
    assert scores.shape == (100, 3) and scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(scores.argmax(1), fitted.labels_)
    assert fitted.get_feature_names_out().tolist() == ["stdac0", "stdac1", "stdac2"]
    assert not hasattr(fitted, "score")


def test_an_image_is_scored_alone_as_among_others(x: NDArray[np.uint8], fitted: STDAC) -> None:
    alone = np.concatenate([fitted.transform(image[None]) for image in x[:20]])
    np.testing.assert_allclose(alone, fitted.transform(x)[:20], atol=1e-5)
    np.testing.assert_allclose(fitted.transform(x[::-1])[::-1], fitted.transform(x), atol=1e-6)


def test_attributes_after_fit(fitted: STDAC) -> None:
    assert (fitted.n_features_in_, fitted.n_iter_, fitted.image_shape_) == (784, 2, (28, 28, 1))
    assert [row["epoch"] for row in fitted.history_] == [0, 1, 2]
    assert set(fitted.history_[-1]) >= {"loss", "threshold", "positive_fraction", "clusters_used"}
    assert not {"acc", "nmi", "ari", "purity"} & set(fitted.history_[-1])


# --- ways to hand images over


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "flat", "flat with shape", "float in [0, 1]", "list"])
def test_every_way_to_hand_images_over_gives_the_same_labels(x: NDArray[np.uint8], fitted: STDAC, layout: str) -> None:
    images = {
        "NHWC": x[..., None],
        "NCHW": x[:, None],
        "flat": x.reshape(100, -1),
        "flat with shape": x.reshape(100, -1),
        "float in [0, 1]": (x / 255).astype(np.float32),
        "list": x.tolist(),
    }[layout]
    estimator = small(image_shape=(28, 28) if "shape" in layout else None).fit(images)
    np.testing.assert_array_equal(estimator.labels_, fitted.labels_)
    np.testing.assert_array_equal(estimator.predict(images), fitted.labels_)


def test_colour_images_flattened_or_not_are_the_same(x: NDArray[np.uint8]) -> None:
    rgb = np.stack([x[:, :16, :20], x[:, 8:24, :20], x[:, :16, 4:24]], axis=3)  # (100, 16, 20, 3)
    estimator = small().fit(rgb)
    assert (estimator.image_shape_, estimator.n_features_in_) == ((16, 20, 3), 960)
    flat = small(image_shape=(16, 20, 3)).fit(rgb.reshape(100, -1))
    for images in (rgb, rgb.transpose(0, 3, 1, 2), rgb.reshape(100, -1)):
        np.testing.assert_array_equal(estimator.predict(images), estimator.labels_)
        np.testing.assert_array_equal(flat.predict(images), estimator.labels_)


def test_rows_that_fill_no_square_are_laid_out_with_a_warning(x: NDArray[np.uint8]) -> None:
    rows = x.reshape(100, -1)[:, 100:250]
    with pytest.warns(UserWarning, match=r"150 values are laid out on 13x13 pixels.*image_shape"):
        estimator = small().fit(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)


def test_values_beyond_those_of_fit_are_clipped(x: NDArray[np.uint8]) -> None:
    floats = x[:, ::2, ::2] / 255 * 2 - 1
    estimator = small().fit(floats)
    assert estimator.value_range_ == (-1, 1)
    beyond = np.where(floats == 1, 7.0, floats)
    np.testing.assert_array_equal(estimator.transform(beyond), estimator.transform(floats))


# --- bad input

BAD_FITS: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "one cluster": ({"n_clusters": 1}, (40, 8, 8), "n_clusters = 1, expected a whole number of at least 2"),
    "more clusters than images": ({"n_clusters": 41}, (40, 8, 8), "41 clusters for 40 images"),
    "one image": ({}, (1, 8, 8), "minimum of 2 is required"),
    "no image": ({}, (0, 8, 8), "minimum of 2 is required"),
    "too small": ({}, (40, 7, 9), "7x9 pixels.*at least 8x8"),
    "too small for 3 STN": ({"stn": 3}, (40, 15, 15), "at least 16x16"),
    "five channels": ({}, (40, 8, 8, 5), r"shape \(40, 8, 8, 5\)"),
    "one dimension": ({}, (40,), "Reshape your data"),
    "another image_shape": ({"image_shape": (7, 9)}, (40, 64), r"64 values and image_shape=\(7, 9\)"),
    "flat image_shape": ({"image_shape": (64,)}, (40, 64), "expected .H, W."),
    "four STN": ({"stn": 4}, (40, 8, 8), "stn = 4, expected one of 0, 1, 2, 3"),
    "unknown augmentation": ({"augmentation": "mnist"}, (40, 8, 8), "expected one of None, none, dac-mnist"),
    "no epochs": ({"epochs": 0}, (40, 8, 8), "epochs = 0"),
    "unknown device": ({"device": "abacus"}, (40, 8, 8), "device 'abacus'"),
    "no passes": ({"passes": 0}, (40, 8, 8), "passes"),
    "no width": ({"width": 0.0}, (40, 8, 8), "width"),
    "batch of one": ({"batch": 1}, (40, 8, 8), "batch"),
    "macro_batch below batch": ({"macro_batch": 16}, (40, 8, 8), "macro_batch"),
    "negative learning rate": ({"lr": -1.0}, (40, 8, 8), "lr|learning rate"),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_input_is_a_value_error_of_one_sentence(case: str) -> None:
    params, shape, message = BAD_FITS[case]
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with pytest.raises(ValueError, match=message):
        small().set_params(**params).fit(images)


def test_not_fitted_is_told(x: NDArray[np.uint8]) -> None:
    for method in (small().predict, small().transform):
        with pytest.raises(NotFittedError):
            method(x)


def test_other_images_than_fitted_are_refused(x: NDArray[np.uint8], fitted: STDAC) -> None:
    with pytest.raises(ValueError, match="fitted on uint8 images and got float64"):
        fitted.predict(x / 255)
    with pytest.raises(ValueError, match="784 features"):
        fitted.predict(x[:, 1:])
    with pytest.raises(ValueError, match=r"\(28, 28, 1\) and got \(14, 56, 1\)"):
        fitted.predict(x.reshape(100, 14, 56))


# --- what fit leaves alone, and what a fitted estimator survives


@pytest.mark.parametrize("n", [2, 3, 31, 33, 65])
def test_fewer_images_than_a_batch_or_one_too_many_are_trained_on(x: NDArray[np.uint8], n: int) -> None:
    """65 is one more than a macro-batch: an image alone has no batch statistics."""
    estimator = small(n_clusters=2, epochs=1).fit(x[:n])
    assert estimator.history_[-1]["images_seen"] > 0
    np.testing.assert_array_equal(estimator.predict(x[:n]), estimator.labels_)


@pytest.fixture
def torch_state() -> Iterator[None]:
    """Fails where torch's random state or number of threads is another afterwards."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    yield
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


@pytest.mark.usefixtures("torch_state")
def test_fit_and_predict_leave_torch_and_the_images_alone(x: NDArray[np.uint8]) -> None:
    images = x.copy()
    images.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small().fit(images).predict(images)
    np.testing.assert_array_equal(images, x)


def test_ground_truth_changes_nothing(x: NDArray[np.uint8], fitted: STDAC) -> None:
    np.testing.assert_array_equal(small().fit(x, np.arange(100)).labels_, fitted.labels_)


@pytest.mark.parametrize("module", [pickle, joblib])
def test_a_pickle_predicts_the_same(x: NDArray[np.uint8], fitted: STDAC, module: Any) -> None:
    file = io.BytesIO()
    module.dump(fitted, file)
    file.seek(0)
    restored = module.load(file)
    np.testing.assert_array_equal(restored.transform(x), fitted.transform(x))
    assert restored.get_params() == fitted.get_params()


def test_a_clone_is_unfitted_and_trains_to_the_same(x: NDArray[np.uint8], fitted: STDAC) -> None:
    copy = clone(fitted)
    assert not hasattr(copy, "labels_")
    np.testing.assert_array_equal(copy.fit(x).labels_, fitted.labels_)


def test_numpy_numbers_serve_as_parameters(x: NDArray[np.uint8], fitted: STDAC) -> None:
    estimator = small(n_clusters=np.int64(3), stn=np.int64(1), width=np.float64(0.05), epochs=np.int32(2))
    np.testing.assert_array_equal(estimator.fit(x).labels_, fitted.labels_)


def test_a_pipeline_of_it_predicts(x: NDArray[np.uint8], fitted: STDAC) -> None:
    pipeline = make_pipeline(small()).fit(x.reshape(100, -1))
    np.testing.assert_array_equal(pipeline.predict(x.reshape(100, -1)), fitted.labels_)


def test_a_module_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "export.py").write_text("open('ran', 'w')")
    (tmp_path / "script.py").write_text("from stdac import load_run\nfrom stdac import Clusterer")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, str(tmp_path / "script.py")]
    ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    said = f"ImportError: {tmp_path}/export.py hides stdac's package export: rename it, or import stdac from elsewhere"
    assert ended.stderr.splitlines()[-1] == said
    assert not (tmp_path / "ran").exists()


def test_importing_stdac_does_not_import_torch() -> None:
    code = (
        "import stdac, sys; assert 'STDAC' in dir(stdac); assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""STDAC keeps scikit-learn's contract, and its answers do not depend on how the images are handed over.

What all estimators share is tested on it; what differs, in `tests/test_estimators.py`.
"""

import io
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from stdac import STDAC
from stdac.cost import _count_forward
from stdac.data import load
from stdac.estimator import predict_scores, scale
from stdac.methods import resolve
from stdac.model_file import ModelConfig, load_model, save_model
from stdac.torch_state import fix_state
from tests.waiting import LONG_S

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


def test_few_images_get_more_epochs_where_the_number_is_left_open() -> None:
    assert [STDAC(epochs=None)._trial(n).epochs for n in (3200, 70_000)] == [40, 10]
    assert STDAC()._trial(3200).epochs == 10


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


@contextmanager
def set_for(write: Callable[[Any], object], value: Any, back: Any) -> Iterator[None]:
    """Something of torch's that a function sets, for the length of a block."""
    write(value)
    try:
        yield
    finally:
        write(back)


AMBIENT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "nothing": ExitStack,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "a block on another device": partial(torch.device, "meta"),
    "another default device": lambda: set_for(torch.set_default_device, "meta", None),
    "float64": lambda: set_for(torch.set_default_dtype, torch.float64, torch.float32),
    "float16": lambda: set_for(torch.set_default_dtype, torch.float16, torch.float32),
    "deterministic": lambda: set_for(torch.set_deterministic_debug_mode, 2, 0),
    "coarse products": lambda: set_for(torch.set_float32_matmul_precision, "medium", "highest"),
    "coarse products, newly": lambda: set_for(partial(setattr, torch.backends, "fp32_precision"), "tf32", "none"),
    "no oneDNN": lambda: set_for(partial(setattr, torch.backends.mkldnn, "enabled"), False, True),
    "anomaly": lambda: set_for(torch.autograd.set_detect_anomaly, True, False),
}


def read_state() -> dict[str, Any]:
    """What fits and predictions must leave alone."""
    parts = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul, torch.backends.cudnn
    return {
        "generators": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()),
        "threads": torch.get_num_threads(),
        "default": (torch.get_default_dtype(), torch.get_default_device()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "checks": (torch.get_deterministic_debug_mode(), torch.is_anomaly_enabled()),
        "precision": [part.fp32_precision for part in parts],
        "backends": (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
        "warnings": list(warnings.filters),
    }


@pytest.mark.parametrize("ambient", AMBIENT)
def test_fit_and_predict_neither_heed_nor_change_what_the_process_has_set(
    x: NDArray[np.uint8], fitted: STDAC, ambient: str
) -> None:
    _count_forward.cache_clear()  # the first fit of an architecture builds one network more
    expected, images = fitted.transform(x), x.copy()
    images.setflags(write=False)
    with AMBIENT[ambient](), warnings.catch_warnings():
        warnings.simplefilter("error")
        before = read_state()
        estimator = small().fit(images)
        scores, of_fitted = estimator.transform(images), fitted.transform(images)
        assert read_state() == before
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(of_fitted, expected)
    np.testing.assert_array_equal(images, x)


def test_fits_of_several_threads_give_what_one_after_the_other_gives(x: NDArray[np.uint8], fitted: STDAC) -> None:
    state = torch.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        estimators = list(pool.map(lambda _: small().fit(x), range(3)))
    for estimator in estimators:
        np.testing.assert_array_equal(estimator.transform(x), fitted.transform(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_prediction_beside_a_fit_puts_nothing_back_that_the_fit_still_needs() -> None:
    """Whoever leaves first, of two that overlap, what the process had set is there again after the last."""
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with fix_state():
            inside.set()
            leave.wait(LONG_S)

    torch.set_default_dtype(torch.float64)
    try:
        other = threading.Thread(target=stay)
        with fix_state():
            other.start()
            assert inside.wait(LONG_S)
        assert torch.get_default_dtype() == torch.float32
        leave.set()
        other.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_predicts_and_fits_where_its_parent_has_started_threads(x: NDArray[np.uint8]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        estimator = small(epochs=1).fit(x[:40])
        expected = estimator.transform(x)
        receive, send = multiprocessing.Pipe(duplex=False)

        def answer() -> None:
            send.send((estimator.transform(x), small(epochs=1).fit(x[:40]).labels_, torch.get_num_threads()))

        child = multiprocessing.get_context("fork").Process(target=answer)
        child.start()
        try:
            assert receive.poll(60), "it hangs"
            scores, labels, threads_there = receive.recv()
        finally:
            child.kill()
            child.join()
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, estimator.labels_)
    assert threads_there == 2


def test_a_model_file_is_read_the_same_whatever_the_process_has_set(x: NDArray[np.uint8], tmp_path: Path) -> None:
    trial = resolve({"dataset": "digits", "params": {"stn": 1, "width": 0.05}})
    config = ModelConfig(trial, (1, 28, 28))
    save_model(tmp_path / "model.pt", config.build(), config)
    expected = predict_scores(load_model(tmp_path / "model.pt")[0], x[:, None], torch.device("cpu"))
    with AMBIENT["float64"](), torch.inference_mode(), torch.device("meta"):
        before = read_state()
        model, _ = load_model(tmp_path / "model.pt")
        assert read_state() == before
    assert {p.dtype for p in model.parameters()} == {torch.float32} and all(p.requires_grad for p in model.parameters())
    np.testing.assert_array_equal(predict_scores(model, x[:, None], torch.device("cpu")), expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning")  # scikit-learn's own sum
@pytest.mark.parametrize(
    "kind", ["float16", "tiny float16", "float32", "wide float32", "bfloat16", "tensor", "gradient"]
)
def test_numbers_of_every_type_and_range_are_scaled_alike(x: NDArray[np.uint8], kind: str) -> None:
    digits = np.where(x > 127, 255, 0).astype(np.float64)  # two values, which every type tells apart
    images: Any = {
        "float16": lambda: (digits / 255000).astype(np.float16),
        "tiny float16": lambda: (digits / 255 * 6e-8).astype(np.float16),
        "float32": lambda: (digits / 255).astype(np.float32),
        "wide float32": lambda: ((digits / 255 * 2 - 1) * 3e38).astype(np.float32),
        "bfloat16": lambda: (digits / 255).astype(ml_dtypes.bfloat16),
        "tensor": lambda: torch.from_numpy(digits / 255).bfloat16(),
        "gradient": lambda: torch.from_numpy(digits / 255).requires_grad_(),
    }[kind]()
    estimator = small(epochs=1).fit(images)
    expected = small(epochs=1).fit(digits)
    np.testing.assert_array_equal(estimator.transform(images), expected.transform(digits))


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


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x / 255 * 1e-310,
        lambda x: (x / 255 * 2 - 1) * 1.7e308,
        lambda x: x.astype(np.int64) + 2**60,
        lambda x: x.astype(np.uint64) + np.uint64(2**63),
    ],
)
def test_numbers_at_the_ends_of_their_type_are_scaled_like_others(change: Callable[[Any], Any]) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    values = change(pixels)
    scaled = scale(values, values.min().item(), values.max().item())
    assert np.abs(scaled.astype(int) - pixels).max() <= (1 if values.dtype.kind == "f" else 0)


def test_importing_stdac_does_not_import_torch() -> None:
    code = (
        "import stdac, sys; assert 'STDAC' in dir(stdac); assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LONG_S)

"""Every method with a model has an estimator, which keeps scikit-learn's contract and clusters as its trials do."""

import inspect
import io
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import stdac
from stdac.data import Dataset, load
from stdac.errors import StdacError
from stdac.estimator import MethodEstimator, estimator_of
from stdac.folder import TrialFolder
from stdac.in_memory import train_in_memory
from stdac.methods import METHODS, add_needs, resolve
from stdac.results import take_result
from stdac.run import run_trial
from stdac.trial import list_naming_fields
from tests.conftest import CPU
from tests.test_estimator import AMBIENT, NOT_FOR_IMAGES, read_state
from tests.toys.follower import FOLLOWER, SLOW_TOY

PRETRAINED = {"width": 0.1, "pretrain_epochs": 2, "restarts": 2, "device": "cpu", "random_state": 0}
SELF_TRAINED = PRETRAINED | {"epochs": 2, "update_interval": 2, "tolerance": 0.0}
TINY: dict[str, dict[str, Any]] = {
    "AEKMeans": PRETRAINED,
    "DCN": PRETRAINED | {"epochs": 2},
    "VaDE": {name: value for name, value in PRETRAINED.items() if name != "restarts"} | {"epochs": 2, "starts": 1},
    "DeepKMeansA": {"width": 0.1, "epochs": 2, "device": "cpu", "random_state": 0},
    "DeepKMeansP": PRETRAINED | {"epochs": 2},
    "DEC": SELF_TRAINED,
    "IDEC": SELF_TRAINED,
    "FcDECDA": SELF_TRAINED,
    "ConvDECDA": SELF_TRAINED,
    "DACStar": {"width": 0.1, "epochs": 2, "macro_batch": 64, "passes": 1, "device": "cpu", "random_state": 0},
    "STDAC": {"stn": 1, "width": 0.05, "epochs": 2, "macro_batch": 64, "device": "cpu", "random_state": 0},
}
"""What lets an estimator train in a fraction of a second."""

SCHEDULED = ("VaDE", "DeepKMeansA", "DeepKMeansP")
"""Those whose epochs follow from a budget or a schedule."""

ESTIMATORS = pytest.mark.parametrize("name", stdac.ESTIMATORS)
UNTRAINED = "it begins untrained, with representatives at random: fifty points are too few for it to part the blobs"
NOT_FOR = {
    "DeepKMeansA": dict.fromkeys(("check_clustering", "check_clustering(readonly_memmap=True)"), UNTRAINED),
    "DACStar": {
        "check_clustering": "two of 22x22 pixels, in a corner, tell the blobs apart: more than it learns so fast",
        "check_clustering(readonly_memmap=True)": "the same",
    },
}


def tiny(name: str, **changed: Any) -> MethodEstimator:
    """The estimator of a name, which trains in a fraction of a second."""
    made: MethodEstimator = getattr(stdac, name)(**TINY[name] | changed)
    return made


@pytest.fixture(scope="module")
def x() -> NDArray[np.uint8]:
    """(100, 28, 28) uint8 digits."""
    return load("digits", limit=100).images[:, 0]


# --- scikit-learn's contract; that of STDAC is in tests/test_estimator.py


# The checks fit tables of a few columns, which are laid out on a square of pixels with a warning.
@pytest.mark.filterwarnings("ignore:rows of:UserWarning")
@parametrize_with_checks(
    [tiny(name, n_clusters=2) for name in stdac.ESTIMATORS if name != "STDAC"],
    expected_failed_checks=lambda estimator: NOT_FOR_IMAGES | NOT_FOR.get(type(estimator).__name__, {}),
    xfail_strict=False,  # the order of images may happen not to change any rounding
)
def test_scikit_learn_estimator_check(estimator: MethodEstimator, check: Callable[[MethodEstimator], None]) -> None:
    check(estimator)


@ESTIMATORS
def test_a_class_is_of_its_module_and_a_pickle_and_a_clone_are_like_it(name: str, x: NDArray[np.uint8]) -> None:
    estimator = tiny(name, n_clusters=3)
    assert (type(estimator).__module__, type(estimator).__qualname__) == ("stdac.estimator", name)
    assert clone(estimator).get_params() == estimator.get_params()
    estimator.fit(x)
    restored = pickle.load(io.BytesIO(pickle.dumps(estimator)))
    np.testing.assert_array_equal(restored.transform(x), estimator.transform(x))
    np.testing.assert_array_equal(clone(estimator).fit(x).labels_, estimator.labels_)
    np.testing.assert_array_equal(estimator.predict(x), estimator.labels_)
    assert estimator.get_feature_names_out()[0] == f"{name.lower()}0"


@ESTIMATORS
def test_a_constructor_has_the_methods_parameters_and_defaults(name: str) -> None:
    method = METHODS[getattr(stdac, name)._method]
    given = dict(inspect.signature(getattr(stdac, name)).parameters)
    expected = {f.name: f.default for f in fields(method.params)}
    expected |= {"n_clusters": 10, "image_shape": None, "device": "auto", "random_state": None}
    expected |= {"epochs": None if name in SCHEDULED else method.epochs} if method.epochs else {}
    assert {key: parameter.default for key, parameter in given.items()} == expected
    assert next(iter(given)) == "n_clusters" and {p.kind for p in list(given.values())[1:]} == {
        inspect.Parameter.KEYWORD_ONLY
    }
    with pytest.raises(TypeError, match=rf"{name}.__init__\(\) got an unexpected keyword argument 'widht'"):
        getattr(stdac, name)(widht=1.0)


@ESTIMATORS
def test_a_docstring_says_what_every_parameter_is(name: str) -> None:
    text = inspect.getdoc(getattr(stdac, name)) or ""
    for parameter in getattr(stdac, name)().get_params():
        assert re.search(rf"\b{parameter}(, \w+)?: ", " ".join(text.split())), parameter
    assert max(map(len, text.splitlines())) <= 120


def test_every_method_that_clusters_and_has_a_model_has_one() -> None:
    """But for the floors, of which scikit-learn has its own, those that read what somebody has to choose, and those
    whose network was trained before, which want pictures of its size."""
    expected = {
        name
        for name, method in METHODS.items()
        if method.build is not None and method.takes_k and not method.is_floor
        if not (method.takes_source or list_naming_fields(method.params) or method.asks)
    }
    assert {getattr(stdac, name)._method for name in stdac.ESTIMATORS} == expected
    assert set(stdac.ESTIMATORS) <= set(stdac.__all__) and set(stdac.ESTIMATORS) == set(TINY)


# --- what is needed is trained first


@pytest.mark.parametrize("name", ["AEKMeans", "DCN", "DEC", "IDEC", "VaDE", "DeepKMeansP", "ConvDECDA"])
def test_an_estimator_clusters_as_the_trials_of_a_folder_do(name: str, x: NDArray[np.uint8], tmp_path: Path) -> None:
    estimator = tiny(name, n_clusters=3).fit(x)
    kind = METHODS[estimator._method]
    params = {f.name: getattr(estimator, f.name) for f in fields(kind.params)}
    spec = {"method": estimator._method, "dataset": "digits", "limit": 100, "n_clusters": 3, "params": params}
    spec |= {"seed": estimator._trial(100).seed, "epochs": TINY[name].get("epochs")}
    folders: dict[str, TrialFolder] = {}
    for trial in add_needs([resolve(spec)]):
        folders[trial.id] = TrialFolder(tmp_path / trial.id)
        needed = [take_result(folders[other]) for other in trial.needs]
        assert run_trial(trial, folders[trial.id], machine=CPU, needed=needed)
    path = folders[trial.id].result()
    assert path is not None
    np.testing.assert_array_equal(estimator.labels_, pq.read_table(path / "assignments.parquet")["cluster"].to_numpy())


def test_the_history_has_the_autoencoders_epochs_first(x: NDArray[np.uint8]) -> None:
    estimator = tiny("DEC", n_clusters=3).fit(x)
    told = [(row["method"], row["phase"], row["epoch"]) for row in estimator.history_]
    pretrained = [("autoencoder", "pretrain", epoch) for epoch in (1, 2)]
    assert told == pretrained + [("dec", "cluster", epoch) for epoch in (0, 1, 2)]
    assert estimator.history_[0]["loss_reconstruction"] > 0 and estimator.history_[-1]["loss_clustering"] > 0
    assert not any({"acc", "nmi", "ari", "purity", "seed"} & set(row) for row in estimator.history_)


def test_n_iter_counts_the_epochs_that_were_trained(x: NDArray[np.uint8]) -> None:
    assert tiny("DEC", n_clusters=3, epochs=5, tolerance=1.0).fit(x).n_iter_ == 1
    assert tiny("AEKMeans", n_clusters=3).fit(x).n_iter_ == 0
    assert tiny("DEC", epochs=None)._trial(100).epochs == METHODS["dec"].epochs
    assert [stdac.VaDE(budget=budget)._trial(100).epochs for budget in ("published", "cpu")] == [300, 30]
    assert stdac.DeepKMeansA(alpha_values=3, epochs_per_alpha=2)._trial(100).epochs == 6


def test_too_many_clusters_are_refused_before_anything_is_trained(x: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="got 101 clusters for 100 images"):
        tiny("DEC", n_clusters=101, pretrain_epochs=10**9).fit(x)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("DEC", {"optimizer": "adagrad"}, "got optimizer = 'adagrad', expected sgd or adam"),
        ("DEC", {"budget": "none"}, "got budget = 'none', expected one of published, cpu"),
        ("AEKMeans", {"restarts": "many"}, "got restarts = 'many', expected int"),
        ("ConvDECDA", {"image_shape": (8, 98)}, "the convolutional autoencoder needs at least 9x9"),
        ("DACStar", {"image_shape": (16, 49)}, "needs at least 22x22"),
    ],
)
def test_a_bad_parameter_is_a_value_error(
    name: str, changed: dict[str, Any], message: str, x: NDArray[np.uint8]
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(name, **changed).fit(x.reshape(100, -1))


@pytest.mark.parametrize("shape", [(3, 5), (1, 8), (3, 3), (3, 5, 3), (5, 3, 3), (5, 3, 1), (1, 1)])
def test_rows_of_any_shape_are_laid_out_alike_by_fit_and_predict(shape: tuple[int, ...]) -> None:
    """Sides of one or three pixels look like channels."""
    rows = np.random.default_rng(0).integers(0, 256, (40, int(np.prod(shape))), dtype=np.uint8)
    estimator = tiny("DEC", n_clusters=2, image_shape=shape).fit(rows)
    assert estimator.image_shape_ == (*shape[:2], *(shape[2:] or (1,)))
    np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)


@pytest.mark.parametrize("ambient", ["inference_mode", "float64", "another default device", "autocast"])
def test_what_the_process_has_set_does_not_reach_the_autoencoder(x: NDArray[np.uint8], ambient: str) -> None:
    expected = tiny("DEC", n_clusters=3).fit(x).transform(x)
    with AMBIENT[ambient](), warnings.catch_warnings():
        warnings.simplefilter("error")
        before = read_state()
        scores = tiny("DEC", n_clusters=3).fit(x).transform(x)
        assert read_state() == before
    np.testing.assert_array_equal(scores, expected)


# --- one's own method


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests' methods are among METHODS."""
    monkeypatch.setitem(METHODS, "slow-toy", SLOW_TOY)
    monkeypatch.setitem(METHODS, "follower", FOLLOWER)
    monkeypatch.setenv("STDAC_TOYS", str(tmp_path))


def test_a_method_of_ones_own_gets_an_estimator(toys: None, x: NDArray[np.uint8]) -> None:
    @estimator_of("slow-toy")
    class Toy(MethodEstimator):
        """Clusters images as the tests' toy does."""

    assert inspect.getdoc(Toy).startswith("Clusters images as the tests' toy does.\n\nX: uint8")
    estimator = Toy(2, hidden=[4, 3], device="cpu").fit(x)  # a list is a tuple
    assert set(estimator.labels_) <= {0, 1} and estimator.n_iter_ == 4


def test_clusters_and_confidence_of_a_needed_trial_are_handed_over(toys: None, x: NDArray[np.uint8]) -> None:
    trial = resolve({"method": "follower", "dataset": "array", "n_clusters": 2})
    trained = train_in_memory(trial, Dataset(x[:, None], None), CPU)
    (toy,) = trained.needed
    followed = trained.read_clusters() >= 0
    assert followed.sum() == 50
    np.testing.assert_array_equal(trained.read_clusters()[followed], toy.read_clusters()[followed])
    assert toy.read_confidence()[followed].min() >= toy.read_confidence()[~followed].max()
    assert np.isnan(trained.read_confidence()).all() and toy.fingerprint == Dataset(x[:, None], None).fingerprint


def test_a_trial_that_names_others_is_refused(x: NDArray[np.uint8]) -> None:
    trial = resolve({"method": "student", "dataset": "array", "n_clusters": 2, "params": {"teacher": "0" * 16}})
    with pytest.raises(StdacError, match="method student needs trial 0000000000000000, which is in no run folder here"):
        train_in_memory(trial, Dataset(x[:, None], None), CPU)

"""The student: what it is taught, that it goes on from where it was stopped, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from cluster_jobs.commands.stdac import main as stdac
from stdac.data import Dataset, load
from stdac.errors import StdacError
from stdac.folder import TrialFolder
from stdac.methods import METHODS, resolve
from stdac.methods.student import LOWEST, choose_sure, draw_batches, scale_rate
from stdac.model_file import load_model
from stdac.results import Result, take_result
from stdac.run import Scorer, fit, run_trial
from stdac.train import Progress
from tests.conftest import CPU, Watch, results_of
from tests.test_methods import PowerCut, assert_equal

SMALL = {"width": 0.25, "images": 1600, "batch": 32, "rounds": 3}
IMAGES = {"dataset": "digits", "limit": 200}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = TrialFolder(tmp_path_factory.mktemp("teacher") / "trial")
    trial = resolve({**IMAGES, "method": "kmeans", "params": {"restarts": 1}})
    run_trial(trial, folder, machine=CPU)
    return take_result(folder)


def spec(of: Result, **params: Any) -> dict[str, Any]:
    return {**IMAGES, "method": "student", "epochs": 5, "params": SMALL | {"teacher": teacher_id(of)} | params}


def teacher_id(teacher: Result) -> str:
    return resolve(teacher.trial).id


@pytest.mark.parametrize("network", [{}, {"network": "st-dac", "stn": 2, "width": 0.1, "images": 100}])
def test_a_student_learns_its_teacher_s_clusters_and_is_a_model(
    network: dict[str, Any], teacher: Result, tmp_path: Path
) -> None:
    folder = TrialFolder(tmp_path / "trial")
    run_trial(resolve(spec(teacher, **network)), folder, machine=CPU, needed=[teacher])
    rows, path = results_of(folder)
    main = rows.filter(rows["main"]).to_pylist()
    assert [row["epoch"] for row in main] == list(range(len(main))) and {row["phase"] for row in main} == {"learn"}
    assert main[1]["selected_fraction"] == 1.0, "k-means does not say how sure it is"
    model, _ = load_model(path / "model.pt")
    assigned = pq.read_table(path / "assignments.parquet")
    with torch.no_grad():
        scores = model(torch.from_numpy(load("digits", limit=200).images).float() / 255)
    np.testing.assert_array_equal(scores.argmax(1).numpy(), assigned["cluster"].to_numpy())
    np.testing.assert_array_equal(assigned["protocol_cluster"], assigned["cluster"])
    if not network:
        assert (assigned["cluster"].to_numpy() == teacher.read_clusters()).mean() > 0.7


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_stopped_while_taught_or_in_a_round_and_resumed(stop_at: int, teacher: Result, tmp_path: Path) -> None:
    def cut(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (stop_at, 2):
            raise PowerCut

    trial, whole, cut_off = resolve(spec(teacher)), TrialFolder(tmp_path / "whole"), TrialFolder(tmp_path / "cut")
    run_trial(trial, whole, machine=CPU, needed=[teacher])
    with pytest.raises(PowerCut):
        run_trial(trial, cut_off, machine=CPU, needed=[teacher], observer=Watch(progress=cut))
    run_trial(trial, cut_off, machine=CPU, needed=[teacher])
    assert_equal(cut_off, whole)


def test_labels_change_no_weight(teacher: Result) -> None:
    dataset, trial = load("digits", limit=200), resolve(spec(teacher))
    weights = []
    for labels in (dataset.labels, None):
        scorer = Scorer(trial, Dataset(dataset.images, labels), "cpu")
        model = fit(trial, dataset.images, scorer, CPU, {}, needed=[teacher]).model
        assert model is not None
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_train_export_and_cluster(tmp_path: Path) -> None:
    def call(*words: object) -> str:
        done = CliRunner().invoke(stdac, list(map(str, words)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    train = ("train", "--dataset", "digits", "--limit", 300, "--device", "cpu", "--out", tmp_path / "one")
    of_teacher = Path(call(*train, "--method", "kmeans", "--set", "restarts=1").splitlines()[-1])
    words = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    teacher = f"teacher={of_teacher.parent.name}"
    student = Path(call(*train, "--method", "student", "--epochs", 2, *words, "--set", teacher).splitlines()[-1])
    assert "verified against torch" in call("export", student / "model.pt", tmp_path / "model.onnx")
    call("cluster", tmp_path / "model.onnx", "digits", "-o", tmp_path / "clusters.parquet")
    assert pq.read_metadata(tmp_path / "clusters.parquet").num_rows == 1797


# what is chosen


def test_the_surest_of_each_cluster_are_taught() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, -1, 3])
    sure = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.5, 0.6, 1.0, 0.0])
    assert choose_sure(labels, sure, 0.5).tolist() == [True, False, True, False, False, True, False, True]
    assert choose_sure(labels, sure, 1.0).tolist() == [True] * 6 + [False, True]
    assert choose_sure(labels, torch.full((8,), torch.nan), 0.5).tolist() == [True] * 6 + [False, True]


def test_among_equals_chance_decides() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    torch.manual_seed(0)
    chosen = choose_sure(labels, torch.ones(1000), 0.5)
    assert chosen.sum() == 500 and 200 < chosen[:500].sum() < 300


def test_an_epoch_has_as_many_images_as_it_needs() -> None:
    index = torch.arange(10, 22)
    parts = list(draw_batches(index, images=30, batch=5))
    assert [len(part) for _, part in parts] == [5] * 6  # three passes of two
    assert [done for done, _ in parts] == pytest.approx([i / 6 for i in range(6)])
    assert {int(i) for _, part in parts for i in part} <= set(range(10, 22))
    assert [len(part) for _, part in draw_batches(index[:3], images=1, batch=5)] == [3]


def test_the_learning_rate_is_one_cycle() -> None:
    rates = [scale_rate(i / 1000) for i in range(1001)]
    assert rates[0] == pytest.approx(LOWEST) and rates[300] == pytest.approx(1) and rates[-1] == pytest.approx(LOWEST)
    assert rates[:301] == sorted(rates[:301]) and rates[300:] == sorted(rates[300:], reverse=True)


# what is refused


class Clusters:
    """A teacher with any clusters."""

    def __init__(self, clusters: list[int]) -> None:
        self.trial: dict[str, Any] = {}
        self.clusters = np.array(clusters)

    def read_clusters(self) -> Any:
        return self.clusters

    def read_confidence(self) -> Any:
        return np.ones(len(self.clusters), np.float32)


@pytest.mark.parametrize(
    ("clusters", "said"),
    [
        ([0] * 199, "the teacher has clusters of 199 images, the student 200"),
        ([*range(11), *[0] * 189], "the teacher has 11 clusters, the student 10: give both the same number"),
        ([-1] * 200, "the teacher has put no image into a cluster"),
    ],
)
def test_a_teacher_of_other_clusters_is_refused(clusters: list[int], said: str, teacher: Result) -> None:
    dataset, trial = load("digits", limit=200), resolve(spec(teacher))
    with pytest.raises(StdacError, match=said):
        fit(trial, dataset.images, Scorer(trial, dataset, "cpu"), CPU, {}, needed=[Clusters(clusters)])


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"teacher": ""}, "method student has no teacher: name a trial"),
        ({"network": "vgg"}, "got network = 'vgg', expected convnet, st-dac"),
        ({"stn": 2}, "got stn = 2 for network convnet, expected 0"),
        ({"share": 0.0}, "got share = 0.0, expected a share above 0, at most 1"),
        ({"smoothing": 1.0}, "got smoothing = 1.0, expected at least 0 and less than 1"),
        ({"batch": 1}, "got batch = 1, expected at least 2"),
    ],
)
def test_parameters_out_of_range_are_refused(params: dict[str, Any], said: str, teacher: Result) -> None:
    with pytest.raises(StdacError, match=said):
        resolve(spec(teacher, **params))


def test_nearly_nothing_to_learn_from(tmp_path: Path) -> None:
    """Ten images in as many clusters."""
    images = {"dataset": "digits", "limit": 10, "n_clusters": 10}
    of_teacher, folder = TrialFolder(tmp_path / "teacher"), TrialFolder(tmp_path / "trial")
    run_trial(resolve({**images, "method": "kmeans"}), of_teacher, machine=CPU)
    result = take_result(of_teacher)
    params = SMALL | {"teacher": teacher_id(result)}
    run_trial(resolve({**images, "method": "student", "params": params}), folder, machine=CPU, needed=[result])
    assert METHODS["student"].epochs == 5 and results_of(folder)[0].num_rows >= 4

"""What the contract promises to whoever adds a method: one new file and one line in METHODS are enough."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from analysis.cells import make_cells
from analysis.runs import concat_rows, read_main_rows, read_metrics, read_rows
from cluster_jobs.commands.grid import main as stdac_grid
from cluster_jobs.commands.stdac import main as stdac
from cluster_jobs.grid import expand, load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.request import Options
from cluster_jobs.worker import Worker
from stdac.data import Dataset, load
from stdac.errors import StdacError
from stdac.folder import TrialFolder
from stdac.methods import METHODS, fill_params, resolve
from stdac.methods.method import Fitted, check_fitted
from stdac.model_file import load_model
from stdac.record import CORE, METRICS, conform_metrics, make_metrics
from stdac.run import Scorer, fit, run_trial
from stdac.train import Assignment, Progress, Trainer, phase
from stdac.trial import Params, Trial, added
from tests.conftest import CPU, Watch, results_of
from tests.test_methods import PowerCut, assert_equal
from tests.toys import toy
from tests.toys.toy import TOY, ToyParams

Folders = Callable[[str], TrialFolder]
SPEC = {"method": "toy", "dataset": "digits", "limit": 200, "epochs": 2}
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """METHODS is the only other place that the new file is named in."""
    monkeypatch.setitem(METHODS, "toy", TOY)


def call(command: Any, *words: object) -> str:
    done = CliRunner().invoke(command, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_new_method_trains_exports_and_clusters(tmp_path: Path) -> None:
    out = call(stdac, "train", "--dataset", "digits", "--method", "toy", "--limit", 200, "--out", tmp_path / "one",
               "--device", "cpu", "--set", "hidden=[32, 8]")  # fmt: skip
    attempt = Path(out.splitlines()[-1])
    _, config = load_model(attempt / "model.pt")
    assert config.trial.params == ToyParams(hidden=(32, 8))
    rows = read_main_rows(attempt / "metrics.parquet")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4] and {row["phase"] for row in rows} == {"refine"}
    assert rows[-1]["term_entropy"] > 0 and rows[-1]["noise"] == 0
    assert "verified against torch" in call(stdac, "export", attempt / "model.pt", tmp_path / "toy.onnx")
    call(stdac, "cluster", tmp_path / "toy.onnx", "digits", "-o", tmp_path / "clusters.parquet")
    assert pq.read_metadata(tmp_path / "clusters.parquet").num_rows == 1797


def test_a_new_method_is_planned_shown_and_reported(tmp_path: Path) -> None:
    grid = tmp_path / "toys.toml"
    grid.write_text('[[trials]]\nmethod = ["kmeans", "toy"]\ndataset = "digits"\nlimit = 100\nseeds = 2\n'.replace(
        'method = ["kmeans", "toy"]', 'method = "toy"\nparams = { hidden = [[16, 8], [8]], warm_up = 1 }') +
        '[[trials]]\nmethod = "kmeans"\ndataset = "digits"\nlimit = 100\n')  # fmt: skip
    planned = call(stdac_grid, "plan", grid)
    assert "toy hidden=[16, 8] on digits, K 10, seed 0" in planned and "5 trials" in planned
    run, loaded = tmp_path / "run", load_grid(str(grid))
    Ledger(run).plan(loaded.trials, loaded.text)
    Worker(run, Options("cpu", 1)).work()
    table = call(stdac_grid, "results", run, "--figures", tmp_path / "figures")
    assert "Toy, hidden 16-8" in table and "Toy, hidden 8 " in table and "k-means" in table
    assert (tmp_path / "figures" / "accuracy-by-epoch.png").exists()
    assert "Toy, hidden 16-8" in Path(call(stdac_grid, "report", run).strip()).read_text()
    assert call(stdac_grid, "best", run, "--method", "toy").strip().endswith("model.pt")
    collected = pq.read_table(call(stdac_grid, "collect", run).strip())
    assert collected.schema.names[-3:] == ["term_entropy", "term_moved", "term_spread"] and len(collected) == 4 * 7 + 2
    assert read_metrics(run).num_rows == len(collected)


def test_a_new_method_suggests_k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers are processes, which sitecustomize tells of the method."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests" / "toys" / "path"))
    monkeypatch.setenv("STDAC_TOYS", str(tmp_path))
    run = tmp_path / "study"
    words = ("--k", "2,3", "--limit", 60, "--epochs", 1, "--method", "toy", "--device", "cpu", "--out", run)
    said = call(stdac, "suggest-k", "digits", *words)
    assert "toy, 1 epoch, at 2 numbers of clusters from 2 to 3, 3 seeds each" in said
    assert (run / "suggest-k.png").exists() and set(Ledger(run).states().values()) == {"done"}


@pytest.mark.parametrize(("phase_name", "epoch"), [("warm-up", 2), ("warm-up", 3), ("refine", 1), ("refine", 2)])
def test_a_new_method_resumes_bit_for_bit(phase_name: str, epoch: int, new_folder: Folders) -> None:
    def cut(progress: Progress) -> None:
        if (progress.phase, progress.epoch, progress.step) == (phase_name, epoch, 2):
            raise PowerCut

    trial, whole, cut_off = resolve(SPEC), new_folder("whole"), new_folder("cut")
    run_trial(trial, whole, machine=CPU)
    with pytest.raises(PowerCut):
        run_trial(trial, cut_off, machine=CPU, observer=Watch(progress=cut))
    run_trial(trial, cut_off, machine=CPU)
    assert_equal(cut_off, whole)


# what a method must not do


def fit_toy(fitting: Callable[..., Fitted], monkeypatch: pytest.MonkeyPatch) -> Fitted:

    monkeypatch.setitem(METHODS, "toy", replace(TOY, fit=fitting))
    trial, dataset = resolve(SPEC), load("digits", limit=200)
    return fit(trial, dataset.images, Scorer(trial, dataset, "cpu"), CPU, {})


def loop(trainer: Trainer, name: str = "refine", **changes: Any) -> None:
    """A phase of one weight."""
    layer = torch.nn.Linear(1, 1)
    options: dict[str, Any] = {
        "epochs": trainer.epochs,
        "batches": lambda _: iter([(torch.ones(2, 1),)]),
        "loss": lambda x: (layer(x).mean(), {}),
        "evaluate": lambda _: Assignment(torch.zeros(200, dtype=torch.long)),
    }
    phase(trainer, name, layer, torch.optim.SGD(layer.parameters(), 0.1), **(options | changes))


def named_acc(x: torch.Tensor) -> Any:
    """A loss that logs what it must not."""
    return (x * torch.ones(1, requires_grad=True)).sum(), {"acc": x.sum()}


NOTHING = Fitted(torch.zeros(200, dtype=torch.long))


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        (loop, "method toy has marked no main phase: pass main=True to one call of phase()"),
        (lambda t: (loop(t, main=True), loop(t, "b", main=True)), "got 'b' as a second main phase"),
        (lambda t: (loop(t, main=True), loop(t)), "got a second phase named 'refine'"),
        (lambda t: loop(t, "deployed", main=True), "got a second phase named 'deployed'"),
        (lambda t: loop(t, main=True, evaluate=None), "the main phase of method toy has no evaluate"),
        (
            lambda t: loop(t, main=True, loss=named_acc),
            "got a logged term named 'acc', expected loss_… or term_… in small letters, digits and _, or one of loss",
        ),
    ],
)
def test_phases_that_break_the_contract_are_told(
    phases: Callable[[Trainer], Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StdacError) as caught:
        fit_toy(lambda _images, _k, _params, trainer: (phases(trainer), NOTHING)[1], monkeypatch)
    assert said in str(caught.value)


def test_a_wrong_name_is_refused_at_the_first_score(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []

    def fitting(_images: Any, _k: int, _params: Any, trainer: Trainer) -> Fitted:
        def evaluate(epoch: int) -> Assignment:
            epochs.append(epoch)
            return Assignment(torch.zeros(200, dtype=torch.long))

        def loss(x: torch.Tensor) -> Any:
            return x.sum() * torch.ones(1, requires_grad=True).sum(), {"entropy": x.sum()}

        loop(trainer, main=True, epochs=50, evaluate=evaluate, loss=loss)
        return NOTHING

    with pytest.raises(StdacError, match="got a logged term named 'entropy', expected loss_… or term_…"):
        fit_toy(fitting, monkeypatch)
    assert epochs == [0, 1]


class Model(torch.nn.Module):
    """Scores that a test asks for."""

    def __init__(self, scores: Callable[[torch.Tensor], torch.Tensor], classify: Any = None) -> None:
        super().__init__()
        self.scores, self.classify = scores, classify or scores
        self.embed = lambda x: x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x)


def sure(of: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.eye(10)[[of] * len(x)]


@pytest.mark.parametrize(
    ("fitted", "said"),
    [
        (
            Fitted(torch.zeros(199, dtype=torch.long)),
            "labels (199,) torch.int64, the least 0: expected (200,) int64",
        ),
        (Fitted(torch.zeros(200)), "returned labels (200,) torch.float32, the least 0.0: expected (200,) int64"),
        (Fitted(torch.full((200,), -2)), "returned labels (200,) torch.int64, the least -2"),
        (NOTHING._replace(model=Model(lambda x: torch.ones(len(x), 9) / 9)), "returned (64, 9), expected (64, 10)"),
        (NOTHING._replace(model=Model(lambda x: 2 * sure(0)(x))), "do not sum to 1 in every row: end its model in"),
        (NOTHING._replace(model=Model(sure(1))), "are not the argmax of its model: expected those in eval mode"),
        (NOTHING._replace(model=Model(sure(0), sure(2))), "classify(embed(x)) of method toy differs from its model(x)"),
        (
            NOTHING._replace(encoder=torch.nn.Flatten(0)),
            "encoder of method toy returned (50176,), expected (64, D)",
        ),
    ],
)
def test_what_a_method_returns_is_checked(fitted: Fitted, said: str) -> None:
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    with pytest.raises(StdacError) as caught:
        check_fitted(fitted, images, 10, "toy")
    assert said in str(caught.value)
    check_fitted(NOTHING._replace(model=Model(sure(0))), images, 10, "toy")


# rows of other versions


def test_rows_of_the_version_before_are_read() -> None:
    """results/paper as it was published before rows had the columns noise and main."""
    old = pq.read_table(REPOSITORY / "tests" / "frozen" / "paper-rows.parquet")
    assert "main" not in old.column_names
    table = read_metrics(REPOSITORY / "tests" / "frozen" / "paper-rows.parquet", unfinished=True)
    assert table.select(old.column_names).equals(old)
    assert table["noise"].null_count == len(table)
    assert table.filter(table["main"])["phase"].unique().to_pylist() == ["cluster"]
    labels = [(cell.dataset, cell.label) for cell in make_cells(table)]
    assert ("mnist", "ST-DAC, 2 STN") in labels and len(labels) == 8


def test_rows_of_a_version_to_come_are_read(tmp_path: Path) -> None:
    table = make_metrics([{"trial_id": "a", "phase": "x", "epoch": 1, "acc": 0.5, "term_new": 2.0, "main": True}])
    table = table.append_column("hue", pa.array(["red"])).set_column(
        table.schema.get_field_index("schema_version"), "schema_version", pa.array([1], pa.int32())
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    (row,) = read_rows(tmp_path / "rows.parquet").to_pylist()
    assert row["term_new"] == 2.0 and "hue" not in row
    both = concat_rows([read_rows(tmp_path / "rows.parquet"), conform_metrics(make_metrics([]))])
    assert both["term_new"].to_pylist() == [2.0]


@pytest.mark.parametrize("name", CORE)
def test_a_reader_needs_the_core(name: str) -> None:
    table = make_metrics([{"trial_id": "a", "phase": "cluster", "epoch": 1}]).drop_columns(["loss_pair", "noise"])
    assert conform_metrics(table).schema.names == METRICS.names
    with pytest.raises(StdacError, match=f"it lacks the columns {name}: expected a file that stdac wrote"):
        conform_metrics(table.drop_columns([name]))


@pytest.mark.parametrize(("name", "values"), [("phase", [7]), ("main", ["yes"]), ("acc", ["high"])])
def test_a_column_of_another_type_is_told(name: str, values: list[Any]) -> None:
    table = make_metrics([{"trial_id": "a", "phase": "cluster", "epoch": 1}])
    table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    with pytest.raises(StdacError, match="it has values of another type"):
        conform_metrics(table)


def test_two_columns_of_one_name_are_told() -> None:
    table = make_metrics([{"trial_id": "a", "phase": "cluster", "epoch": 1, "term_a": 1.0, "term_b": 2.0}])
    names = ["term_a" if name == "term_b" else name for name in table.column_names]
    with pytest.raises(StdacError, match="it has two columns of one name"):
        conform_metrics(table.rename_columns(names))


# parameters that are added later, and tuples


def test_ids_survive_a_new_parameter(monkeypatch: pytest.MonkeyPatch) -> None:

    @dataclass(frozen=True)
    class Later(ToyParams):
        smoothing: float = added("0.3", before=0.0, default=0.1)
        steps: tuple[int, ...] = added("0.3", before=())

    before = resolve(SPEC)
    stored = json.loads(json.dumps(before.to_json()))
    monkeypatch.setitem(METHODS, "toy", replace(TOY, params=Later))
    assert resolve(stored).id == before.id and resolve(stored).params.smoothing == 0.0
    assert resolve({**SPEC, "params": {"smoothing": 0}}).id == before.id
    new = resolve(SPEC)
    assert new.id != before.id and new.params.smoothing == 0.1 and new.to_json()["params"]["smoothing"] == 0.1
    assert resolve(json.loads(json.dumps(new.to_json()))) == new
    assert fill_params("toy", stored["params"])["smoothing"] == 0.0
    assert isinstance(before, Trial) and isinstance(before.params, Params)


def test_parameters_may_be_tuples() -> None:
    one = [cell["params"]["hidden"] for cell in expand({**SPEC, "params": {"hidden": [16, 8]}})]
    two = [cell["params"]["hidden"] for cell in expand({**SPEC, "params": {"hidden": [[16, 8], [4]]}})]
    assert (one, two) == ([(16, 8)], [(16, 8), (4,)])
    assert resolve({**SPEC, "params": {"hidden": [16, 8]}}).params.hidden == (16, 8)
    for value in ([16, "8"], 16, [[16]]):
        with pytest.raises(StdacError, match=r"got hidden = .*, expected (a list of )?int"):
            resolve({**SPEC, "params": {"hidden": value}})


# a labelled source


def test_a_labelled_source_is_handed_over_and_covered_by_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_folder: Folders
) -> None:

    digits = load("digits", limit=60)
    assert digits.labels is not None
    np.savez(tmp_path / "source.npz", images=digits.images, labels=digits.labels)
    seen: list[Any] = []

    def fitting(images: Any, k: int, params: Any, trainer: Trainer) -> Fitted:
        seen.append(trainer.source)
        return toy.fit(images, k, params, trainer)

    with pytest.raises(StdacError, match="method toy reads no labelled data set: leave it out"):
        resolve({**SPEC, "source": "digits"})
    monkeypatch.setitem(METHODS, "toy", replace(TOY, fit=fitting, takes_source=True))
    with pytest.raises(StdacError, match="got source = None, expected a labelled data set for method toy"):
        resolve(SPEC)
    trial = resolve({**SPEC, "source": str(tmp_path / "source.npz")})
    assert trial.to_json()["source"] == str(tmp_path / "source.npz")
    folder = new_folder("sourced")

    def cut(progress: Progress) -> None:
        if progress.main:
            raise PowerCut

    with pytest.raises(PowerCut):
        run_trial(trial, folder, machine=CPU, observer=Watch(progress=cut))
    assert seen[0].images.shape == (60, 1, 28, 28) and seen[0].classes == 10
    np.testing.assert_array_equal(seen[0].labels.numpy(), digits.labels)
    np.savez(tmp_path / "source.npz", images=digits.images, labels=np.roll(digits.labels, 1))
    with pytest.raises(StdacError, match="are not those that trial"):
        run_trial(trial, folder, machine=CPU)
    np.savez(tmp_path / "source.npz", images=digits.images)
    with pytest.raises(StdacError, match=r"the source .*source.npz has no labels: expected a data set with them"):
        run_trial(trial, new_folder("unlabelled"), machine=CPU)


def test_noise_is_a_share_of_its_own(monkeypatch: pytest.MonkeyPatch, new_folder: Folders) -> None:

    def fitting(images: Any, _k: int, _params: Any, _trainer: Trainer) -> Fitted:
        return Fitted(torch.arange(len(images)) % 4 - 1)

    monkeypatch.setitem(METHODS, "toy", replace(TOY, fit=fitting, build=None, epochs=0))
    folder = new_folder("noisy")
    run_trial(resolve({**SPEC, "epochs": None}), folder, machine=CPU)
    rows, path = results_of(folder)
    assert rows["noise"].to_pylist() == [0.25] and rows["main"].to_pylist() == [True]
    assert pq.read_table(path / "assignments.parquet")["cluster"].to_pylist()[:4] == [-1, 0, 1, 2]
    assert not (path / "model.pt").exists()
    assert isinstance(load("digits", limit=5), Dataset)


def test_a_run_folder_of_the_version_before_is_continued_to_its_end(tmp_path: Path) -> None:
    """One trial stands after its first epoch, as 0.1 left it; the other was not begun."""
    shutil.copytree(REPOSITORY / "tests" / "frozen" / "run-0.1", tmp_path / "run")
    ledger = Ledger(tmp_path / "run")
    begun, other = ledger.ids()
    os.utime(ledger.folder(begun).lease_path(1), (0, 0))  # given back; git keeps no times
    (checkpoint,) = ledger.folder(begun).checkpoints()
    before = torch.load(checkpoint, weights_only=True)["rows"]
    Worker(ledger.path, Options("cpu", 1)).work()
    assert ledger.states() == {begun: "done", other: "done"}
    rows = read_main_rows(ledger.folder(begun).result() / "metrics.parquet")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [{name: row[name] for name in old} for row, old in zip(rows, before, strict=False)] == before
    assert len(read_metrics(ledger.path)) == 8

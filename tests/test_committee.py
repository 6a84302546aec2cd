"""A committee of trials: a trial like any other, a command, and the choice of a model by agreement."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from analysis.agreement import correlate_ranks, read_panels
from analysis.cells import make_cells
from analysis.runs import read_metrics
from cluster_jobs.commands.grid import main as stdac_grid
from cluster_jobs.display import Labels
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.request import Options
from cluster_jobs.worker import Worker
from stdac.consensus import find_consensus
from stdac.data import load
from stdac.errors import StdacError
from stdac.folder import TrialFolder
from stdac.methods import resolve
from stdac.results import take_result
from stdac.run import run_trial
from tests.conftest import CPU, results_of

MEMBERS = """
[[trials]]
method = "kmeans"
dataset = "digits"
limit = 200
seeds = {seeds}
params = { restarts = 1 }
"""
COMMITTEES = """
[[trials]]
method = "committee"
dataset = "digits"
limit = 200
seeds = 2
params.members = [
  { method = "kmeans", seeds = 3, params = { restarts = 1 } },
  { method = "pca-kmeans", params = { restarts = 1, components = 9 } },
]
"""


def run_grid(folder: Path, text: str, **options: Any) -> Ledger:
    """A run of a grid, to its end."""
    (folder / "grid.toml").write_text(text)
    grid = load_grid(str(folder / "grid.toml"))
    ledger = Ledger(folder / "run")
    ledger.plan(grid.trials, grid.text)
    Worker(ledger.path, Options("cpu", 1, **options)).work()
    assert set(ledger.states().values()) == {"done"}
    return ledger


def call(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(stdac_grid, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """Two committees of four members each."""
    return run_grid(tmp_path_factory.mktemp("committees"), COMMITTEES)


def name_committees(ledger: Ledger) -> list[str]:
    return [trial_id for trial_id, trial in ledger.trials().items() if trial["method"] == "committee"]


def test_a_committee_is_what_its_members_agree_on(run: Ledger, tmp_path: Path) -> None:
    name, other = name_committees(run)
    trial = run.trials()[name]
    members = [run.result(member).read_clusters() for member in trial["needs"]]
    rows, path = results_of(run.folder(name))
    (row,) = rows.to_pylist()
    table = pq.read_table(path / "assignments.parquet")
    np.testing.assert_array_equal(table["cluster"].to_numpy(), find_consensus(members, 10))
    sure = table["protocol_confidence"].to_numpy()
    assert row["term_unanimous"] == pytest.approx((sure == 1).mean()) and 0 < row["term_agreement"] < 1
    assert row["mean_confidence"] == pytest.approx(sure.mean(), abs=1e-6) and row["acc"] > 0.4
    with np.load(path / "stn.npz") as figures:
        assert figures["members"].tolist() == trial["needs"] and figures["agreement"].shape == (4,)
    assert not (path / "model.pt").exists() and not set(trial["needs"]) & set(run.trials()[other]["needs"])
    again = TrialFolder(tmp_path / "again")
    run_trial(resolve(trial), again, machine=CPU, needed=[run.result(member) for member in trial["needs"]])
    for file in ("assignments.parquet", "stn.npz"):
        assert (results_of(again)[1] / file).read_bytes() == (path / file).read_bytes()


def test_the_order_of_the_members_is_no_other_committee() -> None:
    spec = {"method": "committee", "dataset": "digits"}
    one, other = (resolve({**spec, "params": {"members": names}}) for names in (["b", "a"], ["a", "b"]))
    assert one.id == other.id and one.needs == ("a", "b")
    for names, said in (([], "got 0 members for a committee, expected at least 2"), (["a", "a"], "got member a twice")):
        with pytest.raises(StdacError, match=said):
            resolve({**spec, "params": {"members": names}})
    with pytest.raises(StdacError, match="got consensus = 'best', expected one of spectral"):
        resolve({**spec, "params": {"members": ["a", "b"], "consensus": "best"}})


def test_members_of_other_images_are_refused(tmp_path: Path) -> None:
    images = load("digits", limit=60).images
    results, names = [], []
    for file, content in (("a", images), ("b", images), ("c", images[::-1]), ("d", images[:50])):
        np.save(tmp_path / f"{file}.npy", content)
        spec = {"method": "kmeans", "dataset": str(tmp_path / f"{file}.npy"), "n_clusters": 3}
        trial = resolve({**spec, "params": {"restarts": 1}})
        folder = TrialFolder(tmp_path / "trials" / trial.id)
        run_trial(trial, folder, machine=CPU)
        results.append(take_result(folder))
        names.append(trial.id)

    def commit(chosen: list[int], out: str) -> TrialFolder:
        of = sorted(chosen, key=lambda number: names[number])
        spec = {"method": "committee", "dataset": str(tmp_path / "a.npy"), "n_clusters": 3}
        trial = resolve({**spec, "params": {"members": [names[number] for number in of]}})
        folder = TrialFolder(tmp_path / out)
        run_trial(trial, folder, machine=CPU, needed=[results[number] for number in of])
        return folder

    assert results_of(commit([0, 1], "same"))[0]["clusters_used"].to_pylist() == [3]
    for stranger, count in ((2, 60), (3, 50)):
        with pytest.raises(
            StdacError, match=rf"member {names[stranger]} of the committee has clustered {count} images"
        ):
            commit([0, 1, stranger], f"with-{stranger}")


@pytest.mark.parametrize(("k", "said"), [(30, "has a cluster for each of 30 images, which says nothing of what")])
def test_a_member_without_a_say_is_told(k: int, said: str, tmp_path: Path) -> None:
    results = []
    for clusters in (3, k):
        spec = {"method": "kmeans", "dataset": "digits", "limit": 30, "n_clusters": clusters}
        trial = resolve({**spec, "params": {"restarts": 1}})
        folder = TrialFolder(tmp_path / "trials" / trial.id)
        run_trial(trial, folder, machine=CPU)
        results.append(take_result(folder))
    results.sort(key=lambda result: result.path.parent.name)
    members = [result.path.parent.name for result in results]
    trial = resolve({"method": "committee", "dataset": "digits", "limit": 30, "params": {"members": members}})
    with pytest.raises(StdacError, match=said):
        run_trial(trial, TrialFolder(tmp_path / "committee"), machine=CPU, needed=results)


def test_committees_of_different_seeds_are_one_cell(run: Ledger) -> None:
    cells = make_cells(read_metrics(run.path))
    assert [(cell.label, cell.n) for cell in cells] == [
        ("k-means", 6),
        ("PCA + k-means", 2),
        ("Committee of 4", 2),
    ]
    assert "Committee of 4" in call("results", run.path).output
    assert str(name_committees(run)[0]) not in call("results", run.path).output


def test_different_committees_are_told_apart_by_their_members(tmp_path: Path) -> None:
    kmeans = "{ method = 'kmeans', seeds = 2, params.restarts = 1 }"
    others = [f"{{ method = 'pca-kmeans', params = {{ restarts = 1, components = {n} }} }}" for n in (5, 9)]
    block = "[[trials]]\nmethod = 'committee'\ndataset = 'digits'\nlimit = 100\nparams.members = [{}]\n"
    text = "".join(block.format(", ".join([kmeans, other])) for other in others)
    ledger = run_grid(tmp_path, text)
    labels = [cell.label for cell in make_cells(read_metrics(ledger.path)) if cell.method == "committee"]
    assert labels == [f"Committee of 3, members 2 × k-means; 1 × PCA + k-means, components {n}" for n in (5, 9)]
    committees = make_cells(read_metrics(ledger.path).filter(
        [m == "committee" for m in read_metrics(ledger.path)["method"].to_pylist()]
    ))  # fmt: skip
    assert [(cell.label, cell.n) for cell in committees] == [("Committee of 3", 2)], "whose members are not known"


def test_no_line_lists_ids(run: Ledger) -> None:
    trials = run.trials()
    label = Labels(trials.values())
    name = name_committees(run)[0]
    assert label(trials[name]) == "committee on digits, K 10, seed 0"
    other = trials[name] | {"params": trials[name]["params"] | {"members": trials[name]["needs"][:2]}}
    assert "members=1 × pca-kmeans, 3 × kmeans" in Labels([*trials.values(), other])(trials[name])


def test_the_command_makes_a_trial_of_the_run(tmp_path: Path) -> None:
    ledger = run_grid(tmp_path, MEMBERS.replace("{seeds}", "4"))
    said = call("consensus", ledger.path).output
    (name,) = name_committees(ledger)
    assert ledger.state(name) == "done" and ledger.trials()[name]["needs"] == sorted(ledger.trials()[name]["needs"])
    lines = said.splitlines()
    assert lines[0] == f"committee {name}: 4 members, 200 images, K 10, spectral consensus"
    agreements = [float(line.split()[0]) for line in lines if line.startswith(".")]
    assert len(agreements) == 4 and agreements == sorted(agreements, reverse=True)
    assert "all members agree on" in said and "* by labels, which chose nothing; the committee has" in said
    before = ledger.folder(name).result()
    assert call("consensus", ledger.path).output == said and ledger.folder(name).result() == before
    assert len(name_committees(ledger)) == 1, "it is no member of itself"
    assert "Committee of 4" in call("results", ledger.path).output
    again = load_grid(str(ledger.path / "grid-2.toml"))
    assert [trial.id for trial in again.trials] == [name]
    call("consensus", ledger.path, "--clusters", 5, "--by", "vote")
    assert sorted(ledger.trials()[name]["n_clusters"] for name in name_committees(ledger)) == [5, 10]
    assert "unknown method 'magic'" in call("consensus", ledger.path, "--method", "magic", code=1).output
    assert "has no 3 done trials" in call("consensus", ledger.path, "--method", "dec", code=1).output


def test_the_best_model_is_the_one_that_the_others_agree_with(tmp_path: Path) -> None:
    ledger = run_grid(tmp_path, MEMBERS.replace("{seeds}", "4"))
    (panel,) = read_panels(ledger.path)
    voice, agreement = panel.own[0]
    done = call("best", ledger.path)
    assert done.stdout.strip() == str(voice.path / "model.pt")
    assert f"by agreement: kmeans, seed {voice.trial['seed']}, has a mean NMI of " in done.stderr
    assert f"{agreement:.3f}".removeprefix("0") in done.stderr and "to the 3 others" in done.stderr
    said = call("results", ledger.path).output
    assert f"by agreement with the 3 others (mean NMI {agreement:.3f}".replace("0.", ".") in said
    assert f"k-means, seed {voice.trial['seed']}, ACC" in said and "Rank correlation of agreement with ACC" in said
    assert "by agreement with the 3 others" in Path(call("report", ledger.path).stdout.strip()).read_text()
    assert "has no done trial of 'mnist': expected one of digits" in call(
        "best", ledger.path, "--dataset", "mnist", code=1
    ).output  # fmt: skip


def test_few_or_forgotten_members_are_passed_over(tmp_path: Path) -> None:
    for name, seeds, keep in (("few", "2", "all"), ("forgotten", "4", "metrics")):
        (tmp_path / name).mkdir()
        ledger = run_grid(tmp_path / name, MEMBERS.replace("{seeds}", seeds), keep=keep)
        said = call("results", ledger.path).output
        assert "without labels" not in said and "k-means" in said
        assert ("95 %" in said) == (name == "forgotten"), "two seeds have no interval"
        assert "has no 3 done trials of the same images" in call("consensus", ledger.path, code=1).output
        assert "has no done st-dac trial with a loss and a model" in call("best", ledger.path, code=1).output


def test_several_data_sets_have_a_committee_each(tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", load("digits", limit=90).images[::-1])
    other = MEMBERS.replace("digits", str(tmp_path / "other.npy")).replace("limit = 200", "n_clusters = 10")
    ledger = run_grid(tmp_path, (MEMBERS + other).replace("{seeds}", "3"))
    assert "has trials of digits, other.npy: choose one with --dataset" in call("best", ledger.path, code=1).output
    assert call("best", ledger.path, "--dataset", "other.npy").stdout.strip().endswith("model.pt")
    call("consensus", ledger.path)
    committees = [ledger.trials()[name] for name in name_committees(ledger)]
    assert sorted(len(trial["needs"]) for trial in committees) == [3, 3]
    assert {trial["dataset"] for trial in committees} == {"digits", str(tmp_path / "other.npy")}


def test_ranks_are_correlated() -> None:
    assert correlate_ranks([1, 2, 3], [10, 20, 25]) == pytest.approx(1)
    assert correlate_ranks([1, 1, 1], [1, 2, 3]) is None

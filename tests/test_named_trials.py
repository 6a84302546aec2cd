"""Parameters that name other trials: by id, or by blocks within a block of a grid."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cluster_jobs.commands.stdac import main as stdac
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.request import Options
from cluster_jobs.worker import Worker
from stdac.errors import StdacError
from stdac.methods import METHODS, resolve
from stdac.trial import Trial
from tests.conftest import results_of
from tests.toys.voter import VOTER

TABLE = 'method = "kmeans", params = { restarts = 1 }'


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "voter", VOTER)


def load(folder: Path, *lines: str, block: str = 'method = "voter"\ndataset = "digits"\nlimit = 100') -> list[Trial]:
    (folder / "grid.toml").write_text("\n".join(["[[trials]]", block, *lines]))
    return load_grid(str(folder / "grid.toml")).trials


def test_blocks_within_a_block_are_trials_of_the_grid(tmp_path: Path) -> None:
    lines = ("n_clusters = 5", f"params.members = [{{ {TABLE}, seeds = 2 }}, {{ method = 'pca-kmeans', limit = 50 }}]")
    first, second, other, voter = load(tmp_path, *lines)
    assert voter.params.members == voter.needs == (first.id, second.id, other.id)
    assert [(t.seed, t.n_clusters, t.limit) for t in (first, second, other)] == [(0, 5, 100), (1, 5, 100), (0, 5, 50)]
    stored = resolve(voter.to_json())
    assert stored.id == voter.id and stored.needs == voter.needs


def test_trials_of_two_seeds_share_no_members(tmp_path: Path) -> None:
    trials = load(tmp_path, "seeds = 3", f"params.members = {{ {TABLE}, seeds = 4 }}")
    members = [set(trial.params.members) for trial in trials if trial.method == "voter"]
    assert [len(ids) for ids in members] == [4, 4, 4] and len(set.union(*members)) == 12
    assert [t.seed for t in trials if t.method == "kmeans"] == list(range(12))
    same = load(tmp_path, "seeds = 3", f"params.members = {{ {TABLE}, seed = [0, 1] }}")
    assert len(same) == 5, "seeds that are given are kept"
    paired = load(tmp_path, "seeds = 2", f"params.first = {{ {TABLE} }}")
    assert [(t.method, t.seed) for t in paired] == [("kmeans", 0), ("voter", 0), ("kmeans", 1), ("voter", 1)]


def test_blocks_nest_and_lists_are_axes(tmp_path: Path) -> None:
    inner = f'{{ method = "voter", params = {{ members = [{{ {TABLE}, seeds = 2 }}] }} }}'
    *_, last = trials = load(tmp_path, f"params.first = {inner}")
    assert [t.method for t in trials] == ["kmeans", "kmeans", "voter", "voter"]
    assert last.needs == (trials[2].id,) and trials[2].needs == (trials[0].id, trials[1].id)
    axis = load(tmp_path, f"params.first = [{{ {TABLE} }}, {{ method = 'kmeans', params.restarts = 2 }}]")
    assert [t.method for t in axis] == ["kmeans", "voter", "kmeans", "voter"]
    crossed = load(tmp_path, "params.members = { method = 'kmeans', params.restarts = [1, 2, 3] }")
    assert len(crossed[-1].params.members) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("params.members = { method = 'none' }", "in members: unknown method 'none'"),
        ("params.members = { size = 3 }", "in members: unknown trial key 'size'"),
        ("params.members = { method = 'kmeans', seeds = -1 }", "in members: got seeds = -1"),
        (f"params.first = {{ {TABLE}, seeds = 2 }}", "got 2 trials for first, expected one"),
        ("params.first = 3", "got first = 3, expected"),
        ("params.members = [3]", r"got members = .*, expected"),
        ("params.members = { params = 3 }", "in members: got params = 3, expected a table"),
    ],
)
def test_what_is_wrong_within_a_block_is_told(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(StdacError, match=said):
        load(tmp_path, line)


def test_blocks_within_blocks_without_end_are_told(tmp_path: Path) -> None:
    depth = 400
    header = "[trials" + ".params.first" * depth + "]\nmethod = 'voter'\n"
    middle = "".join(f"[trials{'.params.first' * i}]\nmethod = 'voter'\n" for i in range(1, depth))
    with pytest.raises(StdacError, match="too many blocks within blocks"):
        load(tmp_path, middle + header)


def test_a_finished_member_is_run_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = load(tmp_path, f"params.members = {{ {TABLE}, seeds = 2 }}")
    monkeypatch.setattr("cluster_jobs.grid._list_finished", lambda _path: {t.id for t in trials[:2]})
    assert load_grid(str(tmp_path / "grid.toml"), tmp_path).trials == trials


def test_members_vote_and_one_row_has_what_they_say(tmp_path: Path) -> None:
    trials = load(tmp_path, f"params.members = {{ {TABLE}, seeds = 3 }}")
    ledger = Ledger(tmp_path / "run")
    ledger.plan(trials, (tmp_path / "grid.toml").read_text())
    Worker(ledger.path, Options("cpu", 1, keep="metrics")).work()
    rows, path = results_of(ledger.folder(trials[-1].id))
    assert rows["main"].to_pylist() == [True] and 0 < rows["mean_confidence"][0].as_py() <= 1
    assert 0 <= rows["term_unanimous"][0].as_py() <= 1
    _, member = results_of(ledger.folder(trials[0].id))
    assert (member / "assignments.parquet").exists() and not (path / "assignments.parquet").exists()


def test_train_takes_what_is_done_in_its_run_folder(tmp_path: Path) -> None:
    def train(*words: object) -> str:
        out = ("--out", str(tmp_path / "one"), "--device", "cpu", "--limit", "100", "--dataset", "digits")
        done = CliRunner().invoke(stdac, ["train", *map(str, words), *out])
        assert done.exit_code == 0, done.output
        return done.output

    train("--method", "kmeans")
    (trial,) = (tmp_path / "one" / "trials").iterdir()
    path = train("--method", "voter", "--set", f"first={trial.name}").splitlines()[-1]
    votes = pq.read_table(Path(path) / "assignments.parquet")
    assert set(votes["protocol_confidence"].to_pylist()) == {1.0}

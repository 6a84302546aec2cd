"""The data of a trial: one id however a path is spelled, and nothing passed off as done on data that have changed."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from analysis.cells import make_cells
from analysis.runs import read_metrics
from cluster_jobs.commands import grid as grid_commands
from cluster_jobs.commands import stdac as stdac_commands
from cluster_jobs.grid import load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.request import Options
from cluster_jobs.worker import Worker
from stdac.data import resolve_name
from stdac.errors import NotHere, StdacError
from stdac.folder import TrialFolder
from stdac.methods import resolve
from stdac.run import run_trial
from stdac.trial_data import find_changes, hash_files
from stdac.words import shorten_paths
from tests.conftest import CPU

TRAIN = ("train", "--method", "kmeans", "--set", "restarts=1", "--clusters", "2", "--dataset")
GRID = """
[defaults]
dataset = "data/photos"
method = "kmeans"
n_clusters = 2
[[trials]]
seeds = 2
params = { restarts = 1 }
"""


def draw(folder: Path, n: int, seed: int = 0) -> Path:
    """n pictures of 8x8, half of them dark, in two folders."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 128, (8, 8), np.uint8) + np.uint8(128 * (i % 2))).save(path)
    return folder


def stdac(*words: object) -> Result:
    return CliRunner().invoke(stdac_commands.main, [str(word) for word in words])


def stdac_grid(*words: object) -> Result:
    return CliRunner().invoke(grid_commands.main, [str(word) for word in words])


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 40 pictures, seen from the folder above it."""
    monkeypatch.chdir(tmp_path)
    return draw(tmp_path / "photos", 40)


def test_a_path_is_one_data_set_however_it_is_spelled(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos.parent / "link").symlink_to(photos)
    monkeypatch.setenv("HOME", str(photos.parent))
    spelled = ["photos", "photos/", "./photos", str(photos), "photos/../photos", "link", "~/photos", "//" + str(photos)]
    ids = {resolve({"method": "kmeans", "dataset": name, "n_clusters": 2}).id for name in spelled}
    assert len(ids) == 1
    assert resolve_name("digits") == "digits" and resolve_name("./digits") == str(photos.parent / "digits")
    stored = resolve({"method": "kmeans", "dataset": "photos", "n_clusters": 2}).to_json() | {"dataset": "photos"}
    assert resolve(stored).dataset == "photos"  # as it was written by an earlier stdac


def test_a_grid_s_paths_start_in_its_folder_and_are_the_same_for_every_worker(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos.parent / "elsewhere").mkdir()
    (photos.parent / "data").mkdir()
    photos.rename(photos.parent / "data" / "photos")
    (photos.parent / "my.toml").write_text(GRID)
    monkeypatch.chdir(photos.parent / "elsewhere")
    loaded = load_grid("../my.toml")
    assert {trial.dataset for trial in loaded.trials} == {str(photos.parent / "data" / "photos")}
    Ledger(photos.parent / "run").plan(loaded.trials, loaded.text)
    monkeypatch.chdir("/")
    Worker(photos.parent / "run", Options("cpu", 1)).work()
    assert set(Ledger(photos.parent / "run").states().values()) == {"done"}


@pytest.mark.parametrize("lacking", ["data", "library", "device"])
def test_what_a_machine_lacks_is_not_the_trial_s_failure(
    lacking: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = resolve({"method": "kmeans", "dataset": "photos", "n_clusters": 2})
    ledger = Ledger(photos.parent / "run")
    ledger.plan([trial], "")
    device = "cpu"
    if lacking == "data":
        photos.rename(photos.parent / "other")
    elif lacking == "library":
        monkeypatch.setattr("stdac.run.fit", lambda *_, **__: __import__("a_library"))
    else:
        device = "cuda"
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = {
        "data": "no data set .*photos here",
        "library": "a_library, which is not installed",
        "device": "sees no GPU here",
    }
    with pytest.raises(NotHere, match=said[lacking]):
        Worker(ledger.path, Options(device, 1)).work()
    assert ledger.states() == {trial.id: "waiting"} and ledger.folder(trial.id).crashes() == []


def test_training_again_on_other_pictures_is_refused_and_on_the_same_passed_over(photos: Path) -> None:
    assert stdac(*TRAIN, "photos").exit_code == 0
    again = stdac(*TRAIN, "./photos/")
    assert again.exit_code == 0 and "already done" in again.output
    for path in photos.rglob("*.png"):  # copied, or touched: the images are the same
        os.utime(path, (1, 1))
    assert "already done" in stdac(*TRAIN, "photos").output
    draw(photos, 100)
    grown = stdac(*TRAIN, "photos")
    assert grown.exit_code == 1 and "already done" not in grown.output
    said = (
        f"Error: {photos} holds other images than this trial was trained on (40 then, 100 now): put the old ones back"
    )
    assert said in grown.output
    draw(photos, 100, seed=1)
    assert "(40 then, 100 now)" in stdac(*TRAIN, "photos").output
    assert stdac(*TRAIN, "photos", "--out", "runs/two").exit_code == 0


def test_other_labels_are_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez("set.npz", images=images, labels=np.arange(40) % 2)
    assert stdac(*TRAIN, "set.npz").exit_code == 0
    np.savez("set.npz", images=images, labels=np.arange(40) // 20)
    again = stdac(*TRAIN, "set.npz")
    assert again.exit_code == 1 and "has other labels than this trial was scored with" in again.output


def test_a_launch_looks_at_the_data_before_anything_is_begun(photos: Path) -> None:
    Path("my.toml").write_text(GRID.replace("data/photos", "photos"))
    loaded = load_grid("my.toml")
    ledger = Ledger(Path("run").resolve())
    ledger.plan(loaded.trials, loaded.text)
    Worker(ledger.path, Options("cpu", 1)).work()
    draw(photos, 50)
    for words, code in ((("launch", "my.toml", "--out", "run", "--workers", 1), 1), (("results", "run"), 0)):
        done = stdac_grid(*words)
        assert done.exit_code == code
        assert f"{photos} holds other images than 2 trials were trained on (40 then, 50 now)" in done.output
    assert "holds other images" in stdac_grid("doctor", "run").output
    photos.rename(photos.parent / "gone")
    assert "holds other" not in stdac_grid("results", "run").output  # nothing there to compare with
    missing = stdac_grid("launch", "my.toml", "--out", "other")
    assert missing.exit_code == 1 and f"no data set {photos} here" in missing.output and not Path("other").exists()


def test_work_is_refused_where_the_data_of_done_trials_have_changed(photos: Path) -> None:
    Path("my.toml").write_text(GRID.replace("data/photos", "photos"))
    loaded = load_grid("my.toml")
    ledger = Ledger(Path("run").resolve())
    ledger.plan(loaded.trials, loaded.text)
    worker = Worker(ledger.path, Options("cpu", 1))
    assert worker.run_next(CPU)
    draw(photos, 50)
    for words in (("work", "run"), ("work", "run", "--grid", "my.toml")):
        refused = stdac_grid(*words)
        assert refused.exit_code == 1 and "(40 then, 50 now)" in refused.output
    with pytest.raises(StdacError, match=r"\(40 then, 50 now\)"):
        worker.run_next(CPU)  # changed while it worked
    assert sorted(ledger.states().values()) == ["done", "waiting"]


def test_labels_in_a_file_beside_are_data_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + np.array([2, 1, 1], ">u4").tobytes() + b"\0\1")
    about = {"dataset": str(tmp_path / "a-images-idx3-ubyte")}
    before = hash_files(about)
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + np.array([2], ">u4").tobytes() + b"\0\1")
    assert hash_files(about) != before


def test_a_picture_beside_the_folders_of_classes_is_told(photos: Path) -> None:
    Image.new("L", (8, 8)).save(photos / "stray.png")
    done = stdac(*TRAIN, "photos")
    assert done.exit_code == 0 and "read without labels, as pictures lie beside the sub-folders" in done.output


def test_a_table_never_pools_different_data_in_one_cell(photos: Path) -> None:
    specs = [{"method": "kmeans", "dataset": "photos", "n_clusters": 2, "seed": seed} for seed in range(3)]
    for spec in specs:
        if spec["seed"] == 2:
            draw(photos, 60)
        trial = resolve(spec)
        run_trial(trial, TrialFolder(Path("run") / "trials" / trial.id))
    cells = make_cells(read_metrics(Path("run")))
    assert {(cell.dataset, cell.n) for cell in cells} == {("photos (40 images)", 2), ("photos (60 images)", 1)}
    # collected by an earlier stdac, or with trials of one: what is not known is no difference
    rows = read_metrics(Path("run"))
    pq.write_table(rows.drop_columns(["images", "data"]), "old.parquet")
    assert [(cell.dataset, cell.n) for cell in make_cells(read_metrics(Path("old.parquet")))] == [("photos", 3)]


def test_the_files_of_a_folder_are_known_without_reading_them(photos: Path) -> None:
    (photos / "loop").symlink_to(photos)
    about = {"dataset": str(photos)}
    first = hash_files(about)
    assert first == hash_files(about) and hash_files({"dataset": "mnist"}) is None
    (photos / "a" / "0.png").rename(photos / "a" / "00.png")
    assert hash_files(about) != first
    assert find_changes([({"dataset": "mnist"}, {}), ({"dataset": str(photos / "none")}, {})]) == []


def test_names_are_shortened_as_far_as_they_stay_apart() -> None:
    names = ["/a/x", "/b/x", "/a/y/", "digits", "/"]
    assert shorten_paths(names) == {"/a/x": "a/x", "/b/x": "b/x", "/a/y/": "y/", "digits": "digits", "/": "/"}
    assert shorten_paths(["x", "/a/x"]) == {"x": "x", "/a/x": "a/x"}

"""Bad input at the command line: one sentence, a non-zero exit, nothing half-written."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_launch import run


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path.touch, (Path("executed"),))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with all kinds of bad input."""
    (tmp_path / "empty").mkdir()
    for name in ("mixed", "broken"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / name / "a.png")
    Image.fromarray(np.zeros((20, 28), np.uint8)).save(tmp_path / "mixed" / "b.png")
    (tmp_path / "broken" / "b.png").write_bytes(b"\x89PNG no")
    np.savez(tmp_path / "lengths.npz", images=np.zeros((5, 28, 28), np.uint8), labels=np.zeros(4, np.int64))
    np.save(tmp_path / "few.npy", np.zeros((5, 28, 28), np.uint8))
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "text.pt").write_text("hello")
    return tmp_path


TRAIN = ("stdac", "train", "--device", "cpu", "--dataset")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*TRAIN, "mnits"), ["mnits", "clusters"]),
        ((*TRAIN, "mnits", "--clusters", "3"), ["unknown data set 'mnits'", "digits, mnist, fashion-mnist"]),
        ((*TRAIN, "digits", "--method", "dbc"), ["unknown method 'dbc'", "kmeans", "st-dac"]),
        ((*TRAIN, "digits", "--set", "widht=2"), ["unknown parameter", "widht", "width"]),
        ((*TRAIN, "digits", "--set", "width"), ["NAME=VALUE"]),
        ((*TRAIN, "digits", "--clusters", "1"), ["n_clusters = 1", "at least 2"]),
        ((*TRAIN, "few.npy", "--clusters", "6"), ["6 clusters for 5 images"]),
        ((*TRAIN, "empty", "--clusters", "3"), ["holds no images"]),
        ((*TRAIN, "mixed", "--clusters", "2"), ["mixed sizes", "28x28", "20x28", "--image-size"]),
        ((*TRAIN, "broken", "--clusters", "2"), ["b.png"]),
        ((*TRAIN, "lengths.npz", "--clusters", "2"), ["5 images but 4 labels"]),
        (("stdac", "show", "pickle.pt"), ["pickle.pt", "not executed"]),
        (("stdac", "show", "text.pt"), ["text.pt", "expected a model.pt"]),
        (("stdac", "show", "nothing"), ["there is no nothing"]),
        (("stdac", "export", "text.pt", "model.onnx"), ["text.pt"]),
        (("stdac", "cluster", "text.pt", "mixed", "-o", "c.parquet"), ["text.pt"]),
        (("stdac-grid", "status", "empty"), ["not a run folder"]),
        (("stdac-grid", "results", "empty"), ["empty"]),
        (("stdac-grid", "plan", "papre"), ["papre", "paper, quick"]),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], said: list[str], place: Path) -> None:
    done = run(*words, cwd=place)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and all(word in last for word in said), done.stderr
    assert not {"executed", "model.onnx", "c.parquet"} & {p.name for p in place.iterdir()}
    assert not list(place.rglob("model.pt")) and not list(place.rglob("done.json"))


def test_a_run_of_another_schema_version_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one" / "trials" / "0"
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps({"schema_version": 99}))
    done = run("stdac", "show", folder, cwd=tmp_path)
    assert done.returncode == 1 and "schema version 99, this stdac reads 1" in done.stderr


def test_train_show_and_train_again(tmp_path: Path) -> None:
    words = (*TRAIN, "digits", "--stn", "1", "--limit", "150", "--epochs", "1", "--set", "width=0.1")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "cluster" in lines[0] and "ACC" in lines[0] and lines[-2].strip().startswith("deployed")
    shown = run("stdac", "show", f"{lines[-1]}/model.pt", cwd=tmp_path)
    assert "width=0.1" in shown.stdout and "(N, 1, 28, 28) uint8" in shown.stdout
    assert "done in" in run("stdac", "show", Path(lines[-1]).parent, cwd=tmp_path).stdout
    again = run(*words, cwd=tmp_path)
    assert again.returncode == 0 and "already done" in again.stderr and again.stdout.splitlines() == [lines[-1]]

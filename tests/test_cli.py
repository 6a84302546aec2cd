"""Bad input at the command line: one sentence, a non-zero exit, nothing half-written."""

import json
import os
import pickle
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cluster_jobs.commands.grid import main as grid_main
from cluster_jobs.commands.stdac import main as stdac_main
from cluster_jobs.grid import list_presets
from export.cli import _print_progress
from export.cluster import Progress
from stdac.data import load
from stdac.methods import METHODS
from stdac.methods.st_dac import STDACParams
from stdac.pictures.formats import SUFFIXES
from tests.test_launch import run

NO_MODEL = "is cut short or not a model file: expected a model.pt of stdac"


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
    np.save(tmp_path / "few.npy", np.zeros((5, 28, 28), np.uint8))
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "text.pt").write_text("hello")
    return tmp_path


TRAIN = ("stdac", "train", "--device", "cpu", "--dataset")


def ask(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: object) -> Result:
    """A command of ours in this process, as if in a folder."""
    monkeypatch.chdir(folder)
    tool = {"stdac": stdac_main, "stdac-grid": grid_main}[str(words[0])]
    return CliRunner().invoke(tool, [str(word) for word in words[1:]], prog_name=str(words[0]))


def check_refusal(code: int, output: str, said: str, place: Path) -> None:
    """One sentence at the end, exit code 1, and nothing run or written."""
    assert code == 1
    assert "Traceback" not in output and "unexpected" not in output
    assert output.strip().splitlines()[-1] == f"Error: {said}".replace("{place}", str(place))
    assert not {"executed", "model.onnx", "c.parquet"} & {p.name for p in place.iterdir()}
    assert not list(place.rglob("model.pt")) and not list(place.rglob("done.json"))


NO_GRID = f"unknown grid 'papre': expected one of {', '.join(list_presets())}, or a TOML file"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*TRAIN, "mnits"), "the number of clusters of mnits is not known: pass n_clusters (--clusters)"),
        (
            (*TRAIN, "mnits", "--clusters", "3"),
            "there is no data set {place}/mnits here (No such file or directory): expected one of digits, "
            "mnist, fashion-mnist, kmnist, qmnist, usps, cifar10, or the path of a folder of images, "
            "or an .npz, .npy, IDX, Parquet or tar file",
        ),
        (
            (*TRAIN, "digits", "--method", "dbc"),
            f"unknown method 'dbc': expected one of {', '.join(METHODS)}",
        ),
        (
            (*TRAIN, "digits", "--set", "widht=2"),
            "unknown parameter of STDAC 'widht': expected one of " + ", ".join(f.name for f in fields(STDACParams)),
        ),
        ((*TRAIN, "digits", "--set", "width"), "got --set width, expected NAME=VALUE, as in --set width=0.5"),
        ((*TRAIN, "digits", "--clusters", "1"), "got n_clusters = 1, expected a whole number of at least 2"),
        (
            (*TRAIN, "few.npy", "--clusters", "6"),
            "got 6 clusters for 5 images: expected at most one cluster an image",
        ),
        (
            (*TRAIN, "empty", "--clusters", "3"),
            f"{{place}}/empty holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}",
        ),
        (
            (*TRAIN, "mixed", "--clusters", "2", "--image-size", "native"),
            "{place}/mixed holds images of mixed sizes, a.png has 28x28 pixels and b.png 20x28: pass an image size to "
            "bring all to one (--image-size 28)",
        ),
        (
            (*TRAIN, "broken", "--clusters", "2"),
            "got 2 clusters for 1 image: expected at most one cluster an image",
        ),
        (
            ("stdac", "show", "pickle.pt"),
            "pickle.pt holds pickled objects, which are not executed: expected a model.pt of stdac",
        ),
        (("stdac", "show", "text.pt"), f"text.pt {NO_MODEL}"),
        (("stdac", "show", "nothing"), "there is no nothing: expected a trial's folder, a model.pt or an ONNX file"),
        (("stdac", "export", "text.pt", "model.onnx"), f"text.pt {NO_MODEL}"),
        (
            ("stdac", "cluster", "text.pt", "mixed", "-o", "c.parquet"),
            "text.pt is not an ONNX file: expected the model.onnx that stdac export writes",
        ),
        (
            ("stdac-grid", "status", "empty"),
            "{place}/empty is not a run folder: it has no trials.parquet; stdac-grid launch makes one",
        ),
        (
            ("stdac-grid", "results", "empty"),
            "empty is not a run: expected a folder with trials/ or metrics.parquet; check the path",
        ),
        (
            ("stdac-grid", "plan", "papre"),
            NO_GRID,
        ),
    ],
)
def test_bad_input_is_one_sentence(
    words: tuple[str, ...], said: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = ask(monkeypatch, place, *words)
    assert isinstance(done.exception, SystemExit)
    check_refusal(done.exit_code, done.output, said.replace("{place}", str(place)), place)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            (*TRAIN, "digits", "--clusters", "1"),
            "got n_clusters = 1, expected a whole number of at least 2",
        ),
        (
            ("stdac-grid", "plan", "papre"),
            NO_GRID,
        ),
    ],
)
def test_a_process_of_its_own_says_it_on_stderr(words: tuple[str, ...], said: str, place: Path) -> None:
    done = run(*words, cwd=place)
    check_refusal(done.returncode, done.stderr, said, place)
    assert done.stdout == ""


def test_a_run_of_another_schema_version_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "one" / "trials" / "0"
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps({"schema_version": 99}))
    done = ask(monkeypatch, tmp_path, "stdac", "show", folder)
    assert done.exit_code == 1 and "schema version 99, this stdac reads 1" in done.output


def test_train_show_and_train_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*TRAIN, "digits", "--stn", "1", "--limit", "150", "--epochs", "1", "--set", "width=0.1")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("untrained  ACC ") and lines[1].startswith("epoch 1 of 1  ACC ")
    assert "% moved  clusters of " in lines[1] and lines[-2].startswith("deployed  ACC ")
    assert "settled" in done.stderr and "silhouette" not in done.stderr
    shown = ask(monkeypatch, tmp_path, "stdac", "show", f"{lines[-1]}/model.pt")
    assert "width=0.1" in shown.output and "(N, 1, 28, 28) uint8" in shown.output
    assert "done in" in ask(monkeypatch, tmp_path, "stdac", "show", Path(lines[-1]).parent).output
    again = run(*words, cwd=tmp_path)
    assert again.returncode == 0 and "already done" in again.stderr and again.stdout.splitlines() == [lines[-1]]


def test_pictures_of_ones_own_are_trained_on_small_and_what_was_chosen_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(24):
        side = 40 + i % 2
        picture = rng.integers(0, 256, (side, side), np.uint8)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    words = (*TRAIN, "photos", "--clusters", "2", "--epochs", "1", "--preset", "glyphs")
    done = ask(monkeypatch, tmp_path, *words, "--image-size", "16", "--set", "width=0.1")
    assert done.exit_code == 0, done.output
    assert "--preset glyphs: --image-size 28 --background auto --set stn=0 --set width=0.25" in done.stderr
    assert "silhouette in the embedding" in done.stderr
    trial = json.loads((Path(done.stdout.splitlines()[-1]).parent / "trial.json").read_text())
    assert (trial["image_size"], trial["background"], trial["params"]["stn"], trial["params"]["width"]) == (
        *(16, "auto", 0, 0.1),
    )
    done = ask(monkeypatch, tmp_path, *TRAIN, "photos", "--clusters", "2", "--method", "kmeans")
    assert "pictures of 40x40 to 41x41 pixels are resized to 28x28; --image-size N sets another side" in done.stderr


def test_a_folder_whose_name_is_not_utf_8_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"b\xeflder")
    for i in range(8):
        (folder / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(os.fsencode(folder / f"{i % 2}" / f"{i}.png"))
    words = ("stdac", "train", "--device", "cpu", "--method", "kmeans", "--clusters", "2", "--dataset")
    done = ask(monkeypatch, tmp_path, *words, folder)
    assert done.exit_code == 0, done.output
    result = Path(done.stdout.splitlines()[-1])
    assert pq.read_table(result / "metrics.parquet")["dataset"][0].as_py() == rf"{tmp_path}/b\xeflder"
    assert "scored against 2 classes: 0, 1" in done.stderr
    again = ask(monkeypatch, tmp_path, *words, rf"{tmp_path}/b\xeflder")
    assert again.exit_code == 0 and "already done" in again.stderr
    shown = ask(monkeypatch, tmp_path, "stdac", "show", result.parent)
    assert "schema_version  1\n" in shown.output


def test_a_console_of_latin_1_and_a_locale_of_c_take_every_name(tmp_path: Path) -> None:
    (tmp_path / "gö.toml").write_text("# größe\n[[trials]]\ndataset = 'Σ'\nn_clusters = 2\n", "utf-8")
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}
    done = run("stdac-grid", "plan", "gö.toml", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert r"\u03a3, K 2" in done.stdout


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stdac.run.run_trial", stop)
    done = ask(monkeypatch, tmp_path, *TRAIN, "digits", "--limit", "100")
    assert done.exit_code == 1
    assert "Error: stopped; the same command goes on after the last epoch that was done" in done.output


def test_labels_that_training_does_not_use_do_not_block_it(tmp_path: Path) -> None:
    images = np.zeros((5, 28, 28), np.uint8)
    odd = {
        "lengths": np.zeros(4, int),
        "wide": np.eye(5),
        "objects": np.array([{}] * 5, object),
        "fractions": np.array([0.5] * 5),
    }
    for name, labels in odd.items():
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
        dataset = load(str(tmp_path / f"{name}.npz"))
        assert dataset.labels is None and len(dataset.images) == 5
        assert f"{name}.npz is read without labels: " in dataset.notes[0]
    assert "it has 5 images but 4 labels" in load(str(tmp_path / "lengths.npz")).notes[0]
    np.savez(tmp_path / "floats.npz", images=images, labels=np.array([1.0, 2, 10, 2, 1]))
    assert load(str(tmp_path / "floats.npz")).labels.tolist() == [1, 2, 10, 2, 1]  # type: ignore[union-attr]


def test_the_rate_of_sorting_is_not_that_of_starting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 30.0, 35.0, 50.0])  # half a minute until the first images
    monkeypatch.setattr("export.cli.time", SimpleNamespace(monotonic=lambda: next(clock)))
    show = _print_progress()
    for done in (10, 20, 210):
        show(Progress(done, 0, 0, 1210))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "20 of 1,210 images, 2 images/s, 9 min 55 s left"
    assert second == "210 of 1,210 images, 10 images/s, 1 min 40 s left"

"""stdac sort: from a folder of pictures to groups, again, killed, and with pictures that there is little to say of."""

import os
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

from cluster_jobs.album import FEW, check_clusters, choose_members, choose_stn, look_at
from cluster_jobs.commands.stdac import main
from cluster_jobs.grid import load_grid, to_toml
from export.results.groups import lay_out, name_group
from stdac.errors import StdacError
from tests.test_launch import command
from tests.waiting import wait_for

SHAPES = ("square", "circle", "cross")
MADE = ("album.json", "images.npz", "sort.toml", "model.onnx", "clusters.parquet", "gallery.html")


def draw(folder: Path, each: int = 8) -> Path:
    """Shapes, each in a folder of its name, moved a little."""
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for number in range(each):
            x, y = rng.integers(8, 12, 2).tolist()
            image = Image.new("L", (40, 40))
            pen = ImageDraw.Draw(image)
            if shape == "cross":
                pen.line((x, y, x + 20, y + 20), 255, 4)
                pen.line((x + 20, y, x, y + 20), 255, 4)
            else:
                (pen.rectangle if shape == "square" else pen.ellipse)(
                    (x, y, x + 20, y + 20), 255 if shape == "square" else 0, 255, 3
                )
            image.save(folder / shape / f"{number}.png")
    return folder


def sort(*words: object) -> Result:
    return CliRunner().invoke(main, ["sort", *map(str, words), "--workers", "1", "--device", "cpu"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("album") / "pictures")


@pytest.fixture(scope="module")
def done(pictures: Path) -> Result:
    result = sort(pictures, "--clusters", 3, "-o", pictures.parent / "sorted", "--into", "copies")
    assert result.exit_code == 0, result.output
    return result


def test_pictures_become_groups_a_model_rows_and_a_gallery(pictures: Path, done: Result) -> None:
    out = pictures.parent / "sorted"
    rows = pq.read_table(out / "clusters.parquet")
    assert len(rows) == 24 and set(rows["cluster"].to_pylist()) <= {0, 1, 2}
    assert all((out / name).exists() for name in MADE)
    copies = [path for path in out.glob("groups/*/*") if path.is_file()]
    assert len(copies) == 24 and not any(path.is_symlink() for path in copies)
    assert sorted(path.name for path in pictures.glob("*/*")) == sorted([f"{i}.png" for i in range(8)] * 3)
    for said in ("24 pictures of 40x40 pixels, gray", "too few to train a network on", "$ stdac-grid launch", "ACC"):
        assert said in done.output


def test_again_it_says_so_and_leaves_the_same_bytes(pictures: Path, done: Result) -> None:
    out = pictures.parent / "sorted"
    before = {name: (out / name).read_bytes() for name in MADE}
    again = sort(pictures, "--clusters", 3, "-o", out, "--into", "links")
    assert again.exit_code == 0, again.output
    assert {name: (out / name).read_bytes() for name in MADE} == before
    links = [path for path in out.glob("groups/*/*") if path.is_symlink()]
    assert len(links) == 24 and all(path.resolve().parent.parent == pictures for path in links)


@pytest.mark.parametrize("step", ["images.npz", "run/trials/*/done.json"])
def test_killed_it_goes_on_to_the_same_bytes(step: str, pictures: Path, done: Result, tmp_path: Path) -> None:
    words = ("sort", str(pictures), "--clusters", "3", "-o", "sorted", "--workers", "1", "--device", "cpu")
    process = subprocess.Popen(
        command("stdac", *words), cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: list(tmp_path.glob(f"sorted/{step}")), of=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    result = sort(pictures, "--clusters", 3, "-o", tmp_path / "sorted")
    assert result.exit_code == 0, result.output
    for name in ("clusters.parquet", "images.npz"):
        assert (tmp_path / "sorted" / name).read_bytes() != b""
    ours, theirs = (pq.read_table(f / "clusters.parquet") for f in (tmp_path / "sorted", pictures.parent / "sorted"))
    assert ours["cluster"].equals(theirs["cluster"]) and ours["confidence"].equals(theirs["confidence"])


def test_shown_it_runs_nothing(pictures: Path, tmp_path: Path) -> None:
    result = sort(pictures, "-o", tmp_path / "sorted", "--show")
    assert result.exit_code == 0, result.output
    told = [line for line in result.output.splitlines() if line.startswith("$ ")]
    assert [line.split()[1:3] for line in told] == [
        ["stdac", "suggest-k"], ["stdac-grid", "launch"], ["stdac", "export"], ["stdac", "cluster"],
    ]  # fmt: skip
    assert 'method = "student"' in result.output and not (tmp_path / "sorted" / "run").exists()


def test_pictures_that_stay_as_they_are_are_found_again(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    for number, path in enumerate(sorted(pictures.glob("*/*.png"))):
        Image.open(path).resize((28, 28)).save(tmp_path / "small" / f"{number}.png")
    shown = (tmp_path / "small", "--clusters", 3, "-o", tmp_path / "sorted", "--show")
    assert [sort(*shown).exit_code for _ in range(2)] == [0, 0]
    said = sort(*shown, "--image-size", 20).output
    assert "was begun at an image size of their own, now it is 20: choose another folder" in said


def test_the_number_of_groups_is_suggested(pictures: Path, tmp_path: Path) -> None:
    result = sort(pictures, "-o", tmp_path / "sorted")
    assert result.exit_code == 0, result.output
    assert "$ stdac suggest-k" in result.output and "--k 2..19 --method hog-kmeans" in result.output
    assert "groups (candidates: " in result.output and (tmp_path / "sorted" / "model.onnx").exists()


def test_other_pictures_or_settings_want_another_folder(pictures: Path, done: Result, tmp_path: Path) -> None:
    mine, out = tmp_path / "pictures", tmp_path / "sorted"
    shutil.copytree(pictures, mine)
    shown = ("--clusters", 3, "-o", out, "--show")
    assert sort(mine, *shown).exit_code == 0
    assert "was begun at an image size of 28, now it is 20" in sort(mine, *shown, "--image-size", 20).output
    assert "was begun of" in sort(pictures, *shown).output
    shutil.copy(mine / "circle" / "0.png", mine / "circle" / "more.png")
    said = sort(mine, *shown).output
    assert "holds other pictures than" in said and "stdac cluster" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--clusters", 24), "got --clusters 24 for 20 different pictures: expected fewer than there are"),
        (("--clusters", 1), "1 is not in the range x>=2"),
        (("--sure", 2), "is not in the range"),
    ],
)
def test_what_cannot_be_is_said(words: tuple[object, ...], said: str, pictures: Path, tmp_path: Path) -> None:
    result = sort(pictures, "-o", tmp_path / "sorted", *words)
    assert result.exit_code != 0 and said in result.output


def test_no_folder_and_no_pictures_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("nowhere", "empty", "digits"):
        result = sort(tmp_path / path if path != "digits" else path, "--clusters", 2, "-o", tmp_path / "sorted")
        assert result.exit_code == 1 and "Traceback" not in result.output and result.output.count("\n") <= 2
    assert "--into copies or links the picture files of one" in sort("digits", "--into", "links").output


# what suits an album


def images(n: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, channels, 8, 8), dtype=np.uint8)


def test_an_album_says_what_is_odd_in_it() -> None:
    some = images(10, 3)
    some[3] = some[2]
    some[4] = 0
    album = look_at(some, [(8, 8), (30, 20)])
    assert (album.copies, album.flat, album.dark, album.different, album.in_colour) == (1, 1, 1, 9, True)
    said = "10 pictures of 8x8 to 20x30 pixels, in colour, 1 copy of others, 1 of one colour, 1 nearly black"
    assert album.describe() == said
    assert not look_at(np.repeat(images(5), 3, 1), [(8, 8)]).in_colour


def test_one_picture_a_thousand_times_is_nothing_to_sort() -> None:
    album = look_at(np.repeat(images(1), 1000, 0), [(8, 8)])
    with pytest.raises(StdacError, match="all 1,000 pictures are the same: there is nothing to sort"):
        check_clusters(album, None)


def test_members_suit_the_album(tmp_path: Path) -> None:
    def methods(n: int, channels: int, *, layout: bool = True) -> list[str]:
        plan = choose_members(look_at(images(n, channels), []), epochs=4, stn=0, layout=layout)
        block = {"method": "committee", "params": {"members": plan.members}}
        text = "\n".join(f"{key} = {to_toml(value)}" for key, value in block.items())
        (tmp_path / "grid.toml").write_text(f'[[trials]]\ndataset = "digits"\n{text}\n')
        assert tomllib.loads((tmp_path / "grid.toml").read_text())
        *_, committee = load_grid(str(tmp_path / "grid.toml")).trials
        named = {trial.id: trial.method for trial in load_grid(str(tmp_path / "grid.toml")).trials}
        return sorted(named[member] for member in committee.params.members)

    assert methods(FEW - 1, 1) == ["hog-kmeans", "pca-kmeans"]
    assert methods(FEW, 3) == ["colour-kmeans", "hog-kmeans", *["umap-gmm"] * 4]
    assert methods(FEW, 1, layout=False) == ["hog-kmeans", *["st-dac"] * 3]


def test_transformers_are_taken_where_they_agree_better() -> None:
    assert choose_stn({0: 0.5, 2: 0.6}) == 2 and choose_stn({2: 0.5001, 0: 0.5}) == 0


# folders of groups


def test_groups_have_names_that_every_system_takes(done: Result, pictures: Path, tmp_path: Path) -> None:
    assert name_group(3, None, 2) == "03" and name_group(3, "a/b: c?", 1) == "3 a_b_ c_"
    rows = pictures.parent / "sorted" / "clusters.parquet"
    said = lay_out(rows, tmp_path / "groups", links=False, sure=1.0)
    assert "24 unsure" in said and len(list((tmp_path / "groups" / "unsure").iterdir())) == 24
    assert {"0.png", "0 (2).png", "0 (3).png"} <= {path.name for path in (tmp_path / "groups" / "unsure").iterdir()}
    (tmp_path / "mine").mkdir()
    with pytest.raises(StdacError, match="is there and was not made by this: move it away"):
        lay_out(rows, tmp_path / "mine", links=False)

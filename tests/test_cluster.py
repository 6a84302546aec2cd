"""Batch clustering: every input becomes the same rows, a broken file is a row, an interrupted run goes on, no torch."""

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import export.results.rows
from export import Clusterer
from export.cli import cluster_command
from export.cluster import NO_SCORE, Progress, Settings, Summary, cluster_files
from export.convert.to_onnx import export_model
from export.results.rows import CLUSTERS
from stdac.errors import StdacError
from stdac.files import open_temporary
from stdac.methods import resolve
from stdac.model_file import ModelConfig, load_model, save_model
from stdac.pictures.hashes import compute_fingerprints
from stdac.pictures.pixels import Pixels
from tests.conftest import NAMES

CPU = Settings(provider="cpu")


def sort(model: Path, *inputs: object, output: Path, settings: Settings = CPU) -> Summary:
    """`cluster_files` on paths."""
    return cluster_files(model, [str(x) for x in inputs], output, settings)


def rows_of(model: Path, *inputs: object, output: Path) -> list[dict[str, object]]:
    """The rows that `cluster_files` writes, checked against their schema and against its summary."""
    summary = sort(model, *inputs, output=output)
    table = pq.read_table(output)
    assert table.schema.equals(CLUSTERS)
    rows: list[dict[str, object]] = table.to_pylist()
    bad = [row for row in rows if row["error"] is not None]
    assert (summary.images, summary.errors) == (len(rows) - len(bad), len(bad))
    assert summary.sizes.sum() == summary.images
    assert all(row[key] is None for row in bad for key in ("cluster", "name", "confidence", "runner_up", "margin"))
    assert all(row["content_hash"] is not None for row in rows if row not in bad)
    assert summary.flat == sum(row["fingerprint"] is None for row in rows if row not in bad)
    assert not list(output.parent.glob("*.parts"))
    return rows


def save_pictures(folder: Path, images: Pixels, first: int = 0) -> list[Path]:
    """The images (N, 1, H, W) as PNG files 0000.png ... in a folder."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{first + i:04}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[0]).save(path)
    return paths


def save_inputs(folder: Path, images: Pixels) -> list[Path]:
    """The images as a folder, .npz, .npy and IDX, plain and gzipped."""
    folder.mkdir()
    save_pictures(folder / "pictures", images)
    np.savez(folder / "a.npz", images=images[:, 0], labels=np.zeros(len(images), int))
    np.save(folder / "a.npy", images.transpose(0, 2, 3, 1))
    idx = bytes([0, 0, 8, 3]) + np.array(images[:, 0].shape, ">u4").tobytes() + images.tobytes()
    (folder / "some-images-idx3-ubyte").write_bytes(idx)
    (folder / "images.gz").write_bytes(gzip.compress(idx))
    return [folder / name for name in ("pictures", "a.npz", "a.npy", "some-images-idx3-ubyte", "images.gz")]


# --- rows ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_input_gives_the_same_rows_in_order(model: Path, digits: Pixels, tmp_path: Path) -> None:
    inputs = save_inputs(tmp_path / "in", digits)
    rows = rows_of(model, *inputs, "digits", output=tmp_path / "out.parquet")
    prediction = Clusterer(model, "cpu").predict(digits)
    n = len(digits)
    assert len(rows) == len(inputs) * n + 1797
    for part in range(len(inputs) + 1):
        mine = rows[part * n : (part + 1) * n]
        assert [row["cluster"] for row in mine] == prediction.cluster.tolist()
        assert [row["name"] for row in mine] == [NAMES[k] for k in prediction.cluster]
    assert [row["index"] for row in rows[n : 2 * n]] == list(range(n))
    assert {row["source"] for row in rows[n : 2 * n]} == {str(inputs[1])}
    assert rows[5]["source"] == str(inputs[0] / "0005.png")
    best = np.sort(prediction.scores, 1)
    np.testing.assert_allclose([row["confidence"] for row in rows[:n]], best[:, -1], atol=1e-6)
    np.testing.assert_allclose([row["margin"] for row in rows[:n]], best[:, -1] - best[:, -2], atol=1e-6)
    second = [scores[row["runner_up"]] for scores, row in zip(prediction.scores, rows[:n], strict=True)]
    np.testing.assert_array_equal(second, best[:, -2])


def test_mixed_sizes_are_brought_to_the_models_size(colour_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, size in enumerate([(12, 16), (1, 1), (300, 20), (16, 12)]):
        Image.new("L", size, 40 * i).save(tmp_path / "in" / f"{i}.png")
    rows = rows_of(colour_model, tmp_path / "in", output=tmp_path / "out.parquet")
    assert len(rows) == 4
    assert all(row["error"] is None and row["name"] is None for row in rows)


def test_broken_files_are_rows(model: Path, digits: Pixels, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    paths = save_pictures(folder, digits[:4])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "short.png").write_bytes(paths[0].read_bytes()[:90])
    (folder / "gone.png").symlink_to("nowhere.png")
    rows = rows_of(model, folder, output=tmp_path / "out.parquet")
    errors = {Path(str(row["source"])).name: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"text.png", "empty.jpg", "short.png"}
    assert errors["text.png"] == "not a readable image"
    assert len(rows) == 4 + 3


def test_what_a_folder_holds_besides_is_said(model: Path, digits: Pixels, tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", digits[:3])
    paths[0].rename(tmp_path / "in" / "0000.jfif")
    for name in ("a.heic", "b.heic", "notes.txt", ".DS_Store"):
        (tmp_path / "in" / name).touch()
    inputs = [str(tmp_path / "in"), f"{tmp_path}/in/", str(paths[1])]
    command = [str(model), *inputs, "-o", str(tmp_path / "out.parquet"), "--provider", "cpu"]
    ran = CliRunner().invoke(cluster_command, command)
    assert ran.exit_code == 0, ran.output
    assert "3 images sorted" in ran.stdout
    assert "6 left out: 2 inputs that would come twice, 1 hidden file, 2 .heic, 1 .txt\n" in ran.stderr


def test_what_is_drawn_on_transparency_is_seen_on_the_models_background(tmp_path: Path, digits: Pixels) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i, image in enumerate(digits[:20, 0]):
        Image.merge("LA", (Image.new("L", (28, 28)), Image.fromarray(image))).save(folder / f"{i:02}.png")
    found = {}
    for background in ("black", "auto"):
        spec = {"method": "kmeans", "dataset": "digits", "background": background}
        config = ModelConfig(resolve(spec), (1, 28, 28))
        network = config.build()
        network.assign.centres.data.copy_(torch.from_numpy(255 - digits[:10]).flatten(1) / 255)
        save_model(tmp_path / "model.pt", network, config)
        export_model(tmp_path / "model.pt", tmp_path / "model.onnx")
        assert Clusterer(tmp_path / "model.onnx").info.background == background
        command = [str(tmp_path / "model.onnx"), str(folder), "-o", str(tmp_path / "out.parquet"), "--provider", "cpu"]
        ran = CliRunner().invoke(cluster_command, [*command, "--gallery", str(tmp_path / "out.html")])
        assert ran.exit_code == 0, ran.output
        table = pq.read_table(tmp_path / "out.parquet")
        found[background] = table["cluster"].to_pylist(), table["fingerprint"].null_count, ran.stderr, ran.stdout
    assert found["auto"][0][:10] == list(range(10))
    assert found["auto"][1] == 0 and "one colour" not in found["auto"][2]
    assert len(set(found["black"][0])) == 1 and found["black"][1] == 20
    assert "20 of 20 pictures of out.parquet have nothing but one colour" in found["black"][2]
    assert "training with --background auto" in found["black"][2]
    assert "0 near ones" in found["black"][3]


def test_a_picture_that_breaks_its_decoder_is_a_row_and_the_others_are_not_lost(
    model: Path, digits: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = save_pictures(tmp_path / "in", digits[:100])
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "sitecustomize.py").write_text(CRASHES)
    monkeypatch.setenv("CRASH", f"{paths[7]}:{paths[70]}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "crash"))
    rows = rows_of(model, tmp_path / "in", output=tmp_path / "out.parquet")
    assert [i for i, row in enumerate(rows) if row["error"]] == [7, 70]
    assert "it crashed its decoder" in str(rows[7]["error"])
    assert "of memory" in str(rows[70]["error"])


CRASHES = """
import os, sys
if "stdac.pictures.child" in sys.orig_argv:
    import stdac.pictures.image as images
    read, (crash, bloat) = images.read_file, os.environ["CRASH"].split(":")
    def read_file(path):
        if path == crash:
            os.abort()
        if path == bloat:
            bytearray(1 << 31)
        return read(path)
    images.read_file = read_file
"""


def test_images_that_a_broken_model_gives_no_score_are_rows_with_an_error(
    model: Path, digits: Pixels, tmp_path: Path
) -> None:
    proto = onnx.load(model)
    centres = next(t for t in proto.graph.initializer if t.dims[:1] == [10] or 10 in t.dims)
    values = onnx.numpy_helper.to_array(centres).copy()
    values.flat[0] = np.nan
    centres.CopyFrom(onnx.numpy_helper.from_array(values, centres.name))
    onnx.save(proto, tmp_path / "m.onnx")
    np.save(tmp_path / "a.npy", digits[:20])
    rows = rows_of(tmp_path / "m.onnx", tmp_path / "a.npy", output=tmp_path / "out.parquet")
    assert {row["error"] for row in rows} == {NO_SCORE}


def test_equal_files_have_equal_hashes_and_near_ones_near_fingerprints(
    model: Path, digits: Pixels, tmp_path: Path
) -> None:
    noisy = (digits[:1].astype(int) + np.random.default_rng(0).integers(-1, 2, digits[:1].shape)).clip(0, 255)
    save_pictures(tmp_path / "in", np.concatenate([digits[:2], digits[:1], noisy.astype(np.uint8)]))
    rows = rows_of(model, tmp_path / "in", output=tmp_path / "out.parquet")
    hashes, prints = ([row[key] for row in rows] for key in ("content_hash", "fingerprint"))
    assert hashes[0] == hashes[2] != hashes[1]
    assert hashes[3] != hashes[0]
    distance = [(int(str(prints[0]), 16) ^ int(str(text), 16)).bit_count() for text in prints]
    assert distance[2] == 0
    assert distance[3] <= 6 < distance[1]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 9), (1, 5, 40), (1, 200, 8)])
def test_fingerprints_compare_the_means_of_neighbouring_fields(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    edges = [np.arange(10) * side // 9 for side in shape[1:]]
    for image, text in zip(images, compute_fingerprints(images), strict=True):
        gray = image.mean(0)
        fields = np.array(
            [
                [
                    gray[a : max(b, a + 1), c : max(d, c + 1)].mean()
                    for c, d in zip(edges[1], edges[1][1:], strict=False)
                ]
                for a, b in zip(edges[0], edges[0][1:], strict=False)
            ]
        )
        bits = [fields[y, x + 1] - fields[y, x] > 1 for y in range(8) for x in range(8)]
        bits += [fields[y + 1, x] - fields[y, x] > 1 for y in range(8) for x in range(8)]
        assert text == (None if shape == (3, 1, 1) else np.packbits(bits).tobytes().hex())  # one pixel, one colour


def test_labels_come_from_folders_arrays_and_a_file_and_change_nothing(
    model: Path, digits: Pixels, tmp_path: Path
) -> None:
    for name in ("ones", "twos"):
        save_pictures(tmp_path / name, digits[:3])
    plain = rows_of(model, tmp_path / "ones", output=tmp_path / "out.parquet")
    assert [row["label"] for row in plain] == [None] * 3
    (tmp_path / "both").mkdir()
    for name in ("ones", "twos"):
        (tmp_path / name).rename(tmp_path / "both" / name)
    rows = rows_of(model, tmp_path / "both", output=tmp_path / "out.parquet")
    assert [row["label"] for row in rows] == ["ones"] * 3 + ["twos"] * 3
    (tmp_path / "labels.csv").write_text("file,label\nones/0001.png,x\ntwos/0002.png,y\n")
    settings = Settings(provider="cpu", labels=tmp_path / "labels.csv")
    sort(model, tmp_path / "both", output=tmp_path / "out.parquet", settings=settings)
    labelled = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["label"] for row in labelled] == [None, "x", None, None, None, "y"]
    assert [row["cluster"] for row in labelled] == [row["cluster"] for row in rows]


def test_a_model_with_its_embedding_adds_a_column(model: Path, digits: Pixels, tmp_path: Path) -> None:
    export_model(model.with_suffix(".pt"), tmp_path / "m.onnx", with_embedding=True)
    np.save(tmp_path / "a.npy", digits[:20])
    sort(tmp_path / "m.onnx", tmp_path / "a.npy", output=tmp_path / "out.parquet")
    stored = np.array(pq.read_table(tmp_path / "out.parquet")["embedding"].to_pylist(), np.float32)
    assert stored.shape == (20, 32)
    embedding = Clusterer(tmp_path / "m.onnx", "cpu").embed(digits[:20])
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    true = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    kept = np.linalg.norm(stored[:, None] - stored[None], axis=2)
    off = ~np.eye(20, dtype=bool)
    assert np.abs(kept[off] / true[off] - 1).mean() < 0.2
    resume = Settings(provider="cpu", resume=True)
    assert sort(tmp_path / "m.onnx", tmp_path / "a.npy", output=tmp_path / "out.parquet", settings=resume).known == 20


def test_rows_with_an_error_have_no_embedding(model: Path, digits: Pixels, tmp_path: Path) -> None:
    export_model(model.with_suffix(".pt"), tmp_path / "m.onnx", with_embedding=True)
    save_pictures(tmp_path / "in", digits[:4])
    (tmp_path / "in" / "0001.png").write_bytes(b"no picture")
    sort(tmp_path / "m.onnx", tmp_path / "in", output=tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert [value is None for value in table["embedding"].to_pylist()] == [False, True, False, False]
    assert [value is None for value in table["error"].to_pylist()] == [True, False, True, True]


def test_pictures_of_a_tar_have_their_names(model: Path, digits: Pixels, tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", digits[:2])
    paths[1].write_bytes(b"no picture")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in paths:
            archive.add(path, f"./x/{path.name}")
    np.save(tmp_path / "a.npy", digits[:1])
    summary = sort(model, tmp_path / "a.tar", tmp_path / "a.npy", output=tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["member"].to_pylist() == ["x/0000.png", "x/0001.png", None]
    assert summary.first_error == f"{tmp_path}/a.tar, x/0001.png: not a readable image"


# --- clusters.parquet ----------------------------------------------------------------------------------------------


def test_row_groups_hold_all_rows_in_order(
    model: Path, digits: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", np.concatenate([digits] * 4))
    monkeypatch.setattr(export.results.rows, "ROW_GROUP", 500)
    seen: list[Progress] = []
    summary = cluster_files(model, [str(tmp_path / "a.npy")], tmp_path / "out.parquet", CPU, seen.append)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [500, 500, 200]
    assert file.read()["index"].to_pylist() == list(range(1200))
    assert summary.images == 1200
    assert seen[-1] == Progress(1200, 0, 0, 1200)


class StoppedError(Exception):
    """Stands for whatever ends a run half-way."""


def stop_after(rows: int, seen: list[Progress] | None = None) -> object:
    """A progress function that ends the run."""

    def stop(progress: Progress) -> None:
        if seen is not None:
            seen.append(progress)
        if progress.done >= rows:
            raise StoppedError

    return stop


def test_a_run_that_is_stopped_leaves_the_earlier_result_and_goes_on(
    model: Path, digits: Pixels, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", np.concatenate([digits] * 4))
    out = tmp_path / "out.parquet"
    sort(model, tmp_path / "a.npy", output=tmp_path / "undisturbed.parquet")
    out.write_bytes(b"earlier")
    with pytest.raises(StoppedError):
        cluster_files(model, [str(tmp_path / "a.npy")], out, CPU, stop_after(600))  # type: ignore[arg-type]
    assert out.read_bytes() == b"earlier"
    assert (tmp_path / "out.parquet.parts").is_dir()
    assert sort(model, tmp_path / "a.npy", output=out).known >= 600
    assert out.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a.npy", "out.parquet", "undisturbed.parquet"}


def test_fresh_forgets_an_interrupted_run(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        cluster_files(model, ["digits"], tmp_path / "out.parquet", CPU, stop_after(600))  # type: ignore[arg-type]
    fresh = Settings(provider="cpu", fresh=True)
    assert sort(model, "digits", output=tmp_path / "out.parquet", settings=fresh).known == 0


def test_another_models_interrupted_run_is_not_taken_over(model: Path, digits: Pixels, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        cluster_files(model, ["digits"], tmp_path / "out.parquet", CPU, stop_after(600))  # type: ignore[arg-type]
    export_model(model.with_suffix(".pt"), tmp_path / "m.onnx")
    assert sort(tmp_path / "m.onnx", "digits", output=tmp_path / "out.parquet").known == 0
    assert not (tmp_path / "out.parquet.parts").exists()


def test_resume_sorts_new_and_changed_files_only(model: Path, digits: Pixels, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out.parquet"
    save_pictures(folder, digits[:100], first=50)
    (folder / "0060.png").write_bytes(b"broken")
    sort(model, folder, output=out)
    save_pictures(folder, digits[100:150])
    save_pictures(folder, digits[3:4], first=60)
    save_pictures(folder, digits[4:5], first=70)
    os.utime(folder / "0070.png", ns=(1, 1))
    (folder / "0080.png").unlink()
    resume = Settings(provider="cpu", resume=True)
    summary = sort(model, folder, output=out, settings=resume)
    assert (summary.known, summary.images) == (97, 149)
    resumed = pq.read_table(out)
    sort(model, folder, output=out)
    again = pq.read_table(out)
    assert resumed.drop_columns(["confidence", "margin"]).equals(again.drop_columns(["confidence", "margin"]))
    np.testing.assert_allclose(resumed["confidence"], again["confidence"], atol=1e-6)


def test_resume_of_another_models_rows_is_one_sentence(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    sort(model, "digits", output=out)
    before = out.read_bytes()
    export_model(model.with_suffix(".pt"), tmp_path / "m.onnx")
    resume = Settings(provider="cpu", resume=True)
    with pytest.raises(
        StdacError, match=r"is damaged, or was not written with this model by this version of stdac: leave out --resume"
    ):
        sort(tmp_path / "m.onnx", "digits", output=out, settings=resume)
    assert out.read_bytes() == before


def test_resume_of_a_damaged_output_is_one_sentence_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    resume = Settings(provider="cpu", resume=True)
    sort(model, "digits", output=out)
    content = out.read_bytes()
    for damaged in (b"", b"no Parquet", content[:-9], content[:4] + bytes(3000) + content[3004:]):
        out.write_bytes(damaged)
        with pytest.raises(StdacError, match=r"out\.parquet is damaged, or was not written with this model"):
            sort(model, "digits", output=out, settings=resume)
        assert out.read_bytes() == damaged
        assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


def test_a_second_run_on_the_same_output_is_refused(model: Path, tmp_path: Path) -> None:
    def second(_: Progress) -> None:
        with pytest.raises(StdacError, match=r"another stdac cluster is writing .*out\.parquet"):
            sort(model, "digits", output=tmp_path / "out.parquet")

    summary = cluster_files(model, ["digits"], tmp_path / "out.parquet", CPU, second)
    assert summary.images == 1797


def test_a_damaged_part_is_sorted_again(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        cluster_files(model, ["digits"], tmp_path / "out.parquet", CPU, stop_after(600))  # type: ignore[arg-type]
    (part,) = (tmp_path / "out.parquet.parts").rglob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    summary = sort(model, "digits", output=tmp_path / "out.parquet")
    assert (summary.known, summary.images) == (0, 1797)


COMMAND = "from export.results import rows; rows.FLUSH_S = 0.05; from cluster_jobs.commands.stdac import main; main()"


def run_command(model: Path, folder: Path, seconds: float | None) -> bool:
    """Sort folder/a.npy with the command, killed -9 after some seconds; whether it came to its end."""
    arguments = ["cluster", model, folder / "a.npy", "-o", folder / "out.parquet", "--provider", "cpu", "--quiet"]
    with subprocess.Popen([sys.executable, "-c", COMMAND, *map(str, arguments)]) as process:
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return False


def check_kills(model: Path, folder: Path, images: int, kills: int, seed: int) -> None:
    """Runs that are killed -9 and rerun write the bytes of an undisturbed one, and leave nothing behind."""
    np.save(folder / "a.npy", np.random.default_rng(0).integers(0, 256, (images, 28, 28), dtype=np.uint8))
    began = time.monotonic()
    assert run_command(model, folder, None)
    whole_s = time.monotonic() - began
    undisturbed = (folder / "out.parquet").read_bytes()
    (folder / "out.parquet").unlink()
    rng, killed, ended = random.Random(seed), 0, False
    while killed < kills or not ended:
        ended = run_command(model, folder, rng.uniform(0.3, 1) * whole_s if killed < kills else None)
        killed += not ended
        if (folder / "out.parquet").exists():  # killed after that, while it tidied up or ended, it may be there too
            assert (folder / "out.parquet").read_bytes() == undisturbed
        if ended:
            assert {p.name for p in folder.iterdir()} == {"a.npy", "out.parquet"}
            (folder / "out.parquet").unlink()


def test_a_run_that_is_killed_again_and_again_writes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    check_kills(model, tmp_path, images=30_000, kills=4, seed=0)


@pytest.mark.slow
def test_100_000_images_survive_kill_9_at_any_moment(model: Path, tmp_path: Path) -> None:
    check_kills(model, tmp_path, images=100_000, kills=25, seed=1)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("missing/out.parquet", r"there is no folder .*/missing; create it or choose another place"),
        (".", r"it is a folder; name a file, for example .*/clusters\.parquet"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_sentence(model: Path, tmp_path: Path, output: str, why: str) -> None:
    with pytest.raises(StdacError, match=f"cannot write {tmp_path}.*: {why}$"):
        sort(model, "digits", output=tmp_path / output)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("model", "/model is read too, and would be overwritten: name another output"),
        ("input", "/input is read too, and would be overwritten: name another output"),
        ("pipe", "cannot write .*/pipe: it is a pipe, a socket or a device; name a file"),
        ("device", f"cannot write {os.devnull}: it is a pipe, a socket or a device; name a file"),
        ("folder", r"cannot write .*/folder: it is a folder; name a file, for example .*/folder/clusters\.parquet"),
    ],
)
def test_an_output_that_is_something_else_is_one_sentence_and_stays(
    model: Path, digits: Pixels, tmp_path: Path, what: str, why: str
) -> None:
    np.save(tmp_path / "input", digits)
    (tmp_path / "input.npy").rename(tmp_path / "input")
    (tmp_path / "model").write_bytes(model.read_bytes())
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    output = Path(os.devnull) if what == "device" else tmp_path / what
    before = output.lstat()
    with pytest.raises(StdacError, match=f"{why}$"):
        sort(tmp_path / "model", tmp_path / "input", output=output)
    assert output.lstat().st_mtime_ns == before.st_mtime_ns
    assert not list(tmp_path.glob("*.parts"))


def test_an_output_that_is_a_link_stays_one(model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.parquet").symlink_to("elsewhere/there.parquet")
    for _ in range(2):
        assert sort(model, "digits", output=tmp_path / "out.parquet").images == 1797
        assert (tmp_path / "out.parquet").is_symlink()
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["there.parquet"]


def test_a_flipped_bit_in_a_part_is_noticed(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        cluster_files(model, ["digits"], tmp_path / "out.parquet", CPU, stop_after(600))  # type: ignore[arg-type]
    (part,) = (tmp_path / "out.parquet.parts").rglob("part-*.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 4
    part.write_bytes(content)
    (part.parents[1] / "run-abc").mkdir()
    summary = sort(model, "digits", output=tmp_path / "out.parquet")
    assert (summary.known, summary.images) == (0, 1797)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("missing", "does not exist: expected a folder of images"),
        ("empty folder", r"holds no images \(1 left out: 1 \.txt\): expected files ending in"),
        ("pipe", "is neither a file nor a folder: expected a folder of images"),
    ],
)
def test_an_input_that_cannot_be_used_is_one_sentence_and_writes_nothing(
    model: Path, tmp_path: Path, what: str, why: str
) -> None:
    path = tmp_path / what
    if what == "empty folder":
        path.mkdir()
        (path / "notes.txt").write_text("no picture")
    elif what == "pipe":
        os.mkfifo(path)
    with pytest.raises(StdacError, match=f"{path} {why}"):
        sort(model, "digits", path, output=tmp_path / "out.parquet")
    assert not list(tmp_path.glob("*.parquet*"))


# --- names ---------------------------------------------------------------------------------------------------------


def test_names_are_kept_and_carried_to_another_model(model: Path, digits: Pixels, tmp_path: Path) -> None:
    out, names = tmp_path / "out.parquet", tmp_path / "names.toml"
    net, config = load_model(model.with_suffix(".pt"))
    settings = Settings(provider="cpu", names=names)
    sort(model, "digits", output=out, settings=settings)
    assert not names.exists()
    model_id = Clusterer(model).info.model_id
    lines = "".join(f'{k} = "kind {k}"\n' for k in range(9))
    names.write_text(f'model = "{model_id}"\n\n[clusters]\n{lines}')
    summary = sort(model, "digits", output=out, settings=settings)
    assert summary.names == (*(f"kind {k}" for k in range(9)), "number 9")
    net.assign.centres.data = net.assign.centres.data.flip(0)
    save_model(tmp_path / "m.pt", net, config)
    export_model(tmp_path / "m.pt", tmp_path / "m.onnx")
    summary = sort(tmp_path / "m.onnx", "digits", output=out, settings=settings)
    assert summary.names == (None, *(f"kind {k}" for k in reversed(range(9))))
    assert "9 of 9 names carried over" in summary.notes[0]
    assert set(pq.read_table(out)["name"].to_pylist()) == {None, *(f"kind {k}" for k in range(9))}
    assert f'model = "{model_id}"' in (tmp_path / f"names.{model_id}.toml").read_text()
    assert sort(tmp_path / "m.onnx", "digits", output=out, settings=settings).names == summary.names


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_sizes_and_counts_broken_files(model: Path, digits: Pixels, tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", np.repeat(digits[3:4], 10, 0))
    (tmp_path / "in" / "bro\nken.png").write_bytes(b"")
    arguments = [str(model), str(tmp_path / "in"), "-o", str(tmp_path / "out.parquet"), "--provider", "cpu"]
    result = CliRunner().invoke(cluster_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "number 3" in result.stdout
    assert "10 images sorted" in result.stdout
    assert result.stderr.startswith("1 file could not be read")
    assert result.stderr.count("\n") == 1
    quiet = CliRunner().invoke(cluster_command, [*arguments, "--quiet"], catch_exceptions=False)
    assert quiet.stdout == ""


def test_the_command_writes_a_gallery_scores_and_a_comparison(model: Path, digits: Pixels, tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", digits[:40])
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    arguments = [str(model), str(tmp_path / "in"), "--provider", "cpu", "--quiet"]
    CliRunner().invoke(cluster_command, [*arguments, "-o", str(old)], catch_exceptions=False)
    arguments[1] = "digits"
    arguments += ["-o", str(new), "--compare", str(old), "--gallery", str(tmp_path / "g.html")]
    result = CliRunner().invoke(cluster_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "images then" in result.stdout
    assert (tmp_path / "new.outliers.parquet").exists()
    html = (tmp_path / "g.html").read_text()
    assert "data:image/" in html
    assert "<html" in html
    arguments.remove("--quiet")
    again = CliRunner().invoke(cluster_command, [*arguments, "--resume"], catch_exceptions=False)
    assert "ACC 0." in again.stdout
    assert "1,797 were known from before" in again.stdout


def test_the_outputs_name_says_its_format(model: Path, digits: Pixels, tmp_path: Path) -> None:
    export_model(model.with_suffix(".pt"), tmp_path / "m.onnx", with_embedding=True)
    save_pictures(tmp_path / "in", digits[:3])
    (tmp_path / "in" / 'b"ro,k\nen.png').write_bytes(b"")
    arguments = [str(tmp_path / "m.onnx"), str(tmp_path / "in"), "--provider", "cpu", "-o"]
    (tmp_path / ".c.csv.12345678.tmp").touch()
    for name in ("c.parquet", "c.csv", "c.jsonl"):
        CliRunner().invoke(cluster_command, [*arguments, str(tmp_path / name)], catch_exceptions=False)
    assert sorted(path.name for path in tmp_path.glob("*c.*")) == ["c.csv", "c.jsonl", "c.parquet"]
    rows = pq.read_table(tmp_path / "c.parquet").to_pylist()
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8") as file:
        as_csv = list(csv.DictReader(file))
    as_json = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text("utf-8").splitlines()]
    assert len(as_csv) == len(as_json) == len(rows) == 4 and list(as_json[0]) == list(as_csv[0]) == list(rows[0])
    for row, from_csv, from_json in zip(rows, as_csv, as_json, strict=True):
        assert row["source"] == from_csv["source"] == from_json["source"]
        assert row["cluster"] == from_json["cluster"]
        assert from_csv["cluster"] == ("" if row["cluster"] is None else str(row["cluster"]))
        assert row["embedding"] == from_json["embedding"] == json.loads(from_csv["embedding"] or "null")
        assert row["confidence"] is None or abs(row["confidence"] - from_json["confidence"]) < 1e-7


def test_a_name_that_promises_another_format_is_refused_before_anything_is_sorted(model: Path, tmp_path: Path) -> None:
    for more in (
        ["-o", "c.xlsx"],
        ["-o", "clusters"],
        ["-o", "c.parquet", "--gallery", "g.pdf"],
        ["-o", "c.csv", "--resume"],
    ):
        words = [str(tmp_path / word) if "." in word or word == "clusters" else word for word in more]
        result = CliRunner().invoke(cluster_command, [str(model), "digits", *words])
        assert isinstance(result.exception, StdacError)
        said = "--resume takes rows from a Parquet file" if "--resume" in more else "expected a name that ends in ."
        assert said in str(result.exception)
    with pytest.raises(StdacError, match=r"c\.csv: expected a name that ends in \.parquet, which says"):
        sort(model, "digits", output=tmp_path / "c.csv")
    assert list(tmp_path.iterdir()) == []


def test_what_did_not_fit_is_told_on_stderr(model: Path, digits: Pixels, tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", digits[:4])
    (tmp_path / "l.csv").write_text("name,label\n0000.png,a\n0001.png,b\ngone.png,a\n")
    words = [str(model), str(tmp_path / "in"), "-o", str(tmp_path / "c.parquet"), "--labels", str(tmp_path / "l.csv")]
    result = CliRunner().invoke(cluster_command, words, catch_exceptions=False)
    assert f"1 of 3 names in {tmp_path}/l.csv are of no image (the first: gone.png)\n" in result.stderr
    assert f"2 of 4 images have no label in {tmp_path}/l.csv\n" in result.stderr
    assert "scored against the 2 labels a, b of 2 images: ACC " in result.stdout


def test_temporary_files_of_killed_exports_go_and_those_in_use_stay(model: Path, tmp_path: Path) -> None:
    left = tmp_path / ".m.onnx.abcd1234.tmp"
    left.write_bytes(b"half")
    with open_temporary(tmp_path / "m.onnx") as (_, name):
        export_model(model.with_suffix(".pt"), tmp_path / "m.onnx")
        assert not left.exists() and Path(name).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_comparing_an_output_with_itself_is_one_sentence(model: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.parquet")
    sort(model, "digits", output=Path(out))
    result = CliRunner().invoke(cluster_command, [str(model), "digits", "-o", out, "--compare", out])
    assert isinstance(result.exception, StdacError)
    assert "is read too, and would be overwritten" in str(result.exception)


@pytest.mark.parametrize("key", ["k", "cluster", "column", "bytes"])
def test_comparing_with_what_is_no_earlier_run_is_one_sentence_before_anything_is_sorted(
    model: Path, digits: Pixels, tmp_path: Path, key: str
) -> None:
    old, out = tmp_path / "old.parquet", tmp_path / "out.parquet"
    np.save(tmp_path / "a.npy", digits[:20])
    sort(model, tmp_path / "a.npy", output=old)
    table = pq.read_table(old)
    if key == "k":
        table = table.replace_schema_metadata({**table.schema.metadata, b"stdac.k": b"9" * 30})
    if key == "cluster":
        place = table.schema.get_field_index("cluster")
        table = table.set_column(place, CLUSTERS.field("cluster"), pa.array([-5] * 20, pa.int32()))
    if key == "column":
        table = table.drop_columns(["confidence"])
    pq.write_table(table, old)
    if key == "bytes":
        old.write_bytes(old.read_bytes()[:-9])
    arguments = [str(model), str(tmp_path / "a.npy"), "-o", str(out), "--compare", str(old)]
    result = CliRunner().invoke(cluster_command, arguments)
    assert isinstance(result.exception, StdacError)
    assert "old.parquet" in str(result.exception)
    assert not out.exists()


def test_a_list_of_files_comes_from_stdin(model: Path, digits: Pixels, tmp_path: Path) -> None:
    paths = save_pictures(tmp_path / "in", digits[:5])
    text = "\n".join(map(str, [*paths[::-1], tmp_path / "none.png"])) + "\n"
    arguments = ["cluster", model, "-", "-o", tmp_path / "out.parquet", "--gallery", tmp_path / "g.html"]
    command = [sys.executable, "-c", "from cluster_jobs.commands.stdac import main; main()", *map(str, arguments)]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["source"] for row in rows] == [str(path) for path in [*paths[::-1], tmp_path / "none.png"]]
    assert [row["error"] is None for row in rows] == [True] * 5 + [False]
    assert "data:image/" in (tmp_path / "g.html").read_text()


def test_nothing_but_broken_files_is_a_failure(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    arguments = [str(model), str(tmp_path / "a.png"), "-o", str(tmp_path / "out.parquet")]
    result = CliRunner().invoke(cluster_command, arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, StdacError)
    assert "no image was sorted: 1 file could not be read" in str(result.exception)


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
from export.cli import cluster_command
try:
    cluster_command.main(sys.argv[1:], standalone_mode=False)
finally:
    print("loaded:", sorted({blocked!r} & set(sys.modules)))
"""


def run_blocked(blocked: set[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """`stdac cluster` in a process where some packages cannot be imported."""
    command = [sys.executable, "-c", BLOCKED.format(blocked=blocked), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_needs_no_torch(model: Path, digits: Pixels, tmp_path: Path) -> None:
    inputs = save_inputs(tmp_path / "in", digits[:20])
    blocked = {"torch", "torchvision", "sklearn", "scipy", "ray", "onnx", "onnxscript", "matplotlib"}
    options = ["-o", tmp_path / "out.parquet", "--gallery", tmp_path / "g.html"]
    result = run_blocked(blocked, model, *inputs, "mnist", *options)
    assert result.returncode == 0, result.stderr
    assert "100 images sorted" in result.stdout
    assert "mnist: this data set needs torch, which is not installed" in result.stderr
    assert "or scikit-learn alone" in result.stderr
    assert result.stdout.endswith("loaded: []\n")


def test_without_onnxruntime_the_error_names_the_extra(model: Path, tmp_path: Path) -> None:
    result = run_blocked({"onnxruntime"}, model, "digits", "-o", tmp_path / "out.parquet")
    assert result.returncode != 0
    assert "pip install 'stdac[cpu]' (or 'stdac[gpu]')" in result.stderr
    assert not (tmp_path / "out.parquet").exists()

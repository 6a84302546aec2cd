"""Batch clustering: every kind of input becomes the same rows, a broken file is a row, and torch is not needed."""

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

import export.cluster
from export import Clusterer
from export.cli import cluster_command
from export.cluster import CHUNK, CLUSTERS, Progress, cluster_files
from export.sources import BATCH, conform, decode, open_source, stream, walk
from export.to_onnx import export_model
from stdac.data import load
from stdac.errors import StdacError
from stdac.images import Pixels, find_images, read_image
from stdac.methods import resolve
from stdac.model_file import ModelConfig, load_model, save_model

NAMES = tuple(f"number {i}" for i in range(10))
GRAY = (1, 28, 28)


@pytest.fixture(scope="session")
def digits() -> Pixels:
    """The first 300 digits, (300, 1, 28, 28) uint8: more than one chunk."""
    return load("digits").images[:300]


def export_nearest(folder: Path, images: Pixels, names: tuple[str, ...] = ()) -> Path:
    """A model whose clusters are the nearest of the first ten images."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    config = ModelConfig(resolve({"method": "kmeans", "dataset": "digits"}), shape)
    model = config.build()
    model.assign.centres.data.copy_(torch.from_numpy(images[:10]).flatten(1) / 255)
    save_model(folder / "model.pt", model, config)
    export_model(folder / "model.pt", folder / "model.onnx", names=names)
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, digits: Pixels) -> Path:
    """A model for 28x28 gray images, with cluster names."""
    return export_nearest(tmp_path_factory.mktemp("gray"), digits, NAMES)


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for RGB images of 12 by 16 pixels, without names."""
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 12), dtype=np.uint8)
    return export_nearest(tmp_path_factory.mktemp("colour"), images)


def rows_of(model: Path, *inputs: object, output: Path) -> list[dict[str, object]]:
    """The rows that `cluster_files` writes, checked against their schema and against its summary."""
    summary = cluster_files(model, [str(x) for x in inputs], output, "cpu")
    table = pq.read_table(output)
    assert table.schema.equals(CLUSTERS)
    rows: list[dict[str, object]] = table.to_pylist()
    bad = [row for row in rows if row["error"] is not None]
    assert (summary.images, summary.errors) == (len(rows) - len(bad), len(bad))
    assert summary.sizes.sum() == summary.images
    nulls = {"cluster", "name", "confidence", "runner_up", "margin"}
    assert all(row[key] is None for row in bad for key in nulls)
    return rows


# --- Clusterer -----------------------------------------------------------------------------------------------------


def test_predict_gives_what_torch_gives_in_every_layout(model: Path, digits: Pixels) -> None:
    net, _ = load_model(model.with_suffix(".pt"))
    with torch.no_grad():
        expected = net(torch.from_numpy(digits).float() / 255).numpy()
    clusterer = Clusterer(model, "cpu")
    assert len(digits) > CHUNK
    for images in (digits, digits[:, 0], digits.transpose(0, 2, 3, 1), digits.tolist()[:3]):
        prediction = clusterer.predict(np.asarray(images, dtype=np.uint8))
        n = len(images)
        np.testing.assert_allclose(prediction.scores, expected[:n], atol=1e-5)
        assert (prediction.cluster == prediction.scores.argmax(1)).all()
        assert (prediction.confidence == prediction.scores.max(1)).all()
        assert (prediction.cluster.dtype, prediction.confidence.dtype) == (np.int64, np.float32)
    assert clusterer.provider == "cpu"
    assert clusterer.info.cluster_names == NAMES


def test_no_images_give_no_clusters(model: Path) -> None:
    cluster, confidence, scores = Clusterer(model, "cpu").predict(np.zeros((0, 28, 28), np.uint8))
    assert (cluster.shape, confidence.shape, scores.shape) == ((0,), (0,), (0, 10))


def test_padding_to_the_chunk_changes_nothing(model: Path, digits: Pixels) -> None:
    plain, padding = Clusterer(model, "cpu"), Clusterer(model, "cpu")
    padding.provider = "cuda"  # pads as on a GPU, though the session is on the CPU
    for n in (0, 1, 7, 300):
        for expected, got in zip(plain.predict(digits[:n]), padding.predict(digits[:n]), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_one_clusterer_serves_many_threads(model: Path, digits: Pixels) -> None:
    clusterer = Clusterer(model, "cpu")
    expected = clusterer.predict(digits).scores
    with ThreadPoolExecutor(4) as pool:
        for prediction in pool.map(clusterer.predict, repeat(digits, 8)):
            np.testing.assert_array_equal(prediction.scores, expected)


@pytest.mark.parametrize("shape", [(3, 27, 28), (3, 3, 28, 28), (28, 28), (2, 5, 28, 28)])
def test_images_of_another_shape_are_refused(model: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(StdacError, match="expected"):
        Clusterer(model, "cpu").predict(np.zeros(shape, np.uint8))


def test_images_of_another_type_are_refused(model: Path) -> None:
    clusterer = Clusterer(model, "cpu")
    with pytest.raises(StdacError, match="float64, expected uint8"):
        clusterer.predict(np.zeros((2, 28, 28)))
    with pytest.raises(StdacError, match="several shapes"):
        clusterer.predict([np.zeros((28, 28), np.uint8), np.zeros((27, 28), np.uint8)])
    with pytest.raises(StdacError, match="expected uint8"):
        clusterer.predict(5)


@pytest.mark.parametrize("content", [b"", b"just a text file\n", b"\x80\x04.", b"\x08\x0a" * 50])
def test_a_file_that_is_not_onnx_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(StdacError, match=r"m\.onnx is not an ONNX file: expected the model\.onnx"):
        Clusterer(tmp_path / "m.onnx", "cpu")


def test_a_model_cut_short_is_one_sentence(model: Path, tmp_path: Path) -> None:
    content = model.read_bytes()
    for share in (0.3, 0.95):
        (tmp_path / "m.onnx").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(StdacError, match=r"m\.onnx"):
            Clusterer(tmp_path / "m.onnx", "cpu")


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(StdacError, match="cannot read"):
            Clusterer(path, "cpu")


def foreign_model() -> onnx.ModelProto:
    """A valid ONNX file that stdac did not write."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_an_onnx_file_of_another_program_is_one_sentence(tmp_path: Path) -> None:
    onnx.save(foreign_model(), tmp_path / "m.onnx")
    with pytest.raises(StdacError, match="is an ONNX file, but not one of stdac"):
        Clusterer(tmp_path / "m.onnx", "cpu")


@pytest.mark.parametrize(
    ("key", "value"), [("k", "ten"), ("trial", "{"), ("cluster_names", '["a"]'), ("colour_mode", "X")]
)
def test_damaged_metadata_is_one_sentence(model: Path, tmp_path: Path, key: str, value: str) -> None:
    proto = onnx.load(model)
    next(p for p in proto.metadata_props if p.key == key).value = value
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(StdacError, match=r"metadata .* damaged"):
        Clusterer(tmp_path / "m.onnx", "cpu")


def test_metadata_of_ours_on_a_foreign_graph_is_one_sentence(model: Path, tmp_path: Path) -> None:
    proto = foreign_model()
    proto.metadata_props.extend(onnx.load(model).metadata_props)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(StdacError, match="does not fit its metadata"):
        Clusterer(tmp_path / "m.onnx", "cpu")


@pytest.mark.parametrize(("key", "value"), [("k", "9"), ("height", "27"), ("colour_mode", "RGB")])
def test_metadata_that_does_not_fit_the_graph_is_one_sentence(
    model: Path, tmp_path: Path, key: str, value: str
) -> None:
    proto = onnx.load(model)
    for prop in proto.metadata_props:
        prop.value = value if prop.key == key else "[]" if prop.key == "cluster_names" else prop.value
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(StdacError, match="does not fit its metadata"):
        Clusterer(tmp_path / "m.onnx", "cpu")


def test_a_provider_that_is_not_there_is_one_sentence(model: Path) -> None:
    with pytest.raises(StdacError, match="expected auto, cpu or cuda"):
        Clusterer(model, "tpu")
    if Clusterer(model, "auto").provider == "cpu":
        with pytest.raises(StdacError, match="provider cuda"):
            Clusterer(model, "cuda")


# --- inputs --------------------------------------------------------------------------------------------------------


def save_variants(folder: Path, gray: np.ndarray) -> list[str]:
    """One picture (H, W) uint8 in many formats and modes that keep every pixel; returns their names."""
    folder.mkdir()
    picture, rgb = Image.fromarray(gray), np.repeat(gray[..., None], 3, 2)
    palette = Image.fromarray(gray, mode="L").convert("P")
    palette.putpalette([v for i in range(256) for v in (i, i, i)])
    turned = Image.fromarray(np.rot90(gray).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(folder / "gray.png")
    picture.save(folder / "gray.bmp")
    picture.save(folder / "gray.gif")
    picture.save(folder / "GRAY.TIFF")
    Image.fromarray(rgb).save(folder / "rgb.png")
    Image.fromarray(rgb).save(folder / "rgb.webp", lossless=True)
    Image.fromarray(np.dstack([rgb, np.full(gray.shape, 255, np.uint8)])).save(folder / "rgba.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "sixteen bit.png")
    palette.save(folder / "palette.png")
    turned.save(folder / "turned.png", exif=exif)
    return sorted(p.name for p in folder.iterdir())


def test_every_format_and_mode_gives_the_same_pixels(tmp_path: Path, digits: Pixels) -> None:
    gray = digits[0, 0]
    names = save_variants(tmp_path / "variants", gray)
    for channels in (1, 3):
        (batch,) = stream([open_source(str(tmp_path / "variants"))], (channels, 28, 28))
        assert [Path(source).name for source in batch.source] == names
        assert batch.errors == [None] * len(names)
        for name, image in zip(names, batch.images, strict=True):
            np.testing.assert_array_equal(image, np.repeat(gray[None], channels, 0), err_msg=name)


def test_cmyk_and_transparency_are_converted(tmp_path: Path) -> None:
    red = Image.new("RGB", (28, 28), (200, 30, 30))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    clear = red.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    (batch,) = stream([open_source(str(tmp_path))], (3, 28, 28))
    assert np.abs(batch.images[1].astype(int) - np.array([200, 30, 30])[:, None, None]).max() < 8
    assert not batch.images[0].any()


def test_mixed_sizes_are_brought_to_the_models_size(colour_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, size in enumerate([(12, 16), (1, 1), (300, 20), (16, 12)]):
        Image.new("L", size, 40 * i).save(tmp_path / "in" / f"{i}.png")
    rows = rows_of(colour_model, tmp_path / "in", output=tmp_path / "out.parquet")
    assert len(rows) == 4
    assert all(row["error"] is None and row["name"] is None for row in rows)


def save_inputs(folder: Path, images: Pixels) -> list[Path]:
    """The images as a folder, .npz, .npy and IDX, plain and gzipped."""
    folder.mkdir()
    (folder / "pictures").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / "pictures" / f"{i:04}.png")
    np.savez(folder / "a.npz", images=images[:, 0], labels=np.zeros(len(images), int))
    np.save(folder / "a.npy", images.transpose(0, 2, 3, 1))
    idx = bytes([0, 0, 8, 3]) + np.array(images[:, 0].shape, ">u4").tobytes() + images.tobytes()
    (folder / "some-images-idx3-ubyte").write_bytes(idx)
    (folder / "images.gz").write_bytes(gzip.compress(idx))
    return [folder / name for name in ("pictures", "a.npz", "a.npy", "some-images-idx3-ubyte", "images.gz")]


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


def test_broken_files_are_rows(model: Path, digits: Pixels, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save_variants(folder, digits[0, 0])
    good = len(list(folder.iterdir()))
    content = (folder / "rgb.png").read_bytes()
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "short.png").write_bytes(content[: len(content) // 2])
    (folder / "gone.png").symlink_to("nowhere.png")
    rows = rows_of(model, folder, output=tmp_path / "out.parquet")
    errors = {Path(str(row["source"])).name: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"text.png", "empty.jpg", "short.png"}
    assert errors["text.png"] == "not a readable image"
    assert len(rows) == good + 3


def test_broken_arrays_are_rows(model: Path, digits: Pixels, tmp_path: Path) -> None:
    np.save(tmp_path / "float.npy", np.zeros((2, 28, 28)))
    np.savez(tmp_path / "good.npz", x=digits)
    (tmp_path / "short.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:500])
    (tmp_path / "short.gz").write_bytes(gzip.compress(b"\0\0\x08\x03")[:-3])
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04N.")
    names = ("float.npy", "short.npz", "short.gz", "pickle.npy", "good.npz")
    rows = rows_of(model, *(tmp_path / name for name in names), output=tmp_path / "out.parquet")
    assert [Path(str(row["source"])).name for row in rows[:5]] == list(names)
    assert [row["error"] is None for row in rows] == [False] * 4 + [True] * 300
    assert "float64, expected uint8" in str(rows[0]["error"])


def test_odd_names_are_kept(model: Path, digits: Pixels, tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for name in ("new\nline.png", "Größe 大.png", "quote'\".png", "two..dots.PNG"):
        Image.fromarray(digits[0, 0]).save(folder / name, format="PNG")
    with open(os.fsencode(folder) + b"/latin-\xe9.png", "wb") as file:
        Image.fromarray(digits[0, 0]).save(file, format="PNG")
    rows = rows_of(model, folder, output=tmp_path / "out.parquet")
    sources = {Path(str(row["source"])).name for row in rows}
    assert sources == {"new\nline.png", "Größe 大.png", "quote'\".png", "two..dots.PNG", r"latin-\xe9.png"}
    assert all(row["error"] is None for row in rows)


def test_a_folder_is_walked_as_training_walks_it(tmp_path: Path, digits: Pixels) -> None:
    for name in ("b/1.png", "a.png", "a/2.jpg", "a b/3.png", ".hidden/4.png", "b/.5.png", "b/notes.txt", "B/c/6.Png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(digits[0, 0]).save(path, format="PNG")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "link.png").symlink_to("a.png")
    os.mkfifo(tmp_path / "pipe.png")
    paths = [Path(path) for path in walk(str(tmp_path))]
    assert paths == find_images(tmp_path)
    assert len(paths) == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_without_permission_is_a_row(model: Path, digits: Pixels, tmp_path: Path) -> None:
    for name, mode in (("closed", 0), ("listable", 0o400), ("open", 0o700)):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(digits[0, 0]).save(tmp_path / "in" / name / "a.png")
        (tmp_path / "in" / name).chmod(mode)
    (tmp_path / "in" / "z.png").symlink_to("listable/a.png")
    rows = rows_of(model, tmp_path / "in", output=tmp_path / "out.parquet")
    assert rows[0]["error"] == "this folder cannot be listed"
    assert "Permission denied" in str(rows[1]["error"])
    assert [row["error"] for row in rows[2:]] == [None]
    with pytest.raises(StdacError, match="cannot read"):
        open_source(str(tmp_path / "in" / "closed" / "a.png"))


def test_a_name_that_is_too_long_is_one_sentence() -> None:
    with pytest.raises(StdacError, match=r"cannot read a{300}: File name too long"):
        open_source("a" * 300)


@pytest.mark.parametrize("what", ["missing", "empty folder", "pipe"])
def test_an_input_that_cannot_be_used_is_one_sentence_and_writes_nothing(
    model: Path, tmp_path: Path, what: str
) -> None:
    path = tmp_path / what
    if what == "empty folder":
        path.mkdir()
        (path / "notes.txt").write_text("no picture")
    elif what == "pipe":
        os.mkfifo(path)
    with pytest.raises(StdacError, match="expected"):
        cluster_files(model, ["digits", str(path)], tmp_path / "out.parquet", "cpu")
    assert not list(tmp_path.glob("*.parquet*"))


def test_pictures_are_decoded_only_some_batches_ahead(tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield str(tmp_path / "none.png")

    batches = decode(endless(), GRAY)
    assert len(next(batches).images) == BATCH
    assert taken <= 4 * BATCH
    batches.close()  # type: ignore[attr-defined]


def test_arrays_are_converted_as_files_are(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    for shape in ((1, 20, 20), (3, 20, 20), (1, 40, 30), (1, 50, 50)):
        expected = read_image(tmp_path / "a.png", shape[0], shape[1:])
        np.testing.assert_array_equal(conform(image.transpose(2, 0, 1)[None], shape)[0], expected)


# --- clusters.parquet and the command ------------------------------------------------------------------------------


def test_row_groups_hold_all_rows_in_order(
    model: Path, digits: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", np.concatenate([digits] * 4))
    monkeypatch.setattr(export.cluster, "ROW_GROUP", 500)
    seen: list[Progress] = []
    summary = cluster_files(model, [str(tmp_path / "a.npy")], tmp_path / "out.parquet", "cpu", seen.append)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.num_row_groups > 1
    assert file.read()["index"].to_pylist() == list(range(1200))
    assert summary.images == 1200
    assert seen[-1] == Progress(1200, 0, None)


class StoppedError(Exception):
    """Stands for whatever ends a run half-way."""


def test_a_run_that_is_stopped_leaves_the_earlier_result(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_bytes(b"earlier")

    def stop(progress: Progress) -> None:
        if progress.done > 600:
            raise StoppedError

    with pytest.raises(StoppedError):
        cluster_files(model, ["digits"], tmp_path / "out.parquet", "cpu", stop)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.parquet", b"earlier")]


@pytest.mark.parametrize("output", ["missing/out.parquet", "."])
def test_an_output_that_cannot_be_written_is_one_sentence(model: Path, tmp_path: Path, output: str) -> None:
    with pytest.raises(StdacError, match="cannot write"):
        cluster_files(model, ["digits"], tmp_path / output, "cpu")


def test_the_command_prints_sizes_and_counts_broken_files(model: Path, digits: Pixels, tmp_path: Path) -> None:
    save_variants(tmp_path / "in", digits[3, 0])
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
    result = run_blocked(blocked, model, *inputs, "mnist", "-o", tmp_path / "out.parquet")
    assert result.returncode == 0, result.stderr
    assert "100 images sorted" in result.stdout
    assert "mnist: this data set needs torch, which is not installed" in result.stderr
    assert result.stdout.endswith("loaded: []\n")


def test_without_onnxruntime_the_error_names_the_extra(model: Path, tmp_path: Path) -> None:
    result = run_blocked({"onnxruntime"}, model, "digits", "-o", tmp_path / "out.parquet")
    assert result.returncode != 0
    assert "pip install 'stdac[cpu]' (or 'stdac[gpu]')" in result.stderr
    assert not (tmp_path / "out.parquet").exists()

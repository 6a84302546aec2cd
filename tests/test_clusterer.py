"""`Clusterer`: what torch computes, in every layout, from many threads, on the provider that was asked for."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export import Clusterer
from export.clusterer import CHUNK
from export.runtime import PROVIDERS, count_placements, open_session
from stdac.errors import StdacError
from stdac.model_file import load_model
from stdac.pictures.pixels import Pixels
from tests.conftest import NAMES


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
    assert padding.chunk > CHUNK
    for n in (0, 1, 7, 300):
        for expected, got in zip(plain.predict(digits[:n]), padding.predict(digits[:n]), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_one_clusterer_serves_many_threads(model: Path, digits: Pixels) -> None:
    clusterer = Clusterer(model, "cpu")
    expected = clusterer.predict(digits).scores
    with ThreadPoolExecutor(4) as pool:
        for prediction in pool.map(clusterer.predict, repeat(digits, 8)):
            np.testing.assert_array_equal(prediction.scores, expected)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, 27, 28), "got images of shape (C, H, W) = (1, 27, 28), expected (1, 28, 28) for model.onnx"),
        ((3, 3, 28, 28), "got images of shape (C, H, W) = (3, 28, 28), expected (1, 28, 28) for model.onnx"),
        ((28, 28), "the input has images of shape (28, 28), expected (N, H, W), "),
        ((2, 5, 28, 28), "the input has images of shape (2, 5, 28, 28), expected (N, H, W), "),
    ],
)
def test_images_of_another_shape_are_refused(model: Path, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(StdacError) as caught:
        Clusterer(model, "cpu").predict(np.zeros(shape, np.uint8))
    assert str(caught.value).startswith(said)


def test_images_of_another_type_are_refused(model: Path) -> None:
    clusterer = Clusterer(model, "cpu")
    with pytest.raises(StdacError, match="float64, expected uint8"):
        clusterer.predict(np.zeros((2, 28, 28)))
    with pytest.raises(StdacError, match="got images of several shapes, expected one array: resize them first"):
        clusterer.predict([np.zeros((28, 28), np.uint8), np.zeros((27, 28), np.uint8)])
    with pytest.raises(StdacError, match="the input has images of type int64, expected uint8 with values 0 to 255"):
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
        with pytest.raises(
            StdacError, match=r"m\.onnx is not an ONNX file: expected the model\.onnx that stdac export writes"
        ):
            Clusterer(tmp_path / "m.onnx", "cpu")


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.onnx", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(StdacError, match=rf"cannot read {path} \({why}\): expected the model\.onnx"):
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
    with pytest.raises(StdacError, match=r"the metadata of .*m\.onnx is damaged: export the model again"):
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
    with pytest.raises(StdacError, match="expected auto, cpu, cuda, tensorrt, openvino"):
        Clusterer(model, "tpu")
    if Clusterer(model, "auto").provider == "cpu":
        for provider in ("cuda", "tensorrt"):
            with pytest.raises(StdacError, match=f"provider {provider} is not in this onnxruntime: pip install"):
                Clusterer(model, provider)


def test_a_session_tells_where_its_nodes_are(model: Path) -> None:
    session, provider = open_session(model.read_bytes(), model, "cpu")
    placed = count_placements(session)
    assert provider == "cpu"
    assert not placed or set(placed) == {PROVIDERS["cpu"].name}


def test_the_digest_and_the_embedding_of_a_plain_model(model: Path, digits: Pixels) -> None:
    clusterer = Clusterer(model, "cpu")
    assert len(clusterer.sha256) == 64
    with pytest.raises(StdacError, match=r"model\.onnx has no embedding: export the model with --with-embedding"):
        clusterer.embed(digits)
    prediction, embedding = clusterer.predict_and_embed(digits[:3])
    assert embedding is None
    assert prediction.cluster.tolist() == clusterer.predict(digits[:3]).cluster.tolist()


def test_a_model_that_is_no_regular_file_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(3 << 30)
    for name, match in (("pipe.onnx", "is a pipe, a socket or a device"), ("huge.onnx", "has more than 2 GiB")):
        with pytest.raises(StdacError, match=f"{name} {match}: expected the model.onnx that stdac export writes"):
            Clusterer(tmp_path / name, "cpu")


@pytest.mark.parametrize(("key", "value"), [("cluster_names", '["\\ud800"]'), ("trial", "[" * 100_000), ("k", "0")])
def test_hostile_metadata_is_one_sentence(model: Path, tmp_path: Path, key: str, value: str) -> None:
    proto = onnx.load(model)
    for prop in proto.metadata_props:
        prop.value = value if prop.key == key else "1" if (prop.key, key) == ("k", "cluster_names") else prop.value
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(StdacError, match=r"the metadata of .*m\.onnx is damaged: export the model again"):
        Clusterer(tmp_path / "m.onnx", "cpu")

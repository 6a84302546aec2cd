"""Export: the ONNX file computes what torch does, says what it is, tells nothing local, and is there whole or not."""

import copy
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic

from export.cli import export_command
from export.convert import to_onnx
from export.convert import verify as verify_module
from export.convert.half import halve, list_float_nodes
from export.convert.kernels import find_without_kernel, read_kernels
from export.convert.to_onnx import Graph, export_model, hash_model
from export.convert.verify import (
    LEAST_AGREEMENT,
    TOLERANCE,
    TOLERANCES,
    Agreement,
    Real,
    check_graph,
    describe_disagreement,
    list_cases,
    measure_agreement,
    stress_model,
    verify,
    verify_reduced,
)
from export.metadata import parse_props
from stdac.data import load
from stdac.errors import StdacError
from stdac.folder import TrialFolder
from stdac.machine import Machine
from stdac.methods import METHODS, resolve
from stdac.metrics import accuracy
from stdac.model_file import ModelConfig, load_model, save_model
from stdac.run import run_trial

STN = (0, 2)
NewFolder = Callable[[str], TrialFolder]
NAMES = tuple(f"Ziffer „{i}“" for i in range(10))


@pytest.fixture(autouse=True, scope="module")
def _small_models() -> Iterator[None]:
    """Batches of 4,096 would take minutes in all: one test runs them. After one epoch scores are nearly ties."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "LARGEST_BATCH", 100)
        patch.setitem(LEAST_AGREEMENT, "int8", 0.85)
        yield


CONVERTED: dict[tuple[str, str, bool], onnx.ModelProto] = {}


@pytest.fixture
def converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that this fixture has seen is not converted again: for tests of what comes after its graph in fp32."""
    real = to_onnx.convert

    def convert(graph: Graph, config: ModelConfig) -> onnx.ModelProto:
        key = (config.trial.method, hash_model(graph.model), graph.with_embedding)
        if key not in CONVERTED:
            CONVERTED[key] = real(graph, config)
        return copy.deepcopy(CONVERTED[key])

    monkeypatch.setattr(to_onnx, "convert", convert)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """model.pt by the number of spatial transformers, each of one epoch."""
    models = {}
    for stn in STN:
        folder = TrialFolder(tmp_path_factory.mktemp("trial") / str(stn))
        trial = resolve({"dataset": "digits", "epochs": 1, "limit": 200, "params": {"stn": stn, "width": 0.25}})
        run_trial(trial, folder, machine=Machine(device="cpu", compile="off", threads=1))
        models[stn] = next(folder.path.rglob("model.pt"))
    return models


@pytest.fixture(scope="module")
def exported(trained: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """model.onnx by the number of spatial transformers."""
    folder = tmp_path_factory.mktemp("onnx")
    digits = load("digits", limit=100).images
    for stn, path in trained.items():
        report = export_model(path, folder / f"{stn}.onnx", digits, NAMES)
        assert report.agreement.max_difference <= TOLERANCE
        assert report.bytes == (folder / f"{stn}.onnx").stat().st_size
    return {stn: folder / f"{stn}.onnx" for stn in trained}


@pytest.fixture(scope="module")
def reduced(trained: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, to_onnx.ExportReport]:
    """The model with two spatial transformers in fp16 and int8, with its embedding."""
    folder = tmp_path_factory.mktemp("reduced")
    return {
        precision: export_model(trained[2], folder / f"{precision}.onnx", precision=precision, with_embedding=True)
        for precision in ("fp16", "int8")
    }


def answers(path: Path, images: np.ndarray) -> list[np.ndarray]:
    """What the file gives on the CPU."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A small model.pt that took no training."""
    return save_untrained(tmp_path / "untrained.pt", "pca-kmeans", {})


def save_untrained(
    path: Path,
    method: str,
    params: dict[str, Any],
    dataset: str = "digits",
    shape: tuple[int, int, int] = (1, 28, 28),
) -> Path:
    torch.manual_seed(0)
    k = {"n_clusters": 10} if METHODS[method].takes_k else {}
    trial = resolve({"method": method, "dataset": dataset, **k, "params": params})
    config = ModelConfig(trial, shape, clusters=bool(k))
    save_model(path, config.build(), config)
    return path


@pytest.mark.parametrize("stn", STN)
@pytest.mark.parametrize("n", [0, 1, 7, 64, 300])
def test_onnx_gives_what_torch_gives_at_any_batch_size(
    trained: dict[int, Path], exported: dict[int, Path], stn: int, n: int
) -> None:
    images = load("digits").images[:n]
    model, _ = load_model(trained[stn])
    with torch.no_grad():
        expected = model(torch.from_numpy(images).float() / 255).numpy()
    session = onnxruntime.InferenceSession(exported[stn], providers=["CPUExecutionProvider"])
    cluster, confidence, scores = session.run(None, {"images": images})
    assert cluster.shape == confidence.shape == (n,)
    assert scores.shape == (n, 10)
    assert (cluster.dtype, confidence.dtype, scores.dtype) == (np.int64, np.float32, np.float32)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    assert describe_disagreement(expected, scores, cluster, confidence) <= TOLERANCE


WITH_MODEL = sorted(name for name, method in METHODS.items() if method.build and method.takes_k)
SMALLER = [name for name in WITH_MODEL if not METHODS[name].is_floor]
PARAMS: dict[str, dict[str, Any]] = {
    "dec": {"width": 0.1},
    "dac-star": {"width": 0.05},
    "st-dac": {"width": 0.05, "stn": 1},
    "pca-kmeans": {"components": 5},
    "hog-kmeans": {"cells": 3},
    "features-kmeans": {"backbone": "default"},
    "student": {"width": 0.25, "teacher": "c6978ba90d329783"},
}
"""What makes a method's network small; its weights are as they are drawn."""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tuple[Graph, onnx.ModelProto]]:
    """By method and whether with its embedding: a small model of images of 22x22, and its graph in fp32."""
    folder = tmp_path_factory.mktemp("converted")

    @cache
    def convert(method: str, with_embedding: bool) -> tuple[Graph, onnx.ModelProto]:
        path = save_untrained(folder / f"{method}.pt", method, PARAMS.get(method, {}), shape=(1, 22, 22))
        model, config = load_model(path)
        graph = Graph(model, with_embedding).eval()
        return graph, to_onnx.convert(graph, config)

    return convert


@pytest.mark.parametrize("with_embedding", [False, True])
@pytest.mark.parametrize(
    ("method", "precision"),
    [(method, "fp32") for method in WITH_MODEL] + [(m, precision) for m in SMALLER for precision in ("fp16", "int8")],
)
def test_the_file_of_every_method_and_precision_is_one_that_other_programs_read(
    converted: Callable[[str, bool], tuple[Graph, onnx.ModelProto]],
    method: str,
    precision: str,
    with_embedding: bool,
    tmp_path: Path,
) -> None:
    images = load("digits", limit=20, image_size=22).images
    graph, proto = converted(method, with_embedding)
    if precision != "fp32":
        proto = to_onnx.reduce_precision(proto, precision, Real(images))
    onnx.save(proto, tmp_path / "m.onnx")

    # what stops other runtimes and tools
    onnx.checker.check_model(proto, full_check=True)
    constants = {tensor.name for tensor in proto.graph.initializer}
    assert proto.ir_version == 8
    assert not constants & {value.name for value in (*proto.graph.value_info, *proto.graph.input)}
    assert not [node.name for node in proto.graph.node if any(a.name == "allowzero" and a.i for a in node.attribute)]
    if precision == "fp32":
        quantize_dynamic(tmp_path / "m.onnx", tmp_path / "dynamic.onnx")
        assert len(answers(tmp_path / "dynamic.onnx", images[:3])) == 3 + with_embedding

    # and it gives what torch gives
    for n in (0, 1, 7):
        with torch.no_grad():
            expected = [y.numpy() for y in graph(torch.from_numpy(images[:n]))]
        found = answers(tmp_path / "m.onnx", images[:n])
        assert [(y.shape, y.dtype) for y in found] == [(y.shape, y.dtype) for y in expected]
        for ours, theirs in zip(found[2:], expected[2:], strict=True):
            scale = max(1.0, float(np.abs(theirs).max(initial=0)))
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCES[precision] * scale)
        assert (found[0] == found[2].argmax(1)).all()


def test_the_embedding_of_an_exported_model_has_the_size_that_is_said(tmp_path: Path) -> None:
    path = save_untrained(tmp_path / "model.pt", "dec", {"width": 0.1})
    report = export_model(path, tmp_path / "model.onnx", with_embedding=True)
    assert report.agreement.max_difference <= TOLERANCE
    assert answers(tmp_path / "model.onnx", load("digits").images[:7])[3].shape == (7, report.info.embedding)


def test_images_to_calibrate_on_are_not_those_to_measure_on_where_there_are_enough() -> None:
    for n, calibrated, measured in ((1, 1, 1), (200, 200, 200), (300, 100, 200), (1536, 512, 1024), (1200, 400, 800)):
        real = Real(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1))
        assert (to_onnx.count_calibration(n), len(to_onnx.list_measured(real).images)) == (calibrated, measured)
        assert n < 300 or calibrated + measured <= n


def test_a_model_that_keeps_the_clusters_of_its_images_but_not_of_moved_ones_is_refused(
    converted: Callable[[str, bool], tuple[Graph, onnx.ModelProto]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated on gratings of a line a pixel, which look like nothing of that once they are turned."""
    graph, proto = converted("dac-star", False)
    lines = np.indices((1, 22, 22))[1] % 2 * np.ones((100, 1, 1, 1), np.int64)
    real = Real((lines * np.arange(150, 250)[:, None, None, None]).astype(np.uint8))
    reduced = to_onnx.reduce_precision(proto, "int8", real)
    agreement = measure_agreement(Agreement(0.0, 0, 0), graph, reduced, "int8", real)
    assert agreement.same_cluster == 1
    assert agreement.same_moved is not None and 0.7 < agreement.same_moved < 0.95
    monkeypatch.setitem(LEAST_AGREEMENT, "int8", 0.95)
    with pytest.raises(
        StdacError, match=r"^only .* of 100 real images, moved a little, keep their cluster in int8, at"
    ):
        measure_agreement(Agreement(0.0, 0, 0), graph, reduced, "int8", real)
    assert np.array_equal(verify_module.move(real.images), verify_module.move(real.images))


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("method", [name for name in WITH_MODEL if METHODS[name].is_floor])
def test_k_means_has_no_layer_to_make_smaller_and_says_so(method: str, precision: str, tmp_path: Path) -> None:
    path = save_untrained(tmp_path / "model.pt", method, {})
    with pytest.raises(StdacError, match=r"no layer that fp16 or int8 would make smaller.*--precision fp32"):
        export_model(path, tmp_path / "model.onnx", precision=precision)
    assert not (tmp_path / "model.onnx").exists()


def test_an_unknown_precision_is_one_sentence(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(StdacError, match="got precision 'bf16', expected one of fp32, fp16, int8"):
        export_model(untrained, tmp_path / "m.onnx", precision="bf16")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_fewer_bits_keep_the_clusters_of_real_images(
    trained: dict[int, Path], reduced: dict[str, to_onnx.ExportReport], precision: str
) -> None:
    data = load("digits", limit=200)
    with torch.no_grad():
        expected = load_model(trained[2])[0](torch.from_numpy(data.images).float() / 255).numpy()
    cluster, confidence, scores, embedding = answers(reduced[precision].path, data.images)
    agreement = reduced[precision].agreement
    assert (cluster == expected.argmax(1)).mean() >= LEAST_AGREEMENT[precision]
    assert (confidence == scores.max(1)).all()
    assert (scores.dtype, embedding.dtype) == (np.float32, np.float32)
    assert agreement.measured == len(data.images)
    assert agreement.same_cluster == (cluster == expected.argmax(1)).mean()
    assert agreement.accuracy is not None
    assert agreement.accuracy[0] == pytest.approx(accuracy(data.labels, expected.argmax(1)))
    assert agreement.accuracy[1] == pytest.approx(accuracy(data.labels, cluster))
    assert np.abs(scores - expected).max() <= TOLERANCES[precision]


def test_fp16_halves_convolutions_and_dense_layers_and_nothing_that_makes_coordinates_or_scores(
    reduced: dict[str, to_onnx.ExportReport],
) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(reduced["fp16"].path)).graph
    types = {t.name: t.data_type for t in graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    weights = {name: types[name] for name in types if name.startswith("model.net.") and "weight" in name}
    kept = {name for name, kind in weights.items() if kind == TensorProto.FLOAT}
    assert {name.split(".")[2] for name in kept} == {
        "stn1",
        "stn2",
        "bn2_pool",
        "dense2",
    }  # stn2 feeds bn2_pool
    assert {kind for name, kind in weights.items() if name not in kept} == {TensorProto.FLOAT16}
    for node in graph.node:
        if node.op_type in ("GridSample", "Softmax", "Tanh"):
            assert all(types[name] == TensorProto.FLOAT for name in (*node.input, *node.output))
    assert find_without_kernel(onnx.load(reduced["fp16"].path)) == []


def test_int8_quantises_all_but_what_makes_coordinates_and_the_last_layer(
    reduced: dict[str, to_onnx.ExportReport],
) -> None:
    graph = onnx.load(reduced["int8"].path).graph
    types = {t.name: t.data_type for t in graph.initializer}
    large = {t.name for t in graph.initializer if len(t.dims) > 1 and t.data_type == TensorProto.FLOAT}
    assert {name.split(".")[2] for name in large} == {"stn1", "stn2", "dense2"}
    small = {name for name, kind in types.items() if kind == TensorProto.UINT8}
    assert {"conv1", "conv2", "conv3", "dense1"} <= {name.split(".")[2] for name in small if name.startswith("model.")}


def test_a_constant_that_float16_cannot_hold_keeps_its_layer_in_float32(exported: dict[int, Path]) -> None:
    proto = onnx.load(exported[0])
    dense = next(t for t in proto.graph.initializer if t.name == "model.net.dense1.weight")
    values = onnx.numpy_helper.to_array(dense).copy()
    values[0, 0] = 1e5
    dense.CopyFrom(onnx.numpy_helper.from_array(values, dense.name))
    halved = halve(proto)
    onnx.checker.check_model(halved, full_check=True)
    names = {t.name for t in halved.graph.initializer}
    assert "model.net.dense1.weight" in names
    assert "model.net.conv2.weight.half" in names


def test_int8_uses_no_labels(
    trained: dict[int, Path], reduced: dict[str, to_onnx.ExportReport], tmp_path: Path
) -> None:
    data = load("digits", limit=200)
    shuffled = np.random.default_rng(0).permutation(data.labels)
    export_model(trained[2], tmp_path / "m.onnx", data.images, precision="int8", with_embedding=True, labels=shuffled)
    assert (tmp_path / "m.onnx").read_bytes() == reduced["int8"].path.read_bytes()


@pytest.mark.usefixtures("converted_once")
def test_images_given_without_labels_are_measured_but_not_scored(trained: dict[int, Path], tmp_path: Path) -> None:
    images = np.repeat(load("digits", limit=120).images, 3, axis=1).transpose(0, 2, 3, 1)  # (N, H, W, 3)
    report = export_model(trained[0], tmp_path / "m.onnx", images[:, ::2, ::2], precision="int8")
    assert report.agreement.measured == 120
    assert report.agreement.accuracy is None


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_poor_agreement_is_refused_and_nothing_is_written(
    trained: dict[int, Path], tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEAST_AGREEMENT, precision, 1.01)
    with pytest.raises(
        StdacError, match=rf"only .*% of 200 real images keep their cluster in {precision}.*nothing was"
    ):
        export_model(trained[0], tmp_path / "m.onnx", precision=precision)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("converted_once")
def test_int8_calibrated_on_noise_is_refused(trained: dict[int, Path], tmp_path: Path) -> None:
    graph, proto = (
        Graph(load_model(trained[0])[0]).eval(),
        onnx.load(export_model(trained[0], tmp_path / "m.onnx").path),
    )
    broken = to_onnx.reduce_precision(proto, "int8", Real(np.zeros((8, 1, 28, 28), np.uint8)))
    with pytest.raises(
        StdacError, match=r"only .*% of 200 real images keep their cluster in int8.*nothing was written"
    ):
        verify_reduced(graph, broken, "int8", (1, 28, 28), Real(load("digits", limit=200).images))


def test_int8_without_any_real_image_says_how_to_give_some(tmp_path: Path) -> None:
    model = save_untrained(tmp_path / "m.pt", "dec", {"width": 0.05}, dataset=str(tmp_path / "gone"))
    with pytest.raises(StdacError, match=r"int8 takes its ranges from real images.*--verify-on"):
        export_model(model, tmp_path / "m.onnx", precision="int8")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
    assert export_model(model, tmp_path / "m.onnx").agreement.measured == 0


def test_no_data_set_is_downloaded_to_verify_fp32(tmp_path: Path) -> None:
    model = save_untrained(tmp_path / "m.pt", "kmeans", {}, dataset="mnist")
    assert export_model(model, tmp_path / "m.onnx", data_dir=tmp_path / "data").agreement.images > 0
    assert not (tmp_path / "data").exists()


def test_every_batch_size_of_the_contract_is_verified(monkeypatch: pytest.MonkeyPatch, untrained: Path) -> None:
    monkeypatch.setattr(verify_module, "LARGEST_BATCH", 4096)
    sizes = {case.batch or len(case.images) for case in list_cases((1, 28, 28), None).values()}
    assert {0, 1, 7, 64, 4096} <= sizes
    assert export_model(untrained, untrained.with_suffix(".onnx")).agreement.images > 4096
    larger = {case.batch or len(case.images) for case in list_cases((3, 224, 224), None).values()}
    assert max(larger) == 65  # 64 large images fill the memory that 4,096 small ones would


def test_the_file_is_one_opset_18_with_the_promised_inputs_and_outputs(exported: dict[int, Path]) -> None:
    proto = onnx.load(exported[2])
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
    assert all(t.data_location != TensorProto.EXTERNAL for t in proto.graph.initializer)
    assert [x.name for x in proto.graph.input] == ["images"]
    assert [y.name for y in proto.graph.output] == ["cluster", "confidence", "scores"]
    assert proto.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert [p.name for p in exported[2].parent.iterdir() if not p.name.endswith(".onnx")] == []


def test_the_metadata_says_what_the_model_is(trained: dict[int, Path], exported: dict[int, Path]) -> None:
    session = onnxruntime.InferenceSession(exported[2], providers=["CPUExecutionProvider"])
    props = session.get_modelmeta().custom_metadata_map
    _, config = load_model(trained[2])
    assert props["trial_id"] == config.trial.id
    assert json.loads(props["trial"]) == config.trial.to_json()
    assert (props["k"], props["height"], props["width"], props["colour_mode"]) == ("10", "28", "28", "L")
    assert (props["opset"], props["dataset"]) == ("18", "digits")
    assert json.loads(props["scores"]) == config.scores
    assert json.loads(props["cluster_names"]) == list(NAMES)
    info = parse_props(Path("m.onnx"), props)
    assert (info.shape, info.cluster_names) == ((1, 28, 28), NAMES)
    assert (info.precision, info.embedding) == ("fp32", 0)


def test_all_precisions_of_a_model_have_its_id_and_another_model_another(
    trained: dict[int, Path], exported: dict[int, Path], reduced: dict[str, to_onnx.ExportReport]
) -> None:
    proto = onnx.load(exported[2])
    fp32 = parse_props(exported[2], {p.key: p.value for p in proto.metadata_props})
    assert {fp32.model_id} == {report.info.model_id for report in reduced.values()}
    model, _ = load_model(trained[2])
    assert fp32.model_id == hash_model(model)
    assert len(fp32.model_id) == 16
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert fp32.model_id != hash_model(model)
    for precision, report in reduced.items():
        assert (report.info.precision, report.info.embedding) == (precision, 774)


def test_a_file_from_before_precisions_is_fp32_without_an_embedding(exported: dict[int, Path]) -> None:
    props = {p.key: p.value for p in onnx.load(exported[2]).metadata_props}
    for key in ("precision", "embedding", "model_id"):
        del props[key]
    info = parse_props(exported[2], props)
    assert (info.precision, info.embedding, info.model_id) == ("fp32", 0, info.trial_id)


@pytest.mark.parametrize(("key", "value"), [("precision", "fp8"), ("embedding", "-1"), ("embedding", "many")])
def test_damaged_metadata_is_one_sentence(exported: dict[int, Path], key: str, value: str) -> None:
    props = {p.key: p.value for p in onnx.load(exported[2]).metadata_props}
    with pytest.raises(StdacError, match=r"metadata of .* is damaged"):
        parse_props(exported[2], props | {key: value})


def test_the_file_tells_nothing_about_this_machine(
    exported: dict[int, Path], reduced: dict[str, to_onnx.ExportReport], tmp_path: Path
) -> None:
    private = tmp_path / "secret folder" / "pictures"
    export_model(save_untrained(tmp_path / "m.pt", "kmeans", {}, str(private)), tmp_path / "m.onnx")
    for path in (exported[2], tmp_path / "m.onnx", *(report.path for report in reduced.values())):
        proto = onnx.load(path)
        for tensor in proto.graph.initializer:
            tensor.ClearField("raw_data")  # weights hold any three bytes by chance
        text = proto.SerializeToString()
        for word in (b"site-packages", b".py", b"secret", b"/tmp", str(Path.cwd()).encode(), str(Path.home()).encode()):
            assert word not in text
    assert (
        parse_props(tmp_path, {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}).dataset
        == "pictures"
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_equal_models_give_equal_files_the_exporter_is_silent_and_leaves_nothing_behind(
    trained: dict[int, Path],
    precision: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for name in ("a.onnx", "b.onnx"):
        export_model(trained[0], tmp_path / name, precision=precision)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(trained: dict[int, Path], tmp_path: Path, value: float) -> None:
    model, config = load_model(trained[2])
    next(model.parameters()).data.view(-1)[3] = value
    save_model(tmp_path / "m.pt", model, config)
    (tmp_path / "m.onnx").write_bytes(b"an earlier model")
    with pytest.raises(
        StdacError, match=r"m\.pt has weights that are not finite \(net\.stn1\..*\): the trial diverged"
    ):
        export_model(tmp_path / "m.pt", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"an earlier model"
    assert {p.name for p in tmp_path.iterdir()} == {"m.pt", "m.onnx"}


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("missing/m.onnx", "there is no folder .*/missing; create it or choose another place"),
        ("/sys/m.onnx", "permission denied; choose a folder that you may write to"),
        (".", "Is a directory"),
    ],
)
def test_a_target_that_cannot_be_written_is_one_sentence(
    untrained: Path, tmp_path: Path, target: str, why: str
) -> None:
    with pytest.raises(StdacError, match=f"cannot write {tmp_path / target}: {why}$"):
        export_model(untrained, tmp_path / target)
    assert [p.name for p in tmp_path.iterdir()] == [untrained.name]


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return open, (str(self.path), "w")  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, how: str) -> None:
    trap = {"stdac": Trap(tmp_path / "sprung")}
    path = tmp_path / "m.pt"
    path.write_bytes(pickle.dumps(trap)) if how == "pickle" else torch.save(trap, path)
    with pytest.raises(StdacError, match=r"m\.pt holds pickled objects, which are not executed"):
        export_model(path, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_model_file_is_one_sentence(untrained: Path, tmp_path: Path, share: float) -> None:
    content = untrained.read_bytes()
    untrained.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(StdacError, match=r"untrained\.pt is cut short or not a model file: expected a model\.pt"):
        export_model(untrained, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("names", "got"), [(("a", "b"), "got 2 cluster names"), (("a", "") * 5, "got an empty cluster name")]
)
def test_cluster_names_must_fit(untrained: Path, tmp_path: Path, names: tuple[str, ...], got: str) -> None:
    with pytest.raises(StdacError, match=f"^{got} for a model of 10 clusters: expected one name a cluster, in order$"):
        export_model(untrained, tmp_path / "m.onnx", names=names)


def test_verification_finds_a_weight_that_differs(trained: dict[int, Path], exported: dict[int, Path]) -> None:
    graph, proto = Graph(load_model(trained[0])[0]).eval(), onnx.load(exported[0])
    verify(graph, proto, (1, 28, 28))
    graph.model.net.bn5.weight.data[0] *= 1.1
    with pytest.raises(StdacError, match=r"disagree on 64 random images: .* nothing was written"):
        verify(graph, proto, (1, 28, 28))


def test_verification_finds_a_sampler_that_differs_only_outside_of_the_map(
    trained: dict[int, Path], exported: dict[int, Path]
) -> None:
    graph, proto = Graph(load_model(trained[2])[0]).eval(), onnx.load(exported[2])
    for transformer in graph.model.net.transformers:  # a zoom in, as at the start of training: all samples are inside
        transformer.localisation.theta.weight.data.zero_()
        transformer.localisation.theta.bias.data.copy_(torch.tensor([0.5, 0, 0, 0, 0.5, 0]))
    set_theta(proto)
    verify(graph, proto, (1, 28, 28))
    samplers = [node for node in proto.graph.node if node.op_type == "GridSample"]
    for sampler in samplers:
        next(a for a in sampler.attribute if a.name == "padding_mode").s = b"border"
    with pytest.raises(StdacError, match="with all of theta at 1"):
        verify(graph, proto, (1, 28, 28))


def set_theta(proto: onnx.ModelProto) -> None:
    """The same constant zoom in the graph: theta layers with no weight and a bias."""
    for node in proto.graph.node:
        tensors = {t.name: t for t in proto.graph.initializer if t.name in node.input}
        if not any(name.endswith("theta.bias") for name in tensors):
            continue
        for name, tensor in tensors.items():
            value = np.zeros(tuple(tensor.dims), np.float32)
            if name.endswith("bias"):
                value[:] = [0.5, 0, 0, 0, 0.5, 0]
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))


def test_stress_moves_the_samples_and_leaves_the_model_alone(
    trained: dict[int, Path], exported: dict[int, Path]
) -> None:
    graph, proto = Graph(load_model(trained[2])[0]).eval(), onnx.load(exported[2])
    before, proto_before = copy.deepcopy(graph.state_dict()), proto.SerializeToString()
    x = torch.from_numpy(load("digits").images[:4])
    with torch.no_grad():
        plain = graph(x)[2]
        changed = [float((g(x)[2] - plain).abs().max()) for _, g, _ in stress_model(graph, proto)]
    assert len(changed) == 4
    assert min(changed) > 1e-3
    assert all(torch.equal(graph.state_dict()[name], value) for name, value in before.items())
    assert proto.SerializeToString() == proto_before


def one_node(op: str, kinds: list[int], opset: int, **attributes: object) -> onnx.ModelProto:
    """A graph of one operator, on (1, 2, 4, 4) or, for a grid, (1, 4, 4, 2)."""
    names = "xyz"[: len(kinds)]
    shapes = [[1, 2, 4, 4], [1, 4, 4, 2]]
    given = [helper.make_tensor_value_info(n, k, s) for n, k, s in zip(names, kinds, shapes, strict=False)]
    y = helper.make_tensor_value_info("out", kinds[0], list("ab" if op == "Det" else "abcd"))
    graph = helper.make_graph([helper.make_node(op, list(names), ["out"], name="n", **attributes)], "g", given, [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def test_the_kernel_table_knows_operators_versions_and_types() -> None:
    pool = {"kernel_shape": [2, 2]}
    assert find_without_kernel(one_node("MaxPool", [FULL], 18, **pool)) == []
    assert find_without_kernel(one_node("MaxPool", [HALF], 18, **pool)) == []
    assert find_without_kernel(one_node("MaxPool", [FULL], 22, **pool)) == ["MaxPool-22(float)"]
    assert find_without_kernel(one_node("GridSample", [FULL, FULL], 18)) == []
    assert find_without_kernel(one_node("GridSample", [HALF, HALF], 18)) == ["GridSample-16(float16, float16)"]
    assert find_without_kernel(one_node("Relu", [TensorProto.INT32], 18)) == ["Relu-14(int32)"]
    assert len(read_kernels()) > 40


def test_an_operator_without_a_cuda_kernel_is_refused_unless_the_file_is_for_cpus() -> None:
    proto = one_node("Det", [FULL], 18)
    with pytest.raises(StdacError, match=r"CUDA kernel.*Det-11\(float\)"):
        check_graph(proto)
    check_graph(proto, for_gpu=False)


def test_what_only_serves_a_sampling_grid_and_the_last_layer_stay_in_float(exported: dict[int, Path]) -> None:
    proto = onnx.load(exported[2])
    kept = list_float_nodes(proto)
    for node in proto.graph.node:
        if any("localisation" in name or "dense2" in name for name in node.input) or node.op_type == "Tanh":
            assert node.name in kept
        if any(name.startswith(("model.net.conv", "model.net.dense1")) for name in node.input):
            assert node.name not in kept


def test_a_tie_is_no_disagreement_but_nan_and_another_argmax_are() -> None:
    tied = np.array([[0.5, 0.49999, 0.00001]], np.float32)
    other = np.array([[0.49999, 0.5, 0.00001]], np.float32)
    clear = np.array([[0.2, 0.7, 0.1]], np.float32)
    one, half = np.array([1]), np.array([0.5], np.float32)
    assert describe_disagreement(tied, other, one, half) == pytest.approx(1e-5, rel=0.01)
    assert describe_disagreement(clear, clear, one, np.array([0.7], np.float32)) == 0
    assert describe_disagreement(clear, clear, np.array([0]), np.array([0.7], np.float32)) == np.inf
    assert describe_disagreement(clear, clear, one, half) == np.inf
    assert describe_disagreement(clear * np.nan, clear * np.nan, one, half) == np.inf


def test_the_command_exports_with_names_and_real_images(untrained: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"name {i}\n" for i in range(10)))
    arguments = [untrained, tmp_path / "m.onnx", "--names", tmp_path / "names.txt", "--verify-on", "digits"]
    result = CliRunner().invoke(export_command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    assert "10 clusters, 28x28 gray images, fp32, opset 18" in result.output
    props = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(props["cluster_names"])[9] == "name 9"


def test_importing_the_commands_costs_nothing() -> None:
    heavy = {"numpy", "torch", "onnx", "onnxruntime", "pyarrow", "rich"}
    code = f"import sys, export, export.cli; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"

"""Export: the ONNX file computes what torch does, says what it is, tells nothing local, and is there whole or not."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper

from export.cli import export_command
from export.metadata import parse_props
from export.to_onnx import Graph, export_model
from export.verify import TOLERANCE, check_graph, disagreement, stressed, verify
from stdac.data import load
from stdac.errors import StdacError
from stdac.machine import Machine
from stdac.methods import METHODS, resolve
from stdac.model_file import ModelConfig, load_model, save_model
from stdac.record import TrialFolder
from stdac.run import run_trial

STN = (0, 2, 3)
NAMES = tuple(f"Ziffer „{i}“" for i in range(10))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """model.pt by the number of spatial transformers, each of one epoch."""
    models = {}
    for stn in STN:
        folder = TrialFolder(tmp_path_factory.mktemp("trial") / str(stn))
        trial = resolve({"dataset": "digits", "epochs": 1, "limit": 200, "params": {"stn": stn, "width": 0.25}})
        run_trial(trial, folder, machine=Machine(device="cpu", compile="off", threads=1))
        models[stn] = next(folder.path.rglob("model.pt"))
    return models


@pytest.fixture(scope="session")
def exported(trained: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """model.onnx by the number of spatial transformers."""
    folder = tmp_path_factory.mktemp("onnx")
    digits = load("digits", limit=100).images
    for stn, path in trained.items():
        report = export_model(path, folder / f"{stn}.onnx", digits, NAMES)
        assert report.agreement.max_difference <= TOLERANCE
        assert report.bytes == (folder / f"{stn}.onnx").stat().st_size
    return {stn: folder / f"{stn}.onnx" for stn in trained}


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A small model.pt that took no training."""
    return save_untrained(tmp_path / "untrained.pt", "pca-kmeans", {})


def save_untrained(path: Path, method: str, params: dict[str, float], dataset: str = "digits") -> Path:
    torch.manual_seed(0)
    trial = resolve({"method": method, "dataset": dataset, "n_clusters": 10, "params": params})
    config = ModelConfig(trial, (1, 28, 28))
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
    assert disagreement(expected, scores, cluster, confidence) <= TOLERANCE


@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if method.build))
def test_the_model_of_every_method_exports(method: str, tmp_path: Path) -> None:
    params = {"width": 0.25} if hasattr(METHODS[method].params(), "width") else {}
    report = export_model(save_untrained(tmp_path / "model.pt", method, params), tmp_path / "model.onnx")
    assert report.agreement.max_difference <= TOLERANCE


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


def test_the_file_tells_nothing_about_this_machine(exported: dict[int, Path], tmp_path: Path) -> None:
    private = tmp_path / "secret folder" / "pictures"
    export_model(save_untrained(tmp_path / "m.pt", "kmeans", {}, str(private)), tmp_path / "m.onnx")
    for path in (exported[3], tmp_path / "m.onnx"):
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


def test_equal_models_give_equal_files_and_the_exporter_is_silent(
    untrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.onnx", "b.onnx"):
        export_model(untrained, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(trained: dict[int, Path], tmp_path: Path, value: float) -> None:
    model, config = load_model(trained[2])
    next(model.parameters()).data.view(-1)[3] = value
    save_model(tmp_path / "m.pt", model, config)
    (tmp_path / "m.onnx").write_bytes(b"an earlier model")
    with pytest.raises(StdacError, match="not finite"):
        export_model(tmp_path / "m.pt", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"an earlier model"
    assert {p.name for p in tmp_path.iterdir()} == {"m.pt", "m.onnx"}


@pytest.mark.parametrize("target", ["missing/m.onnx", "/sys/m.onnx", "."])
def test_a_target_that_cannot_be_written_is_one_sentence(untrained: Path, tmp_path: Path, target: str) -> None:
    with pytest.raises(StdacError, match="cannot write"):
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
    with pytest.raises(StdacError, match=r"m\.pt"):
        export_model(path, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_model_file_is_one_sentence(untrained: Path, tmp_path: Path, share: float) -> None:
    content = untrained.read_bytes()
    untrained.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(StdacError, match=r"untrained\.pt"):
        export_model(untrained, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("names", [("a", "b"), ("a", "") * 5])
def test_cluster_names_must_fit(untrained: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(StdacError, match="one name a cluster"):
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
    graph, proto = Graph(load_model(trained[3])[0]).eval(), onnx.load(exported[3])
    before, proto_before = copy.deepcopy(graph.state_dict()), proto.SerializeToString()
    x = torch.from_numpy(load("digits").images[:4])
    with torch.no_grad():
        plain = graph(x)[2]
        changed = [float((g(x)[2] - plain).abs().max()) for _, g, _ in stressed(graph, proto)]
    assert len(changed) == 4
    assert min(changed) > 1e-3
    assert all(torch.equal(graph.state_dict()[name], value) for name, value in before.items())
    assert proto.SerializeToString() == proto_before


def test_an_operator_without_a_cuda_kernel_is_refused() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    node = helper.make_node("Det", ["x"], ["y"])
    proto = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(StdacError, match=r"CUDA kernel.*Det"):
        check_graph(proto)


def test_a_tie_is_no_disagreement_but_nan_and_another_argmax_are() -> None:
    tied = np.array([[0.5, 0.49999, 0.00001]], np.float32)
    other = np.array([[0.49999, 0.5, 0.00001]], np.float32)
    clear = np.array([[0.2, 0.7, 0.1]], np.float32)
    one, half = np.array([1]), np.array([0.5], np.float32)
    assert disagreement(tied, other, one, half) == pytest.approx(1e-5, rel=0.01)
    assert disagreement(clear, clear, one, np.array([0.7], np.float32)) == 0
    assert disagreement(clear, clear, np.array([0]), np.array([0.7], np.float32)) == np.inf
    assert disagreement(clear, clear, one, half) == np.inf
    assert disagreement(clear * np.nan, clear * np.nan, one, half) == np.inf


def test_the_command_exports_with_names_and_real_images(untrained: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"name {i}\n" for i in range(10)))
    arguments = [untrained, tmp_path / "m.onnx", "--names", tmp_path / "names.txt", "--verify-on", "digits"]
    result = CliRunner().invoke(export_command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    assert "10 clusters, 28x28 gray images, opset 18" in result.output
    props = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(props["cluster_names"])[9] == "name 9"


def test_importing_the_commands_costs_nothing() -> None:
    heavy = {"numpy", "torch", "onnx", "onnxruntime", "pyarrow", "rich"}
    code = f"import sys, export, export.cli; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"

"""The proof that an ONNX graph is the torch model: on real, random and adversarial images, before it is written."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.cluster import open_session
from stdac.errors import StdacError
from stdac.images import Pixels
from stdac.stn import LocalisationNet

TOLERANCE = 1e-4
"""Largest difference of a score between torch and ONNX Runtime; clusters may differ where the top two are closer."""

# fmt: off
CUDA_OPS = frozenset({
    "Abs", "Add", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv",
    "ConvTranspose", "Div", "Elu", "Equal", "Exp", "Expand", "Flatten", "Gather", "Gemm", "GlobalAveragePool",
    "Greater", "GridSample", "Identity", "LayerNormalization", "LeakyRelu", "Less", "Log", "MatMul", "Max", "MaxPool",
    "Min", "Mul", "Neg", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape",
    "Sigmoid", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Transpose",
    "Unsqueeze", "Where",
})
# fmt: on
"""Operators that have a float32 kernel in ONNX Runtime's CUDA provider at opset 18. AffineGrid, for one, has none."""

# Biases of the last localisation layer that drive tanh to +-1: zooms, mirrors and shears that sample outside the map.
EXTREME_THETA_BIASES = {
    "all of theta at 1": (20, 20, 20, 20, 20, 20),
    "all of theta at -1": (-20, -20, -20, -20, -20, -20),
    "theta a mirror, moved out": (-20, 0, 20, 0, -20, -20),
    "theta a sheared zoom": (20, -20, -20, 20, 20, 20),
}


class Agreement(NamedTuple):
    """max_difference: the largest of any score. images: how many were compared. cases: how many kinds of input."""

    max_difference: float
    images: int
    cases: int


def check_graph(proto: Any) -> None:
    """Raise StdacError for a model that is not valid ONNX, spans several files, or has an operator not in CUDA_OPS."""
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StdacError(f"the exported graph is not valid ONNX ({first_line(error)}): please report this") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise StdacError("the exported graph keeps weights outside of its file: please report this")
    strange = {f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in proto.graph.node if node.domain}
    strange |= {node.op_type for node in proto.graph.node if not node.domain and node.op_type not in CUDA_OPS}
    if strange:
        raise StdacError(
            f"the exported graph has operators without a known CUDA kernel ({', '.join(sorted(strange))}): "
            "this model cannot be exported as one graph for CPU and GPU"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def verify(graph: nn.Module, proto: Any, shape: tuple[int, int, int], images: Pixels | None = None) -> Agreement:
    """Compare torch with ONNX Runtime on the CPU.

    graph: the module that was exported, (N, C, H, W) uint8 -> cluster, confidence, scores. proto: the ONNX model.
    images: (N, C, H, W) uint8, real ones. Raises StdacError that names the case where they disagree.
    """
    inputs = cases(shape, images)
    found = [compare(graph, proto, inputs)]
    few = {name: x for name, x in inputs.items() if name in ("64 random images", "white images", "real images")}
    found += [compare(g, p, few, f" with {what}") for what, g, p in stressed(graph, proto)]
    return Agreement(max(f.max_difference for f in found), sum(f.images for f in found), sum(f.cases for f in found))


def cases(shape: tuple[int, int, int], images: Pixels | None) -> dict[str, Pixels]:
    """Inputs of several kinds and batch sizes, (n, C, H, W) uint8, by name."""
    noise = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype=np.uint8)
    checks = np.indices(shape).sum(0) % 2 * np.uint8(255)
    known = {
        "64 random images": noise,
        "7 random images": noise[:7],
        "one random image": noise[:1],
        "an empty batch": noise[:0],
        "black images": np.zeros((7, *shape), np.uint8),
        "white images": np.full((7, *shape), 255, np.uint8),
        "random black and white": (noise > 127) * np.uint8(255),
        "a checkerboard": checks[None].astype(np.uint8),
    }
    return known if images is None else known | {"real images": images}


def stressed(graph: nn.Module, proto: Any) -> Iterator[tuple[str, nn.Module, Any]]:
    """Copies of the model in both forms whose spatial transformers are driven to an extreme, the same in both."""
    from onnx import numpy_helper

    theta_layers = [m.theta for m in graph.modules() if isinstance(m, LocalisationNet)]
    if not theta_layers:
        return
    graph, proto = copy.deepcopy(graph), copy.deepcopy(proto)
    layers = {name: m.theta for name, m in graph.named_modules() if isinstance(m, LocalisationNet)}
    biases = [t for t in proto.graph.initializer if t.name in {f"{name}.theta.bias" for name in layers}]
    if not biases:
        raise StdacError(
            "the exported graph hides its spatial transformers, which could not be tested: please report this"
        )
    for what, values in EXTREME_THETA_BIASES.items():
        bias = np.array(values, np.float32)
        for layer in layers.values():
            layer.bias.data.copy_(torch.from_numpy(bias))
        for tensor in biases:
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
        yield what, graph, proto


def compare(graph: nn.Module, proto: Any, inputs: Mapping[str, Pixels], note: str = "") -> Agreement:
    """Compare the two on each input. Raises StdacError that names the first one on which they disagree."""
    session, _ = open_session(proto.SerializeToString(), Path("the exported graph"), "cpu")
    worst, total = 0.0, 0
    for name, x in inputs.items():
        with torch.no_grad():
            torch_scores = graph(torch.from_numpy(x))[2].numpy()
        cluster, confidence, scores = session.run(["cluster", "confidence", "scores"], {"images": x})
        difference = disagreement(torch_scores, scores, cluster, confidence)
        if not difference <= TOLERANCE:
            raise StdacError(
                f"torch and ONNX Runtime disagree on {name}{note}: scores differ by {difference:.2g}, "
                f"at most {TOLERANCE} is allowed; nothing was written"
            )
        worst, total = max(worst, difference), total + len(x)
    return Agreement(worst, total, len(inputs))


def disagreement(
    expected: NDArray[np.float32],
    scores: NDArray[np.float32],
    cluster: NDArray[np.int64],
    confidence: NDArray[np.float32],
) -> float:
    """The largest difference between scores (N, K); infinite where shapes, clusters (N,) or confidences do not fit.

    A cluster other than torch's is a tie, and allowed, where torch's two highest scores are less than TOLERANCE apart.
    """
    if scores.shape != expected.shape or cluster.shape != confidence.shape or len(cluster) != len(expected):
        return np.inf
    if not len(expected):
        return 0.0
    if not (np.isfinite(expected).all() and np.isfinite(scores).all()):
        return np.inf
    top = np.sort(expected, axis=1)
    tied = top[:, -1] - top[:, -2] < TOLERANCE
    same = (cluster == scores.argmax(1)) & (confidence == scores.max(1)) & ((cluster == expected.argmax(1)) | tied)
    return float(np.abs(scores - expected).max()) if same.all() else np.inf

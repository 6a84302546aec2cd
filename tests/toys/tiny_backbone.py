"""The tests' backbone, an ONNX file of 2 KB with random weights: python -m tests.toys.tiny_backbone writes it anew."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stdac.backbones import Card, keep

FOLDER = Path(__file__).parent / "backbones"
FEATURES, CLASSES = 8, 4
CARD = Card(
    "", 16, (100.0, 120.0, 140.0), (50.0, 60.0, 70.0), "features", "map", "classifier", source="random", version="1"
)


def make_weights() -> dict[str, np.ndarray]:
    """Of each constant, drawn with a seed."""
    draw = np.random.default_rng(0).standard_normal
    shapes = {"first": (FEATURES, 3, 3, 3), "bias": (FEATURES,), "classifier": (CLASSES, FEATURES)}
    return {name: (0.3 * draw(shape)).astype(np.float32) for name, shape in shapes.items()}


def make_model(operator: str = "Relu") -> bytes:
    """x (N, 3, H, W) -> scores (N, 4), features (N, 8) and map (N, 8, H/2, W/2)."""
    nodes = [
        helper.make_node("Conv", ["images", "first", "bias"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["conv"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "classifier"], ["scores"], transB=1),
    ]
    float_ = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", float_, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("scores", float_, ["N", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in make_weights().items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="tests")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    keep("tiny", make_model(), CARD)

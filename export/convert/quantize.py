"""float32 graph -> int8 graph for CPUs: static quantisation, its ranges taken from images and never from labels."""

import math
from typing import Any

import numpy as np

from export.convert.half import WEIGHTED, list_float_nodes
from export.runtime import import_onnxruntime
from stdac.pictures.pixels import Pixels
from stdac.scratch import open_scratch

CALIBRATION_BATCH = 64
QUANTIZED = ["Conv", "Gemm", "MaxPool", "Relu"]
LIGHT = 0.01
"""Layers with a smaller share of the multiply-adds stay float32: they cost nothing, and their rounding would count."""


def quantize(proto: Any, images: Pixels) -> Any:
    """A copy of an ONNX model whose convolutions and dense layers compute in int8 on a CPU; inputs and outputs stay.

    QuantizeLinear and DequantizeLinear around each layer: activations and weights uint8, the latter with a scale a
    channel. What makes a sampling grid, the last layer and light ones stay float32.
    proto: float32. images: (N, C, H, W) uint8 from which the activations' ranges are taken. Raises StdacError where
    there is nothing to quantise, or onnxruntime is not installed.
    """
    import onnx

    kept = list_float_nodes(proto) | _find_light_nodes(proto)
    import_onnxruntime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    original = onnx.ModelProto()
    original.CopyFrom(proto)  # the quantiser changes what it is given
    with open_scratch() as folder:
        path = folder / "int8.onnx"
        quantize_static(
            original,
            path,
            Reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,  # x86 without VNNI adds products of uint8 and int8 in 16 bits, too few
            nodes_to_exclude=sorted(kept),
        )
        quantized = onnx.load(path)
    del quantized.opset_import[:]
    quantized.opset_import.extend(proto.opset_import)  # the quantiser adds domains that it does not use
    return quantized


def _find_light_nodes(proto: Any) -> set[str]:
    """The names of the layers that have less than the share LIGHT of a model's multiply-adds."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(proto).graph
    weights = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    macs = {
        node.name: weights[node.input[1]] * math.prod(d.dim_value for d in shapes[node.output[0]][2:])
        for node in graph.node
        if node.op_type in WEIGHTED and node.input[1] in weights
    }
    return {name for name, count in macs.items() if count < LIGHT * sum(macs.values())}


class Reader:
    """Hands images to the calibration, a batch at a time."""

    def __init__(self, images: Pixels) -> None:
        self.batches = iter([images[i : i + CALIBRATION_BATCH] for i in range(0, len(images), CALIBRATION_BATCH)])

    def get_next(self) -> dict[str, Pixels] | None:
        """The next batch as the graph takes it; None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": np.ascontiguousarray(batch)}

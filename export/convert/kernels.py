"""The CUDA kernels of ONNX Runtime: whether every node of a graph has one, in its version and for its types."""

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

VERSIONS = ("1.23.2", "1.26.0", "1.31.1")
"""The versions of onnxruntime-gpu from whose wheels TABLE was read; earlier ones do not load without a GPU."""

TABLE = """
Abs 13 T=float,float16,int32,int64,int8,uint8
Add 14 T=float,float16,int32,int64,int8,uint8
ArgMax 13 T=float,float16
AveragePool 11 T=float,float16
BatchNormalization 15 T=float T1=float T2=float
BatchNormalization 15 T=float16 T1=float16 T2=float16
Cast 13 T1=float,float16,int32,int64,int8,uint8 T2=float,float16,int32,int64,int8,uint8
Clip 13 T=float,float16,int64,int8,uint8
Concat 13 T=float,float16,int32,int64,int8,uint8
Conv 11 T=float,float16
Div 14 T=float,float16,int32,int64,int8,uint8
Exp 13 T=float,float16
Expand 13 T=float,float16,int32,int64,int8,uint8
Flatten 13 T=float,float16,int32,int64,int8,uint8
Gemm 13 T=float,float16
GlobalAveragePool 1 T=float,float16
GridSample 16 T1=float T2=float
Identity 16 V=float,float16,int32,int64,int8,uint8
LeakyRelu 16 T=float,float16
Log 13 T=float,float16
MatMul 13 T=float,float16
Max 13 T=float,float16,int32,int64
MaxPool 12 T=float,float16,int8,uint8 I=int64
Min 13 T=float,float16,int32,int64
Mul 14 T=float,float16,int32,int64,int8,uint8
Neg 13 T=float,float16,int32,int64,int8
Pad 18 T=float,float16
Pow 15 T=float,float16,int32,int64 T1=float,float16,int32,int64
Reciprocal 13 T=float,float16
ReduceMax 18 T=float,float16,int32,int64
ReduceMean 18 T=float,float16,int32
ReduceSum 13 T=float,float16,int32,int64
Relu 14 T=float,float16
Reshape 14 T=float,float16,int32,int64,int8,uint8 shape=int64
Sigmoid 13 T=float,float16
Slice 13 T=float,float16,int32,int64,int8,uint8 Tind=int32,int64
Softmax 13 T=float,float16
Sqrt 13 T=float,float16
Squeeze 13 T=float,float16,int32,int64,int8,uint8
Sub 14 T=float,float16,int32,int64,int8,uint8
Sum 13 T=float,float16
Tanh 13 T=float,float16
Transpose 13 T=float,float16,int32,int64,int8,uint8
Unsqueeze 13 T=float,float16,int32,int64,int8,uint8
"""
"""Operator, its version at opset 18, types by type parameter; a line a choice. By `python -m benchmarks.cuda_kernels`.

Not there, for example: AffineGrid; GridSample of float16; and, at opset 22 and above, MaxPool of any type.
"""

Choice = Mapping[str, frozenset[str]]


@cache
def read_kernels() -> Mapping[tuple[str, int], tuple[Choice, ...]]:
    """TABLE, parsed: (operator, version) -> the choices of types by type parameter."""
    found = defaultdict(list)
    for line in TABLE.strip().split("\n"):
        name, since, *choice = line.split()
        pairs = (part.split("=") for part in choice)
        found[name, int(since)].append({parameter: frozenset(types.split(",")) for parameter, types in pairs})
    return {key: tuple(choices) for key, choices in found.items()}


def find_without_kernel(proto: Any) -> list[str]:
    """The nodes of an ONNX model that have no known CUDA kernel, as "operator-version(input types)", sorted.

    proto: a model that passed onnx.checker with full_check.
    """
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(proto).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    missing = (_find_unsupported(node, types, opsets) for node in graph.node)
    return sorted({text for text in missing if text is not None})


def _find_unsupported(node: Any, types: Mapping[str, int], opsets: Mapping[str, int]) -> str | None:
    """None where a node has a kernel, else its operator, version and input types. types: of each tensor, by name."""
    from onnx import defs

    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}.{node.op_type}"
    schema = defs.get_schema(node.op_type, opsets[""])
    given = [_name_type(types.get(name, 0)) for name in node.input]
    parameters = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(len(given))]  # the last may repeat
    bound = [*zip(parameters, given, strict=True)]
    bound += [(y, _name_type(types.get(name, 0))) for y, name in zip(schema.outputs, node.output, strict=False)]
    for choice in read_kernels().get((node.op_type, schema.since_version), ()):
        if all(kind in choice.get(x.type_str, choice.get(x.name, {kind})) for x, kind in bound if kind != "undefined"):
            return None
    return f"{node.op_type}-{schema.since_version}({', '.join(given)})"


def _name_type(code: int) -> str:
    """An element type as ONNX Runtime calls it: float, float16, uint8, ...; "undefined" for an input left out."""
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(code)).lower()

"""float32 graph -> float16 graph for GPUs: convolutions and dense layers in half precision, coordinates and scores not.

A pass of our own over the exported graph, in which Conv and BatchNormalization are folded already, in float32: the
converter of onnxruntime.transformers breaks graphs with GridSample, whose CUDA kernel is float32 only.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdac.errors import StdacError

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
CARRIERS = frozenset({"BatchNormalization", "MaxPool", "ReduceMean", "Relu", "Reshape"})
"""Operators that stay in the precision of what they are given; all have a float16 kernel in the CUDA provider."""

HALF = ".half"


def list_float_nodes(proto: Any) -> set[str]:
    """The names of the nodes that are float32 in every precision: what only serves a sampling grid, and the last layer.

    Sub-pixel coordinates do not survive fewer bits (float16 errs by .02 pixels at 28x28), and the last layer decides.
    Raises StdacError where no other layer has weights.
    """
    nodes = {node.name: node for node in proto.graph.node}
    producer = {name: node for node in nodes.values() for name in node.output}
    serving = set(nodes)
    waiting = [output.name for output in proto.graph.output]
    while waiting:  # from the outputs back, around the grids
        node = producer.get(waiting.pop())
        if node is not None and node.name in serving:
            serving.remove(node.name)
            waiting += node.input[:1] if node.op_type == "GridSample" else node.input
    weighted = [name for name, node in nodes.items() if node.op_type in WEIGHTED and name not in serving]
    if len(weighted) < 2:
        raise StdacError(
            "this model has no layer that fp16 or int8 would make smaller without moving its clusters: "
            "export it with --precision fp32"
        )
    return serving | {weighted[-1]} | {name for name, node in nodes.items() if node.op_type == "GridSample"}


def halve(proto: Any) -> Any:
    """A copy of an ONNX model whose convolutions and dense layers compute in float16; inputs and outputs stay.

    A node with a constant that float16 cannot hold (above 65,504) stays as well. Raises StdacError where there is
    nothing to halve.
    """
    import onnx

    kept = list_float_nodes(proto)
    graph = onnx.ModelProto.FromString(proto.SerializeToString()).graph
    rewriter = Rewriter({tensor.name: tensor for tensor in graph.initializer}, {x.name for x in graph.input})
    for node in proto.graph.node:
        carried = node.op_type in CARRIERS and node.input[0] + HALF in rewriter.known
        suited = (node.op_type in WEIGHTED or carried) and node.name not in kept
        rewriter.add(node, suited and rewriter.fits(node))
    for output in graph.output:
        rewriter.require(output.name, half=False)
    halved = onnx.ModelProto()
    halved.CopyFrom(proto)
    for field in (halved.graph.node, halved.graph.initializer, halved.graph.value_info):
        del field[:]
    halved.graph.node.extend(rewriter.nodes)
    halved.graph.initializer.extend(rewriter.used_constants())
    return halved


class Rewriter:
    """Builds the new list of nodes. A tensor x in float16 is called `x.half`; a cast between the two appears once."""

    def __init__(self, constants: Mapping[str, Any], inputs: set[str]) -> None:
        self.constants = constants
        self.known = inputs | {""}  # an input left out has the empty name
        self.nodes: list[Any] = []

    def add(self, node: Any, half: bool) -> None:
        """Append a copy of a node in float16 or as it is, behind the casts that its inputs need."""
        copy = type(node)()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend([self.require(name, half) for name in node.input])
        copy.output.extend([name + HALF if half else name for name in node.output])
        self.known.update(copy.output)
        self.nodes.append(copy)

    def require(self, name: str, half: bool) -> str:
        """The name of a tensor in the precision wanted; whole numbers, such as shapes, have but one."""
        if name in self.constants:
            return name + HALF if half and _is_float(self.constants[name]) else name
        wanted, other = (name + HALF, name) if half else (name, name + HALF)
        if wanted not in self.known:
            from onnx import TensorProto, helper

            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [other], [wanted], name=f"cast_{wanted}", to=to))
            self.known.add(wanted)
        return wanted

    def fits(self, node: Any) -> bool:
        """Whether float16 can hold the constants of a node."""
        constants = [self.constants[name] for name in node.input if name in self.constants]
        return all(np.isfinite(_to_half(tensor)).all() for tensor in constants if _is_float(tensor))

    def used_constants(self) -> list[Any]:
        """The constants that the new nodes name, each in the precision in which they name it."""
        from onnx import numpy_helper

        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for name, tensor in self.constants.items() if name in used]
        halved = [t for name, t in self.constants.items() if name + HALF in used]
        return kept + [numpy_helper.from_array(_to_half(tensor), tensor.name + HALF) for tensor in halved]


def _is_float(tensor: Any) -> bool:
    """Whether a constant is of type float32."""
    return bool(tensor.data_type == 1)  # TensorProto.FLOAT


def _to_half(tensor: Any) -> NDArray[np.float16]:
    """A constant rounded to float16; infinite where that cannot hold it."""
    from onnx import numpy_helper

    with np.errstate(over="ignore"):
        half: NDArray[np.float16] = numpy_helper.to_array(tensor).astype(np.float16)
    return half

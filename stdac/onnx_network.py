"""A network that came as an ONNX file, run by torch: any image classifier that a user has can be a backbone.

An interpreter of the operators that such networks are made of. It is a module like any other: it runs on any device,
model.pt holds the file, and the export writes what it computes into our own file. Nothing in the file is executed.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stdac.errors import StdacError

Value = Any  # a Tensor, a number, or a tuple of whole numbers: a shape, axes, pads
Attributes = Mapping[str, Any]


class Outputs(NamedTuple):
    """What of a file is used: the names of the output with the features (N, D) and of that with the last map
    (N, D, h, w), and of the constant (classes, D) that a classifier multiplies features with; "" for none."""

    features: str
    map: str = ""
    classifier: str = ""


class Step(NamedTuple):
    """One node of the graph. inputs: names, "" where an optional one is left out."""

    run: Callable[..., Value]
    operator: str
    attributes: Attributes
    inputs: tuple[str, ...]
    output: str


class OnnxNetwork(nn.Module):
    """x (B, 3, H, W) float32, normalised -> the features (B, D), and the last map (B, D, h, w) or None.

    Empty until `open` is called or a state_dict is loaded, which holds the file.
    """

    file: Tensor
    outputs: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("file", "outputs"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.uint8))
        self.steps: list[Step] = []
        self.plain: dict[str, float | tuple[int, ...]] = {}
        self.constants: dict[str, str] = {}  # the buffer that holds each
        self.input, self.names = "", Outputs("")

    def open(self, content: bytes, names: Outputs) -> None:
        """Take a file. Raises StdacError for one that is damaged, or has what is not read."""
        self.file, self.outputs = _to_tensor(content), _to_tensor("\n".join(names).encode())
        self._read()

    def _load_from_state_dict(self, state: Mapping[str, Tensor], prefix: str, *others: Any) -> None:
        self.file = torch.empty_like(state.get(f"{prefix}file", self.file))  # what is missing is said by torch
        self.outputs = torch.empty_like(state.get(f"{prefix}outputs", self.outputs))
        super()._load_from_state_dict(state, prefix, *others)
        if prefix + "file" in state:
            self._read()

    def _read(self) -> None:
        """Take the graph apart: constants become buffers, single numbers and shapes plain values."""
        graph, values = parse(_to_bytes(self.file))
        self.names = Outputs(*_to_bytes(self.outputs).decode().split("\n"))
        inputs = [given.name for given in graph.input if given.name not in values]
        if len(inputs) != 1:
            raise StdacError(f"a backbone has {len(inputs)} inputs, expected one: images (N, 3, H, W)")
        self.input, self.steps = inputs[0], list(read_steps(graph, values, set(filter(None, self.names[:2]))))
        if self.names.classifier and self.names.classifier not in values:
            raise StdacError(f"a backbone has no constant {self.names.classifier!r}, its card's classifier")
        used = {name for step in self.steps for name in step.inputs} | {self.names.classifier}
        self.plain, self.constants = {}, {}
        for i, (name, array) in enumerate(values.items()):
            if name in used and array.dtype.kind in "iu":
                self.plain[name] = tuple(array.reshape(-1).tolist())
            elif name in used and not array.ndim:
                self.plain[name] = float(array)
            elif name in used:
                self.constants[name] = f"c{i}"
                tensor = torch.from_numpy(np.array(array, np.float32)).to(self.file.device)
                self.register_buffer(f"c{i}", tensor, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the graph. Raises StdacError where it does not take such images, or gives no features (B, D)."""
        values: dict[str, Value] = {name: getattr(self, key) for name, key in self.constants.items()}
        values |= {"": None, self.input: x, **self.plain}
        for step in self.steps:
            try:
                values[step.output] = step.run(step.attributes, *(values[name] for name in step.inputs))
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
                side = "x".join(map(str, x.shape[2:]))
                raise StdacError(
                    f"a backbone cannot take images of {side} pixels ({step.operator}: {reason})"
                ) from error
        features, map_ = values[self.names.features].flatten(1), values.get(self.names.map or "-")
        if features.shape[0] != x.shape[0]:  # len() would fix the batch in an export
            raise StdacError(
                f"a backbone gives {features.shape[0]} features for {x.shape[0]} images: export it with any batch"
            )
        return features, map_

    @property
    def class_weights(self) -> Tensor | None:
        """Of the classifier (classes, D)."""
        name = self.names.classifier
        return getattr(self, self.constants[name]) if name else None


def _to_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


def parse(content: bytes) -> tuple[Any, dict[str, NDArray[Any]]]:
    """The graph of an ONNX file and its constants by name. Raises StdacError for a file that is not whole."""
    import onnx
    from onnx import numpy_helper

    try:
        proto = onnx.load_from_string(content)
        onnx.checker.check_model(proto)
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        for node in proto.graph.node:
            if node.op_type == "Constant":
                values[node.output[0]] = _read_constant(node)
    except Exception as error:  # protobuf's, onnx's and numpy's own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise StdacError(f"a backbone is not an ONNX file that can be read ({reason})") from error
    return proto.graph, values


def _read_constant(node: Any) -> NDArray[Any]:
    """The value of a Constant node."""
    from onnx import helper, numpy_helper

    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    return numpy_helper.to_array(value) if attribute.name == "value" else np.array(value)


def read_steps(graph: Any, values: Mapping[str, Any], wanted: set[str]) -> Iterator[Step]:
    """The nodes that the wanted outputs depend on, in order. Raises StdacError for an operator that is not known, and
    outputs that the graph does not make."""
    from onnx import helper

    nodes = [node for node in graph.node if node.op_type != "Constant"]
    made = {name for node in nodes for name in node.output}
    for name in sorted(wanted - made):
        given = ", ".join(y.name for y in graph.output)
        raise StdacError(f"a backbone has no output {name!r}, expected one of {given}: name it as its features or map")
    needed = set(wanted)
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
    for node in nodes:
        if not needed & set(node.output):
            continue
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            known = ", ".join(sorted(OPERATORS))
            raise StdacError(f"a backbone has the operator {node.op_type}, expected those of convnets: {known}")
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        yield Step(OPERATORS[node.op_type], node.op_type, attributes, tuple(node.input), node.output[0])


# the operators, as https://onnx.ai/onnx/operators has them: attributes, then inputs


def _text(attributes: Attributes, name: str, default: str) -> str:
    value = attributes.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _pad_window(attributes: Attributes, x: Tensor, kernel: tuple[int, ...], value: float) -> Tensor:
    """x (B, C, H, W) with what a window of convolution or pooling needs around it."""
    strides = attributes.get("strides", [1, 1])
    dilations = attributes.get("dilations", [1, 1])
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    auto = _text(attributes, "auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        lacking = [
            max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)
        ]
        small, large = [n // 2 for n in lacking], [n - n // 2 for n in lacking]
        pads = [*small, *large] if auto == "SAME_UPPER" else [*large, *small]
    top, left, bottom, right = pads
    return F.pad(x, [left, right, top, bottom], value=value) if any(pads) else x


def _convolve(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = _pad_window(attributes, x, tuple(weight.shape[2:]), 0.0)
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    return F.conv2d(x, weight, bias, strides, 0, dilations, attributes.get("group", 1))


def _normalize_batch(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, attributes.get("epsilon", 1e-5))


def _pool_max(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = tuple(attributes["kernel_shape"])
    x = _pad_window(attributes, x, kernel, float("-inf"))
    ceil = bool(attributes.get("ceil_mode", 0))
    return F.max_pool2d(x, kernel, attributes.get("strides", [1, 1]), 0, attributes.get("dilations", [1, 1]), ceil)


def _pool_average(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = tuple(attributes["kernel_shape"])
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    if pads[:2] != pads[2:] or _text(attributes, "auto_pad", "NOTSET").startswith("SAME"):
        raise ValueError("its pads differ from side to side")
    whole = bool(attributes.get("count_include_pad", 0))
    strides, ceil = attributes.get("strides", [1, 1]), bool(attributes.get("ceil_mode", 0))
    return F.avg_pool2d(x, kernel, strides, pads[:2], ceil, whole)


def _reduce_mean(attributes: Attributes, x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    axes = tuple(attributes.get("axes", axes or range(x.ndim)))
    return x.mean(axes, keepdim=bool(attributes.get("keepdims", 1)))


def _reshape(attributes: Attributes, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    sizes = [x.shape[i] if n == 0 and not attributes.get("allowzero") else n for i, n in enumerate(shape)]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes.get("axis", 1) != 1:
        raise ValueError("its axis is not 1")
    return x.flatten(1)


def _squeeze(attributes: Attributes, x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    return x.squeeze(tuple(attributes.get("axes", axes)))


def _unsqueeze(attributes: Attributes, x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    for axis in sorted(attributes.get("axes", axes)):
        x = x.unsqueeze(axis)
    return x


def _multiply_general(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if attributes.get("transA") else a
    y: Tensor = attributes.get("alpha", 1.0) * (a @ (b.T if attributes.get("transB") else b))
    return y if c is None else y + attributes.get("beta", 1.0) * c


def _clip(attributes: Attributes, x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    low, high = attributes.get("min", low), attributes.get("max", high)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _pad(attributes: Attributes, x: Tensor, pads: tuple[int, ...], value: float | None = None, *_: Any) -> Tensor:
    half, mode = len(pads) // 2, _text(attributes, "mode", "constant")
    sides = [n for i in reversed(range(half)) for n in (pads[i], pads[i + half])]
    return F.pad(x, sides, {"edge": "replicate"}.get(mode, mode), value)


def _slice(
    _: Attributes,
    x: Tensor,
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...] | None = None,
    steps: tuple[int, ...] | None = None,
) -> Tensor:
    axes, steps = axes or tuple(range(len(starts))), steps or (1,) * len(starts)
    if min(steps) < 1:
        raise ValueError("it goes backwards")
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    y: Tensor = attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5)
    return y.clamp(0, 1)


OPERATORS: dict[str, Callable[..., Value]] = {
    "Add": lambda _, a, b: a + b,
    "AveragePool": _pool_average,
    "BatchNormalization": _normalize_batch,
    "Clip": _clip,
    "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "Conv": _convolve,
    "Div": lambda _, a, b: a / b,
    "Dropout": lambda _a, x, *_: x,
    "Flatten": _flatten,
    "Gemm": _multiply_general,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: F.hardswish(x),
    "Identity": lambda _, x: x,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "MatMul": lambda _, a, b: a @ b,
    "MaxPool": _pool_max,
    "Mul": lambda _, a, b: a * b,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": lambda _, x: x.relu(),
    "Reshape": _reshape,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "Sqrt": lambda _, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda _, a, b: a - b,
    "Tanh": lambda _, x: x.tanh(),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}

"""model.pt -> one ONNX file: images in, clusters or embeddings out, nothing beside it. Verified against torch, or not
written."""

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.convert.half import halve
from export.convert.quantize import quantize
from export.convert.verify import LARGEST_PIXELS, Agreement, Real, check_graph, take_first_line, verify, verify_reduced
from export.metadata import COLOUR_MODES, PRECISIONS, ModelInfo
from stdac.data import NAMES, TORCHVISION, find_data_dir, load
from stdac.errors import StdacError
from stdac.files import atomic_write, sweep_temporary
from stdac.machine import read_version
from stdac.model_file import ModelConfig, load_model
from stdac.pictures.pixels import conform, to_pixels
from stdac.torch_state import fix_state

IR_VERSION = 8
"""Of the file format: a later one brings us nothing and shuts out older runtimes (10 those before onnxruntime 1.18)."""

OPSET = 18
"""At 22 and above MaxPool has no CUDA kernel; TensorRT reads the "linear" GridSample of 20 and above as nearest."""

VERIFIED_IMAGES = 256
CALIBRATION_IMAGES = 512
LEAST_CALIBRATION = 100
MEASURED_IMAGES = 1024


class ExportReport(NamedTuple):
    """What was written: the file, its size, its metadata, the agreement with torch, and the kinds of operator in it."""

    path: Path
    bytes: int
    info: ModelInfo
    agreement: Agreement
    operators: tuple[str, ...]


@fix_state()
def export_model(
    model_path: Path,
    onnx_path: Path,
    images: NDArray[np.uint8] | None = None,
    names: tuple[str, ...] = (),
    *,
    precision: str = "fp32",
    with_embedding: bool = False,
    labels: NDArray[np.int64] | None = None,
    data_dir: Path | None = None,
) -> ExportReport:
    """Write model.pt as one ONNX file of opset 18 with a dynamic batch, after proving that it computes the same.

    Input `images` (N, C, H, W) uint8; outputs `cluster` (N,) int64, `confidence` (N,) float32, `scores` (N, K) float32
    and, with_embedding, `embedding` (N, D) float32: what enters the last dense layer (codes, components, pixels). Of an
    embedding model, which clusters nothing, `embedding` is the only output, and the precision "fp32".
    precision: "fp32"; "fp16" for GPUs; "int8" for CPUs, whose ranges are calibrated on 512 real images at most.
    images: real ones to calibrate and verify on, (N, H, W), (N, H, W, C) or (N, C, H, W) uint8 of any size, at random
    1,536 at most; by default the trial's own data set, where it is at hand (data_dir: where, see `stdac.data.load`).
    labels: (N,) int64 ground truth of these, to score with and nothing else. names: K cluster names to store, or none.
    Raises StdacError, and writes nothing, for a file that is not a model of ours, weights that are not finite, names
    that do not fit, an unwritable target, a precision that does not suit the model, or a disagreement with torch.

    >>> export_model(next(Path("one").rglob("model.pt")), Path("model.onnx")).info.k
    10
    """
    if precision not in PRECISIONS:
        raise StdacError(f"got precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
    model, config = load_model(model_path)
    if not config.clusters and precision != "fp32":
        raise StdacError(
            f"{model_path} is an embedding model, and {precision} is held against fp32 by the clusters that images "
            "keep: export it with --precision fp32"
        )
    info = describe(config, names, model_path)
    _check_weights(model, model_path)
    sweep_temporary(onnx_path)
    with atomic_write(onnx_path) as file:
        real = _load_own_images(config, precision, data_dir) if images is None else Real(images, labels)
        real = None if real is None else choose_images(real, config.shape)
        graph = (Graph(model, with_embedding) if config.clusters else EmbeddingGraph(model)).eval()
        proto = convert(graph, config)
        few = max(1, min(VERIFIED_IMAGES, LARGEST_PIXELS // (config.shape[1] * config.shape[2])))
        agreement = verify(graph, proto, config.shape, None if real is None else real.images[:few])
        if precision != "fp32":
            proto = reduce_precision(proto, precision, real)
            agreement = verify_reduced(graph, proto, precision, config.shape, real and list_measured(real))
        info = info._replace(precision=precision, embedding=find_embedding_size(proto), model_id=hash_model(model))
        _set_metadata(proto, info)
        content = proto.SerializeToString(deterministic=True)
        file.write(content)
    operators = tuple(sorted({node.op_type for node in proto.graph.node}))
    return ExportReport(onnx_path, len(content), info, agreement, operators)


class Graph(nn.Module):
    """What the file computes: scaling, the model, argmax and max, so that no other program has to know them."""

    def __init__(self, model: nn.Module, with_embedding: bool = False) -> None:
        super().__init__()
        self.model = model
        self.with_embedding = with_embedding
        self.outputs = ["cluster", "confidence", "scores", "embedding"][: 4 if with_embedding else 3]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        z = self.model.embed(images.to(torch.float32) / 255)  # type: ignore[operator]  # (N, D); every model has it
        scores = self.model.classify(z)  # type: ignore[operator]  # (N, K)
        outputs = (scores.argmax(1), scores.amax(1), scores)
        return (*outputs, z) if self.with_embedding else outputs


class EmbeddingGraph(nn.Module):
    """The same of an embedding model: scaling, and the encoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs = ["embedding"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model(images.to(torch.float32) / 255),)  # (N, D)


def _load_own_images(config: ModelConfig, precision: str, data_dir: Path | None) -> Real | None:
    """The images that the model was trained on; None where they are not at hand and the precision needs none.

    Raises StdacError where int8 needs them and they cannot be loaded.
    """
    trial = config.trial
    folder = TORCHVISION.get(trial.dataset)
    at_hand = folder is None or ((data_dir or find_data_dir()) / folder).is_dir()
    if precision != "int8" and not at_hand:
        return None  # a download is not worth it
    try:
        dataset = load(
            trial.dataset,
            data_dir=data_dir,
            image_size=trial.image_size,
            limit=trial.limit,
            background=trial.background,
        )
    except StdacError as error:
        if precision != "int8":
            return None
        raise StdacError(
            f"int8 takes its ranges from real images, and those of the trial cannot be loaded ({error}): "
            "name a data set or folder of such images with --verify-on"
        ) from error
    return Real(dataset.images, dataset.labels)


def choose_images(real: Real, shape: tuple[int, int, int]) -> Real:
    """Some of the images at random, the same every time, as the model takes them. Raises StdacError for no images."""
    images = to_pixels(real.images, "verification")
    if not len(images):
        raise StdacError("got no images to verify on, expected at least one")
    index = np.random.default_rng(0).permutation(len(images))[: CALIBRATION_IMAGES + MEASURED_IMAGES]
    return Real(conform(images[index], shape), None if real.labels is None else real.labels[index])


def count_calibration(n: int) -> int:
    """How many of n images the ranges are taken from: a third, where enough are left to measure on, 512 at most."""
    return min(CALIBRATION_IMAGES, n // 3 if n >= 3 * LEAST_CALIBRATION else n)


def list_measured(real: Real) -> Real:
    """The images that a precision is measured on: those that it is not calibrated on, or all where they are few."""
    return real.last(min(MEASURED_IMAGES, len(real.images) - count_calibration(len(real.images)) or len(real.images)))


def reduce_precision(proto: Any, precision: str, real: Real | None) -> Any:
    """The graph in fewer bits, valid and without anything local. Raises StdacError where that does not suit it."""
    if precision == "fp16":
        proto = halve(proto)
    else:
        assert real is not None, "own_images finds some or raises"
        with silence():
            proto = quantize(proto, real.images[: count_calibration(len(real.images))])
    strip(proto)
    simplify(proto)
    check_graph(proto, for_gpu=precision != "int8")
    return proto


def find_embedding_size(proto: Any) -> int:
    """The dimension of the output `embedding`; 0 where there is none."""
    shapes = {y.name: y.type.tensor_type.shape.dim for y in proto.graph.output}
    return int(shapes["embedding"][1].dim_value) if "embedding" in shapes else 0


def hash_model(model: nn.Module) -> str:
    """16 hex digits of SHA-256 over the names, types, shapes and bytes of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


def describe(config: ModelConfig, names: tuple[str, ...], model_path: Path) -> ModelInfo:
    """The file's metadata. Raises StdacError for names that are not one a cluster, or images neither gray nor RGB."""
    trial, k = config.trial, config.trial.n_clusters if config.clusters else 0
    channels, height, width = config.shape
    if names and (len(names) != k or not all(names)):
        given = f"{len(names)} cluster names" if all(names) else "an empty cluster name"
        raise StdacError(f"got {given} for a model of {k} clusters: expected one name a cluster, in order")
    if channels not in COLOUR_MODES:
        raise StdacError(f"{model_path} takes images of {channels} channels, expected 1 (gray) or 3 (RGB)")
    dataset = trial.dataset if trial.dataset in NAMES else Path(trial.dataset).name  # no local path in the file
    return ModelInfo(
        stdac_version=read_version("stdac") or "unknown",
        trial_id=trial.id,
        trial=trial.to_json() | {"dataset": dataset},
        k=k,
        height=height,
        width=width,
        colour_mode=COLOUR_MODES[channels],
        cluster_names=names,
        dataset=dataset,
        scores=config.scores,
        opset=OPSET,
        background=trial.background,
    )


def _check_weights(model: nn.Module, path: Path) -> None:
    """Raise StdacError for NaN or infinity: from a NaN theta ONNX Runtime's GridSample makes a confident answer."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise StdacError(f"{path} has weights that are not finite ({name}): the trial diverged; export another one")


def convert(graph: Graph | EmbeddingGraph, config: ModelConfig) -> Any:
    """The graph as a valid ONNX ModelProto with nothing local in it.

    Raises StdacError where onnx is not installed, the conversion fails, or a node has no CUDA kernel.
    """
    try:
        import onnx  # noqa: F401  # torch.onnx.export needs both, and says so in many lines
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise StdacError(
            f"to export a model needs {error.name}, which is not installed: pip install 'stdac[export]'"
        ) from error
    example = torch.zeros(2, *config.shape, dtype=torch.uint8)
    with silence():
        try:
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("N", min=0)},),
                input_names=["images"],
                output_names=graph.outputs,
                verbose=False,
            )
        except Exception as error:  # whatever part of the exporter gives up
            what = f"a model of method {config.trial.method}"
            raise StdacError(
                f"{what} could not be converted to ONNX ({take_first_line(error)}): please report this"
            ) from error
    assert program is not None
    proto = program.model_proto
    strip(proto)
    simplify(proto)
    check_graph(proto)
    return proto


@contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's warnings, log lines and prints from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def strip(message: Any) -> None:
    """Remove metadata and doc strings from a protobuf message and its parts: they hold local paths and source lines."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if field.is_repeated else [value]:
            strip(part)


def simplify(proto: Any) -> None:
    """Leave out what no runtime needs and some cannot read: a late format version, the shapes of what is computed
    (among them those of constants, which onnxruntime's quantiser refuses), and `allowzero` where no dimension is 0."""
    proto.ir_version = IR_VERSION
    del proto.graph.value_info[:]
    shapes = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Reshape" and node.input[1] in shapes and _has_no_zero(shapes[node.input[1]]):
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _has_no_zero(tensor: Any) -> bool:
    """Whether a constant holds no 0."""
    from onnx import numpy_helper

    return bool(numpy_helper.to_array(tensor).all())


def _set_metadata(proto: Any, info: ModelInfo) -> None:
    """Store the metadata, and the program that made the file."""
    proto.producer_name, proto.producer_version = "stdac", info.stdac_version
    for key, value in info.to_props().items():
        proto.metadata_props.add(key=key, value=value)

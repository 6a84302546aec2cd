"""model.pt -> one ONNX file: images in, clusters out, nothing beside it. Verified against torch, or not written."""

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

from export.metadata import COLOUR_MODES, ModelInfo
from export.sources import conform
from export.verify import Agreement, check_graph, first_line, verify
from stdac.data import NAMES
from stdac.errors import StdacError
from stdac.files import whole
from stdac.images import as_pixels
from stdac.machine import package_version
from stdac.model_file import ModelConfig, load_model

OPSET = 18
"""At 22 and above MaxPool has no CUDA kernel; TensorRT reads the "linear" GridSample of 20 and above as nearest."""

REAL_IMAGES = 256


class ExportReport(NamedTuple):
    """What was written: the file, its size, its metadata, the agreement with torch, and the kinds of operator in it."""

    path: Path
    bytes: int
    info: ModelInfo
    agreement: Agreement
    operators: tuple[str, ...]


def export_model(
    model_path: Path, onnx_path: Path, images: NDArray[np.uint8] | None = None, names: tuple[str, ...] = ()
) -> ExportReport:
    """Write model.pt as one ONNX file of opset 18 with a dynamic batch, after proving that it computes the same.

    Input `images` (N, C, H, W) uint8; outputs `cluster` (N,) int64, `confidence` (N,) float32, `scores` (N, K) float32.
    images: real ones to verify on, (N, H, W), (N, H, W, C) or (N, C, H, W) uint8 of any size; the first 256 are used.
    names: K cluster names to store, or none. Raises StdacError, and writes nothing, for a file that is not a model of
    ours, weights that are not finite, names that do not fit, an unwritable target, or a disagreement with torch.
    """
    model, config = load_model(model_path)
    info = describe(config, names, model_path)
    check_weights(model, model_path)
    real = None if images is None else conform(as_pixels(images[:REAL_IMAGES], "verification"), config.shape)
    with whole(onnx_path) as file:
        graph = Graph(model).eval()
        proto = convert(graph, config)
        strip(proto)
        check_graph(proto)
        agreement = verify(graph, proto, config.shape, real)
        set_metadata(proto, info)
        content = proto.SerializeToString(deterministic=True)
        file.write(content)
    operators = tuple(sorted({node.op_type for node in proto.graph.node}))
    return ExportReport(onnx_path, len(content), info, agreement, operators)


class Graph(nn.Module):
    """What the file computes: scaling, the model, argmax and max, so that no other program has to know them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.model(images.to(torch.float32) / 255)  # (N, K)
        return scores.argmax(1), scores.amax(1), scores


def describe(config: ModelConfig, names: tuple[str, ...], model_path: Path) -> ModelInfo:
    """The file's metadata. Raises StdacError for names that are not one a cluster, or images neither gray nor RGB."""
    trial = config.trial
    channels, height, width = config.shape
    if names and (len(names) != trial.n_clusters or not all(names)):
        given = f"{len(names)} cluster names" if all(names) else "an empty cluster name"
        raise StdacError(
            f"got {given} for a model of {trial.n_clusters} clusters: expected one name a cluster, in order"
        )
    if channels not in COLOUR_MODES:
        raise StdacError(f"{model_path} takes images of {channels} channels, expected 1 (gray) or 3 (RGB)")
    dataset = trial.dataset if trial.dataset in NAMES else Path(trial.dataset).name  # no local path in the file
    return ModelInfo(
        stdac_version=package_version("stdac") or "unknown",
        trial_id=trial.id,
        trial=trial.to_json() | {"dataset": dataset},
        k=trial.n_clusters,
        height=height,
        width=width,
        colour_mode=COLOUR_MODES[channels],
        cluster_names=names,
        dataset=dataset,
        scores=config.scores,
        opset=OPSET,
    )


def check_weights(model: nn.Module, path: Path) -> None:
    """Raise StdacError for NaN or infinity: from a NaN theta ONNX Runtime's GridSample makes a confident answer."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise StdacError(f"{path} has weights that are not finite ({name}): the trial diverged; export another one")


def convert(graph: nn.Module, config: ModelConfig) -> Any:
    """The graph as an ONNX ModelProto. Raises StdacError where onnx is not installed or the conversion fails."""
    try:
        import onnx  # noqa: F401  # torch.onnx.export needs both, and says so in many lines
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise StdacError(f"{error.name} is not installed: pip install onnx onnxscript to export models") from error
    example = torch.zeros(2, *config.shape, dtype=torch.uint8)
    with quiet():
        try:
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("N", min=0)},),
                input_names=["images"],
                output_names=["cluster", "confidence", "scores"],
                verbose=False,
            )
        except Exception as error:  # whatever part of the exporter gives up
            what = f"a model of method {config.trial.method}"
            raise StdacError(
                f"{what} could not be converted to ONNX ({first_line(error)}): please report this"
            ) from error
    assert program is not None
    return program.model_proto


@contextmanager
def quiet() -> Iterator[None]:
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


def set_metadata(proto: Any, info: ModelInfo) -> None:
    """Store the metadata, and the program that made the file."""
    proto.producer_name, proto.producer_version = "stdac", info.stdac_version
    for key, value in info.to_props().items():
        proto.metadata_props.add(key=key, value=value)

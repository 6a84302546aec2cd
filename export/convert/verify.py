"""The proof that an ONNX graph is the torch model: on real, random and adversarial images, before it is written."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.convert.kernels import find_without_kernel
from export.runtime import open_session
from stdac.augment import AUGMENTATIONS, draw_affine, sample_nearest
from stdac.errors import StdacError
from stdac.metrics import accuracy
from stdac.pictures.pixels import Pixels
from stdac.stn import LocalisationNet
from stdac.torch_state import borrow_generators

TOLERANCE = 1e-4
"""Largest difference of a score between torch and ONNX Runtime; clusters may differ where the top two are closer."""

TOLERANCES = {"fp32": TOLERANCE, "fp16": 0.02, "int8": 0.05}
"""fp16: 11 bits, so scores of trained models move by up to .002. int8: between batch sizes of the same graph, where a
rounding that falls the other way moves an activation by a 255th of its range."""

LEAST_AGREEMENT = {"fp16": 0.99, "int8": 0.95}
"""Share of real images that must keep their cluster. The share is always told; below this the file would be another
model: trained ones keep .998 to 1 in fp16 and .979 to 1 in int8 (the least where scores are nearly ties)."""

BATCH = 256
LARGEST_BATCH = 4096
LARGEST_PIXELS = LARGEST_BATCH * 28 * 28
"""The largest batch has 4,096 images of 28x28, which take 1.6 GB, or as many larger ones as take no more."""

# Biases of the last localisation layer that drive tanh to +-1: zooms, mirrors and shears that sample outside the map.
EXTREME_THETA_BIASES = {
    "all of theta at 1": (20, 20, 20, 20, 20, 20),
    "all of theta at -1": (-20, -20, -20, -20, -20, -20),
    "theta a mirror, moved out": (-20, 0, 20, 0, -20, -20),
    "theta a sheared zoom": (20, -20, -20, 20, 20, 20),
}

STRESSED_ON = ("64 random images", "white images", "real images")


class Agreement(NamedTuple):
    """How well a graph agrees with torch in float32.

    max_difference: the largest of any score. images: how many were compared. cases: how many kinds of input.
    measured: how many real images same_cluster and accuracy are about, 0 for fp32 or without any. same_cluster: the
    share that keeps its cluster; same_moved: of copies of them that are turned, shifted and zoomed a little, which the
    model was not calibrated on. accuracy: ACC of torch and of the graph on them; None without ground truth.
    """

    max_difference: float
    images: int
    cases: int
    measured: int = 0
    same_cluster: float | None = None
    same_moved: float | None = None
    accuracy: tuple[float, float] | None = None


class Real(NamedTuple):
    """Real images (N, C, H, W) uint8, and their ground truth (N,) int64 or None, for scoring only."""

    images: Pixels
    labels: NDArray[np.int64] | None = None

    def last(self, n: int) -> "Real":
        """The last n of them, or all where there are fewer."""
        return Real(self.images[-n:], None if self.labels is None else self.labels[-n:])


class Case(NamedTuple):
    """Images (n, C, H, W) uint8 to compare on; `batch` runs them over and over as one batch of that size."""

    images: Pixels
    batch: int | None = None


class Outputs(NamedTuple):
    """scores: (N, K) float32, 0 columns where the graph has none. embedding: (N, D) float32, or None where it has
    none."""

    scores: NDArray[np.float32]
    embedding: NDArray[np.float32] | None = None


def _take_outputs(values: Sequence[NDArray[Any]]) -> Outputs:
    """Of what a graph gives: cluster, confidence, scores and perhaps the embedding, or the embedding alone."""
    if len(values) == 1:
        return Outputs(np.zeros((len(values[0]), 0), np.float32), values[0])
    return Outputs(*values[2:])


Reference = Callable[[Pixels], Outputs]


def check_graph(proto: Any, for_gpu: bool = True) -> None:
    """Raise StdacError for a model that is not valid ONNX, spans several files, or lacks a CUDA kernel, for_gpu."""
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StdacError(
            f"the exported graph is not valid ONNX ({take_first_line(error)}): please report this"
        ) from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise StdacError("the exported graph keeps weights outside of its file: please report this")
    strange = find_without_kernel(proto) if for_gpu else []
    if strange:
        raise StdacError(
            f"the exported graph has operators without a known CUDA kernel ({', '.join(strange)}): "
            "this model cannot be exported as one graph for CPU and GPU"
        )


def take_first_line(error: Exception) -> str:
    """The first line of an error's text, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def verify(
    graph: nn.Module, proto: Any, shape: tuple[int, int, int], images: Pixels | None = None, precision: str = "fp32"
) -> Agreement:
    """Compare torch with ONNX Runtime on the CPU.

    graph: the module that was exported, (N, C, H, W) uint8 -> cluster, confidence, scores, perhaps embedding, or
    embedding alone. proto:
    the ONNX model, of the precision. images: (N, C, H, W) uint8, real ones. Raises StdacError that names the case
    where they disagree.
    """
    tolerance, inputs = TOLERANCES[precision], list_cases(shape, images)
    found = [compare(_run_torch(graph), _open_proto(proto), inputs, tolerance)]
    few = {name: Case(x.images[:64]) for name, x in inputs.items() if name in STRESSED_ON}
    for what, stressed_graph, stressed_proto in stress_model(graph, proto):
        found.append(compare(_run_torch(stressed_graph), _open_proto(stressed_proto), few, tolerance, f" with {what}"))
    return Agreement(max(f.max_difference for f in found), sum(f.images for f in found), sum(f.cases for f in found))


def verify_reduced(
    graph: nn.Module, proto: Any, precision: str, shape: tuple[int, int, int], real: Real | None
) -> Agreement:
    """Hold a float16 or int8 model against torch in float32: by its clusters on real images, which is what counts.

    float16 is compared score by score too; int8 with itself, an image at a time and in batches of every size.
    Raises StdacError that names the case, or the share of real images that keep their cluster where it is too low.
    """
    if precision == "fp16":
        agreement = verify(graph, proto, shape, None if real is None else real.last(BATCH).images, precision)
    else:
        session = _open_proto(proto)
        who = "the int8 graph one image at a time and in batches"
        agreement = compare(_run_singly(session), session, list_cases(shape, None), TOLERANCES[precision], who=who)
    return agreement if real is None else measure_agreement(agreement, graph, proto, precision, real)


def measure_agreement(agreement: Agreement, graph: nn.Module, proto: Any, precision: str, real: Real) -> Agreement:
    """The agreement with what was measured on real images added. Raises StdacError where too few keep their cluster."""
    runs = _run_torch(graph), _run_session(_open_proto(proto))
    expected, found = (_score(run, real.images) for run in runs)
    same = _count_same(expected, found, "real images", precision)
    moved, moved_found = (_score(run, move(real.images)) for run in runs)
    same_moved = _count_same(moved, moved_found, "real images, moved a little,", precision)
    accuracies = None
    if real.labels is not None:
        accuracies = accuracy(real.labels, expected.argmax(1)), accuracy(real.labels, found.argmax(1))
    difference = max(agreement.max_difference, float(np.abs(found - expected).max()))
    return Agreement(difference, agreement.images, agreement.cases, len(found), same, same_moved, accuracies)


def _count_same(expected: NDArray[np.float32], found: NDArray[np.float32], what: str, precision: str) -> float:
    """The share of images with the same cluster in scores (N, K). Raises StdacError where it is too low."""
    same = float((expected.argmax(1) == found.argmax(1)).mean())
    if same < LEAST_AGREEMENT[precision]:
        raise StdacError(
            f"only {same:.1%} of {len(found)} {what} keep their cluster in {precision}, at least "
            f"{LEAST_AGREEMENT[precision]:.1%} is required; nothing was written: export this model as fp32"
        )
    return same


def _score(run: Reference, images: Pixels) -> NDArray[np.float32]:
    """Scores (N, K) of images, a batch at a time."""
    return np.concatenate([run(x).scores for x in make_batches(images)])


def move(images: Pixels) -> Pixels:
    """Copies of images (N, C, H, W), each turned, shifted and zoomed a little at random, the same every time."""
    ranges = AUGMENTATIONS["dac-mnist"]  # 10 degrees, a tenth of the side, a twentieth
    with borrow_generators():
        torch.default_generator.manual_seed(0)
        affine = draw_affine(len(images), ranges, images.shape[2], images.shape[3])
    parts = zip(make_batches(images), affine.split(BATCH), strict=True)
    return np.concatenate([sample_nearest(torch.from_numpy(x), maps).numpy() for x, maps in parts])


def make_batches(images: Pixels) -> Iterator[Pixels]:
    """The images in batches that fit into memory."""
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


def list_cases(shape: tuple[int, int, int], images: Pixels | None) -> dict[str, Case]:
    """Inputs of several kinds and batch sizes, by name."""
    noise = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype=np.uint8)
    checks = np.indices(shape).sum(0) % 2 * np.uint8(255)
    largest = max(65, min(LARGEST_BATCH, LARGEST_PIXELS // (shape[1] * shape[2])))
    known = {
        "64 random images": Case(noise),
        "7 random images": Case(noise[:7]),
        "one random image": Case(noise[:1]),
        "an empty batch": Case(noise[:0]),
        f"a batch of {largest}": Case(noise, largest),
        "black images": Case(np.zeros((7, *shape), np.uint8)),
        "white images": Case(np.full((7, *shape), 255, np.uint8)),
        "random black and white": Case((noise > 127) * np.uint8(255)),
        "a checkerboard": Case(checks[None].astype(np.uint8)),
    }
    return known if images is None else known | {"real images": Case(images)}


def stress_model(graph: nn.Module, proto: Any) -> Iterator[tuple[str, nn.Module, Any]]:
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


def _open_proto(proto: Any) -> Any:
    """An onnxruntime session on the CPU."""
    return open_session(proto.SerializeToString(), Path("the exported graph"), "cpu")[0]


def _run_torch(graph: nn.Module) -> Reference:
    """What torch gives."""

    def run(x: Pixels) -> Outputs:
        with torch.no_grad():
            return _take_outputs([y.numpy() for y in graph(torch.from_numpy(np.ascontiguousarray(x)))])

    return run


def _run_session(session: Any) -> Reference:
    """What a session gives."""
    return lambda x: _take_outputs(session.run(None, {"images": x}))


def _run_singly(session: Any) -> Reference:
    """What a session gives for each image alone."""
    run = _run_session(session)

    def run_each(x: Pixels) -> Outputs:
        parts = [run(x[i : i + 1]) for i in range(len(x))] or [run(x)]
        embeddings = [part.embedding for part in parts if part.embedding is not None]
        return Outputs(
            np.concatenate([part.scores for part in parts]), np.concatenate(embeddings) if embeddings else None
        )

    return run_each


def compare(
    reference: Reference,
    session: Any,
    inputs: Mapping[str, Case],
    tolerance: float,
    note: str = "",
    who: str = "torch and ONNX Runtime",
) -> Agreement:
    """Compare the two on each input. Raises StdacError that names the first one on which they disagree."""
    worst, total = 0.0, 0
    for name, case in inputs.items():
        n = len(case.images) if case.batch is None else case.batch
        index = np.arange(n) % max(len(case.images), 1)
        expected = reference(case.images)
        found, difference = session.run(None, {"images": case.images[index]}), 0.0
        if len(found) > 1:
            cluster, confidence, scores, *_ = found
            difference = describe_disagreement(expected.scores[index], scores, cluster, confidence, tolerance)
        if expected.embedding is not None:
            difference = max(difference, measure_distance(expected.embedding[index], found[-1]))
        if not difference <= tolerance:
            what = "scores" if len(found) > 1 else "embeddings"
            raise StdacError(
                f"{who} disagree on {name}{note}: {what} differ by {difference:.2g}, "
                f"at most {tolerance} is allowed; nothing was written"
            )
        worst, total = max(worst, difference), total + n
    return Agreement(worst, total, len(inputs))


def measure_distance(expected: NDArray[np.float32], embedding: NDArray[np.float32]) -> float:
    """The largest difference between embeddings (N, D), as a share of the largest value where that is above 1."""
    if embedding.shape != expected.shape or not np.isfinite(embedding).all():
        return np.inf
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    return float(np.abs(embedding - expected).max(initial=0)) / scale


def describe_disagreement(
    expected: NDArray[np.float32],
    scores: NDArray[np.float32],
    cluster: NDArray[np.int64],
    confidence: NDArray[np.float32],
    tolerance: float = TOLERANCE,
) -> float:
    """The largest difference between scores (N, K); infinite where shapes, clusters (N,) or confidences do not fit.

    A cluster other than torch's is a tie, and allowed, where torch's two highest scores are closer than the tolerance.
    """
    if scores.shape != expected.shape or cluster.shape != confidence.shape or len(cluster) != len(expected):
        return np.inf
    if not len(expected):
        return 0.0
    if not (np.isfinite(expected).all() and np.isfinite(scores).all()):
        return np.inf
    top = np.sort(expected, axis=1)
    tied = top[:, -1] - top[:, -2] < tolerance
    same = (cluster == scores.argmax(1)) & (confidence == scores.max(1)) & ((cluster == expected.argmax(1)) | tied)
    return float(np.abs(scores - expected).max()) if same.all() else np.inf

"""`Clusterer`: images in, clusters out, with an ONNX file and onnxruntime. No torch."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export.metadata import ModelInfo, parse_props
from export.runtime import GPU_PROVIDERS, open_session
from stdac.errors import StdacError
from stdac.pictures.pixels import Pixels, to_pixels

CHUNK = 256
"""Images a run of the graph on a CPU: 64 to 1,024 are equally fast, 4,096 are not and take 1.6 GB."""

GPU_CHUNK = 1024

MOST_BYTES = 1 << 31  # of a protobuf message

OUTPUTS = ("cluster", "confidence", "scores")


class Prediction(NamedTuple):
    """cluster: (N,) int64. confidence: (N,) float32, the cluster's score. scores: (N, K) float32, rows sum to 1."""

    cluster: NDArray[np.int64]
    confidence: NDArray[np.float32]
    scores: NDArray[np.float32]


class Clusterer:
    """Sorts images with a model.onnx of `stdac export`; one instance may be used from several threads.

    provider: "cpu", "cuda", "tensorrt", "openvino", or "auto": cuda where it works, else cpu; the attribute `provider`
    says which it is. shares_cpus: leave the CPUs to others while it waits, at some cost for single images. `info` is
    the file's metadata, `sha256` its digest in hex. Raises StdacError for a file that is not ours and a provider that
    does not come up.

    >>> Clusterer("model.onnx").predict(np.zeros((2, 28, 28), np.uint8)).cluster.shape
    (2,)
    """

    def __init__(self, path: str | os.PathLike[str], provider: str = "auto", *, shares_cpus: bool = False) -> None:
        self.path = Path(path)
        content = read_model(self.path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._session, self.provider = open_session(content, self.path, provider, shares_cpus=shares_cpus)
        self.info: ModelInfo = parse_props(self.path, _read_props(self.path, self._session))
        _check_signature(self.path, self._session, self.info)
        if self.info.precision == "int8" and self.provider in GPU_PROVIDERS:
            if provider != "auto":
                raise StdacError(
                    f"{self.path} has precision int8, which is for the CPU: use --provider cpu, or export the model "
                    "with --precision fp16"
                )
            self._session, self.provider = open_session(content, self.path, "cpu", shares_cpus=shares_cpus)

    @property
    def chunk(self) -> int:
        """Images that go through the graph at once."""
        return GPU_CHUNK if self.provider in GPU_PROVIDERS else CHUNK

    def predict(self, images: ArrayLike) -> Prediction:
        """The cluster of each image.

        images: (N, H, W), (N, H, W, C) or (N, C, H, W) uint8, of the model's size and channels (`info.shape`); N may be
        0. Raises StdacError for another shape or type, and for an embedding model, which has no clusters.
        """
        refuse_embedding_model(self)
        return Prediction(*self._run(self._pixels(images), OUTPUTS))

    def embed(self, images: ArrayLike) -> NDArray[np.float32]:
        """The embedding of each image, (N, `info.embedding`) float32: the features that the last layer clusters.

        images as for `predict`. Raises StdacError for a model that was exported without its embedding.
        """
        if not self.info.embedding:
            raise StdacError(f"{self.path} has no embedding: export the model with --with-embedding")
        embedding: NDArray[np.float32] = self._run(self._pixels(images), ("embedding",))[0]
        return embedding

    def predict_and_embed(self, images: ArrayLike) -> tuple[Prediction, NDArray[np.float32] | None]:
        """Both in one pass; None where the model was exported without its embedding."""
        refuse_embedding_model(self)
        pixels = self._pixels(images)
        if not self.info.embedding:
            return Prediction(*self._run(pixels, OUTPUTS)), None
        *prediction, embedding = self._run(pixels, (*OUTPUTS, "embedding"))
        return Prediction(*prediction), embedding

    def _pixels(self, images: ArrayLike) -> Pixels:
        try:
            given = np.asarray(images)
        except ValueError as error:
            raise StdacError("got images of several shapes, expected one array: resize them first") from error
        none = given.shape[:1] == (0,)
        pixels = np.zeros((0, *self.info.shape), np.uint8) if none else to_pixels(given, "the input")
        if pixels.shape[1:] != self.info.shape:
            raise StdacError(
                f"got images of shape (C, H, W) = {pixels.shape[1:]}, expected {self.info.shape} for {self.path.name}: "
                "resize or convert them (stdac cluster does both)"
            )
        return pixels

    def _run(self, pixels: Pixels, outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        starts = range(0, max(len(pixels), 1), self.chunk)
        parts = [self._run_chunk(pixels[start : start + self.chunk], outputs) for start in starts]
        return parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _run_chunk(self, x: Pixels, outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """One run of the graph; on a GPU always of a full chunk, as each new shape repeats cuDNN's search."""
        n = len(x)
        if self.provider in GPU_PROVIDERS and n < self.chunk:
            x = np.concatenate([x, np.zeros((self.chunk - n, *x.shape[1:]), np.uint8)])
        return [values[:n] for values in self._session.run(list(outputs), {"images": x})]


def refuse_embedding_model(clusterer: Clusterer) -> None:
    """Raise StdacError for a model that has an embedding alone, and so sorts nothing."""
    if not clusterer.info.k:
        method = clusterer.info.trial.get("method")
        raise StdacError(
            f"{clusterer.path} is an embedding model (method {method}), which sorts nothing into clusters: "
            "stdac neighbours finds the images that are nearest to some with it"
        )


def _read_props(path: Path, session: Any) -> Mapping[str, str]:
    """The metadata_props of the model. Raises StdacError where they are no text."""
    try:
        props: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise StdacError(f"the metadata of {path} is damaged: export the model again with stdac export") from error
    return props


def read_model(path: Path) -> bytes:
    """The bytes of a model file. Raises StdacError where there is none."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise StdacError(
                f"{path} is a pipe, a socket or a device: expected the model.onnx that stdac export writes"
            )
        if path.stat().st_size > MOST_BYTES:
            raise StdacError(f"{path} has more than 2 GiB: expected the model.onnx that stdac export writes")
        return path.read_bytes()
    except OSError as error:
        raise StdacError(
            f"cannot read {path} ({error.strerror}): expected the model.onnx that stdac export writes"
        ) from error


def _check_signature(path: Path, session: Any, info: ModelInfo) -> None:
    """Raise StdacError where the graph's inputs and outputs are not those that its metadata promises."""
    inputs = [(x.name, x.type, x.shape[1:]) for x in session.get_inputs()]
    outputs = {y.name: y.shape[1:] for y in session.get_outputs()}
    promised: dict[str, list[int]] = {"cluster": [], "confidence": [], "scores": [info.k]} if info.k else {}
    if info.embedding:
        promised["embedding"] = [info.embedding]
    missing = any(outputs.get(name) != shape for name, shape in promised.items())
    if missing or inputs != [("images", "tensor(uint8)", list(info.shape))]:
        raise StdacError(f"the graph of {path} does not fit its metadata: export the model again with stdac export")

"""Sort images with an ONNX file: arrays to clusters, files to clusters.parquet. onnxruntime and pyarrow, no torch."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from export.metadata import ModelInfo, parse_props
from export.sources import Batch, Files, open_source, stream
from stdac.errors import StdacError
from stdac.files import whole
from stdac.images import Pixels, as_pixels

CHUNK = 256
"""Images a run of the graph: 64 to 1,024 are equally fast on a CPU, 4,096 are not and take 1.6 GB."""

ROW_GROUP = 65_536

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

CLUSTERS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("cluster", pa.int32()),
        pa.field("name", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("runner_up", pa.int32()),
        pa.field("margin", pa.float32()),
        pa.field("error", pa.string()),
    ]
)
"""clusters.parquet, one row an image, in the order of the inputs (a folder's files sorted by name).

source: the file or data set; index: the image's place in it (0 for a picture file). cluster: its id; name: the
cluster's name, null where the model has none. confidence: the score of the cluster; runner_up: the cluster with the
next score; margin: confidence minus that score. error: why the image could not be read (then all but source and index
are null), null for one that was.
"""


class Prediction(NamedTuple):
    """cluster: (N,) int64. confidence: (N,) float32, the cluster's score. scores: (N, K) float32, rows sum to 1."""

    cluster: NDArray[np.int64]
    confidence: NDArray[np.float32]
    scores: NDArray[np.float32]


class Progress(NamedTuple):
    """How far a run is: images done, of them not readable, and in all (None while that is not known)."""

    done: int
    errors: int
    total: int | None


class Summary(NamedTuple):
    """What `cluster_files` did.

    images: how many got a cluster; errors: how many did not; first_error: "source: reason" of the first. sizes: (K,)
    int64 images a cluster. mean_confidence: (K,) float64, NaN for an empty cluster. provider: "cpu" or "cuda".
    """

    output: Path
    images: int
    errors: int
    first_error: str | None
    sizes: NDArray[np.int64]
    mean_confidence: NDArray[np.float64]
    cluster_names: tuple[str, ...]
    provider: str
    seconds: float


class Clusterer:
    """Sorts images with a model.onnx of `stdac export`; one instance may be used from several threads.

    provider: "cpu", "cuda", or "auto": cuda where it works, else cpu; the attribute `provider` says which it is.
    `info` is the file's metadata. Raises StdacError for a file that is not ours and a provider that does not come up.
    """

    def __init__(self, path: str | os.PathLike[str], provider: str = "auto") -> None:
        self.path = Path(path)
        self._session, self.provider = open_session(read_model(self.path), self.path, provider)
        self.info: ModelInfo = parse_props(self.path, self._session.get_modelmeta().custom_metadata_map)
        check_signature(self.path, self._session, self.info)

    def predict(self, images: ArrayLike) -> Prediction:
        """The cluster of each image.

        images: (N, H, W), (N, H, W, C) or (N, C, H, W) uint8, of the model's size and channels (`info.shape`); N may be
        0. Raises StdacError for another shape or type.
        """
        try:
            given = np.asarray(images)
        except ValueError as error:
            raise StdacError("got images of several shapes, expected one array: resize them first") from error
        none = given.shape[:1] == (0,)
        pixels = np.zeros((0, *self.info.shape), np.uint8) if none else as_pixels(given, "the input")
        if pixels.shape[1:] != self.info.shape:
            raise StdacError(
                f"got images of shape (C, H, W) = {pixels.shape[1:]}, expected {self.info.shape} for {self.path.name}: "
                "resize or convert them (stdac cluster does both)"
            )
        starts = range(0, max(len(pixels), 1), CHUNK)
        parts = [self._run(pixels[start : start + CHUNK]) for start in starts]
        return Prediction(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _run(self, x: Pixels) -> list[NDArray[Any]]:
        """One run of the graph; on a GPU always of CHUNK images, as each new shape repeats cuDNN's search."""
        n = len(x)
        if self.provider == "cuda" and n < CHUNK:
            x = np.concatenate([x, np.zeros((CHUNK - n, *x.shape[1:]), np.uint8)])
        outputs = self._session.run(["cluster", "confidence", "scores"], {"images": x})
        return [output[:n] for output in outputs]


def read_model(path: Path) -> bytes:
    """The bytes of a model file. Raises StdacError where there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StdacError(
            f"cannot read {path} ({error.strerror}): expected the model.onnx that stdac export writes"
        ) from error


def open_session(model: bytes, path: Path, provider: str) -> tuple[Any, str]:
    """An onnxruntime session, and the provider that it really has: "cpu" or "cuda".

    A CUDA library that is missing leaves a session on the CPU with no more than a log line, so the session is asked.
    Raises StdacError where onnxruntime or the provider is missing, or the bytes are not an ONNX model.
    """
    if provider not in ("auto", *PROVIDERS):
        raise StdacError(f"got provider {provider!r}, expected auto, {' or '.join(PROVIDERS)}")
    ort = import_onnxruntime()
    has_cuda = PROVIDERS["cuda"] in ort.get_available_providers()
    if provider == "cuda" and not has_cuda:
        raise StdacError("provider cuda is not in this onnxruntime: pip install 'stdac[gpu]' in place of 'stdac[cpu]'")
    if has_cuda and provider != "cpu":
        session = start_session(ort, model, path, "cuda")
        if session is not None and session.get_providers()[0] == PROVIDERS["cuda"]:
            return session, "cuda"
    session = start_session(ort, model, path, "cpu")
    if provider == "cuda":
        raise StdacError(
            "provider cuda did not come up: onnxruntime found no GPU, or no CUDA and cuDNN libraries that fit it; "
            "install them or use --provider cpu"
        )
    return session, "cpu"


def import_onnxruntime() -> Any:
    """The onnxruntime module. Raises StdacError that names the extra to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise StdacError("onnxruntime is not installed: pip install 'stdac[cpu]' (or 'stdac[gpu]')") from error
    return onnxruntime


def start_session(ort: Any, model: bytes, path: Path, provider: str) -> Any:
    """A session on one provider; None where CUDA fails to start. Raises StdacError where the model does not load."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = available_cpus()
    # TF32 would move scores by up to 5e-3; the export was verified to 1e-4.
    cuda = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    providers = [(PROVIDERS["cuda"], cuda), PROVIDERS["cpu"]] if provider == "cuda" else [PROVIDERS["cpu"]]
    try:
        with redirect_stdout(StringIO()):  # onnxruntime prints what it falls back to
            if provider == "cuda" and hasattr(ort, "preload_dlls"):  # onnxruntime >= 1.21
                ort.preload_dlls()
            return ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base but this
        if provider == "cuda":
            return None
        raise StdacError(f"{path} is not an ONNX file: expected the model.onnx that stdac export writes") from error


def available_cpus() -> int:
    """Threads to use: $OMP_NUM_THREADS, as batch systems set it, else the CPUs that this process may run on."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    if wish.isdecimal() and int(wish) > 0:
        return int(wish)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_signature(path: Path, session: Any, info: ModelInfo) -> None:
    """Raise StdacError where the graph's inputs and outputs are not those that its metadata promises."""
    inputs = [(x.name, x.type, x.shape[1:]) for x in session.get_inputs()]
    outputs = {y.name: y.shape[1:] for y in session.get_outputs()}
    promised: dict[str, list[int]] = {"cluster": [], "confidence": [], "scores": [info.k]}
    missing = any(outputs.get(name) != shape for name, shape in promised.items())
    if missing or inputs != [("images", "tensor(uint8)", list(info.shape))]:
        raise StdacError(f"the graph of {path} does not fit its metadata: export the model again with stdac export")


def cluster_files(
    model: Path,
    inputs: Sequence[str],
    output: Path,
    provider: str = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Sort all images of the inputs into `output`, see CLUSTERS; it appears whole or not at all.

    inputs: as `export.sources.open_source` takes them. Raises StdacError for a model, input or output that cannot be
    used, before anything is read; an image that cannot be read is a row with an error.
    """
    began = time.perf_counter()
    if os.path.isdir(output):  # noqa: PTH112  # Path.is_dir raises where a folder is closed
        raise StdacError(
            f"cannot write {output}: it is a folder; name a file, for example {output / 'clusters.parquet'}"
        )
    clusterer = Clusterer(model, provider)
    info = clusterer.info
    sources = [open_source(text) for text in inputs]
    known = [s.count for s in sources if isinstance(s, Files)]
    total = sum(known) if len(known) == len(sources) else None
    counts, confidence, errors, first_error = np.zeros(info.k, np.int64), np.zeros(info.k), 0, None
    with whole(output) as file, pq.ParquetWriter(file, CLUSTERS, compression="zstd") as writer:
        rows = rows_of(clusterer, stream(sources, info.shape))
        for group in row_groups(rows, ROW_GROUP, on_progress, total):
            writer.write_table(group, row_group_size=ROW_GROUP)
            ok = group.filter(group["error"].is_null())
            clusters = ok["cluster"].to_numpy()
            counts += np.bincount(clusters, minlength=info.k)
            confidence += np.bincount(clusters, ok["confidence"].to_numpy(), minlength=info.k)
            if len(ok) < len(group):
                errors += len(group) - len(ok)
                bad = group.filter(group["error"].is_valid()).slice(0, 1).to_pylist()[0]
                first_error = first_error or f"{bad['source']}: {bad['error']}"
    with np.errstate(invalid="ignore"):
        mean = confidence / counts
    seconds = time.perf_counter() - began
    names = info.cluster_names
    return Summary(output, int(counts.sum()), errors, first_error, counts, mean, names, clusterer.provider, seconds)


def rows_of(clusterer: Clusterer, batches: Iterable[Batch]) -> Iterator[pa.Table]:
    """A table like CLUSTERS for each batch."""
    names = np.array(clusterer.info.cluster_names or [None] * clusterer.info.k, dtype=object)
    for batch in batches:
        cluster, confidence, scores = clusterer.predict(batch.images)
        row = np.arange(len(cluster))
        others = scores.copy()
        others[row, cluster] = -1
        second = others.argmax(1)
        bad = np.array([error is not None for error in batch.errors])
        columns = {
            "cluster": cluster,
            "name": names[cluster],
            "confidence": confidence,
            "runner_up": second,
            "margin": confidence - scores[row, second],
        }
        read = {key: pa.array(value, CLUSTERS.field(key).type, mask=bad) for key, value in columns.items()}
        given = {"source": batch.source, "index": batch.index, "error": batch.errors}
        yield pa.table(given | read, schema=CLUSTERS)


def row_groups(
    tables: Iterable[pa.Table], size: int, on_progress: Callable[[Progress], None] | None, total: int | None
) -> Iterator[pa.Table]:
    """Tables of at least `size` rows, the last one shorter; tells the progress at each table that comes in."""
    waiting: list[pa.Table] = []
    done = errors = 0
    for table in tables:
        waiting.append(table)
        done += len(table)
        errors += len(table) - table["error"].null_count
        if on_progress is not None:
            on_progress(Progress(done, errors, total))
        if sum(map(len, waiting)) >= size:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)

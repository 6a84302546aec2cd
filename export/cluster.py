"""Inputs to clusters.parquet: decoding beside inference, in bounded memory, going on where it was stopped."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from export.clusterer import Clusterer, refuse_embedding_model
from export.results.labels import Labels, read_labels
from export.results.names import Names, carry_names, load_names, write_names
from export.results.rows import Known, Parts, check_rows, make_schema
from stdac import __version__
from stdac.data import open_input
from stdac.errors import StdacError
from stdac.files import check_suffix
from stdac.pictures.batches import BATCH, Batch, Source
from stdac.pictures.child import Child
from stdac.pictures.decode import (
    READING,
    DecodedBatch,
    Reading,
    choose_reading,
    decode_safely,
    merge_decoded,
    read_file_stat,
)
from stdac.pictures.folder import drop_repeated
from stdac.pictures.pool import open_decoders
from stdac.pictures.sources import list_notes

NO_SCORE = "the model gives it no score: its weights are not finite"
AHEAD = 2  # chunks of images that are decoded while the graph runs


class Progress(NamedTuple):
    """How far a run is: images done, of them not readable, of them known from before, and in all (None: not known)."""

    done: int
    errors: int
    known: int
    total: int | None


@dataclass(frozen=True)
class Settings:
    """How `cluster_files` works.

    provider: as for `Clusterer`. workers: child processes that decode, None for one a CPU. resume: take rows from the
    output that is there; fresh: forget an interrupted run. labels: a file with the truth, see `export.results.labels`.
    names: a names.toml that is kept across runs; earlier: a clusters.parquet by which names of another model are
    carried over, where it is not the output itself. decode_s: seconds of CPU that one picture may take, None for
    $STDAC_DECODE_S, see `stdac.pictures.decode.choose_reading`.
    """

    provider: str = "auto"
    workers: int | None = None
    resume: bool = False
    fresh: bool = False
    labels: Path | None = None
    names: Path | None = None
    earlier: Path | None = None
    decode_s: float | None = None


@dataclass
class Summary:
    """What `cluster_files` did.

    sources: the opened inputs. sizes: (K,) int64 images a cluster. confidence: (K,) float64, their sum. errors: images
    without a cluster; first_error: "source: reason" of the first. flat: images that have one colour as the model sees
    them. left_out: what the inputs hold besides, by reason. reading: how pictures were decoded. known: rows taken over
    from before. names: K, None for none. notes: what a person should know of how the inputs were read, of labels that
    did not fit, and of names of another model. provider: a key of `export.runtime.PROVIDERS`.
    """

    output: Path
    sources: Sequence[Source]
    model_id: str
    provider: str
    sizes: NDArray[np.int64]
    confidence: NDArray[np.float64]
    errors: int = 0
    first_error: str | None = None
    flat: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    reading: Reading = READING
    known: int = 0
    names: tuple[str | None, ...] = ()
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def images(self) -> int:
        """Images that got a cluster."""
        return int(self.sizes.sum())

    @property
    def mean_confidence(self) -> NDArray[np.float64]:
        """(K,), NaN for an empty cluster."""
        with np.errstate(invalid="ignore"):
            mean: NDArray[np.float64] = self.confidence / self.sizes
        return mean

    def count(self, table: pa.Table) -> None:
        """Add some rows."""
        ok = table.filter(table["error"].is_null())
        cluster = ok["cluster"].to_numpy()
        self.sizes += np.bincount(cluster, minlength=len(self.sizes))
        self.confidence += np.bincount(cluster, ok["confidence"].to_numpy(), minlength=len(self.sizes))
        self.errors += len(table) - len(ok)
        self.flat += ok["fingerprint"].null_count
        if len(ok) < len(table) and self.first_error is None:
            bad = table.filter(table["error"].is_valid()).slice(0, 1).to_pylist()[0]
            where = bad["source"] if bad["member"] is None else f"{bad['source']}, {bad['member']}"
            self.first_error = f"{where}: {bad['error']}"


@dataclass(frozen=True)
class Part:
    """Some images in order, without what they were decoded from.

    source, index, label, member: of each, as in `stdac.pictures.batches.Batch`. row: (n,) int64, its row in what is
    known, -1: none. decoded: the images that are not known, None for none.
    """

    source: list[str]
    index: NDArray[np.int64]
    label: list[str | None]
    row: NDArray[np.int64]
    decoded: DecodedBatch | None
    member: list[str] | None

    def list_members(self) -> Sequence[str | None]:
        """The names in the archive, None where there are none."""
        return [None] * len(self.source) if self.member is None else self.member


def cluster_files(
    model: Path,
    inputs: Sequence[str],
    output: Path,
    settings: Settings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Sort all images of the inputs into `output`, see `export.results.rows.CLUSTERS`; it appears whole or not at all.

    inputs: as `stdac.data.open_input` takes them. A run that is interrupted leaves OUTPUT.parts, and the same call goes
    on from there. Raises StdacError for a model, input or output that cannot be used, before anything is read; an image
    that cannot be read is a row with an error.
    """
    settings = settings or Settings()
    began = time.perf_counter()
    read = [model, *map(Path, inputs), settings.labels, settings.names, settings.earlier]
    check_output(output, [path for path in read if path is not None], (".parquet",))
    clusterer = Clusterer(model, settings.provider, shares_cpus=True)  # with the decoders
    refuse_embedding_model(clusterer)
    k = clusterer.info.k
    sources, left_out = drop_repeated(map(open_input, inputs))
    reading = choose_reading(clusterer.info.background, settings.decode_s)
    labels = None if settings.labels is None else read_labels(settings.labels)
    names = None if settings.names is None else load_names(settings.names)
    schema = make_schema(clusterer.info.embedding, metadata(clusterer))
    summary = Summary(output, sources, clusterer.info.model_id, clusterer.provider, np.zeros(k, np.int64), np.zeros(k))
    summary.left_out, summary.reading = left_out, reading
    target = Path(os.path.realpath(output))  # a link stays one
    with Parts(target, schema, resume=settings.resume, fresh=settings.fresh) as parts:
        progress = Progress(0, 0, 0, _count_total(sources))
        batches = _read_label_batches(sources, labels)
        for table, known in _make_sorted_tables(clusterer, batches, parts.known, schema, settings.workers, reading):
            parts.add(table)
            errors = len(table) - table["error"].null_count
            progress = Progress(
                progress.done + len(table), progress.errors + errors, progress.known + known, progress.total
            )
            if on_progress is not None:
                on_progress(progress)
        summary.notes += [note for source in sources for note in list_notes(source)]
        if labels is not None:
            summary.notes += labels.check(progress.done)
        summary.known = progress.known
        if names is not None:
            names, note = _keep_names(names, clusterer, settings, parts)
            summary.notes += [note] if note else []
        summary.names = _list_names(names, clusterer)
        parts.finish(name_clusters(parts.read(), summary))
    summary.seconds = time.perf_counter() - began
    return summary


def check_output(output: Path, read: Iterable[Path], suffixes: tuple[str, ...]) -> None:
    """Raise StdacError for an output that is there and not a file, is one of the files that are read, or whose name
    ends in none of the suffixes."""
    if os.path.isdir(output):  # noqa: PTH112  # Path.is_dir raises where a folder is closed
        raise StdacError(
            f"cannot write {output}: it is a folder; name a file, for example {output / 'clusters.parquet'}"
        )
    there = os.path.exists(output)  # noqa: PTH110
    if there and not os.path.isfile(output):  # noqa: PTH113
        raise StdacError(f"cannot write {output}: it is a pipe, a socket or a device; name a file")
    for path in read:
        if there and os.path.exists(path) and os.path.samefile(output, path):  # noqa: PTH110, PTH121
            raise StdacError(f"{output} is read too, and would be overwritten: name another output")
    check_suffix(output, suffixes)


def metadata(clusterer: Clusterer) -> dict[str, str]:
    """What the output says of the model: rows are taken over from files that say the same."""
    info = clusterer.info
    return {
        "stdac.model": clusterer.sha256,
        "stdac.model_id": info.model_id,
        "stdac.k": str(info.k),
        "stdac.version": __version__,
    }


def _count_total(sources: Iterable[Source]) -> int | None:
    """The number of images in all, None where a source does not know."""
    counts = [source.count() for source in sources]
    return None if None in counts else sum(count for count in counts if count is not None)


def _make_sorted_tables(
    clusterer: Clusterer,
    batches: Iterable[tuple[Batch, list[str | None]]],
    known: Known,
    schema: pa.Schema,
    workers: int | None,
    reading: Reading,
) -> Iterator[tuple[pa.Table, int]]:
    """The rows of all images in order, and how many of them were known, a chunk at a time.

    What a chunk holds depends on the inputs alone, so that a run that goes on gives the bits of an undisturbed one.
    """
    shape = clusterer.info.shape

    def decode(child: Child, labelled: tuple[Batch, list[str | None]]) -> Part:
        batch, label = labelled
        row = known.find(batch.source, batch.index, lambda i: read_file_stat(batch, i))
        missing = np.flatnonzero(row < 0)
        decoded = decode_safely(child, batch.select(missing), shape, reading) if len(missing) else None
        return Part(batch.source, batch.index, label, row, decoded, batch.member)

    with open_decoders("stdac.pictures.decode:decode_batch", workers) as pool:
        ahead = AHEAD * clusterer.chunk // BATCH
        parts = pool.map(decode, batches, ahead, lambda labelled: labelled[0].nbytes)
        for chunk in _group_parts(parts, clusterer.chunk):
            yield _make_table(clusterer, chunk, known, schema), sum(int((part.row >= 0).sum()) for part in chunk)


def _read_label_batches(sources: Iterable[Source], labels: Labels | None) -> Iterator[tuple[Batch, list[str | None]]]:
    """The batches of the sources with their labels: those of the labels file, if there is one."""
    position = 0
    for source in sources:
        for batch in source.batches():
            yield batch, batch.label if labels is None else labels.of(batch.source, batch.index, position)
            position += len(batch.source)


def _group_parts(parts: Iterable[Part], size: int) -> Iterator[list[Part]]:
    """Parts together until they have `size` images."""
    chunk: list[Part] = []
    images = 0
    for part in parts:
        chunk.append(part)
        images += len(part.row)
        if images >= size:
            yield chunk
            chunk, images = [], 0
    if chunk:
        yield chunk


def _make_table(clusterer: Clusterer, chunk: Sequence[Part], known: Known, schema: pa.Schema) -> pa.Table:
    """The rows of a chunk: those that are known, and the others sorted."""
    row = np.concatenate([part.row for part in chunk])
    new = _find_new_rows(clusterer, [part for part in chunk if part.decoded is not None], schema)
    table = new
    if len(new) < len(row):
        order = np.empty(len(row), np.int64)
        order[row < 0] = np.arange(len(new))
        order[row >= 0] = np.arange(len(new), len(row))
        table = pa.concat_tables([new, known.table.take(row[row >= 0])]).take(order)
    label = pa.array([label for part in chunk for label in part.label], pa.string())
    return table.set_column(schema.get_field_index("label"), schema.field("label"), label)


def _find_new_rows(clusterer: Clusterer, parts: Sequence[Part], schema: pa.Schema) -> pa.Table:
    """Rows of the schema for the decoded images of the parts; labels and names come later."""
    decoded = [part.decoded for part in parts if part.decoded is not None]
    if not decoded:
        return schema.empty_table()
    images, errors, content_hash, fingerprint, stat = merge_decoded(decoded)

    # clusters, and the second best of each image
    prediction, embedding = clusterer.predict_and_embed(images)
    cluster, confidence, scores = prediction
    n = np.arange(len(cluster))
    others = scores.copy()
    others[n, cluster] = -1
    second = others.argmax(1)

    # images that could not be decoded, or whose scores are not numbers, have an error in place of a cluster
    blank: NDArray[np.bool_] = ~np.isfinite(scores.sum(1))
    errors = [error or (NO_SCORE if none else None) for error, none in zip(errors, blank.tolist(), strict=True)]
    bad = np.array([error is not None for error in errors])
    columns = {
        "source": [name for part in parts for name, row in zip(part.source, part.row, strict=True) if row < 0],
        "member": [name for part in parts for name, row in zip(part.list_members(), part.row, strict=True) if row < 0],
        "index": np.concatenate([part.index[part.row < 0] for part in parts]),
        "cluster": pa.array(cluster, pa.int32(), mask=bad),
        "name": pa.nulls(len(n), pa.string()),
        "confidence": pa.array(confidence, pa.float32(), mask=bad),
        "runner_up": pa.array(second, pa.int32(), mask=bad),
        "margin": pa.array(confidence - scores[n, second], pa.float32(), mask=bad),
        "content_hash": content_hash,
        "fingerprint": fingerprint,
        "label": pa.nulls(len(n), pa.string()),
        "bytes": [None if about is None else about[0] for about in stat],
        "modified_ns": [None if about is None else about[1] for about in stat],
        "error": errors,
    }
    if embedding is not None:
        kind = schema.field("embedding").type
        values = pa.array(select_columns(embedding, kind.list_size).ravel())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, kind.list_size, mask=pa.array(bad))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def select_columns(embedding: NDArray[np.float32], dimensions: int) -> NDArray[np.float16]:
    """Embeddings (N, D) at length 1 and in so many dimensions, (N, d) float16.

    The projection is random and orthogonal, the same for every D: distances keep their order of magnitude (Johnson and
    Lindenstrauss 1984), and outliers and neighbours need no more.
    """
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True).clip(1e-12)
    if unit.shape[1] > dimensions:
        unit = unit @ list_columns(unit.shape[1], dimensions)
    half: NDArray[np.float16] = unit.astype(np.float16)
    return half


@cache
def list_columns(size: int, dimensions: int) -> NDArray[np.float32]:
    """(D, d) float32 with orthogonal columns of length sqrt(D / d)."""
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((size, dimensions)))
    scaled: NDArray[np.float32] = (q * np.sqrt(size / dimensions)).astype(np.float32)
    return scaled


def _keep_names(names: Names, clusterer: Clusterer, settings: Settings, parts: Parts) -> tuple[Names, str]:
    """The names for this run's model; those of another one are carried over, and their file is kept beside."""
    assert settings.names is not None
    earlier = settings.earlier if settings.earlier is not None else parts.output
    old: Path | None = earlier
    try:
        check_rows(earlier)
    except StdacError:
        old = None
    new = pa.concat_tables(parts.read(["content_hash", "cluster"]))
    info = clusterer.info
    kept, note = carry_names(names, info.model_id, info.k, old, new)
    if names.model != info.model_id:
        write_names(settings.names.with_suffix(f".{names.model}.toml"), names)
        write_names(settings.names, kept)
    return kept, note


def _list_names(names: Names | None, clusterer: Clusterer) -> tuple[str | None, ...]:
    """The K names: those of names.toml, else those in the model, else None."""
    info = clusterer.info
    own = info.cluster_names or ("",) * info.k
    given = names.of(info.k) if names is not None else ("",) * info.k
    return tuple(name or other or None for name, other in zip(given, own, strict=True))


def name_clusters(tables: Iterable[pa.Table], summary: Summary) -> Iterator[pa.Table]:
    """The tables with their column `name`, counted in the summary."""
    names = pa.array(summary.names, pa.string())
    for table in tables:
        summary.count(table)
        column = table.schema.get_field_index("name")
        yield table.set_column(column, table.schema.field(column), names.take(table["cluster"].combine_chunks()))

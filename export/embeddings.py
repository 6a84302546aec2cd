"""Embeddings of images a block at a time: computed from pictures, or read from a file that has them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.cluster import AHEAD, metadata, select_columns
from export.clusterer import Clusterer
from export.results.rows import PROJECTED, WRITTEN, open_rows
from stdac.errors import StdacError
from stdac.files import atomic_write
from stdac.pictures.batches import BATCH, Batch, Source
from stdac.pictures.child import Child
from stdac.pictures.decode import DecodedBatch, Reading, decode_safely
from stdac.pictures.pool import open_decoders

ROWS = 16_384  # of a file that are in memory at once
READ = ("source", "index", "member", "content_hash", "embedding")
NO_EMBEDDING = "the model gives it no embedding: its weights are not finite"

Floats = NDArray[np.float32]
Space = Callable[[Floats], Floats]
"""What is done to embeddings (N, D) before distances are taken."""


class Place(NamedTuple):
    """Where an image is, as in clusters.parquet: its file, archive or data set, its number and perhaps its name
    there."""

    source: str
    number: int
    member: str | None


class Block(NamedTuple):
    """Some images in order, those that could be read: places; content hashes, None where unknown; (n, D) float32. Of
    the others why not."""

    places: list[Place]
    content_hash: list[str | None]
    embedding: Floats
    errors: Sequence[str] = ()


def embed_sources(
    clusterer: Clusterer, sources: Iterable[Source], workers: int | None, reading: Reading
) -> Iterator[Block]:
    """The embeddings of all images of the sources, decoded beside inference. workers, reading: as for sorting."""

    def decode(child: Child, batch: Batch) -> tuple[Batch, DecodedBatch]:
        return batch, decode_safely(child, batch, clusterer.info.shape, reading)

    with open_decoders("stdac.pictures.decode:decode_batch", workers) as pool:
        batches = (batch for source in sources for batch in source.batches())
        ahead = AHEAD * clusterer.chunk // BATCH
        for batch, decoded in pool.map(decode, batches, ahead, lambda batch: batch.nbytes):
            yield _make_block(batch, decoded, clusterer.embed(decoded.images))


def _make_block(batch: Batch, decoded: DecodedBatch, embedding: Floats) -> Block:
    """The images of a batch that have an embedding."""
    finite: NDArray[np.bool_] = np.isfinite(embedding.sum(1))
    errors = [
        error or (None if ok else NO_EMBEDDING) for error, ok in zip(decoded.errors, finite.tolist(), strict=True)
    ]
    read = [i for i, error in enumerate(errors) if error is None]
    members: Sequence[str | None] = [None] * len(batch) if batch.member is None else batch.member
    return Block(
        [Place(batch.source[i], int(batch.index[i]), members[i]) for i in read],
        [decoded.content_hash[i] for i in read],
        embedding[read],
        [f"{name}: {error}" for name, error in zip(batch.source, errors, strict=True) if error is not None],
    )


def has_embeddings(path: Path) -> bool:
    """Whether a path is a Parquet file with rows of images rather than images: clusters.parquet, or what `keep_blocks`
    writes. Raises StdacError where it has rows and no embeddings."""
    try:
        with open_rows(path) as file:
            names = set(file.schema_arrow.names)
    except (OSError, ValueError, pa.ArrowException):
        return False
    if not {"source", "index", "content_hash"} <= names:
        return False
    if "embedding" not in names:
        raise StdacError(
            f"{path} has no embeddings: sort the images with a model that was exported --with-embedding, or name their "
            "folder"
        )
    return True


def find_space(path: Path, clusterer: Clusterer) -> Space:
    """What makes an embedding one of those in a file. clusters.parquet has them at length 1 and in at most PROJECTED
    values, other files as the model gives them.

    Raises StdacError for embeddings of another model, or of another size.
    """
    try:
        with open_rows(path) as file:
            schema = file.schema_arrow
        kind, model = schema.field("embedding").type, (schema.metadata or {}).get(b"stdac.model_id", b"").decode()
        size, is_whole = kind.list_size, pa.types.is_float32(kind.value_type)
    except (OSError, ValueError, AttributeError, pa.ArrowException) as error:
        raise StdacError(f"cannot read the embeddings in {path}: write it again with stdac") from error
    if model != clusterer.info.model_id:
        raise StdacError(
            f"{path} has embeddings of another model ({model or 'none that it names'}) than {clusterer.path} "
            f"({clusterer.info.model_id}): take that one, or name the folder of the images"
        )
    expected = clusterer.info.embedding if is_whole else min(clusterer.info.embedding, PROJECTED)
    if size != expected:
        raise StdacError(
            f"{path} has embeddings of {size} values, expected {expected} of {clusterer.path}: write it again with "
            "stdac"
        )
    return _keep if is_whole else lambda z: select_columns(z, size).astype(np.float32)


def _keep(embedding: Floats) -> Floats:
    """As they are."""
    return embedding


def read_blocks(path: Path) -> Iterator[Block]:
    """The rows of a file with embeddings that have one, in order. Raises StdacError where it is damaged."""
    try:
        with open_rows(path) as file:
            names = [name for name in READ if name in file.schema_arrow.names]
            for batch in file.iter_batches(ROWS, columns=names, use_threads=False):
                yield _read_block(batch)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise StdacError(f"cannot read the embeddings in {path} ({reason}): write it again with stdac") from error


def _read_block(batch: pa.RecordBatch) -> Block:
    """Those rows of a batch that have an embedding of numbers."""
    rows = batch.filter(batch["embedding"].is_valid())
    kind = rows["embedding"].type
    z = rows["embedding"].flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, kind.list_size)
    finite = np.isfinite(z).all(1)
    rows, z = rows.filter(pa.array(finite)), z[finite]
    members = rows["member"].to_pylist() if "member" in rows.schema.names else [None] * len(z)
    where = zip(rows["source"].to_pylist(), rows["index"].to_pylist(), members, strict=True)
    return Block([Place(*place) for place in where], rows["content_hash"].to_pylist(), z)


@contextmanager
def keep_blocks(path: Path | None, clusterer: Clusterer) -> Iterator[Callable[[Block], None]]:
    """A function that adds a block to a Parquet file, which appears whole at the end; without a path it does nothing.

    The columns are source, index, member and content_hash as in clusters.parquet, and embedding,
    fixed_size_list<float32> as the model gives it; the schema's metadata are those of clusters.parquet.
    """
    if path is None:
        yield lambda block: None
        return
    kind = pa.list_(pa.field("element", pa.float32()), clusterer.info.embedding)
    texts = [pa.field(name, pa.string()) for name in ("member", "content_hash")]
    fields = [pa.field("source", pa.string(), nullable=False), pa.field("index", pa.int64(), nullable=False), *texts]
    schema = pa.schema([*fields, pa.field("embedding", kind)], metadata(clusterer))

    with atomic_write(path) as file, pq.ParquetWriter(file, schema, **WRITTEN) as writer:

        def add(block: Block) -> None:
            source, index, member = zip(*block.places, strict=True) if block.places else ((), (), ())
            values = pa.FixedSizeListArray.from_arrays(pa.array(block.embedding.ravel()), type=kind)
            columns = [source, index, member, block.content_hash, values]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))

        yield add

"""The nearest images of some, by the distance of their embeddings: what `stdac neighbours` does. No torch."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.clusterer import Clusterer
from export.embeddings import (
    Block,
    Place,
    Space,
    embed_sources,
    find_space,
    has_embeddings,
    keep_blocks,
    read_blocks,
)
from stdac.data import open_input
from stdac.errors import StdacError
from stdac.files import atomic_write
from stdac.nearest import Nearest
from stdac.pictures.batches import Source
from stdac.pictures.decode import READING, Reading, choose_reading
from stdac.pictures.folder import drop_repeated
from stdac.pictures.thumbnails import Key, read_thumbnails
from stdac.words import count_noun

AT_ONCE = 8192  # embeddings that are compared with the queries at once

NEIGHBOURS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("query_index", pa.int64(), nullable=False),
        pa.field("query_member", pa.string()),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("distance", pa.float32(), nullable=False),
    ]
)
"""One row a query and neighbour, in the order of the queries, the nearest first, rank 1. query, query_index,
query_member and source, index, member: as source, index, member of clusters.parquet. distance: Euclidean, of
embeddings as the model gives them; of a clusters.parquet's of those at length 1 and projected that it holds."""


class Answer(NamedTuple):
    """A query and its neighbours, the nearest first, with their distances."""

    query: Place
    neighbours: list[tuple[Place, float]]


@dataclass
class Search:
    """What `find_neighbours` found.

    answers: in the order of the queries. searched: images that were looked through. embedding: their values. model:
    its name. unread: of queries and images why they could not be read. sources: where all of them come from.
    """

    answers: list[Answer]
    searched: int
    embedding: int
    model: str
    unread: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    reading: Reading = READING

    def read_pictures(
        self, wanted: Collection[Key], side: int, workers: int | None = None
    ) -> Iterator[tuple[Key, NDArray[np.uint8]]]:
        """Thumbnails of images of the search, as far as they can be read."""
        known = {source.name for source in self.sources}
        sources = [*self.sources, *_reopen(key[0] for key in wanted if key[0] not in known)]
        return read_thumbnails(drop_repeated(sources)[0], wanted, side, workers, self.reading)


def _reopen(names: "Iterator[str]") -> Iterator[Source]:
    """The sources by name of images that were embedded before; those that are gone are left out."""
    for name in dict.fromkeys(names):
        try:
            yield open_input(name)
        except StdacError:
            continue


def find_neighbours(
    model: Path,
    queries: Sequence[str],
    among: str,
    n: int,
    *,
    provider: str = "auto",
    workers: int | None = None,
    keep: Path | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Search:
    """The n nearest of some images to each query, exactly; the query itself, known by its content, is left out.

    queries: as `stdac.data.open_input` takes them. among: such an input, or the path of a Parquet file with embeddings,
    see `export.embeddings`; its images are looked through a block at a time. keep: where to write their embeddings, if
    they are computed. on_progress: is told how many were looked through. Raises StdacError for a model without an
    embedding, embeddings of another one, no image that can be read, and more neighbours than there are images.
    """
    clusterer = Clusterer(model, provider, shares_cpus=True)  # with the decoders
    if not clusterer.info.embedding:
        raise StdacError(f"{model} has no embedding to find neighbours by: export the model with --with-embedding")
    stored = has_embeddings(Path(among))
    if stored and keep is not None:
        raise StdacError(
            f"{among} has embeddings already: leave out --save-embeddings, or name the folder of its images"
        )
    space: Space | None = find_space(Path(among), clusterer) if stored else None
    asked = drop_repeated(map(open_input, queries))[0]
    given = [] if stored else [open_input(among)]
    reading = choose_reading(clusterer.info.background)
    search = Search([], 0, clusterer.info.embedding, model.name, sources=[*asked, *given], reading=reading)

    # the queries, then all others a block at a time
    query = _join(list(embed_sources(clusterer, asked, workers, reading)), search)
    if not query.places:
        raise StdacError(f"no query can be read: {_tell_first(search.unread) or 'they hold no images'}")
    blocks = read_blocks(Path(among)) if stored else embed_sources(clusterer, given, workers, reading)
    wanted = query.embedding if space is None else space(query.embedding)
    with keep_blocks(keep, clusterer) as add:
        found = Finder(wanted, query.content_hash, n)
        for block in _regroup(blocks, search):
            add(block)
            found.look_through(block)
            on_progress(found.searched)
        found.check(among, search.unread)
    search.searched = found.searched
    search.answers = list(map(Answer, query.places, found.list_neighbours()))
    return search


def _join(blocks: Sequence[Block], search: Search) -> Block:
    """Blocks as one; why images could not be read is noted in the search."""
    search.unread += [error for block in blocks for error in block.errors]
    return Block(
        [place for block in blocks for place in block.places],
        [content for block in blocks for content in block.content_hash],
        np.concatenate([block.embedding for block in blocks] or [np.zeros((0, search.embedding), np.float32)]),
    )


def _regroup(blocks: Iterator[Block], search: Search) -> Iterator[Block]:
    """Blocks together until they have AT_ONCE images."""
    waiting: list[Block] = []
    for block in blocks:
        waiting.append(block)
        if sum(len(part.places) for part in waiting) >= AT_ONCE:
            yield _join(waiting, search)
            waiting = []
    if waiting:
        yield _join(waiting, search)


def _tell_first(errors: Sequence[str]) -> str:
    """How many images could not be read, and why the first could not."""
    return f"{count_noun(len(errors), 'image')} could not be read (the first: {errors[0]})" if errors else ""


class Finder:
    """The n nearest to each query among the images that it was shown; queries: (Q, D), content_hash: of each."""

    def __init__(self, queries: NDArray[np.float32], content_hash: Sequence[str | None], n: int) -> None:
        self.keys = {content: i for i, content in enumerate(dict.fromkeys(content_hash)) if content is not None}
        self.nearest = Nearest(queries, n, self._find_keys(content_hash))
        self.searched = 0
        self.places: dict[int, Place] = {}  # of the rows that are among the nearest of some query

    def _find_keys(self, content_hash: Sequence[str | None]) -> NDArray[np.int64]:
        """The number of a query's content, -1 of what no query has."""
        return np.fromiter((self.keys.get(content or "", -1) for content in content_hash), np.int64, len(content_hash))

    def look_through(self, block: Block) -> None:
        """Take some images into account."""
        start = self.searched
        self.searched += len(block.places)
        rows = np.arange(start, self.searched)
        self.nearest.add(block.embedding, rows, self._find_keys(block.content_hash))
        rows_now = np.unique(self.nearest.row)
        new = {row: block.places[row - start] for row in rows_now[rows_now >= start].tolist()}
        old = set(rows_now.tolist()) & self.places.keys()
        self.places = {row: self.places[row] for row in old} | new

    def check(self, among: str, unread: Sequence[str]) -> None:
        """Raise StdacError where there are too few images."""
        if not self.searched:
            raise StdacError(f"{among} holds no image that can be read: {_tell_first(unread) or 'it is empty'}")
        fewest = int((self.nearest.row >= 0).sum(1).min())
        if fewest < self.nearest.row.shape[1]:
            raise StdacError(
                f"got -n {self.nearest.row.shape[1]} among {count_noun(self.searched, 'image')} of {among}, of which a "
                f"query itself is none: expected at most {fewest}"
            )

    def list_neighbours(self) -> list[list[tuple[Place, float]]]:
        """The neighbours of each query, and their distances."""
        pairs = zip(self.nearest.row.tolist(), self.nearest.distance.tolist(), strict=True)
        return [[(self.places[row], d) for row, d in zip(rows, distances, strict=True)] for rows, distances in pairs]


def write_neighbours(path: Path, answers: Sequence[Answer]) -> None:
    """Write NEIGHBOURS as Parquet. Raises StdacError where it cannot be written."""
    rows = [(a.query, rank, *found) for a in answers for rank, found in enumerate(a.neighbours, 1)]
    values = [(*query, rank, *place, distance) for query, rank, place, distance in rows]
    columns = dict(zip(NEIGHBOURS.names, zip(*values, strict=True), strict=True))
    with atomic_write(path) as file:
        pq.write_table(pa.table(columns, schema=NEIGHBOURS), file, compression="zstd", write_page_checksum=True)

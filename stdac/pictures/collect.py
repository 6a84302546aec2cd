"""A source as one array in memory, for training: its images, its labels, the names of its classes."""

import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.pictures.arrays import ArrayFile
from stdac.pictures.batches import Batch, Source, Unreadable
from stdac.pictures.child import Child
from stdac.pictures.decode import Reading, choose_reading, decode_each_safely
from stdac.pictures.folder import Folder
from stdac.pictures.hashes import find_flat
from stdac.pictures.pixels import Pixels
from stdac.pictures.pool import open_decoders
from stdac.pictures.sources import list_notes
from stdac.pictures.walk import describe_left_out
from stdac.words import count_noun

Size = tuple[int, int]

NUMBERS = {"False": 0, "True": 1}


class PictureSet(NamedTuple):
    """images: (N, C, H, W) uint8. labels: (N,) int64, None unless every image has one. class_names: may be empty.

    notes: sentences on what was left out, and on what can hardly be meant.
    """

    images: Pixels
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def collect_pictures(source: Source, size: Size | None = None, background: str = "black") -> PictureSet:
    """All images of a source that can be read, in its order, in their own size or resized to (height, width).

    RGB as soon as one of them is in colour. Labels that are numbers, of .npz and IDX files, stay what they are; others
    are the names of classes, which are sorted and numbered. background: see `stdac.pictures.colour.BACKGROUNDS`. Raises
    StdacError where no image can be read, or nobody knows how many cannot; for mixed sizes without `size`, and more
    images than fit into memory.
    """
    stack = _ImageStack(source)
    texts: list[str | None] = []
    tally = _Tally()
    with closing(_decode_batches(source, size, choose_reading(background))) as decoded:
        for batch, images in decoded:
            if isinstance(images, np.ndarray):
                texts += batch.label
                stack.add(images, _place_of(batch, 0))
                tally.count_flat(images)
                continue
            for i, image in enumerate(images):
                if isinstance(image, Unreadable):
                    given = batch.content[i]
                    if isinstance(given, Unreadable) and given.ends:
                        raise _refuse_image(batch, i, image.reason)
                    tally.count_broken(batch, i, image.reason)
                    continue
                texts.append(batch.label[i])
                stack.add(image[None], _place_of(batch, i))
                tally.count_flat(image[None])
    if not texts and tally.refusal is not None:
        raise tally.refusal
    unlabelled = texts.count(None)
    notes = [*list_notes(source), *tally.describe(source, background)]
    if 0 < unlabelled < len(texts):
        notes.append(f"{source.name} is read without labels: {unlabelled:,} of {len(texts):,} images have none")
    return PictureSet(stack.images(), *_number_labels(source, texts), tuple(notes))


def _decode_batches(
    source: Source, size: Size | None, reading: Reading
) -> Generator[tuple[Batch, Pixels | list[Pixels | Unreadable]], None, None]:
    """The batches of a source and their images, decoded in child processes."""

    def decode(child: Child, batch: Batch) -> tuple[Batch, Pixels | list[Pixels | Unreadable]]:
        return batch, decode_each_safely(child, batch, size, reading)

    with open_decoders("stdac.pictures.decode:decode_each") as pool:
        yield from pool.map(decode, source.batches(), 0, lambda batch: batch.nbytes)


class _Tally:
    """Counts the pictures of a source, those that cannot be read and those of one colour."""

    def __init__(self) -> None:
        self.read = self.broken = self.flat = 0
        self.first_broken = ""
        self.refusal: StdacError | None = None

    def count_flat(self, images: Pixels) -> None:
        """Count images (n, C, H, W) that could be read."""
        self.read += len(images)
        self.flat += int(find_flat(images).sum())

    def count_broken(self, batch: Batch, i: int, why: str) -> None:
        """Count one that could not be read."""
        self.broken += 1
        if self.refusal is None:
            self.refusal = _refuse_image(batch, i, why)
            self.first_broken = f"{_locate_image(batch, i)} ({why})"

    def describe(self, source: Source, background: str) -> tuple[str, ...]:
        """What was left out, and a warning of pictures of one colour, as sentences."""
        notes = []
        if isinstance(source, Folder) and (left_out := describe_left_out(source.survey.left_out)):
            notes.append(f"{source.name}: {left_out}")
        if self.broken:
            pictures = f"{self.broken:,} of {count_noun(self.read + self.broken, 'picture')} left out"
            notes.append(f"{pictures}{': ' if self.broken == 1 else ', the first: '}{self.first_broken}")
        if self.flat:
            notes.append(describe_flat(self.flat, self.read, source.name, background))
        return tuple(notes)


def describe_flat(flat: int, images: int, name: str, background: str) -> str:
    """A warning that pictures have one colour, with what often makes it."""
    text = f"{flat:,} of {count_noun(images, 'picture')} of {name} have nothing but one colour"
    if background == "auto":
        return text
    return f"{text}: what is drawn in {background} on transparency is seen after training with --background auto"


def _refuse_image(batch: Batch, i: int, why: str) -> StdacError:
    """The error for an image that cannot be read."""
    name = batch.source[i]
    if why.startswith(name):  # it tells the whole story already
        return StdacError(why)
    return StdacError(f"cannot read {_locate_image(batch, i)}: {why}; repair or remove it")


def _locate_image(batch: Batch, i: int) -> str:
    """The file that an image is, or is in."""
    in_archive = batch.index[i] > 0 or isinstance(batch.content[i], bytes)
    return f"{batch.source[i]}, {_place_of(batch, i)}" if in_archive else batch.source[i]


def _place_of(batch: Batch, i: int) -> str:
    """The name of an image within its source, in a few words: the file's, or its name or number in an archive."""
    if batch.member is not None:
        return batch.member[i]
    return Path(batch.source[i]).name if isinstance(batch.content[i], str) else f"image {batch.index[i]}"


class _ImageStack:
    """Images of one size, put one after another into a buffer that grows in place, as copies of it may not fit."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._data = bytearray()
        self._shape = (0, 0, 0)
        self._first = ""

    def add(self, images: Pixels, place: str) -> None:
        """Add (n, C, H, W) uint8, the first of which is at `place`. Raises StdacError where the size is another one."""
        channels, height, width = images.shape[1:]
        try:
            if not self._first:
                self._first, self._shape = place, (channels, height, width)
                self._check_memory(images[0].nbytes)
            if (height, width) != self._shape[1:]:
                raise self._mixed_sizes(place, height, width)
            if channels > self._shape[0]:
                self._data = bytearray(np.repeat(self.images(), channels, 1).data)
                self._shape = (channels, height, width)
            elif channels < self._shape[0]:
                images = np.repeat(images, self._shape[0], 1)
            self._data += np.ascontiguousarray(images).reshape(-1).data
        except MemoryError as error:
            raise StdacError(
                f"the images of {self._source.name} take more memory than there is: pass a smaller image size "
                "(--image-size 28), or leave some out"
            ) from error

    def images(self) -> Pixels:
        """All of them, (N, C, H, W) uint8."""
        return np.frombuffer(self._data, np.uint8).reshape(-1, *self._shape)

    def _check_memory(self, nbytes: int) -> None:
        """Raise MemoryError where the system would not give what so many images of that many bytes take."""
        wanted = (self._source.count() or 1) * nbytes
        if wanted > sys.maxsize:
            raise MemoryError
        np.empty(wanted, np.uint8)

    def _mixed_sizes(self, place: str, height: int, width: int) -> StdacError:
        return StdacError(
            f"{self._source.name} holds images of mixed sizes, {self._first} has {self._shape[1]}x{self._shape[2]} "
            f"pixels and {place} {height}x{width}: pass an image size to bring all to one (--image-size 28)"
        )


def _number_labels(source: Source, texts: list[str | None]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """(N,) int64 and the names of the classes, from labels as text; None and no names unless every image has one."""
    labels = [text for text in texts if text is not None]
    if len(labels) < len(texts):
        return None, ()
    if isinstance(source, ArrayFile) and source.has_numbers():
        return np.array([int(NUMBERS.get(text, text)) for text in labels]).astype(np.int64), ()
    names = sorted(set(labels))
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[label] for label in labels], dtype=np.int64), tuple(names)

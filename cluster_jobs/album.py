"""A person's pictures, before they are sorted: how many, what they look like, and which trials suit them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stdac.errors import StdacError
from stdac.words import count_noun

FEW = 200  # different pictures: fewer teach a network nothing that their descriptors do not tell
SEEDS = 3  # of each family of members: fewer have no agreement to speak of
MOST_STUDIED = 20  # clusters that are tried where their number is not given
DARK = 0.04  # mean of the pixels, in [0, 1], below which a picture is nearly black
GRAY = 0.02  # mean difference of the channels, in [0, 1], below which a picture has no colour to speak of
NETWORK = {"width": 0.25, "macro_batch": 500, "passes": 2, "lr": 3e-4}
"""What the networks are: narrow, and learning three times as fast as the paper's, which see 20 times as many images."""

SEEN = 64_000  # images that a network sees at least; on 2,530 letters seeds stood at .87 after 24,000
LEAST_EPOCHS = 3
TRIED, TRIED_EPOCHS = 2000, 3  # pictures that the short trials are trained on, and how often they go over them


class Album(NamedTuple):
    """Pictures at the size that they are trained at. images: (N, C, H, W) uint8. sizes: (height, width) as they were,
    of a sample. copies: those that equal an earlier one. flat: of one colour. dark: nearly black. colourful: in colour.
    notes: sentences on what was left out."""

    images: NDArray[np.uint8]
    sizes: Sequence[tuple[int, int]]
    copies: int
    flat: int
    dark: int
    colourful: int
    notes: Sequence[str]

    @property
    def different(self) -> int:
        """The number of different pictures."""
        return len(self.images) - self.copies

    @property
    def in_colour(self) -> bool:
        """Whether most of them are in colour."""
        return 2 * self.colourful > len(self.images)

    def describe(self) -> str:
        """What there is, in a sentence."""
        shown = [f"{width}x{height}" for height, width in sorted(self.sizes)]
        size = f" of {shown[0]}{f' to {shown[-1]}' if len(shown) > 1 else ''} pixels" if shown else ""
        parts = [f"{count_noun(len(self.images), 'picture')}{size}, {'in colour' if self.in_colour else 'gray'}"]
        parts += [f"{count_noun(self.copies, 'copy', 'copies')} of others"] if self.copies else []
        parts += [f"{self.flat:,} of one colour"] if self.flat else []
        parts += [f"{self.dark:,} nearly black"] if self.dark else []
        return ", ".join(parts)


def look_at(images: NDArray[np.uint8], sizes: Sequence[tuple[int, int]], notes: Sequence[str] = ()) -> Album:
    """Count what an album's pictures (N, C, H, W) uint8 are like."""
    from stdac.pictures.hashes import find_flat, hash_content

    different = {hash_content(np.ascontiguousarray(image).data) for image in images}
    parts = np.array_split(images, max(1, len(images) // 1000))
    means = np.concatenate([part.mean((1, 2, 3)) / 255 for part in parts])
    spread = [part.max(1).astype(np.int16) - part.min(1) for part in parts]  # of the channels, (n, H, W)
    colour = np.concatenate([part.mean((1, 2)) / 255 for part in spread])
    return Album(
        images,
        sizes,
        len(images) - len(different),
        int(find_flat(images).sum()),
        int((means < DARK).sum()),
        int((colour > GRAY).sum()),
        notes,
    )


def check_clusters(album: Album, k: int | None) -> None:
    """Raise StdacError where there is nothing to sort, or less than K clusters need."""
    if album.different < 2:
        raise StdacError(f"all {count_noun(len(album.images), 'picture')} are the same: there is nothing to sort")
    if k is not None and k >= album.different:
        raise StdacError(f"got --clusters {k} for {album.different} different pictures: expected fewer than there are")


def choose_study(album: Album) -> list[str]:
    """The options of the study of K that suits an album. Raises StdacError where there are too few pictures for one."""
    most = min(MOST_STUDIED, album.different - 1)
    if most <= 2:
        raise StdacError(f"{album.different} different pictures are too few to suggest K: name it with --clusters")
    return ["--k", f"2..{most}", *(["--method", "hog-kmeans"] if album.different < FEW else [])]


class Plan(NamedTuple):
    """What is run. members: the blocks of a grid whose trials vote. lines: why, a sentence each."""

    members: Sequence[dict[str, Any]]
    lines: Sequence[str]


def count_epochs(album: Album) -> int:
    """Epochs in which a network sees SEEN images."""
    return max(LEAST_EPOCHS, math.ceil(SEEN / (album.different * int(NETWORK["passes"]))))


def choose_members(album: Album, *, epochs: int, stn: int, layout: bool) -> Plan:
    """The trials that vote on an album's clusters. epochs, stn: of the networks. layout: whether UMAP is installed."""
    descriptors: list[dict[str, Any]] = [{"method": "hog-kmeans"}]
    if album.in_colour:
        descriptors.append({"method": "colour-kmeans"})
    if album.different < FEW:
        few = count_noun(album.different, "different picture")
        told = "shapes and colours" if album.in_colour else "shapes"
        line = f"{few}, too few to train a network on: k-means on pixels and k-means on {told} vote"
        return Plan([{"method": "pca-kmeans", "params": {"components": 0.9}}, *descriptors], [line])
    network: dict[str, Any] = {"method": "st-dac", "epochs": epochs, "params": {"stn": stn, **NETWORK}}
    lines = [f"{SEEDS} networks with {stn} spatial transformers, trained for {count_noun(epochs, 'epoch')} each, vote"]
    if not layout:
        lines.append("without umap-learn, which makes them better: pip install 'stdac[umap]'")
        return Plan([{**network, "seeds": SEEDS}, *descriptors], lines)
    lines.append("their embeddings are laid out by nearest neighbours (UMAP), and the pixels, too")
    layouts: list[dict[str, Any]] = [{"method": "umap-gmm", "seeds": SEEDS, "params": {"on": network}}]
    return Plan([*layouts, {"method": "umap-gmm"}, *descriptors], lines)


def choose_student(album: Album) -> dict[str, Any]:
    """The parameters of the student: it sees as many augmented images as there is something to learn from."""
    return {"images": max(1000, min(20_000, 20 * album.different))}


def choose_stn(agreements: dict[int, float]) -> int:
    """The number of spatial transformers whose short trials agree best, the smallest of equal ones."""
    return max(sorted(agreements), key=lambda stn: round(agreements[stn], 3))

"""Data sets by name or path, as uint8 arrays in memory."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdac.errors import NotHere, StdacError
from stdac.pictures.batches import BATCH, Batch, Source, end_with_reason
from stdac.pictures.collect import collect_pictures
from stdac.pictures.folder import Picture
from stdac.pictures.formats import SUFFIXES
from stdac.pictures.pixels import Pixels, resize, to_pixels
from stdac.pictures.sources import open_path, open_source
from stdac.text import escape_name, find_path
from stdac.words import count_noun, escape_line, list_some

# torchvision's class, and whether its splits are chosen by train=True/False; all have 10 classes.
TORCHVISION: dict[str, str] = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "qmnist": "QMNIST",
    "usps": "USPS",
    "cifar10": "CIFAR10",
}
NAMES = ("digits", *TORCHVISION)
CLASSES = 10
"""The number of classes of every data set that has a name."""

SUBSET_SEED = 20190727

IN_MEMORY = "array"
"""What the data set of a trial is called whose images came as an array."""

EXPECTED = "a folder of images, or an .npz, .npy, IDX, Parquet or tar file"


@dataclass(frozen=True)
class Dataset:
    """images: (N, C, H, W) uint8. labels: (N,) int64 or None, for scoring only. class_names: may be empty.

    notes: sentences for whoever loads it: what was left out, and what can hardly be meant.
    """

    images: Pixels
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def scored_against(self) -> str:
        """The classes that clusterings are scored against, in a sentence; "" where there are no labels."""
        if self.labels is None:
            return ""
        found = np.unique(self.labels).tolist()
        names = [self.class_names[k] if 0 <= k < len(self.class_names) else str(k) for k in found]
        return f"scored against {count_noun(len(names), 'class', 'classes')}: {list_some(names)}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images and their shape: a trial resumes only on the images that it began with."""
        digest = hashlib.sha256(str(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


def resolve_name(text: str, base: Path | None = None) -> str:
    """What a trial's data set is called for good: its name, or its path from the root, links and ~ resolved.

    base: the folder that a relative path starts in; the current one if not given. However it is spelled, and wherever
    one stands, a folder of pictures is one data set.

    >>> resolve_name("mnist"), resolve_name("/data/../data/photos/")
    ('mnist', '/data/photos')
    """
    if text in NAMES or text == IN_MEMORY:
        return text
    path = os.path.join(base or "", os.path.expanduser(text))  # noqa: PTH111,PTH118  # Path.expanduser raises for ~$x
    path = find_path(path)
    try:
        return escape_name(os.path.realpath(path))
    except ValueError:  # a name that the locale's encoding does not have
        return escape_name(os.path.abspath(path))  # noqa: PTH100


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    background: str = "black",
) -> Dataset:
    """Load a data set by name (NAMES) or path (a folder of images, .npz, .npy, IDX, Parquet, tar).

    data_dir: where torchvision keeps its downloads; default $STDAC_DATA, else ~/.cache/stdac. image_size: resize to
    that side. limit: a fixed random subset of that many images. background: what the transparency of pictures is laid
    on, of `stdac.pictures.colour.BACKGROUNDS`. Raises StdacError for what cannot be loaded.

    >>> load("digits", limit=100).images.shape
    (100, 1, 28, 28)
    """
    size = None if image_size is None else (image_size, image_size)
    dataset = _load_all(name, data_dir or find_data_dir(), size, background)
    if size is not None:
        dataset = replace(dataset, images=resize(dataset.images, size))
    if limit is not None and limit < len(dataset.images):
        dataset = draw_subset(dataset, limit)
    return dataset


def _load_all(name: str, data_dir: Path, size: tuple[int, int] | None, background: str) -> Dataset:
    """The whole data set; that of a path is resized already, as its pictures may differ in size."""
    if name == "digits":
        return load_digits()
    if name in TORCHVISION:
        return _load_torchvision(name, data_dir)
    return Dataset(*collect_pictures(open_data(name), size, background))


def open_data(name: str) -> Source:
    """The pictures at a path, none of which is read yet. Raises NotHere where nothing is there, StdacError for what
    holds no pictures."""
    path = find_path(os.path.expanduser(name))  # noqa: PTH111  # Path.expanduser raises for ~$x.png
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it cannot be a path"
        raise NotHere(
            f"there is no data set {escape_line(name)} here ({reason}): expected one of {', '.join(NAMES)}, "
            f"or the path of {EXPECTED}"
        ) from error
    source = open_path(path, EXPECTED)
    if isinstance(source, Picture):
        raise _refuse_picture(path)
    return source


def _refuse_picture(path: str) -> StdacError:
    """The error for a file that is a picture, or nothing that is known."""
    if Path(path).suffix.lower() in SUFFIXES:
        return StdacError(f"{path} is one picture, expected a data set of many: name the folder that it lies in")
    try:
        with open(path, "rb") as file:
            head = file.read(4).hex() or "none"
    except OSError as error:
        return StdacError(f"cannot read {path}: {error.strerror}")
    return StdacError(
        f"{path} is not an IDX file, nor one of another kind (its first bytes are {head}): expected {EXPECTED}"
    )


def open_input(text: str) -> Source:
    """What is to be sorted: the name of a data set, or what `stdac.pictures.sources.open_source` takes."""
    return open_source(text, {name: NamedSource(name) for name in NAMES})


@dataclass(frozen=True)
class NamedSource:
    """A data set by name, loaded whole."""

    name: str

    def count(self) -> None:
        return None

    def batches(self) -> Iterator[Batch]:
        return end_with_reason(self._batches(), self.name)

    def _batches(self) -> Iterator[Batch]:
        try:
            dataset = load(self.name)
        except ImportError as error:
            raise StdacError(
                f"this data set needs {error.name}, which is not installed: pip install 'stdac[train]'"
            ) from error
        names = dict(enumerate(dataset.class_names))
        for start in range(0, len(dataset.images), BATCH):
            images = dataset.images[start : start + BATCH]
            index = np.arange(start, start + len(images), dtype=np.int64)
            label: list[str | None] = [None] * len(images)
            if dataset.labels is not None:
                label = [names.get(k, str(k)) for k in dataset.labels[index].tolist()]
            yield Batch([self.name] * len(images), index, images, label)


def find_data_dir() -> Path:
    """$STDAC_DATA, else ~/.cache/stdac."""
    return Path(os.environ.get("STDAC_DATA") or Path.home() / ".cache" / "stdac")


def draw_subset(dataset: Dataset, n: int) -> Dataset:
    """A random subset of n images, the same for every seed of a trial, in the order of the set."""
    index = np.sort(np.random.default_rng(SUBSET_SEED).permutation(len(dataset.images))[:n])
    labels = None if dataset.labels is None else dataset.labels[index]
    return replace(dataset, images=dataset.images[index], labels=labels)


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits: 8x8 with 17 gray levels, upsampled to 20x20 in a 28x28 frame as MNIST's.

    The frame matters: a spatial transformer that starts by zooming in would cut into digits that fill the picture.
    """
    from sklearn.datasets import load_digits as bundled

    digits = bundled()
    small = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    images = np.pad(resize(small, (20, 20)), ((0, 0), (0, 0), (4, 4), (4, 4)))
    return Dataset(images, digits.target.astype(np.int64), tuple("0123456789"))


def _load_torchvision(name: str, data_dir: Path) -> Dataset:
    """Train and test part of a torchvision data set, in that order; downloaded where they are not there yet."""
    build = getattr(import_torchvision("datasets"), TORCHVISION[name])
    parts = [fetch(build, name, data_dir, train) for train in (True, False)]
    images = np.concatenate([to_pixels(np.asarray(part.data), name) for part in parts])
    labels = np.concatenate([np.asarray(part.targets).reshape(len(part.data), -1)[:, 0] for part in parts])
    names = tuple(getattr(parts[0], "classes", ()))
    return Dataset(images, labels.astype(np.int64), names)


def fetch(build: Callable[..., Any], name: str, data_dir: Path, train: bool) -> Any:
    """One part of a torchvision data set, from the disk or else from the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return build(str(data_dir), train=train)
        except RuntimeError:
            pass
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            return build(str(data_dir), train=train, download=True)
        except (RuntimeError, OSError) as error:
            raise NotHere(
                f"{name} is not in {data_dir} and could not be downloaded ({str(error).splitlines()[0]}): "
                "set STDAC_DATA or --data-dir to a folder in torchvision's layout"
            ) from error


_LIBRARIES: list[Any] = []


def import_torchvision(part: str) -> Any:
    """torchvision.datasets or another part of it, also where torchvision was built for CUDA and torch was not.

    Beside a CPU-only torch its C++ library does not load and the import dies for want of two operators' schemas; the
    data sets and models need neither. Declaring the schemas first lets the import pass. Nothing else imports
    torchvision.
    """
    from importlib import import_module

    import torch

    try:
        return import_module(f"torchvision.{part}")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # a collected library takes its schemas along
        return import_module(f"torchvision.{part}")
    except ImportError as error:
        raise NotHere("this comes through torchvision, which is not installed: pip install 'stdac[train]'") from error

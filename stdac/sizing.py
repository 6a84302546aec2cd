"""How large a training on pictures of one's own is where nobody said: epochs by images seen, small pictures, a narrow
network. The data sets of the literature keep what the papers have.

`survey_pictures` looks at what is there without decoding it, `fill_sizes` decides and says why. Neither the machine nor
the time of day has a part in it: the same command on the same pictures is the same trial everywhere.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from stdac.data import NAMES, open_data
from stdac.methods import METHODS, list_asked, resolve_params
from stdac.methods.method import Method
from stdac.pictures.batches import Batch, Source
from stdac.pictures.child import Child
from stdac.pictures.decode import measure_each_safely
from stdac.presets import NATIVE, PRESETS
from stdac.words import count_noun

SIDE = 28  # pixels: what the networks were made for and measured on
LARGEST_SIDE = 32  # up to it pictures of one size stay as they are
MOST_EPOCHS = 400  # below 320 pictures fewer images are seen: the same few teach little more
BATCHES, OF_EACH = 16, 16  # whose sizes are looked at


class Survey(NamedTuple):
    """The pictures of a data set. images: their number, with those that cannot be read. sizes: (height, width), of the
    first ones, by sample."""

    images: int
    sizes: frozenset[tuple[int, int]]


def is_own(dataset: str) -> bool:
    """Whether a data set is one's own, a path."""
    return dataset not in NAMES


def survey_pictures(dataset: str) -> Survey:
    """Count the pictures at a path, and look at the sizes of some. Raises as `open_data` does."""
    return survey_source(open_data(dataset))


def survey_source(source: Source) -> Survey:
    """Count the pictures of a source, and look at the sizes of some."""
    images, sizes = 0, set()
    with Child("stdac.pictures.decode:measure_each") as child:
        for number, batch in enumerate(source.batches()):
            images += len(batch)
            if number < BATCHES:
                sizes.update(measure_each_safely(child, _draw_evenly(batch)))
    return Survey(images, frozenset(sizes))


def _draw_evenly(batch: Batch) -> Batch:
    """OF_EACH images of a batch at most."""
    return batch.select(np.unique(np.linspace(0, len(batch) - 1, OF_EACH).round().astype(np.int64)))


def fill_preset(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification of a trial with what it leaves out, or has None in, from a preset; of the parameters those that
    its method has."""
    preset, kind = PRESETS[name], METHODS[spec["method"]].params
    known = {f.name for f in fields(kind)}
    params = {key: value for key, value in preset.params.items() if key in known}
    given = {key: value for key, value in spec.items() if value is not None}
    return {**spec, **preset.spec, **given, "params": params | dict(spec.get("params") or {})}


def choose_epochs(method: Method, images: int, passes: int = 1, share: float = 1.0) -> int:
    """Epochs in which enough images are seen: Method.images_seen in all, or a share of it, at least the method's own
    number, at most MOST_EPOCHS. passes: over the images in an epoch.

    >>> choose_epochs(METHODS["st-dac"], 3200), choose_epochs(METHODS["st-dac"], 70_000)
    (40, 10)
    """
    if not method.images_seen:
        return method.epochs
    wanted = math.ceil(share * method.images_seen / max(1, images * passes))
    return max(method.epochs, min(MOST_EPOCHS, wanted))


def choose_side(found: Survey) -> int | None:
    """The side in pixels that pictures are resized to; None for those that stay as they are."""
    is_small = len(found.sizes) == 1 and max(map(max, found.sizes)) <= LARGEST_SIDE
    return None if is_small or not found.sizes else SIDE


def fill_sizes(spec: Mapping[str, Any], found: Survey) -> tuple[dict[str, Any], list[str]]:
    """The specification of a trial with what it leaves out chosen by its pictures: image_size, epochs, and the method's
    parameters `on_pictures`; and a sentence on each choice. An image_size of NATIVE keeps pictures as they are.
    """
    method, given = METHODS[spec.get("method", "st-dac")], dict(spec.get("params") or {})
    lines = []
    side = spec.get("image_size")
    if side is None and method.asks is not None:
        asked = list_asked(method, resolve_params(method.params, given).resolved(spec["dataset"]))["image_size"]
        lines.append(
            f"pictures are resized to {asked}x{asked}, as the backbone takes them; --image-size N sets another side"
        )
    elif side is None:
        side = choose_side(found)
        lines += [explain_side(found, side)] if side else []
    narrow = {name: value for name, value in method.on_pictures.items() if name not in given}
    lines += [
        f"{name} {value:g}, which loses little and is faster; --set {name}=1 for all of it"
        for name, value in narrow.items()
    ]
    epochs = spec.get("epochs")
    if epochs is None and method.epochs:
        images = min(found.images, spec.get("limit") or found.images)
        epochs = choose_epochs(method, images, count_passes(method, given))
        lines += [explain_epochs(method, images, epochs)] if method.images_seen else []
    filled = {"params": given | narrow, "epochs": epochs, "image_size": None if side == NATIVE else side}
    return {**spec, **filled}, lines


def count_passes(method: Method, params: Mapping[str, Any]) -> int:
    """How often an epoch of a method sees each image."""
    return int(params.get("passes", getattr(method.params(), "passes", 1)))


def explain_side(found: Survey, side: int) -> str:
    """Why pictures are resized, in a sentence."""
    names = [f"{width}x{height}" for height, width in sorted(found.sizes)]
    of_one_size = len(names) == 1
    what = names[0] if of_one_size else f"{names[0]} to {names[-1]}"
    others = "N sets another side" + (", native keeps them" if of_one_size else "")
    return f"pictures of {what} pixels are resized to {side}x{side}; --image-size {others}"


def explain_epochs(method: Method, images: int, epochs: int) -> str:
    """Why so many epochs, in a sentence."""
    family = method.title.partition(",")[0]
    why = f"as {family} needs to see about {method.images_seen:,}"
    if epochs == method.epochs:
        why = f"the number of {family} itself"
    elif epochs == MOST_EPOCHS:
        why = f"the most that are chosen, although {family} needs to see about {method.images_seen:,}"
    return f"{count_noun(images, 'picture')}: {count_noun(epochs, 'epoch')}, {why}; --epochs N sets another number"

"""How .npz files name their images and labels: what NumPy's users, Keras and MedMNIST write."""

from collections.abc import Sequence

IMAGE_STEMS = ("images", "image", "imgs", "x", "data")
LABEL_STEMS = ("labels", "label", "y", "targets", "target", "classes")
SPLITS = (("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing"))
"""What parts of a data set are called, in the order in which they are put together."""

EXPECTED = "an array named images (or x), or x_train and x_test, or train_images and test_images"


def choose_arrays(names: Sequence[str]) -> list[tuple[str, str | None]]:
    """The arrays of images and of their labels, None for none, a pair for each part; none where no name tells.

    >>> choose_arrays(["x_train", "y_train", "x_test", "y_test"])
    [('x_train', 'y_train'), ('x_test', 'y_test')]
    """
    whole = _choose_pair(names, "")
    if whole is not None:
        return [whole]
    pairs = [_choose_pair(names, split) for splits in SPLITS for split in splits]
    parts = [pair for pair in pairs if pair is not None]
    alone: list[tuple[str, str | None]] = (
        [(name, None) for name in names if name.lower() not in LABEL_STEMS] if len(names) == 1 else []
    )
    return parts or alone


def _choose_pair(names: Sequence[str], split: str) -> tuple[str, str | None] | None:
    """The arrays of a part of the data set; of all of it where split is ""."""
    image, label = (_find_name(names, split, stems) for stems in (IMAGE_STEMS, LABEL_STEMS))
    return None if image is None else (image, label)


def _find_name(names: Sequence[str], split: str, stems: Sequence[str]) -> str | None:
    """The first array whose name is a stem, before or after the split; small and capital letters are the same."""
    wanted = [text for stem in stems for text in ((f"{stem}_{split}", f"{split}_{stem}") if split else (stem,))]
    return next((name for text in wanted for name in names if name.lower() == text), None)

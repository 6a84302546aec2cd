"""What an ONNX file of ours says about itself, in its metadata_props: written by the export, read by the clusterer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stdac.errors import StdacError
from stdac.pictures.colour import BACKGROUNDS

COLOUR_MODES = {1: "L", 3: "RGB"}
PRECISIONS = ("fp32", "fp16", "int8")


class ModelInfo(NamedTuple):
    """The metadata of an ONNX file.

    trial: the Trial as JSON values, a data set's local path cut to its last part. k: number of clusters, 0 of an
    embedding model, which has none. colour_mode:
    "L" or "RGB". cluster_names: K names, or none. scores: the trial's deployed scores by metric. opset: of the graph.
    precision: one of PRECISIONS. embedding: the dimension D of the output `embedding`, 0 where the graph has none.
    model_id: 16 hex digits of a hash of the weights in model.pt, the same in every precision. background:
    what the transparency of pictures was laid on in training, of `stdac.pictures.colour.BACKGROUNDS`. Files written
    before these four existed are fp32, without an embedding, on black, and have the trial's id in place of the model's.
    """

    stdac_version: str
    trial_id: str
    trial: Mapping[str, Any]
    k: int
    height: int
    width: int
    colour_mode: str
    cluster_names: tuple[str, ...]
    dataset: str
    scores: Mapping[str, float | None]
    opset: int
    precision: str = "fp32"
    embedding: int = 0
    model_id: str = ""
    background: str = "black"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the model takes."""
        return (1 if self.colour_mode == "L" else 3, self.height, self.width)

    def to_props(self) -> dict[str, str]:
        """The metadata as text: strings and numbers plain, everything else as JSON."""
        return {
            key: str(value) if isinstance(value, str | int) else to_json(value) for key, value in self._asdict().items()
        }


def to_json(value: Any) -> str:
    """Sorted JSON: equal models give equal files."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def parse_props(path: Path, props: Mapping[str, str]) -> ModelInfo:
    """The metadata from its text. Raises StdacError for a file that stdac did not write, or with damaged metadata."""
    missing = [key for key in ModelInfo._fields if key not in props and key not in ModelInfo._field_defaults]
    if missing:
        raise StdacError(
            f"{path} is an ONNX file, but not one of stdac (it has no {missing[0]} in its metadata): "
            "make one with stdac export model.pt model.onnx"
        )
    try:
        values: dict[str, Any] = ModelInfo._field_defaults | {"model_id": props["trial_id"]} | dict(props)
        values |= {key: int(values[key]) for key in ("k", "height", "width", "opset", "embedding")}
        values |= {key: json.loads(props[key]) for key in ("trial", "cluster_names", "scores")}
        info = ModelInfo(**{key: values[key] for key in ModelInfo._fields})
        info = info._replace(cluster_names=tuple(map(str, info.cluster_names)))
        if info.colour_mode not in COLOUR_MODES.values() or info.precision not in PRECISIONS:
            raise ValueError("colour mode or precision")
        if info.background not in BACKGROUNDS:
            raise ValueError("background")
        if (
            len(info.cluster_names) not in (0, info.k)
            or info.embedding < 0
            or min(info.k or info.embedding, *info.shape) < 1
        ):
            raise ValueError("cluster names or sizes")
        "".join((*info.cluster_names, info.model_id, info.dataset)).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise StdacError(f"the metadata of {path} is damaged: export the model again with stdac export") from error
    return info

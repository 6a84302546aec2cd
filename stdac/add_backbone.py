"""A backbone put into the user's folder: from an ONNX file and a card, or from torchvision's models."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stdac.backbones import Card, keep, make_card
from stdac.compiling import take_first_line
from stdac.data import import_torchvision
from stdac.errors import NotHere, StdacError
from stdac.onnx_network import OnnxNetwork, Outputs
from stdac.torch_state import borrow_generators, fix_state

TORCHVISION = "torchvision:"
OPSET = 18
TOLERANCE = 1e-3  # of the largest feature, between torch and onnxruntime
IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}  # of 0 to 255
SIDE = 224


@fix_state()
def add(name: str, spec: str, values: Mapping[str, Any]) -> tuple[Card, list[str]]:
    """Keep a backbone under a name: its card, and sentences on it.

    spec: the path of an ONNX file, or torchvision:MODEL[@WEIGHTS]. values: of the card, in place of what is known of
    the model. Raises StdacError for a file, card or model that does not do.
    """
    notes: list[str] = []
    if spec.startswith(TORCHVISION):
        content, known, notes = convert_torchvision(spec.removeprefix(TORCHVISION), values.get("size"))
    else:
        content, known = read_model(Path(spec)), {"source": Path(spec).name}
    digest = hashlib.sha256(content).hexdigest()
    card = make_card({**known, **values, "sha256": digest}, f"of {name}")
    check(content, card)
    return keep(name, content, card), notes


def read_model(path: Path) -> bytes:
    """The bytes of an ONNX file. Raises StdacError for what cannot be one: nothing is ever unpickled."""
    if path.suffix != ".onnx":
        raise StdacError(f"got {path} for a backbone, expected FILE.onnx or torchvision:MODEL[@WEIGHTS]")
    try:
        return path.read_bytes()
    except OSError as error:
        raise StdacError(f"cannot read {path} ({error.strerror}): expected an ONNX file") from error


@torch.no_grad()
def check(content: bytes, card: Card) -> None:
    """Raise StdacError where a backbone does not run, gives no features, or others than onnxruntime computes."""
    network = OnnxNetwork()
    network.open(content, Outputs(card.features, card.map, card.classifier))
    x = np.random.default_rng(0).standard_normal((2, 3, card.size, card.size), np.float32)
    features, map_ = network(torch.from_numpy(x))
    if map_ is not None and (map_.ndim != 4 or map_.shape[1] != features.shape[1]):
        raise StdacError(
            f"the map {card.map} of the backbone is {tuple(map_.shape)}, expected (N, {features.shape[1]}, h, w), "
            "whose mean the features are: leave it out"
        )
    weight = network.class_weights
    if weight is not None and (weight.ndim != 2 or features.shape[1] not in weight.shape):
        raise StdacError(
            f"the classifier {card.classifier} of the backbone has shape {tuple(weight.shape)}, expected (classes, "
            f"{features.shape[1]}): leave it out"
        )
    expected = run_onnxruntime(content, card.features, x).reshape(features.shape)
    difference = np.abs(features.numpy() - expected).max() / max(1.0, float(np.abs(expected).max()))
    if not difference <= TOLERANCE:
        raise StdacError(
            f"torch and onnxruntime disagree on the features of the backbone by {difference:.2g} of the largest: "
            "please report this network"
        )


def run_onnxruntime(content: bytes, output: str, x: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """The value of any node of an ONNX file for x (N, 3, H, W), an image at a time where it takes no more."""
    import onnx
    import onnxruntime

    proto = onnx.load_from_string(content)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        return session.run(None, {session.get_inputs()[0].name: x})[0]
    except Exception as error:  # onnxruntime's own kinds, which share no other base
        raise StdacError(
            f"onnxruntime cannot run the backbone on images of {x.shape[-1]}x{x.shape[-1]} pixels "
            f"({take_first_line(error)}): give the size that it takes (--size)"
        ) from error


class Headless(nn.Module):
    """A classifier without its last dense layer: x (B, 3, H, W) -> the features (B, D), and the last map."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        layers = dict(model.named_modules())
        heads = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        if not heads:
            raise StdacError("the model has no dense layer at its end, which classifies: take another one")
        *path, last = heads[-1].split(".")
        self.head: nn.Linear = layers[heads[-1]]
        setattr(layers[".".join(path)], last, nn.Identity())
        self.model, self.seen = model, list[Tensor]()
        pools = [layer for layer in layers.values() if isinstance(layer, nn.AdaptiveAvgPool2d)]
        if pools:
            pools[-1].register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0]))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.seen.clear()
        features = self.model(x).flatten(1)
        return (features, self.seen[-1]) if self.seen else (features,)

    @torch.no_grad()
    def has_map(self) -> bool:
        """Whether the features are the mean of the map."""
        features, *maps = self.eval()(torch.rand(2, 3, 64, 64))
        return bool(
            maps and maps[0].shape[1] == features.shape[1] and torch.allclose(maps[0].mean((2, 3)), features, atol=1e-4)
        )


def convert_torchvision(text: str, size: int | None = None) -> tuple[bytes, dict[str, Any], list[str]]:
    """MODEL[@WEIGHTS] of torchvision as an ONNX file for images of that size, else its own; what a card can say of it,
    and sentences."""
    name, at, chosen = text.partition("@")
    models = import_torchvision("models")
    if not re.fullmatch(r"\w+", name) or name not in models.list_models(module=models):
        raise StdacError(
            f"torchvision has no classifier {name!r}: expected one of {', '.join(models.list_models(models))}"
        )
    notes: list[str] = []
    known: dict[str, Any] = {"size": SIDE, **IMAGENET, "licence": "BSD-3-Clause (torchvision)"}
    with borrow_generators():
        torch.manual_seed(0)
        model = models.get_model(name)
    if at:
        weights = find_weights(models, name, chosen)
        load_weights(model, weights)
        known |= read_transforms(weights.transforms())
    else:
        notes.append(
            f"the weights of {name} are random, as none are named: {TORCHVISION}{name}@DEFAULT for trained ones"
        )
    import torchvision

    known |= {"source": f"{TORCHVISION}{name}{at}{chosen}", "version": str(torchvision.__version__)}
    headless = Headless(model).eval()
    has_map = headless.has_map()
    known |= {} if size is None else {"size": size}
    content = convert(headless, known["size"], ["features", "map"] if headless.seen else ["features"])
    known |= {"features": "features"} | ({"map": "map", "classifier": "classifier"} if has_map else {})
    return content, known, notes


def find_weights(models: Any, name: str, chosen: str) -> Any:
    """torchvision's weights of that name. Raises StdacError for one that it has not."""
    known = models.get_model_weights(name)
    try:
        return known[chosen]
    except KeyError as error:
        raise StdacError(f"{name} has no weights {chosen!r}: expected one of {', '.join(known.__members__)}") from error


def load_weights(model: nn.Module, weights: Any) -> None:
    """Load trained weights, downloaded if need be; nothing is unpickled. Raises NotHere where they cannot be had."""
    try:
        model.load_state_dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise NotHere(
            f"the weights {weights} cannot be downloaded ({take_first_line(error)}): put {weights.url} into torch's hub"
        ) from error


def read_transforms(transforms: Any) -> dict[str, Any]:
    """What torchvision's own transforms say: size, mean and std."""
    return {
        "size": int(transforms.crop_size[0]),
        "mean": [255 * v for v in transforms.mean],
        "std": [255 * v for v in transforms.std],
    }


def convert(model: Headless, size: int, outputs: list[str]) -> bytes:
    """The network as an ONNX file with any batch size, and the head's weights beside it as `classifier`."""
    import logging
    import warnings
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    import onnx

    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (torch.zeros(2, 3, size, size),),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=["images"],
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # whatever part of the exporter gives up
        raise StdacError(
            f"the network could not be converted to ONNX ({take_first_line(error)}): take another one"
        ) from error
    finally:
        logging.disable(disabled)
    assert program is not None
    proto = program.model_proto
    weight = onnx.numpy_helper.from_array(model.head.weight.detach().numpy(), "classifier")
    proto.graph.initializer.append(weight)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content

"""ClustPy's side of `benchmarks.methods`: the same network, data and mini-batches in ClustPy's own training loops."""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LAYERS = [784, 500, 500, 2000, 10]
CPU = torch.device("cpu")
K = 10
ADAM = torch.optim.Adam
NAMES = {"DEC": "DEC", "IDEC": "IDEC", "DCN": "DCN", "VaDE": "VaDE", "DeepKMeansP": "DKM"}


def import_clustpy(folder: Path | None) -> Any:
    """`clustpy.deep`, from a folder where one is given.

    It imports torchvision for transforms and weights that are not used here. In place of one that was built for another
    torch, which cannot be imported, there is nothing but the names.
    """
    if folder is not None:
        sys.path.append(str(folder))
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.models", "torchvision.models._api"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.models._api"].__dict__.update(Weights=object, WeightsEnum=object)
    return importlib.import_module("clustpy.deep")


def make_network(deep: Any, variational: bool, seed: int) -> Any:
    """The untrained network, with ReLU, where ClustPy's default has a slope."""
    networks = importlib.import_module("clustpy.deep.neural_networks")
    kind = deep.vade._VaDE_VAE if variational else networks.FeedforwardAutoencoder
    return kind(LAYERS, activation_fn=torch.nn.ReLU, random_state=np.random.RandomState(seed))


def prepare_epoch(deep: Any, method: str, images: Tensor, batch: int) -> Callable[[], object]:
    """A function that trains an epoch: of `method`, "pretrain" or one of NAMES. images: (N, C, H, W) uint8."""
    utils, data = (importlib.import_module(f"clustpy.deep.{name}") for name in ("_utils", "_data_utils"))
    x = (images.flatten(1).float() / 255).numpy()
    loader = data.get_dataloader(x, batch, True)
    network, error = make_network(deep, method == "VaDE", 0), utils.mean_squared_error
    if method == "pretrain":
        return lambda: network.fit(n_epochs=1, optimizer_params={"lr": 1e-3}, dataloader=loader)
    centres = np.random.default_rng(0).normal(size=(K, LAYERS[-1])).astype(np.float32)
    if method == "VaDE":
        network.fitted = True  # which is how it knows that pre-training is over
        module = deep.vade._VaDE_Module(K, LAYERS[-1], np.full(K, 1 / K, np.float32), centres, np.ones_like(centres))
        error = torch.nn.BCELoss(reduction="sum")
    elif method == "DCN":
        module = deep.dcn._DCN_Module(np.zeros(len(x), np.int32), centres)
    elif method == "DeepKMeansP":
        module = deep.dkm._DKM_Module(centres, [1000.0])
    else:
        module = deep.dec._DEC_Module(centres, 1.0)
    loaders = {"VaDE": [loader, loader], "DCN": [loader, loader]}.get(method, [loader])  # and one that is not used
    optimizer = ADAM([*network.parameters(), *module.parameters()], lr=1e-4)
    weights = {"DEC": (1.0, 0.0), "IDEC": (0.1, 1.0)}.get(method, (1.0, 1.0))  # of clustering and reconstruction
    return lambda: module.fit(network, *loaders, 1, CPU, optimizer, error, *weights)


def cluster(
    deep: Any, methods: list[str], images: Tensor, batch: int, pretrain: int, epochs: int, seed: int
) -> dict[str, NDArray[Any]]:
    """What each method makes of images (N, C, H, W) uint8, with ClustPy's defaults but for network and budget; those
    that start from a plain autoencoder share it."""
    x = (images.flatten(1).float() / 255).numpy()
    networks: dict[bool, Any] = {}
    labels = {}
    for method in methods:
        variational = method == "VaDE"
        if variational not in networks:
            error = torch.nn.BCELoss(reduction="sum") if variational else None
            given = {} if error is None else {"ssl_loss_fn": error}
            networks[variational] = make_network(deep, variational, seed).fit(
                pretrain, {"lr": 1e-3}, batch_size=batch, data=x, **given
            )
        made = getattr(deep, NAMES[method])(
            K, batch_size=batch, clustering_epochs=epochs, neural_network=networks[variational], random_state=seed
        )
        labels[method] = made.fit(x).labels_
    return labels

"""What the tests share: small trials and their results, and which tests run side by side."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from export.convert.to_onnx import export_model
from stdac.data import load
from stdac.folder import TrialFolder
from stdac.machine import Machine
from stdac.methods import METHODS, resolve
from stdac.model_file import ModelConfig, save_model
from stdac.observer import Observer
from stdac.pictures.pixels import Pixels
from stdac.record import TIMINGS
from stdac.results import Result, take_result
from stdac.run import run_trial
from stdac.train import Progress
from stdac.trial import Trial

# A job in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A backbone of 2 KB in place of the user's own.
os.environ["STDAC_BACKBONES"] = str(Path(__file__).parent / "toys" / "backbones")

CPU = Machine(device="cpu", compile="off", threads=1)

NAMING = ("committee", "student")
"""The methods whose trials name others, which somebody must have chosen."""

PRETRAINED = ("ae-kmeans", "dcn", "dec", "idec", "vade", "dkm-p", "fcdec-da", "convdec-da", "vae-dbscan")
"""The methods that start from an autoencoder, a trial of its own."""

ON_BACKBONES = ("features", "features-kmeans")
"""The methods that start from a backbone."""

ALONE = [name for name in METHODS if name not in NAMING + PRETRAINED + ON_BACKBONES]
"""The methods that start from images, and need no other trial."""

CLUSTERING = [name for name in METHODS if name not in (*NAMING, "autoencoder", "vae", "features")]
"""The methods whose small trial on digits makes clusters, of nothing but what `Method.needs` says."""

SMALLER: dict[str, dict[str, Any]] = {
    "pca-kmeans": {"params": {"components": 10}},
    "hog-kmeans": {"params": {"restarts": 2}},
    "colour-kmeans": {"params": {"restarts": 2}},
    "features": {"image_size": 28, "params": {"backbone": "tiny"}},
    "features-kmeans": {"image_size": 28, "params": {"backbone": "tiny", "restarts": 2}},
    "autoencoder": {"params": {"width": 0.05}},
    "ae-kmeans": {"params": {"width": 0.05, "pretrain_epochs": 3, "restarts": 2}},
    **{
        name: {"epochs": 3, "params": {"width": 0.05, "pretrain_epochs": 3, "update_interval": 4, "tolerance": 0.0}}
        for name in ("dec", "idec", "fcdec-da", "convdec-da")
    },
    "dcn": {"params": {"width": 0.05, "pretrain_epochs": 3, "restarts": 2}},
    "vade": {"params": {"width": 0.05, "pretrain_epochs": 3, "starts": 1}},
    "dkm-a": {"params": {"width": 0.05}},
    "dkm-p": {"params": {"width": 0.05, "pretrain_epochs": 3, "restarts": 2}},
    "vae": {"params": {"width": 0.1, "batch": 50}},
    "vae-dbscan": {"params": {"width": 0.1, "vae_epochs": 2}},
    "dac-star": {"params": {"width": 0.1, "macro_batch": 100, "passes": 1, "batch": 32}},
    "st-dac": {"params": {"stn": 2, "width": 0.1, "macro_batch": 100, "passes": 1, "lr": 1e-4}},
}
"""What makes a method's own small trial still smaller, so that it trains in a second or two."""


def small(method: str, **changes: Any) -> dict[str, Any]:
    """The specification of a small trial on digits; params are merged."""
    smaller = SMALLER.get(method, {})
    params = {**METHODS[method].small, **smaller.get("params", {}), **changes.pop("params", {})}
    others = {"epochs": smaller.get("epochs", 2)} if METHODS[method].epochs else {}
    others |= {"image_size": smaller["image_size"]} if "image_size" in smaller else {}
    return {"method": method, "dataset": "digits", "limit": 200, **others, **changes, "params": params}


@pytest.fixture(scope="session")
def find_needed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Trial], list[Result]]:
    """Gives the results of the trials that one needs, each trained once."""
    folder = tmp_path_factory.mktemp("needed")

    def find(trial: Trial) -> list[Result]:
        needed = [each for each in METHODS[trial.method].needs(trial) if isinstance(each, Trial)]
        for each in needed:
            if TrialFolder(folder / each.id).done() is None:
                run_trial(each, TrialFolder(folder / each.id), machine=CPU, needed=find(each))
        return [take_result(TrialFolder(folder / each.id)) for each in needed]

    return find


class Watch(Observer):
    """Calls what it is given as a trial goes on."""

    def __init__(
        self,
        progress: Callable[[Progress], object] = lambda _: None,
        score: Callable[[Mapping[str, Any]], object] = lambda _: None,
    ) -> None:
        self.on_progress = progress  # type: ignore[method-assign]
        self.on_score = score  # type: ignore[method-assign]


def results_of(folder: TrialFolder) -> tuple[pa.Table, Path]:
    """The metrics of a done trial without their timings, and the folder of the attempt that counts."""
    path = folder.result()
    assert path is not None
    return pq.read_table(path / "metrics.parquet").drop_columns(list(TIMINGS)), path


LONGEST_FIRST = (
    "cluster/test_slurm.py",
    "test_launch.py",
    "cluster/test_ray.py",
    "test_sort.py",
    "test_export.py",
    "test_docs.py",
    "test_fuzz.py",
    "test_sources.py",
    "test_page.py",
    "test_gallery.py",
    "test_cluster.py",
    "test_doctor.py",
    "test_suggest_k.py",
    "test_needs.py",
    "test_cli.py",
)
"""Files that wait for a cluster, then those that compute long: begun last, they would be waited for alone."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under make test, which gives each of some processes a file after another in this order."""
    if hasattr(config, "workerinput"):  # one of those processes
        rank = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[[str], TrialFolder]:
    """Makes trial folders by name."""
    return lambda name: TrialFolder(tmp_path / name)


NAMES = tuple(f"number {i}" for i in range(10))


@pytest.fixture(scope="session")
def digits() -> Pixels:
    """The first 300 digits, (300, 1, 28, 28) uint8: more than one chunk."""
    return load("digits").images[:300]


def export_nearest(folder: Path, images: Pixels, names: tuple[str, ...] = ()) -> Path:
    """A model whose clusters are the nearest of the first ten images."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    config = ModelConfig(resolve({"method": "kmeans", "dataset": "digits"}), shape)
    model = config.build()
    model.assign.centres.data.copy_(torch.from_numpy(images[:10]).flatten(1) / 255)
    save_model(folder / "model.pt", model, config)
    export_model(folder / "model.pt", folder / "model.onnx", names=names)
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, digits: Pixels) -> Path:
    """A model for 28x28 gray images, with cluster names."""
    return export_nearest(tmp_path_factory.mktemp("gray"), digits, NAMES)


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for RGB images of 12 by 16 pixels, without names."""
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 12), dtype=np.uint8)
    return export_nearest(tmp_path_factory.mktemp("colour"), images)

"""What the papers report, from published_results.csv; every value with its source."""

import csv
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stdac.data import CLASSES
from stdac.errors import StdacError
from stdac.methods import METHODS, fill_params, resolve

DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
"""The data sets of ours that have published values, and what the papers call them."""

CONFIGURATIONS = {
    "DKM_a, α₀ 0.01": "DKM_a config 1 (alpha0=0.01)",
    "DKM_a, α₀ 0.1": "DKM_a config 2 (alpha0=0.1)",
    "DKM_a, α₀ 0.5": "DKM_a config 3 (alpha0=0.5)",
    "DKM_a, α₀ 1": "DKM_a config 4 (alpha0=1)",
    "DKM_p, α 3": "DKM_p config 5 (alpha=3)",
    "DKM_p, α 30": "DKM_p config 6 (alpha=30)",
    "DKM_p, α 150": "DKM_p config 7 (alpha=150)",
    "DKM_p, α 300": "DKM_p config 8 (alpha=300)",
}
"""What the report on Deep K-Means calls our systems; it has values of several K for one of them."""

METRICS = {"acc_majority": "majority-vote ACC", "acc_relabelled": "ACC (unmatched clusters relabelled 0)"}
"""What the file calls a score of ours that is not its name in capitals."""


class Published(NamedTuple):
    """A published score: mean and standard deviation in [0, 1] (std None where not given), and where it stands."""

    mean: float
    std: float | None
    source: str

    @property
    def of_best_epoch(self) -> bool:
        """Whether each run's epoch was chosen by its labels."""
        return "best epoch" in self.source

    @property
    def n(self) -> int | None:
        """The number of runs, or None where it is not told."""
        told = re.search(r"(\d+) runs", self.source)
        return int(told[1]) if told else None


def find_published(
    label: str, dataset: str, metric: str, *, epoch: int | None = None, k: int = CLASSES, limit: int | None = None
) -> Published | None:
    """The published value of a method, the first in the file, or None.

    label: "ST-DAC, 2 STN", "DAC*", "DEC" … as the tables have it, or as the file has it. dataset: "mnist" or
    "MNIST". metric: "acc", "nmi", "ari", or one of METRICS. epoch: the mean after that epoch, read off a figure; None:
    the final value. k: the number of clusters. limit: of how many images of the data set it is; None: of all.
    """
    method, dataset = _name_system(label, k), DATASETS.get(dataset, dataset)
    dataset += "" if limit is None else f" {limit}"
    name = METRICS.get(metric, metric.upper()) + ("" if epoch is None else f" at epoch {epoch}")
    for row in read_published():
        if (row["method"], row["dataset"], row["metric"]) == (method, dataset, name):
            return Published(float(row["mean"]), float(row["std"]) if row["std"] else None, row["source"])
    if metric == "acc" and k <= CLASSES:  # then they are one
        return find_published(label, dataset, "acc_relabelled", epoch=epoch, k=k)
    return None


def _name_system(label: str, k: int = CLASSES) -> str:
    """What the file calls a system with that many clusters."""
    if label in CONFIGURATIONS:
        return f"{CONFIGURATIONS[label]}, K={k}"
    return label.replace(", ", "+").replace(" STN", "STN") + ("" if k == CLASSES else f", K={k}")


def find_published_curve(label: str, dataset: str, metric: str = "acc") -> dict[int, float]:
    """The published mean by epoch, {epoch: value in [0, 1]}; empty where there is none."""
    method, dataset = _name_system(label), DATASETS.get(dataset, dataset)
    start = f"{metric.upper()} at epoch "
    return {
        int(row["metric"].removeprefix(start)): float(row["mean"])
        for row in read_published()
        if (row["method"], row["dataset"]) == (method, dataset) and row["metric"].startswith(start)
    }


def is_comparable(row: Mapping[str, Any]) -> bool:
    """Whether the trial of a row of `analysis.runs.ROWS` follows the paper, so that its values stand beside ours.

    That is: a data set of the paper at its own size, whole or as much of it as the paper takes, and the method's
    default epochs and parameters (which are the paper's), but for `Method.readings`. Its number of clusters is for
    `find_published` to look at.
    """
    if row["dataset"] not in DATASETS or row["image_size"] is not None or row["method"] not in METHODS:
        return False
    if row["limit"] != METHODS[row["method"]].limit:
        return False
    params = fill_params(row["method"], json.loads(row["params"]))
    reading = {name: params[name] for name in METHODS[row["method"]].readings if name in params}
    spec = {name: row[name] for name in ("method", "dataset")} | {"n_clusters": row["n_clusters"] or None}
    try:
        usual = resolve({**spec, "params": reading}).to_json()
    except StdacError:
        return False
    usual["params"] = fill_params(row["method"], usual["params"])
    same = all(usual["params"].get(name) == value for name, value in params.items())
    return same and (usual["n_clusters"], usual["epochs"]) == (row["n_clusters"], row["epochs"])


@cache
def read_published() -> list[dict[str, str]]:
    """The rows of published_results.csv: method, dataset, metric, mean, std, source."""
    with Path(__file__).with_name("published_results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))

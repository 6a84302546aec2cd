"""What the papers report, from published_results.csv; every value with its source."""

import csv
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stdac.errors import StdacError
from stdac.methods import METHODS, fill_params, resolve

DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
"""The data sets of ours that have published values, and what the papers call them."""

METRICS = {"acc_majority": "majority-vote ACC", "acc_relabelled": "ACC (unmatched clusters relabelled 0)"}
"""What the file calls a score, where that is not its name in capitals."""


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
    label: str, dataset: str, metric: str, epoch: int | None = None, limit: int | None = None
) -> Published | None:
    """The published value of a method, the first in the file, or None.

    label: "ST-DAC, 2 STN", "DAC*", "DEC" … as the tables have it, or as the file has it. dataset: "mnist" or
    "MNIST". metric: "acc", "nmi", "ari", or one of METRICS. epoch: the mean after that epoch, read off a figure; None:
    the final value. limit: of how many images of the data set it is; None: of all.
    """
    method, dataset = label.replace(", ", "+").replace(" STN", "STN"), DATASETS.get(dataset, dataset)
    dataset += "" if limit is None else f" {limit}"
    name = METRICS.get(metric, metric.upper()) + ("" if epoch is None else f" at epoch {epoch}")
    for row in read_published():
        if (row["method"], row["dataset"], row["metric"]) == (method, dataset, name):
            return Published(float(row["mean"]), float(row["std"]) if row["std"] else None, row["source"])
    return None


def find_published_curve(label: str, dataset: str, metric: str = "acc") -> dict[int, float]:
    """The published mean by epoch, {epoch: value in [0, 1]}; empty where there is none."""
    method, dataset = label.replace(", ", "+").replace(" STN", "STN"), DATASETS.get(dataset, dataset)
    start = f"{metric.upper()} at epoch "
    return {
        int(row["metric"].removeprefix(start)): float(row["mean"])
        for row in read_published()
        if (row["method"], row["dataset"]) == (method, dataset) and row["metric"].startswith(start)
    }


def is_comparable(row: Mapping[str, Any]) -> bool:
    """Whether the trial of a row of `analysis.runs.ROWS` follows the paper, so that its values stand beside ours.

    That is: a data set of the paper at its own size, whole or as much of it as the paper takes, ten clusters, and the
    method's default epochs and parameters (which are the paper's), but for `Method.readings`.
    """
    if row["dataset"] not in DATASETS or row["image_size"] is not None or row["method"] not in METHODS:
        return False
    if row["limit"] != METHODS[row["method"]].limit:
        return False
    params = fill_params(row["method"], json.loads(row["params"]))
    reading = {name: params[name] for name in METHODS[row["method"]].readings if name in params}
    try:
        usual = resolve({"method": row["method"], "dataset": row["dataset"], "params": reading}).to_json()
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

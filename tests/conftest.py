"""What the tests share: small trials and their results."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stdac.machine import Machine
from stdac.record import TIMINGS, TrialFolder

# A job in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

CPU = Machine(device="cpu", compile="off", threads=1)

SMALL: dict[str, dict[str, Any]] = {
    "kmeans": {},
    "pca-kmeans": {"params": {"components": 10}},
    "dec": {"epochs": 3, "params": {"width": 0.05, "pretrain_epochs": 3, "update_interval": 4, "tolerance": 0.0}},
    "dac-star": {"epochs": 2, "params": {"width": 0.1, "macro_batch": 100, "passes": 1, "batch": 32}},
    "st-dac": {"epochs": 2, "params": {"stn": 2, "width": 0.1, "macro_batch": 100}},
}
"""Every method at a size that trains in a second or two."""


def small(method: str, **changes: Any) -> dict[str, Any]:
    """The specification of a small trial on digits; params are merged."""
    spec = {"method": method, "dataset": "digits", "limit": 200, **SMALL[method]}
    params = {**spec.get("params", {}), **changes.pop("params", {})}
    return {**spec, **changes, "params": params}


def results_of(folder: TrialFolder) -> tuple[pa.Table, Path]:
    """The metrics of a done trial without their timings, and the folder of the attempt that counts."""
    done = folder.done()
    assert done is not None
    path = folder.path / f"attempt-{done['attempt']}"
    return pq.read_table(path / "metrics.parquet").drop_columns(list(TIMINGS)), path


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[[str], TrialFolder]:
    """Makes trial folders by name."""
    return lambda name: TrialFolder(tmp_path / name)

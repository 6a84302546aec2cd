"""The examples in the docstrings of public names run, one after another in one folder, as a reader would type them."""

import doctest
import sys
from pathlib import Path
from typing import Any

import pytest

import stdac
from analysis.runs import read_metrics
from cluster_jobs.grid import load_grid
from export.clusterer import Clusterer
from export.convert.to_onnx import export_model
from stdac.data import load
from stdac.methods import resolve
from stdac.metrics import score_clusters
from stdac.model_file import load_model
from stdac.run import run_trial
from stdac.trial import Trial, added

PUBLIC = [load, resolve, Trial, added, score_clusters, load_grid]
PUBLIC += [getattr(stdac, name) for name in stdac.ESTIMATORS]
PUBLIC += [run_trial, read_metrics, load_model, export_model, Clusterer]  # each may use what those before it wrote


def test_the_examples_of_public_names_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder(recurse=False)
    for name in PUBLIC:
        (examples,) = finder.find(name, name.__name__, globs=globals_of(name))
        assert examples.examples, f"{name.__name__} has no example"
        assert runner.run(examples).failed == 0, name.__name__


def globals_of(name: Any) -> dict[str, Any]:
    """What is known in the module of a name."""
    return dict(vars(sys.modules[name.__module__]))

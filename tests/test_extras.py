"""Each extra of pyproject.toml: what works without it, and the sentence that names it where something does not."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cluster_jobs.commands import grid
from docs.graph import ROOT, list_packages
from stdac.command import EXTRAS
from stdac.data import load
from tests.conftest import export_nearest

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NOT_IN_CORE = sorted({*EXTRAS} - {"onnxruntime"})
INSTALL_S = 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, pictures, an array, and labels for it."""
    folder = tmp_path_factory.mktemp("core")
    images = load("digits").images[:10]
    export_nearest(folder, images).rename(folder / "model.onnx")
    (folder / "photos").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / "photos" / f"{i}.png")
    np.save(folder / "images.npy", images[:, 0])
    np.save(folder / "labels.npy", np.arange(10))
    (folder / "model.pt").write_bytes(b"")
    return folder


def run_without(modules: Sequence[str], tool: str, words: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process where some modules are not installed."""
    block = f"import sys; sys.modules.update(dict.fromkeys({list(modules)!r}))"
    code = f"{block}; from cluster_jobs.commands.{tool} import main; main()"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_each_module_is_in_the_extra_that_brings_it() -> None:
    for module, extra in EXTRAS.items():
        names = {re.split(r"[^\w-]", wanted)[0] for wanted in PROJECT["optional-dependencies"][extra]}
        known = {"sklearn": "scikit-learn", "umap": "umap-learn"}
        assert known.get(module, module.replace("_", "-")) in names, module


@pytest.mark.parametrize(
    ("tool", "words", "module", "extra"),
    [
        ("stdac", ["train", "--dataset", "digits"], "torch", "train"),
        ("stdac", ["export", "model.pt", "new.onnx"], "onnx", "export"),
        ("stdac", ["show", "model.pt"], "torch", "train"),
        ("stdac", ["suggest-k", "images.npy"], "torch", "train"),
        ("grid", ["plan", "quick"], "torch", "train"),
        ("grid", ["launch", "quick"], "torch", "train"),
        ("grid", ["work", "run", "--grid", "quick"], "torch", "train"),
    ],
)
def test_without_its_extra_a_command_says_which(
    tool: str, words: list[str], module: str, extra: str, place: Path
) -> None:
    before = sorted(place.rglob("*"))
    ran = run_without(NOT_IN_CORE, tool, words, place)
    wanted = f"Error: this command needs {module}, which is not installed: pip install 'stdac[{extra}]'\n"
    assert (ran.returncode, ran.stderr) == (1, wanted)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(("backend", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_backend_that_is_not_installed_is_said_before_anything_is_written(
    backend: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    words = ["launch", "quick", "--out", str(tmp_path / "run"), "--backend", backend]
    launched = CliRunner().invoke(grid.main, words)
    sentence = f"this command needs {module}, which is not installed: pip install 'stdac[{backend}]'"
    assert launched.exit_code == 1 and sentence in launched.output
    assert not (tmp_path / "run").exists()


def test_scores_and_compare_name_what_they_want(place: Path) -> None:
    sort = ["cluster", "model.onnx", "images.npy", "--provider", "cpu", "-o"]
    scored = run_without(NOT_IN_CORE, "stdac", [*sort, "scored.parquet", "--labels", "labels.npy"], place)
    assert scored.returncode == 0 and "10 images sorted" in scored.stdout
    compared = run_without(NOT_IN_CORE, "stdac", [*sort, "new.parquet", "--compare", "scored.parquet"], place)
    assert compared.returncode == 1
    for module, said in (("scikit-learn", scored.stderr), ("scipy", compared.stderr)):
        assert f"needs {module}, which is not installed: pip install 'stdac[train]', or scikit-learn alone" in said


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with nothing but '.[cpu]' in it; skipped where it cannot be installed."""
    folder = tmp_path_factory.mktemp("environment")
    for name in sorted({package.partition(".")[0] for package in list_packages()}):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    words = ["install", "--quiet", "--constraint", ROOT / "constraints.txt", f"{folder / 'source'}[cpu]"]
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", *words]
    installed = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if installed.returncode:
        pytest.skip(f"pip cannot install '.[cpu]' here: {installed.stderr.strip().splitlines()[-1]}")
    return folder / "venv" / "bin"


@pytest.mark.slow
def test_the_core_sorts_pictures_without_torch_and_ray(core: Path, place: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(core / words[0]), *words[1:]]
        return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)

    for module in NOT_IN_CORE:
        assert run("python", "-c", f"import {module}").returncode == 1, module
    for tool in ("stdac", "stdac-grid"):
        assert run(tool, "--help").returncode == 0
    sort = ["photos", "images.npy", "-o", "core.parquet", "--gallery", "core.html"]
    ran = run("stdac", "cluster", "model.onnx", *sort)
    assert ran.returncode == 0 and "20 images sorted" in ran.stdout, ran.stderr
    assert "'stdac[train]'" in run("stdac", "train", "--dataset", "digits").stderr

"""The examples of using a model with onnxruntime alone give the clusters of `Clusterer`."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import Clusterer
from export.web import PACKAGE, VERSION
from stdac.data import load
from stdac.pictures.image import read_image
from tests.conftest import export_nearest

EXAMPLES = Path(__file__).parent.parent / "examples"
NPM_TIMEOUT_S = 300


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Thirty digits as PNGs of 28 by 28 pixels, the last ten as RGB."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(load("digits").images[:30, 0]):
        Image.fromarray(image).convert("L" if i < 20 else "RGB").save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def gray_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for 28x28 gray images, without names."""
    return export_nearest(tmp_path_factory.mktemp("gray"), load("digits").images[:10])


@pytest.fixture(scope="session")
def rgb_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for 28x28 RGB images, without names."""
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 28, 28), dtype=np.uint8)
    return export_nearest(tmp_path_factory.mktemp("rgb"), images)


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example for Node and the packages that it names."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no npm or node on the PATH")
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(EXAMPLES / "bare_onnxruntime.mjs", folder)
    command = [
        npm,
        "install",
        "--prefer-offline",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        f"{PACKAGE}@{VERSION}",
    ]
    ran = subprocess.run(
        [*command, "sharp"], cwd=folder, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False
    )
    if ran.returncode != 0:
        pytest.skip(f"npm could not install {PACKAGE} and sharp: {ran.stderr.strip().splitlines()[:1]}")
    return folder


def check_output(text: str, model: Path, pictures: list[Path]) -> None:
    """Lines of path, cluster and confidence are those of `Clusterer`."""
    clusterer = Clusterer(model, "cpu")
    pixels = np.stack([read_image(path, clusterer.info.shape[0], (28, 28)) for path in pictures])
    expected = clusterer.predict(pixels)
    rows = [line.split("\t") for line in text.splitlines()]
    assert [row[0] for row in rows] == [str(path) for path in pictures]
    assert [int(row[1]) for row in rows] == expected.cluster.tolist()
    np.testing.assert_allclose([float(row[2]) for row in rows], expected.confidence, atol=1e-5)


@pytest.mark.parametrize("model", ["gray_model", "rgb_model"])
def test_the_python_example_sorts_as_the_clusterer(
    request: pytest.FixtureRequest, model: str, pictures: list[Path]
) -> None:
    path = request.getfixturevalue(model)
    command = [sys.executable, str(EXAMPLES / "bare_onnxruntime.py"), str(path), *map(str, pictures)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    check_output(ran.stdout, path, pictures)


@pytest.mark.parametrize("model", ["gray_model", "rgb_model"])
def test_the_javascript_example_sorts_as_the_clusterer(
    request: pytest.FixtureRequest, model: str, pictures: list[Path], node_folder: Path
) -> None:
    path = request.getfixturevalue(model)
    command = ["node", "bare_onnxruntime.mjs", str(path), *map(str, pictures)]
    ran = subprocess.run(command, cwd=node_folder, capture_output=True, text=True, check=True)
    check_output(ran.stdout, path, pictures)

"""stdac neighbours: exact, in bounded memory, one sentence for what cannot be done; its page in real Chromium."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from cluster_jobs.commands.stdac import main
from export.clusterer import Clusterer
from export.convert.to_onnx import export_model
from export.neighbours import NEIGHBOURS
from stdac.methods import resolve
from stdac.model_file import ModelConfig, save_model
from stdac.nearest import Nearest
from stdac.pictures.pixels import Pixels

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
ROOT = Path(__file__).parents[1]


def run(*words: object) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(main, ["neighbours", *map(str, words)])


def refuse(*words: object) -> str:
    """What the command says that refuses."""
    done = run(*words)
    assert done.exit_code == 1 and "Traceback" not in done.output, done.output
    return done.output.removeprefix("Error: ").strip()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding model for images of 28x28."""
    folder = tmp_path_factory.mktemp("encoder")
    config = ModelConfig(
        resolve({"method": "vae", "dataset": "digits", "params": {"width": 0.1}}), (1, 28, 28), clusters=False
    )
    save_model(folder / "model.pt", config.build(), config)
    export_model(folder / "model.pt", folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def clusterer(model: Path) -> Path:
    """A model that clusters, with its embedding: 784 pixels."""
    path = model.with_name("with-embedding.onnx")
    export_model(model.with_suffix(".pt"), path, with_embedding=True)
    return path


@pytest.fixture
def pictures(tmp_path: Path, digits: Pixels) -> Path:
    """A folder with queries/ (3 pictures) and among/ (40, the first three of which are those)."""
    for name, n in (("queries", 3), ("among", 40)):
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.fromarray(digits[i, 0]).save(tmp_path / name / f"{i:02}.png")
    return tmp_path


# the search


@pytest.mark.parametrize("block", [7, 100, 1000])
def test_the_search_is_exact_whatever_the_blocks(block: int) -> None:
    rng = np.random.default_rng(block)
    points, queries = (rng.normal(size=(n, 6)).astype(np.float32) for n in (1000, 50))
    nearest = Nearest(queries, 4)
    for rows in np.array_split(np.arange(1000), range(block, 1000, block)):
        nearest.add(points[rows], rows)
    distance, row = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(points.astype(float)).kneighbors(queries)
    np.testing.assert_array_equal(nearest.row, row)
    np.testing.assert_allclose(nearest.distance, distance, atol=1e-12)


def test_of_equally_near_points_the_first_are_taken() -> None:
    points = np.ones((500, 3), np.float32)
    nearest = Nearest(np.ones((1, 3), np.float32) * 1e3, 5)
    for rows in np.array_split(np.arange(500), 3):
        nearest.add(points[rows], rows)
    assert nearest.row.tolist() == [[0, 1, 2, 3, 4]]


def test_tiny_distances_far_from_the_origin_are_told_apart() -> None:
    points = np.full((4, 2), 1e4, np.float32)
    points[:, 0] += np.array([0.004, 0.001, 0.003, 0.002], np.float32) * 10
    nearest = Nearest(np.full((1, 2), 1e4, np.float32), 4)
    nearest.add(points, np.arange(4))
    assert nearest.row.tolist() == [[1, 3, 2, 0]]


def test_what_has_a_query_s_key_is_no_neighbour_of_it() -> None:
    nearest = Nearest(np.zeros((2, 1), np.float32), 3, known=np.array([7, -1]))
    nearest.add(np.array([[0], [1], [2]], np.float32), np.arange(3), keys=np.array([7, -1, -1]))
    assert nearest.row.tolist() == [[1, 2, -1], [0, 1, 2]]
    assert nearest.distance[0, 2] == np.inf


# the command


def test_neighbours_are_the_nearest_and_not_the_query_itself(encoder: Path, pictures: Path, digits: Pixels) -> None:
    done = run(encoder, pictures / "queries", "--among", pictures / "among", "-n", 4, "-o", pictures / "out.parquet")
    assert done.exit_code == 0, done.output
    table = pq.read_table(pictures / "out.parquet")
    assert table.schema.equals(NEIGHBOURS)
    z = Clusterer(encoder, "cpu").embed(digits[:40]).astype(np.float64)
    rows = table.to_pylist()
    for i in range(3):
        distance = np.linalg.norm(z - z[i], axis=1)
        distance[i] = np.inf
        expected = np.argsort(distance)[:4]
        mine = rows[4 * i : 4 * i + 4]
        assert [row["source"] for row in mine] == [str(pictures / "among" / f"{k:02}.png") for k in expected]
        assert [row["distance"] for row in mine] == pytest.approx(distance[expected], rel=1e-4)
        assert [row["rank"] for row in mine] == [1, 2, 3, 4] and mine[0]["query"].endswith(f"queries/{i:02}.png")
    assert str(pictures / "queries" / "00.png") in done.stdout and "wrote" in done.stdout


def test_kept_embeddings_give_the_same_answers(encoder: Path, pictures: Path) -> None:
    kept = pictures / "kept.parquet"
    words = (encoder, pictures / "queries")
    first = run(*words, "--among", pictures / "among", "-o", pictures / "a.csv", "--save-embeddings", kept)
    second = run(*words, "--among", kept, "-o", pictures / "b.csv")
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert (pictures / "a.csv").read_bytes() == (pictures / "b.csv").read_bytes()
    assert pq.read_schema(kept).field("embedding").type == pa.list_(pa.field("element", pa.float32()), 10)


def test_the_rows_of_stdac_cluster_are_searched(clusterer: Path, pictures: Path) -> None:
    rows = pictures / "clusters.parquet"
    sorted_ = CliRunner().invoke(main, ["cluster", str(clusterer), str(pictures / "among"), "-o", str(rows), "--quiet"])
    assert sorted_.exit_code == 0, sorted_.output
    done = run(clusterer, pictures / "queries", "--among", rows, "-n", 3, "-o", pictures / "out.jsonl", "--quiet")
    assert done.exit_code == 0 and done.stdout == "", done.output
    table = pq.read_table(rows)
    stored = np.array(table["embedding"].to_pylist(), np.float64)  # of length 1, projected
    found = pa.Table.from_pylist([*map(json.loads, (pictures / "out.jsonl").read_text().splitlines())])
    for i in range(3):
        distance = np.linalg.norm(stored - stored[i], axis=1)
        distance[i] = np.inf
        expected = [table["source"][int(k)].as_py() for k in np.argsort(distance, kind="stable")[:3]]
        assert found["source"].to_pylist()[3 * i : 3 * i + 3] == expected


def test_a_file_that_cannot_be_read_is_told_and_stops_nothing(encoder: Path, pictures: Path) -> None:
    (pictures / "among" / "bad.png").write_bytes(b"no picture")
    done = run(encoder, pictures / "queries", "--among", pictures / "among", "--quiet")
    assert done.exit_code == 0 and "1 image could not be read (the first:" in done.output


def test_what_cannot_be_done_is_one_sentence(encoder: Path, clusterer: Path, model: Path, pictures: Path) -> None:
    queries, among = pictures / "queries", pictures / "among"
    assert refuse(model, queries, "--among", among) == (
        f"{model} has no embedding to find neighbours by: export the model with --with-embedding"
    )
    assert refuse(encoder, queries, "--among", among, "-n", 40) == (
        f"got -n 40 among 40 images of {among}, of which a query itself is none: expected at most 39"
    )
    kept = pictures / "kept.parquet"
    assert run(encoder, queries, "--among", among, "--save-embeddings", kept).exit_code == 0
    assert "has embeddings of another model" in refuse(clusterer, queries, "--among", kept)
    assert "has embeddings already" in refuse(
        encoder, queries, "--among", kept, "--save-embeddings", pictures / "x.parquet"
    )
    table = pq.read_table(kept)
    short = table.set_column(4, "embedding", pa.array([[0.0] * 3] * 40, pa.list_(pa.float32(), 3)))
    pq.write_table(short, pictures / "short.parquet")
    assert "has embeddings of 3 values, expected 10" in refuse(encoder, queries, "--among", pictures / "short.parquet")
    pq.write_table(table.drop_columns(["embedding"]), pictures / "none.parquet")
    assert "has no embeddings: sort the images with" in refuse(encoder, queries, "--among", pictures / "none.parquet")
    pq.write_table(table.slice(0, 0), pictures / "empty.parquet")
    assert "holds no image that can be read: it is empty" in refuse(
        encoder, queries, "--among", pictures / "empty.parquet"
    )
    damaged = bytearray(kept.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (pictures / "damaged.parquet").write_bytes(damaged)
    assert "damaged.parquet" in refuse(encoder, queries, "--among", pictures / "damaged.parquet")
    (pictures / "empty").mkdir()
    assert "holds no images" in refuse(encoder, queries, "--among", pictures / "empty")
    assert "does not exist" in refuse(encoder, pictures / "nowhere", "--among", among)
    (pictures / "bad.png").write_bytes(b"no picture")
    assert refuse(encoder, pictures / "bad.png", "--among", among).startswith("no query can be read: 1 image could not")
    assert "is read too, and would be overwritten" in refuse(encoder, queries, "--among", kept, "-o", kept)
    done = CliRunner().invoke(main, ["cluster", str(encoder), str(among)])
    assert done.exit_code == 1 and "stdac neighbours" in done.output


MEASURED = """
import sys
from pathlib import Path
from click.testing import CliRunner
from cluster_jobs.commands.stdac import main
done = CliRunner().invoke(main, ["neighbours", *sys.argv[1:]])
assert done.exit_code == 0, done.output
assert not {"torch", "sklearn", "scipy"} & set(sys.modules), "it is to run without them"
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)  # of this program alone; ru_maxrss is also of the one that started it
"""


def test_a_million_embeddings_fit_into_little_memory(encoder: Path, pictures: Path) -> None:
    kept, n = pictures / "kept.parquet", 1_000_000
    assert run(encoder, pictures / "queries", "--among", pictures / "among", "--save-embeddings", kept).exit_code == 0
    few = pq.read_table(kept)
    z = np.random.default_rng(0).standard_normal((n, 10), np.float32) * 3 + 50  # far away from all
    z[777_777] = few["embedding"][1].as_py()
    kind = few.schema.field("embedding").type
    hashes = np.char.zfill(np.arange(n).astype(str), 32)
    columns: dict[str, Any] = {
        "source": pa.array(np.arange(n).astype(str)),
        "index": pa.array(np.zeros(n, np.int64)),
        "member": pa.nulls(n, pa.string()),
        "content_hash": pa.array(hashes),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), type=kind),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata(few.schema.metadata), kept, row_group_size=65_536)
    out = pictures / "out.parquet"
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, str(encoder), str(pictures / "queries"), "--among", str(kept), "-o", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[-1]) < 1024  # MiB, where 2,048 are allowed
    found = pq.read_table(out).to_pylist()
    assert found[5]["source"] == "777777" and found[5]["distance"] == pytest.approx(0, abs=1e-4)  # of batches of 3, 40


# the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no Chromium: set CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def test_the_page_shows_each_query_and_its_answers(encoder: Path, pictures: Path, browser: Any) -> None:
    bad = pictures / "queries" / '<img src=x onerror="document.title=1">&.png'
    shutil.copy(pictures / "queries" / "02.png", bad)
    kept = pictures / "kept.parquet"
    words = (encoder, pictures / "queries", "-n", 4)
    assert run(*words, "--among", pictures / "among", "--save-embeddings", kept).exit_code == 0
    (pictures / "among" / "07.png").unlink()
    done = run(*words, "--among", kept, "--page", pictures / "page.html", "-o", pictures / "out.parquet")
    assert done.exit_code == 0 and "shows 4 queries" in done.output, done.output
    gone = sum(row["source"].endswith("07.png") for row in pq.read_table(pictures / "out.parquet").to_pylist())
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on(
            "request", lambda request, said=said: request.url.startswith(("file:", "data:")) or said.append(request.url)
        )
        page.goto(f"file://{pictures}/page.html")
        assert page.title() == "Nearest images" and said == []
        assert page.locator("article").count() == 4 and page.locator("li").count() == 16
        assert page.locator("img").count() == 20 - gone and page.locator(".missing").count() == gone
        widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
        assert set(widths) == {28}
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == ("rgb(15, 17, 20)" if scheme == "dark" else "rgb(245, 246, 248)")
        page.close()
    distances = page_numbers((pictures / "page.html").read_text())
    assert distances == sorted(distances[:4]) + sorted(distances[4:8]) + sorted(distances[8:12]) + sorted(
        distances[12:]
    )


def page_numbers(text: str) -> list[float]:
    """The distances on the page, in its order."""
    return [float(number) for number in re.findall(r"<b>(\d+\.\d{3})</b>", text)]

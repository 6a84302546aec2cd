"""The page of `stdac page`, in a real Chromium: the clusters of `Clusterer`, offline, from a server and from a disk."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

import export.web
import export.web.page
from export import Clusterer
from export.results.names import Names, write_names
from export.web import FILES, find_runtime, install_runtime
from export.web.page import page_command, write_page
from stdac.command import Commands
from stdac.data import load
from stdac.errors import StdacError
from stdac.pictures.colour import choose_ground
from stdac.pictures.image import read_image
from stdac.pictures.pixels import Pixels
from tests.conftest import export_nearest

CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
NAMES = tuple(f"</script><b>number {i}" for i in range(10))
READY_MS = 300_000


@pytest.fixture(scope="session", autouse=True)
def runtime() -> Path:
    """onnxruntime-web, fetched with npm where it is not there yet."""
    try:
        return find_runtime(lambda line: None)
    except StdacError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def digits() -> Pixels:
    """The first 500 digits, (500, 1, 28, 28) uint8."""
    return load("digits").images[:500]


@pytest.fixture(scope="session")
def gray(tmp_path_factory: pytest.TempPathFactory, digits: Pixels) -> Path:
    """A model for 28x28 gray images whose cluster names are HTML, and its page."""
    folder = tmp_path_factory.mktemp("gray")
    write_page(export_nearest(folder, digits, NAMES), folder / "page")
    return folder


@pytest.fixture(scope="session")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for RGB images of 12 by 16 pixels, without names, and its page."""
    folder = tmp_path_factory.mktemp("colour")
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 12), dtype=np.uint8)
    write_page(export_nearest(folder, images), folder / "page")
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def url_of(page: Path, server: str) -> Iterator[str]:
    """The address of a page: from the disk, or from a server of its own."""
    if server == "file":
        yield (page / "index.html").as_uri()
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=page)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}/"
        http.shutdown()


@pytest.fixture(scope="module")  # its event loop is in the way of others
def browsers() -> Iterator[Any]:
    """Starts a headless Chromium with some flags; all end with the tests."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH")
    with api.sync_playwright() as playwright:
        yield lambda *flags: playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])


@pytest.fixture(scope="module")
def browser(browsers: Any) -> Iterator[Any]:
    """A headless Chromium without a GPU."""
    with browsers("--disable-gpu") as browser:
        yield browser


class Opened:
    """A page in a browser, and what went wrong in it or left it."""

    def __init__(self, browser: Any, url: str, state: str = "ready") -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
        self.context.set_default_timeout(READY_MS)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: set[str] = set()
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.choosers: list[Any] = []
        self.page.on("filechooser", self.keep_chooser)
        self.context.on("request", lambda request: self.requests.add(request.url))
        self.page.goto(url)
        self.page.wait_for_selector(f"#engine[data-state={state}]")
        self.origin = url.removesuffix("index.html")

    def keep_chooser(self, chooser: Any) -> None:
        """Keep the dialog that a button has opened."""
        self.choosers.append(chooser)

    def drop(self, *paths: Path) -> None:
        """Drop files and folders on the page, as a user does, and wait until they are sorted."""
        session = self.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        before = self.page.inner_text("#summary")
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 200, "data": data})
        self.wait(before)

    def wait(self, before: str = "") -> None:
        """Wait until all is sorted and the summary is another."""
        self.page.wait_for_function(
            "before => document.getElementById('running').hidden && summary.textContent !== before", arg=before
        )

    def rows(self, folder: Path) -> list[dict[str, str]]:
        """What the page's CSV says."""
        with self.page.expect_download() as download:
            self.page.click("#save")
        download.value.save_as(folder / "clusters.csv")
        with (folder / "clusters.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def check_quiet(self) -> None:
        """Nothing went wrong, and nothing was asked of anyone but the page's own folder."""
        assert self.errors == []
        assert {url for url in self.requests if not url.startswith((self.origin, "blob:", "data:"))} == set()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page, and closes it in the end."""
    open_ones: list[Opened] = []

    def open_page(url: str, state: str = "ready") -> Opened:
        open_ones.append(Opened(browser, url, state))
        return open_ones[-1]

    yield open_page
    for one in open_ones:
        one.context.close()


def check_rows(rows: list[dict[str, str]], model: Path, folder: Path, tolerance: float = 1e-3) -> None:
    """Rows with a cluster are those of `Clusterer` for the same files."""
    clusterer = Clusterer(model, "cpu")
    channels, *size = clusterer.info.shape
    pixels = [read_image(folder / row["source"], channels, (size[0], size[1])) for row in rows]
    cluster, confidence, scores = clusterer.predict(np.stack(pixels))
    top = np.sort(scores, axis=1)
    clear = top[:, -1] - top[:, -2] > tolerance
    assert (np.array([int(row["cluster"]) for row in rows]) == cluster)[clear].all()
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], confidence, atol=tolerance)
    np.testing.assert_allclose([float(row["margin"]) for row in rows], top[:, -1] - top[:, -2], atol=2 * tolerance)
    runner_up = np.argsort(scores, axis=1)[:, -2]
    second = clear & (top[:, -2] - top[:, -3] > tolerance)
    assert (np.array([int(row["runner_up"]) for row in rows]) == runner_up)[second].all()


def save_digits(folder: Path, digits: Pixels) -> None:
    """Digits as PNGs in sub-folders: of the model's size, larger, smaller, and of odd shapes."""
    sizes = [(28, 28), (61, 45), (20, 20), (15, 90), (28, 100)]
    for i, image in enumerate(digits):
        path = folder / f"part {i % 3}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).resize(sizes[i % len(sizes)], Image.Resampling.BICUBIC).save(path)


@pytest.mark.parametrize("server", ["http", "file"])
def test_500_dropped_images_get_the_clusters_of_the_clusterer(
    opened: Any, gray: Path, digits: Pixels, tmp_path: Path, server: str
) -> None:
    save_digits(tmp_path / "pictures", digits)
    (tmp_path / "pictures/.hidden.png").write_bytes(b"")
    (tmp_path / "pictures/notes.txt").write_text("no picture")
    for url in url_of(gray / "page", server):
        page = opened(url)
        page.drop(tmp_path / "pictures")
        rows = page.rows(tmp_path)
        page.check_quiet()
    assert [row["source"] for row in rows] == [
        f"pictures/part {part}/{i:03}.png" for part in range(3) for i in range(part, 500, 3)
    ]
    check_rows(rows, gray / "model.onnx", tmp_path)
    assert all(row["name"] == NAMES[int(row["cluster"])] and not row["error"] for row in rows)
    counts = page_counts(page)
    assert counts == [sum(int(row["cluster"]) == k for row in rows) for k in range(10)]


def page_counts(opened: Opened) -> list[int]:
    """Images a cluster, as the page lists them."""
    return [int(text.replace(",", "")) for text in opened.page.locator("#shares a > span:last-child").all_inner_texts()]


def kinds_of_pictures(folder: Path) -> None:
    """A picture of every kind that browsers read."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 4, 4), dtype=np.uint8)).resize((36, 48), Image.Resampling.BICUBIC)
    rgb = smooth.convert("RGB")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        rgb.resize((20, 27)).save(folder / f"turned-{orientation}.jpg", quality=95, subsampling=0, exif=exif)
    smooth.save(folder / "rgba.png")
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    rgb.convert("1").save(folder / "bits.png")
    rgb.convert("LA").save(folder / "gray-alpha.png")
    Image.fromarray(rng.integers(0, 65536, (30, 30), dtype=np.uint16)).save(folder / "16-bit.png")
    rgb.save(folder / "lossless.webp", lossless=True)
    rgb.save(folder / "plain.bmp")
    rgb.convert("P").save(folder / "moving.gif", save_all=True, append_images=[Image.new("P", rgb.size)])
    rgb.resize((3000, 2000)).save(folder / "large.png")
    rgb.save(folder / "wide gamut.png", icc_profile=b"no profile")


def test_pictures_of_every_kind_are_read_as_stdac_cluster_reads_them(opened: Any, colour: Path, tmp_path: Path) -> None:
    kinds_of_pictures(tmp_path / "kinds")
    for url in url_of(colour / "page", "http"):
        page = opened(url)
        page.drop(tmp_path / "kinds")
        rows = page.rows(tmp_path)
        page.check_quiet()
    assert len(rows) == len(list((tmp_path / "kinds").iterdir()))
    assert [row["source"] for row in rows if row["error"]] == []
    check_rows(rows, colour / "model.onnx", tmp_path, tolerance=2e-3)


def test_a_broken_file_is_a_row_with_a_sentence(opened: Any, gray: Path, digits: Pixels, tmp_path: Path) -> None:
    Image.fromarray(digits[0, 0]).save(tmp_path / 'good, "quoted" <b>.png')
    Image.fromarray(digits[0, 0]).save(tmp_path / "scan.tif")
    (tmp_path / "broken.png").write_bytes((tmp_path / 'good, "quoted" <b>.png').read_bytes()[:40])
    (tmp_path / "text.png").write_text("this is text")
    (tmp_path / "empty.png").write_bytes(b"")
    names = ['good, "quoted" <b>.png', "scan.tif", "broken.png", "text.png", "empty.png"]
    for url in url_of(gray / "page", "file"):
        page = opened(url)
        page.drop(*(tmp_path / name for name in names))
        rows = page.rows(tmp_path)
        page.check_quiet()
    assert [row["source"] for row in rows] == names
    assert [row["error"] for row in rows] == [
        "",
        "browsers do not read this format: convert it to PNG, or use stdac cluster",
        "not a picture that this browser can read",
        "not a picture that this browser can read",
        "the file is empty",
    ]
    assert page.page.inner_text("#summary") == "1 picture in 1 cluster, 4 files could not be read"
    assert page.page.locator("#unread li").count() == 4
    assert page.page.locator("#clusters b").count() == 1  # of the tile; nothing of a name became markup


def test_the_page_can_be_used_with_the_keyboard_alone(opened: Any, gray: Path, digits: Pixels, tmp_path: Path) -> None:
    for i in range(80):
        Image.fromarray(digits[0, 0] // 8 * (i % 8 + 1)).save(tmp_path / f"{i}.png")
    for url in url_of(gray / "page", "file"):
        page = opened(url)
        keys, view = page.page.keyboard, page.page
        keys.press("Tab")
        assert view.evaluate("document.activeElement.id") == "choose-files"
        keys.press("Enter")
        while not page.choosers:
            view.wait_for_timeout(50)
        page.choosers[0].set_files(sorted(tmp_path.glob("*.png")))
        page.wait()
        for _ in range(20):
            keys.press("Tab")
            if view.evaluate("document.activeElement.className") == "tile":
                break
        first = view.evaluate("document.activeElement.title")
        keys.press("ArrowRight")
        keys.press("ArrowDown")
        assert view.evaluate("document.activeElement.title") != first
        keys.press("Home")
        assert view.evaluate("document.activeElement.title") == first
        keys.press("Enter")
        assert view.inner_text("#facts-name") == first
        keys.press("ArrowRight")
        assert view.inner_text("#facts-name") != first
        keys.press("Escape")
        assert not view.is_visible("#detail")
        assert view.evaluate("document.activeElement.className") == "tile"
        page.check_quiet()


def test_more_is_shown_ordered_added_pasted_and_cleared(
    opened: Any, gray: Path, digits: Pixels, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    for i in range(100):
        Image.fromarray(digits[0, 0] // 100 * (i + 1)).save(tmp_path / f"one/{i:03}.png")
    for url in url_of(gray / "page", "http"):
        page = opened(url)
        page.drop(tmp_path / "one")
        view = page.page
        tiles = view.locator(".tile")
        sure = [int(row["cluster"]) for row in page.rows(tmp_path)]
        large = max(range(10), key=sure.count)
        assert sure.count(large) > 24
        assert view.locator(f"#cluster-{large} .tile").count() == 24
        while view.locator(".more:visible").count():
            view.locator(".more:visible").first.click()
        assert tiles.count() == 100
        best = tiles.nth(0).get_attribute("title")
        view.select_option("#order", "unsure")
        assert tiles.nth(0).get_attribute("title") != best
        view.evaluate("""() => {
          const data = new DataTransfer();
          const canvas = document.createElement("canvas");
          return new Promise((resolve) => canvas.toBlob((blob) => {
            data.items.add(new File([blob], "pasted.png", { type: "image/png" }));
            resolve(dispatchEvent(new ClipboardEvent("paste", { clipboardData: data })));
          }));
        }""")
        view.wait_for_function("() => summary.textContent.startsWith('101 pictures')")
        assert page.rows(tmp_path)[100]["source"] == "pasted.png"
        view.click("#clear")
        assert not view.is_visible("#result")
        assert tiles.count() == 0
        page.drop(tmp_path / "one")
        assert len(page.rows(tmp_path)) == 100
        page.check_quiet()


def test_webgpu_gives_the_same_clusters(browsers: Any, gray: Path, digits: Pixels, tmp_path: Path) -> None:
    save_digits(tmp_path / "pictures", digits[:100])
    with browsers(*WEBGPU) as browser:
        for url in url_of(gray / "page", "http"):
            page = Opened(browser, url)
            if page.page.evaluate("navigator.gpu?.requestAdapter().then(a => !a) ?? true"):
                pytest.skip("this Chromium has no WebGPU adapter, not even SwiftShader")
            assert page.page.inner_text("#engine").startswith("WebAssembly")  # a CPU in the guise of a GPU is no gain
            page = Opened(browser, f"{url}?provider=webgpu")
            assert page.page.inner_text("#engine").startswith("WebGPU")
            page.drop(tmp_path / "pictures")
            check_rows(page.rows(tmp_path), gray / "model.onnx", tmp_path)
            page.origin = url
            page.check_quiet()


@pytest.mark.parametrize("damage", ["missing", "damaged", "other"])
def test_a_page_that_lost_or_changed_a_part_says_so(opened: Any, gray: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(gray / "page", tmp_path / "page")
    part = next((tmp_path / "page/parts").glob("model-*"))
    if damage == "missing":
        part.unlink()
    elif damage == "damaged":
        part.write_text(part.read_text()[:1000])
    else:
        other = part.read_text()
        start = len(other) // 2
        part.write_text(other[:start] + "A" * 8000 + other[start + 8000 :])
    for url in url_of(tmp_path / "page", "file"):
        said = opened(url, "failed").page.inner_text("#engine")
    expected = {
        "missing": "is missing: copy the whole folder of the page again",
        "damaged": "is damaged: copy the whole folder of the page again",
        "other": "differ from onnxruntime's",
    }
    assert "The model did not start in this browser" in said
    assert expected[damage] in said


def test_the_page_lays_transparency_on_what_stdac_cluster_does(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node on the PATH")
    rng, expected = np.random.default_rng(0), []
    for i in range(20):
        pixels = rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)
        pixels[..., :3] = pixels[..., :3] // 2 + (i % 2) * 127
        pixels[..., 3] *= rng.random((9, 7)) < 0.5
        expected.append("white" if choose_ground(Image.fromarray(pixels), "auto") else "black")
        (tmp_path / f"{i}.rgba").write_bytes(pixels.tobytes())
    script = (
        (export.web.page.WEB / "resample.js").read_text()
        + """
      const fs = require("fs");
      for (let i = 0; i < 20; i++) console.log(groundOf(fs.readFileSync(`${i}.rgba`)));
    """
    )
    (tmp_path / "run.cjs").write_text(script)
    ran = subprocess.run([node, "run.cjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == expected == ["white", "black"] * 10


def test_the_resize_in_javascript_is_that_of_pillow(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node on the PATH")
    rng = np.random.default_rng(0)
    cases, expected = [], []
    for height, width, to_height, to_width, mode in [
        (28, 28, 28, 28, "L"), (56, 56, 28, 28, "L"), (57, 91, 28, 28, "RGB"), (9, 7, 28, 28, "L"),
        (28, 60, 28, 28, "L"), (60, 28, 28, 28, "RGB"), (10, 300, 28, 20, "RGB"), (300, 10, 28, 20, "L"),
        (1, 1, 5, 3, "RGB"), (1500, 900, 32, 32, "L"),
    ]:  # fmt: skip
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        channels = 1 if mode == "L" else 3
        expected.append(read_image(tmp_path / "x.png", channels, (to_height, to_width)).ravel().tolist())
        (tmp_path / f"{len(cases)}.rgba").write_bytes(Image.fromarray(pixels).convert("RGBA").tobytes())
        cases.append([width, height, [channels, to_height, to_width]])
    script = (
        (export.web.page.WEB / "resample.js").read_text()
        + f"""
      const fs = require("fs");
      console.log(JSON.stringify({json.dumps(cases)}.map(([width, height, shape], i) => {{
        const rgba = fs.readFileSync(`${{i}}.rgba`);
        const strip = (top, rows) => rgba.subarray(top * width * 4, (top + rows) * width * 4);
        return Array.from(resample(width, height, strip, shape));
      }})));
    """
    )
    (tmp_path / "run.cjs").write_text(script)
    ran = subprocess.run([node, "run.cjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    for [width, height, [_, to_height, to_width]], got, wanted in zip(
        cases, json.loads(ran.stdout), expected, strict=True
    ):
        tall = height / to_height > width / to_width  # Pillow 13 resamples the columns of such pictures first
        np.testing.assert_allclose(got, wanted, atol=1 if tall else 0)


def test_a_page_replaces_a_page_and_nothing_else(gray: Path, colour: Path, tmp_path: Path) -> None:
    write_page(gray / "model.onnx", tmp_path / "p")
    (tmp_path / "p/.git").mkdir()
    (tmp_path / "p/parts/.model-00000000-000.js.x1.tmp").write_text("half")
    summary = write_page(
        colour / "model.onnx", tmp_path / "p", Names(Clusterer(colour / "model.onnx").info.model_id, {3: "crows"})
    )
    assert summary.info.k == 10
    assert summary.files == len(list((tmp_path / "p/parts").iterdir())) + 1
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [".git", "index.html", "parts"]
    assert '"crows"' in summary.path.read_text()
    assert len(list((tmp_path / "p/parts").glob("model-*"))) == 1
    (tmp_path / "p/notes.txt").write_text("mine")
    before = sorted((tmp_path / "p").rglob("*"))
    with pytest.raises(StdacError, match=r"p holds notes\.txt, which is no part of a page"):
        write_page(gray / "model.onnx", tmp_path / "p")
    assert sorted((tmp_path / "p").rglob("*")) == before


@pytest.mark.parametrize("mine", ["index.html", "parts/photo.png"])
def test_what_only_looks_like_a_page_is_left_alone(gray: Path, tmp_path: Path, mine: str) -> None:
    (tmp_path / "p/parts").mkdir(parents=True)
    (tmp_path / "p" / mine).write_text("mine")
    with pytest.raises(StdacError, match="which is no part of a page"):
        write_page(gray / "model.onnx", tmp_path / "p")
    assert (tmp_path / "p" / mine).read_text() == "mine"


def test_what_cannot_be_done_is_one_sentence(gray: Path, tmp_path: Path) -> None:
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), tmp_path / "foreign.onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StdacError, match=r"foreign\.onnx is not an ONNX file: expected the model\.onnx that stdac export writes"
    ):
        write_page(tmp_path / "foreign.onnx", tmp_path / "p")
    with pytest.raises(
        StdacError, match=r"cannot read .*/none\.onnx \(No such file or directory\): expected the model\.onnx"
    ):
        write_page(tmp_path / "none.onnx", tmp_path / "p")
    with pytest.raises(StdacError, match="it is a file; name a folder"):
        write_page(gray / "model.onnx", tmp_path / "file")
    with pytest.raises(StdacError, match=r"cannot write .*/file/p: Not a directory"):
        write_page(gray / "model.onnx", tmp_path / "file/p")
    model_id = Clusterer(gray / "model.onnx").info.model_id
    with pytest.raises(StdacError, match="the model has clusters 0 to 9"):
        write_page(gray / "model.onnx", tmp_path / "p", Names(model_id, {10: "too many"}))
    with pytest.raises(StdacError, match=f"the names are of model {'0' * 16}, but .* is model {model_id}"):
        write_page(gray / "model.onnx", tmp_path / "p", Names("0" * 16, {1: "another model's"}))
    assert not (tmp_path / "p").exists()


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_closed_folder_is_one_sentence(gray: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StdacError, match="permission denied"):
        write_page(gray / "model.onnx", tmp_path / "closed/p")


def test_the_command_says_what_it_wrote_and_how_to_open_it(gray: Path, tmp_path: Path) -> None:
    write_names(tmp_path / "names.toml", Names(Clusterer(gray / "model.onnx").info.model_id, {4: "fours"}))
    arguments = [str(gray / "model.onnx"), "-o", str(tmp_path / "p"), "--names", str(tmp_path / "names.toml")]
    result = CliRunner().invoke(page_command, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"wrote {tmp_path / 'p/index.html'}: ")
    assert result.output.endswith(f"or serve it with python -m http.server -d {tmp_path / 'p'}\n")
    assert '"fours"' in (tmp_path / "p/index.html").read_text()
    missing = CliRunner().invoke(Commands(commands={"page": page_command}), ["page", *arguments[:4], "none.toml"])
    assert missing.exit_code != 0
    assert "Traceback" not in missing.output


def test_a_missing_or_wrong_runtime_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, runtime: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(export.web, "VENDORED", tmp_path / "vendored")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    with pytest.raises(StdacError, match=r"there is no npm to fetch it: install Node\.js, or get onnxruntime-web"):
        find_runtime(said.append)
    assert len(said) == 1
    assert said[0].startswith("fetching onnxruntime-web")
    (tmp_path / "wrong.tgz").write_bytes(b"something else")
    with pytest.raises(StdacError, match=r"wrong\.tgz is not onnxruntime-web .*: its SHA-512 is"):
        install_runtime(tmp_path / "vendored", tmp_path / "wrong.tgz")
    with pytest.raises(StdacError, match=r"cannot read .*none\.tgz"):
        install_runtime(tmp_path / "vendored", tmp_path / "none.tgz")
    assert list(tmp_path.rglob("*.wasm")) == []
    shutil.copytree(runtime, export.web.find_cache_folder())
    assert find_runtime(said.append) == export.web.find_cache_folder()
    assert len(said) == 1
    assert all((find_runtime(said.append) / name).is_file() for name in FILES)


def test_npm_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "npm").write_text("#!/bin/sh\necho npm error code ENOTFOUND >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(StdacError, match=r"npm could not fetch .* \(npm error code ENOTFOUND\): check the network"):
        install_runtime(tmp_path / "vendored")
    assert not (tmp_path / "vendored").exists()


def test_importing_the_command_imports_nothing_heavy() -> None:
    code = "import sys, export.web.page; assert not {'numpy', 'onnxruntime', 'pyarrow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

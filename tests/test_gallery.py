"""The gallery in real Chromium: counts add up, names come back, nothing from a file name is run, nothing is fetched."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.gallery.duplicates import Rows
from export.gallery.gallery import GallerySummary, Pictures, describe_gallery, make_truth_data, write_gallery
from export.gallery.selection import MOST_EXTREME, MOST_SAMPLED, READ
from export.gallery.sprites import encode_data_uri, make_sheet
from export.results.names import load_names
from export.results.truth import Truth, describe_truth
from stdac.data import load
from stdac.errors import StdacError
from stdac.pictures.pixels import Pixels
from tests.waiting import LONG_S

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
OFF = ("quic", "gpu", "background-networking", "component-update", "sync")
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in OFF)]
HOSTILE = "bad\n<img src=x onerror=alert(1)></script><script>alert(2)</script>\u202e\"'&amp;.png"
K = 10
MODEL = "0123456789abcdef"


@pytest.fixture(scope="session")
def digits() -> Pixels:
    """600 digits, (600, 28, 28) uint8."""
    return load("digits").images[:600, 0]


def fingerprints(images: Pixels) -> list[str]:
    """Some 128 bits of each image (N, 28, 28): which neighbours at 8 x 8 are brighter."""
    small = images[:, 2:26, 2:26].reshape(-1, 8, 3, 8, 3).mean((2, 4))
    bits = [small > np.roll(small, 1, axis) for axis in (1, 2)]
    return [row.tobytes().hex() for row in np.packbits(np.concatenate([b.reshape(-1, 64) for b in bits], 1), axis=1)]


def write_table(path: Path, images: Pixels, labels: list[str | None], **columns: list[Any]) -> Path:
    """A clusters.parquet whose clusters are mostly the labels of the digits; columns replace the ones made here."""
    n, rng = len(images), np.random.default_rng(0)
    cluster = np.where(rng.random(n) < 0.9, load("digits").labels[np.arange(n) % 1797], rng.integers(0, K, n))
    confidence = rng.beta(4, 2, n)
    values: dict[str, Any] = {
        "source": [f"digits/{i:05d}.png" for i in range(n)],
        "index": [0] * n,
        "cluster": cluster.tolist(),
        "name": [None] * n,
        "confidence": confidence.tolist(),
        "runner_up": ((cluster + 1) % K).tolist(),
        "margin": (confidence / 2).tolist(),
        "content_hash": columns.get("content_hash") or [sha256(x.tobytes()).hexdigest()[:32] for x in images],
        "fingerprint": columns.get("fingerprint") or fingerprints(images),
        "label": labels,
        "error": [None] * n,
    }
    values |= columns
    kinds = {"index": pa.int64(), "cluster": pa.int32(), "runner_up": pa.int32()}
    kinds |= dict.fromkeys(("confidence", "margin"), pa.float32())
    table = pa.table({name: pa.array(column, kinds.get(name, pa.string())) for name, column in values.items()})
    pq.write_table(table, path, row_group_size=256)
    return path


def pictures_of(images: Pixels, table: Path) -> Pictures:
    """Thumbnails from an array, in another order than wanted."""
    read = pq.read_table(table, columns=["source", "index"])
    row_of = {key: i for i, key in enumerate(zip(read["source"].to_pylist(), read["index"].to_pylist(), strict=True))}

    def pictures(wanted: Collection[tuple[str, int]], side: int) -> Iterator[tuple[tuple[str, int], NDArray[np.uint8]]]:
        assert side >= 28
        for key in sorted(wanted, reverse=True):
            yield key, images[row_of[key] % len(images)]

    return pictures


def gallery_of(table: Path, images: Pixels, k: int = K, names: tuple[str | None, ...] | None = None) -> GallerySummary:
    """The gallery of a table, beside it."""
    pictures = pictures_of(images, table)
    names = names or (None,) * k
    return write_gallery(
        table.with_suffix(".html"), table, pictures, title="Digits & <friends>", names=names, model_id=MODEL, k=k
    )


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory, digits: Pixels) -> tuple[GallerySummary, Path, Pixels]:
    """A gallery with errors, exact and near duplicates, hostile names and labels; its table and images."""
    images = np.concatenate([digits, digits[:5], digits[:3], digits[10:12], digits[20:40]])
    images[608:610] = (images[608:610] * 0.9).astype(np.uint8)  # near duplicates, not exact ones
    n = len(images)
    truth = load("digits").labels
    order = [*range(600), *range(5), *range(3), 10, 11, *range(20, 40)]
    labels: list[str | None] = [str(truth[i]) for i in order]
    labels[0] = labels[600] = labels[605] = "</script><b>label"
    clusters: list[int | None] = [int(truth[i]) for i in order]
    clusters[50] = 3
    errors: list[str | None] = [None] * n
    for i in range(610, n):
        clusters[i], errors[i] = None, "not a readable image" if i % 4 else "image file is truncated <b>\n"
    source = [f"digits/{i:05d}.png" for i in range(n)]
    source[0] = HOSTILE
    source[610] = f"broken/{HOSTILE}"
    table = tmp_path_factory.mktemp("odd") / "clusters.parquet"
    write_table(table, images, labels, cluster=clusters, error=errors, source=source)
    names = ("zero", None, '"</script><script>alert(3)</script>', *[None] * 7)
    return gallery_of(table, images, names=names), table, images


@pytest.fixture(scope="module")  # its event loop is in the way of others
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no chromium on the PATH, and $CHROMIUM names none")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Waits for a frame: of what was never drawn, being out of sight, there is no inner text."""


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end nothing was requested, logged as an error, or shown as a dialog."""
    wrong: list[str] = []
    contexts = []

    def open_page(path: Path, script: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1300, "height": 900}, **options)
        context.set_default_timeout(LONG_S * 1000)
        contexts.append(context)
        page = context.new_page()
        address = path.as_uri()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.accept()))
        page.on("request", lambda r: None if r.url.startswith(("data:", "blob:", address)) else wrong.append(r.url))
        if script:
            page.add_init_script(script)
        page.goto(address)
        page.wait_for_selector("html[data-ready=yes]")
        page.evaluate(DRAWN)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def shown_rows(page: Any, grid: str) -> list[int]:
    """The rows in a grid of the page, in their order."""
    rows: list[int] = page.eval_on_selector_all(f"{grid} .thumb", "all => all.map(b => Number(b.dataset.row))")
    return rows


def test_counts_add_up_in_the_summary_and_on_the_page(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any]
) -> None:
    summary, table, _ = odd
    rows = pq.read_table(table)
    assert (summary.images, summary.errors, summary.exact) == (len(rows), 20, 8)
    assert summary.near >= 4
    assert summary.truth is not None
    assert summary.bytes == summary.path.stat().st_size < 1e6
    page = show(summary.path)
    totals = page.locator("#totals").inner_text()
    for text in ("630", "= 610 sorted + 20 errors", "copies of 5 images; 602 distinct"):
        assert text in totals
    sizes = page.eval_on_selector_all(".item-size", "all => all.map(e => Number(e.textContent))")
    assert sum(sizes) == 610
    assert sizes == np.bincount(rows["cluster"].drop_null().to_numpy(), minlength=K).tolist()


def test_equal_tables_and_pictures_give_equal_pages(odd: tuple[GallerySummary, Path, Pixels]) -> None:
    summary, table, images = odd
    before = summary.path.read_bytes()
    names = ("zero", None, '"</script><script>alert(3)</script>', *[None] * 7)
    gallery_of(table, images, names=names)
    assert summary.path.read_bytes() == before


def test_every_thumbnail_shows_the_pixels_of_its_own_image(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any]
) -> None:
    summary, table, images = odd
    page = show(summary.path)
    row_of = {source: i for i, source in enumerate(pq.read_table(table)["source"].to_pylist())}
    page.wait_for_timeout(300)
    drawn = page.eval_on_selector_all(
        "#cluster-0 .thumb",
        """all => all.map(b => { const c = b.querySelector("canvas");
        const pixels = c.getContext("2d").getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 === 0);
        return [b.title, [...pixels]] })""",
    )
    assert len(drawn) > 40
    for title, pixels in drawn:
        source = HOSTILE if title.startswith("bad") else title.split(" #")[0]
        assert pixels == images[row_of[source]].ravel().tolist()


def test_text_from_files_is_shown_and_never_run(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any]
) -> None:
    page = show(odd[0].path)
    assert page.title() == page.locator("h1").inner_text() == "Digits & <friends>"
    assert page.locator("#cluster-2 .name").input_value() == '"</script><script>alert(3)</script>'
    errors = page.locator("#errors").inner_text()
    assert "broken/bad\\n<img src=x onerror=alert(1)></script><script>alert(2)</script>\\u{202e}\"'&amp;.png" in errors
    assert "image file is truncated <b>\\n" in errors
    assert page.locator("img, b >> text=label").count() == 0
    page.fill("#text", "onerror")
    page.locator(".cluster:visible .body .thumb").first.click()
    assert "</script><b>label" in page.locator("#zoom").inner_text()
    assert "onerror=alert(1)" in page.locator("#zoom").inner_text()


def test_the_page_holds_no_address_and_its_policy_allows_no_request(odd: tuple[GallerySummary, Path, Pixels]) -> None:
    text = odd[0].path.read_text()
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in text
    assert "unsafe" not in text.split("</head>")[0].split("<style>")[0]
    for part in text.replace("http://www.w3.org/2000/svg", "").split("http")[1:]:
        assert not part.startswith(("://", "s://"))


def test_a_thing_that_is_slipped_into_the_page_cannot_run_or_load(
    odd: tuple[GallerySummary, Path, Pixels], browser: Any
) -> None:
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(odd[0].path.as_uri())
    page.evaluate(
        """() => { const s = document.createElement("script"); s.textContent = "window.ran = 1";
        document.body.append(s);
        const i = new Image(); i.src = "http://127.0.0.1:9/x.png"; document.body.append(i); }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("() => window.ran") is None
    assert sum("Content Security Policy" in text for text in refused) >= 2
    page.close()


NEW_NAMES = {1: 'tall "one" \\ ünï\u007f 日本', 4: "four", 9: "</script>"}


def edit_names(page: Any) -> None:
    """Type the new names and take the one of cluster 0 away."""
    for cluster, name in NEW_NAMES.items():
        page.fill(f"#name-{cluster}", name)
    page.fill("#name-0", "")


def test_edited_names_are_saved_as_the_names_toml_that_stdac_reads(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any], tmp_path: Path
) -> None:
    page = show(odd[0].path, "delete window.showSaveFilePicker")
    edit_names(page)
    assert page.locator("#save").inner_text() == "Save names (4 new)"
    assert "four" in page.locator("#list").inner_text()
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "names.toml"
    download.value.save_as(tmp_path / "names.toml")
    names = load_names(tmp_path / "names.toml")
    assert names is not None
    assert names.model == MODEL
    assert names.clusters == {2: '"</script><script>alert(3)</script>', **NEW_NAMES}
    assert page.locator("#save").inner_text() == "Save names"
    assert "beside clusters.parquet" in page.locator("#message").inner_text()


def test_where_the_browser_can_write_files_it_asks_once_and_writes_again(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any], tmp_path: Path
) -> None:
    # The dialog itself cannot be driven; what stands in for it returns a handle that keeps what is written.
    page = show(
        odd[0].path,
        """window.asked = 0; window.showSaveFilePicker = async ({ suggestedName }) => { window.asked += 1; return {
        createWritable: async () => ({ write: async (text) => { window.wrote = text }, close: async () => {} }) } }""",
    )
    edit_names(page)
    page.keyboard.press("Escape")
    page.locator("#name-0").blur()
    page.keyboard.press("s")
    page.wait_for_function("() => window.wrote")
    page.fill("#name-3", "three")
    page.click("#save")
    page.wait_for_function("() => window.wrote.includes('three')")
    assert page.evaluate("() => window.asked") == 1
    (tmp_path / "names.toml").write_text(page.evaluate("() => window.wrote"), "utf-8")
    names = load_names(tmp_path / "names.toml")
    assert names is not None
    assert names.clusters == {2: '"</script><script>alert(3)</script>', 3: "three", **NEW_NAMES}


def test_exact_and_near_duplicates_are_grouped_before_the_sample(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any]
) -> None:
    summary, table, _ = odd
    page = show(summary.path)
    first = pq.read_table(table)["cluster"][0].as_py()
    body = page.locator(f"#cluster-{first} .body")
    assert body.locator("> *").first.get_attribute("class") == "groups"
    assert "3 identical" in body.inner_text()
    body.locator(".groups .thumb").first.click()
    told = page.locator("#zoom").inner_text()
    assert "digits/00600.png #0" in told
    assert "digits/00605.png #0" in told
    page.keyboard.press("Escape")
    alike = 0
    for cluster in range(K):
        page.evaluate(f"() => document.getElementById('cluster-{cluster}').scrollIntoView()")
        page.wait_for_selector(f"#cluster-{cluster} .body .grid")
        texts = page.locator(f"#cluster-{cluster} figcaption", has_text="alike").all_text_contents()
        alike += sum(int(text.split()[0]) for text in texts)
    assert alike == summary.near


def test_filters_by_text_label_confidence_and_errors_leave_what_they_say(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any]
) -> None:
    page = show(odd[0].path)
    page.fill("#text", "digits/0012")
    page.locator("#filters", has_text="10 images of the").wait_for()
    page.fill("#text", "ZERO")
    page.wait_for_function("() => document.querySelectorAll('.cluster:not([hidden])').length === 1")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert page.locator(".cluster:visible").count() == K
    page.select_option("#label", label="not the cluster’s")
    page.wait_for_selector(".cluster:not([hidden]) .body .thumb")
    marked = page.eval_on_selector_all(".body .thumb", "all => all.map(b => b.classList.contains('wrong'))")
    assert marked
    assert all(marked)
    page.locator("#filters button").click()
    page.locator("#low").fill("0.9")
    page.locator("#filters", has_text="confidence 0.90 to 1.00").wait_for()
    page.wait_for_selector(".cluster:not([hidden]) .body .thumb")
    told = page.eval_on_selector_all(".body .thumb", "all => all.map(b => b.title)")
    assert told
    assert all(float(text.split("confidence ")[1][:4]) >= 0.9 for text in told)
    page.locator("#filters button").click()
    page.check("#errors-only")
    assert page.locator(".cluster:visible").count() == 0
    assert page.locator("#errors tbody tr").count() == 20
    assert "15 not a readable image" in " ".join(page.locator(".reasons").inner_text().split())


def test_everything_can_be_reached_with_the_keyboard(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any]
) -> None:
    page = show(odd[0].path)
    press = page.keyboard.press

    def focused(what: str) -> Any:
        return page.evaluate(f"() => document.activeElement.{what}")

    press("/")
    assert focused("id") == "text"
    press("Escape")
    press("?")
    assert page.locator("#keys").is_visible()
    press("Escape")
    assert not page.locator("#keys").is_visible()
    press("2")
    assert "The most confident" in page.locator("#cluster-0 .body").inner_text()
    press("j")
    press("j")
    press("n")
    assert focused("id") == "name-1"
    press("Enter")
    assert focused("id") == "name-2"
    press("Escape")
    page.locator("#cluster-2 .body > .grid .thumb").first.focus()
    rows = shown_rows(page, "#cluster-2 .body > .grid")
    press("ArrowRight")
    press("ArrowRight")
    press("ArrowLeft")
    assert int(focused("dataset.row")) == rows[1]
    press("ArrowDown")
    below = int(focused("dataset.row"))
    assert below in rows[10:]
    press("ArrowUp")
    press("End")
    press("Home")
    assert int(focused("dataset.row")) == rows[0]
    press("Enter")
    assert page.locator("#zoom").is_visible()
    press("ArrowRight")
    press("ArrowRight")
    assert "3 of " in page.locator("#zoom").inner_text()
    press("Escape")
    page.wait_for_function(f"() => document.activeElement.dataset.row === '{rows[2]}'")
    before = page.evaluate("() => getComputedStyle(document.documentElement).getPropertyValue('--thumb')")
    press("+")
    assert page.evaluate("() => getComputedStyle(document.documentElement).getPropertyValue('--thumb')") != before
    press("e")
    assert page.locator("#errors").is_visible()
    assert page.locator(".cluster:visible").count() == 0
    press("Escape")
    press("m")
    assert "label is not the cluster’s" in page.locator("#filters").inner_text()


def test_a_cell_of_the_confusion_matrix_shows_its_images(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any]
) -> None:
    summary, table, _ = odd
    page = show(summary.path)
    assert summary.truth is not None
    assert f"{summary.truth.acc:.3f}" in page.locator(".scores").inner_text()
    cells = page.eval_on_selector_all(".heat td[data-label]", "all => all.map(c => Number(c.textContent || 0))")
    assert sum(cells) == summary.truth.images
    wrong_label = pq.read_table(table)["label"][50].as_py()
    label = summary.truth.labels.index(wrong_label)
    cell = page.locator(f'.heat td[data-cluster="3"][data-label="{label}"]')
    assert cell.inner_text() == "1"
    page.locator('.heat td[tabindex="0"]').focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("() => document.activeElement.dataset.label") == "1"
    page.keyboard.press("Enter")
    assert page.locator(".cluster:visible").count() == 1
    page.keyboard.press("Escape")
    cell.click()
    assert page.locator(".cluster:visible").count() == 1
    assert [
        t.split(" #")[0] for t in page.eval_on_selector_all("#cluster-3 .body .thumb", "a => a.map(b => b.title)")
    ] == ["digits/00050.png"]


def test_more_images_are_shown_on_demand_and_the_most_confident_come_in_order(
    tmp_path: Path, digits: Pixels, show: Callable[..., Any]
) -> None:
    table = write_table(tmp_path / "t.parquet", digits, [None] * 600, cluster=[0] * 600)
    summary = gallery_of(table, digits, k=1)
    page = show(summary.path)
    assert f"A random sample: {MOST_SAMPLED} of 600" in page.locator("#cluster-0").inner_text()
    page.click(".more")
    page.click(".more")
    assert len(set(shown_rows(page, ".body > .grid"))) == MOST_SAMPLED
    assert not page.locator(".more").is_visible()
    confidence = np.sort(pq.read_table(table)["confidence"].to_numpy())
    for key, expected in (("2", confidence[::-1]), ("3", confidence)):
        page.keyboard.press(key)
        told = page.eval_on_selector_all(".body > .grid .thumb", "all => all.map(b => b.title)")
        assert len(told) == MOST_EXTREME
        assert [text.split("confidence ")[1] for text in told] == [
            f"{x:.2f}" for x in np.round(expected[:MOST_EXTREME], 4)
        ]
    assert not page.locator("#truth").is_visible()
    assert not page.locator("#label-field").is_visible()


def test_a_hundred_thousand_images_open_in_about_a_second(
    tmp_path: Path, digits: Pixels, show: Callable[..., Any]
) -> None:
    n = 100_000
    rng = np.random.default_rng(0)
    hashes, prints = ([row.tobytes().hex() for row in rng.integers(0, 256, (n, 16), np.uint8)] for _ in range(2))
    small = np.zeros((n, 28, 28), np.uint8)
    labels: list[str | None] = [str(i) for i in rng.integers(0, K, n)]
    table = write_table(tmp_path / "t.parquet", small, labels, content_hash=hashes, fingerprint=prints)
    summary = gallery_of(table, digits)
    assert summary.bytes < 10e6
    began = time.perf_counter()
    page = show(summary.path)
    page.wait_for_selector("#cluster-0 .body .thumb")
    seconds = time.perf_counter() - began
    print(f"100,000 images: {summary.bytes / 1e6:.1f} MB, open after {seconds:.2f} s")
    assert seconds < 20  # about one on an idle machine


def test_a_hundred_clusters_share_the_thumbnails(tmp_path: Path, digits: Pixels, show: Callable[..., Any]) -> None:
    clusters = [i % 97 for i in range(3000)]
    many: Rows = np.arange(3000) % 600
    hashes = [f"{i:032x}" for i in range(3000)]
    table = write_table(
        tmp_path / "t.parquet", digits[many], [str(c) for c in clusters], cluster=clusters, content_hash=hashes
    )
    summary = gallery_of(table, digits, k=100)
    assert 2000 < summary.shown <= 3000
    page = show(summary.path)
    assert page.locator(".cluster").count() == 100
    assert "3 empty ones" in page.locator("#totals").inner_text()
    page.select_option("#order", "size")
    page.keyboard.press("Escape")
    assert page.locator(".cluster").last.get_attribute("id") == "cluster-99"
    assert "0 images" in page.locator("#cluster-98").text_content()


def test_images_that_cannot_be_read_again_leave_a_place(
    tmp_path: Path, digits: Pixels, show: Callable[..., Any]
) -> None:
    table = write_table(tmp_path / "t.parquet", digits, [None] * 600)
    summary = write_gallery(
        tmp_path / "t.html", table, lambda wanted, side: iter(()), title="t", names=(None,) * K, model_id=MODEL, k=K
    )
    page = show(summary.path)
    page.locator("#cluster-0 .body .thumb .missing").first.click()
    assert page.locator("#zoom").is_visible()


def test_dark_and_light_schemes_differ_and_both_have_contrast(
    odd: tuple[GallerySummary, Path, Pixels], show: Callable[..., Any]
) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        page = show(odd[0].path, color_scheme=scheme)
        ground, ink, quiet = page.evaluate(
            """() => ["--ground", "--ink", "--quiet"].map(
                name => getComputedStyle(document.documentElement).getPropertyValue(name).trim())"""
        )
        assert (luminance(ground) < 0.2) == dark
        assert all(contrast(ground, text) >= 4.5 for text in (ink, quiet))


def luminance(colour: str) -> float:
    """WCAG's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG's contrast of two colours."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_without_scipy_the_page_says_why_there_are_no_scores(
    tmp_path: Path, digits: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "t.parquet", digits, ["x"] * 600)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    summary = gallery_of(table, digits)
    assert summary.truth is None
    assert "or scikit-learn alone" in summary.path.read_text()


def test_page_and_terminal_say_the_same_numbers_and_count_one_of_a_thing(tmp_path: Path, digits: Pixels) -> None:
    """.39447 is .394, and .395 only where it was rounded to four places before."""
    truth = Truth(10, 0.39447, 0.00049, 1.0, ("a", "b"), np.eye(2, dtype=np.int64), np.arange(2))
    assert make_truth_data(truth)["scores"] == {"ACC": "0.394", "NMI": "0.000", "ARI": "1.000"}
    assert "ACC 0.394, NMI 0.000, ARI 1.000" in describe_truth(truth, (None, None))
    summary = GallerySummary(tmp_path / "g.html", 1, 0, 1, 2, 1, 1_000_000, None)
    assert "shows 1 of 1 image, 1 exact duplicate, 2 near ones seen" in describe_gallery(summary)


def test_a_cluster_says_which_label_most_of_it_has(tmp_path: Path, digits: Pixels, show: Callable[..., Any]) -> None:
    """The best one-to-one map gives cluster 1 the label b, though most of its images are a."""
    labels, clusters = ["a"] * 6 + ["a"] * 3 + ["b"] * 2, [0] * 6 + [1] * 5
    table = write_table(tmp_path / "t.parquet", digits[:11], list(labels), cluster=clusters)
    page = show(gallery_of(table, digits, k=2).path)
    assert "label b (40.0 %) · most are label a (60.0 %)" in page.locator("#cluster-1 .facts").inner_text()
    assert page.locator("#cluster-0 .facts").inner_text().endswith("label a (100.0 %)")


def test_a_matrix_of_many_labels_with_long_names_fits_the_window(
    tmp_path: Path, digits: Pixels, show: Callable[..., Any]
) -> None:
    labels = [f"kind of a thing {i % 16}" for i in range(320)]
    table = write_table(tmp_path / "t.parquet", digits[:320], list(labels), cluster=[i % 16 for i in range(320)])
    page = show(gallery_of(table, digits, k=16).path)
    wide, seen = page.eval_on_selector(".truth-body .scroll", "box => [box.scrollWidth, box.clientWidth]")
    assert wide <= seen


def test_tables_that_do_not_fit_are_refused_in_one_sentence(tmp_path: Path, digits: Pixels) -> None:
    table = write_table(tmp_path / "t.parquet", digits, [None] * 600)
    with pytest.raises(StdacError, match="the model has 5 clusters"):
        gallery_of(table, digits, k=5)
    older = pq.read_table(table).drop_columns(["fingerprint"])
    pq.write_table(older, tmp_path / "older.parquet")
    with pytest.raises(StdacError, match="no column fingerprint"):
        gallery_of(tmp_path / "older.parquet", digits)
    (tmp_path / "text.parquet").write_text("no table")
    for name in ("text.parquet", "missing.parquet"):
        with pytest.raises(StdacError, match="expected the table that stdac cluster writes"):
            write_gallery(
                tmp_path / "x.html", tmp_path / name, lambda w, s: iter(()), title="", names=(None,), model_id="", k=1
            )
    assert not list(tmp_path.glob("*.html"))


def test_the_columns_that_are_read_are_those_of_the_table() -> None:
    rows = pytest.importorskip("export.results.rows")
    assert set(READ) <= set(rows.CLUSTERS.names)


def test_thumbnails_of_several_sizes_and_colours_lie_on_one_sheet() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, shape, np.uint8) for shape in ((20, 30), (28, 10, 3), (5, 5))]
    sheet = make_sheet(parts)
    assert (sheet.columns, sheet.tile) == (2, (30, 28))
    assert sheet.uri.startswith("data:image/")


def test_without_webp_sheets_are_png_or_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.gallery.sprites.features.check", lambda name: False)
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    assert encode_data_uri(image, lossless=True).startswith("data:image/png;base64,")
    assert encode_data_uri(image, lossless=False).startswith("data:image/jpeg;base64,")

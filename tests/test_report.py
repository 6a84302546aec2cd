"""The report as one HTML file, the folder that is published, and the README's tables made from it."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import analysis.publish
import analysis.readme
from analysis.provenance import derive_grid
from analysis.publish import publish
from analysis.report import write_report
from analysis.runs import ROWS, read_metrics
from cluster_jobs.commands import grid
from cluster_jobs.grid import load_grid
from stdac.errors import StdacError
from stdac.folder import TrialFolder
from stdac.methods import resolve
from stdac.run import run_trial
from tests.test_analysis import digits, write_trace, write_trial, write_unfinished
from tests.test_gallery import CHROMIUM, FLAGS

REPOSITORY = Path(__file__).parents[1]
SECRET = "node-17.example"
LEASE = {
    "attempt": 1,
    "began": "2026-01-02T03:04:05Z",
    "commit": "0123456789abcdef0123456789abcdef01234567+",
    "cpu": "A Processor",
    "cpus": 8,
    "host": SECRET,
    "job": SECRET,
    "log": f"/home/{SECRET}/log",
    "namespace": SECRET,
    "pid": 424242,
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "stdac": None},
}
MNIST: dict[str, Any] = {"dataset": "mnist", "params": {"stn": 3}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Digits with k-means over 2 seeds and 2 STN over 2, one with pictures; MNIST with 3 STN after 2 of 10 epochs."""
    path = tmp_path / "a <run> & more"
    for seed in (0, 1):
        write_trial(path, {"dataset": "digits", "method": "kmeans", "seed": seed}, [0.7 + seed / 10], 0.7)
        write_trial(path, digits(2, seed), [0.2, 0.6, 0.8 + seed / 10], 0.8)
    write_trace(path / "trials" / resolve(digits(2, 1)).id / "attempt-1")
    write_unfinished(path, MNIST, [0.25, 0.7, 0.86])
    for trial in (path / "trials").iterdir():
        (trial / "lease-1.json").write_text(json.dumps(LEASE))
    return path


class Page(HTMLParser):
    """What a report is made of; raises AssertionError where tags do not match."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "li"):
            self.cells.append(data)


def test_the_report_is_one_file_that_asks_for_nothing(run: Path, tmp_path: Path) -> None:
    text = write_report(run, tmp_path / "r.html", unfinished=True).read_text()
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "img")]
    addresses = [value or "" for _, attributes in page.tags for key, value in attributes.items() if "href" in key]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "a &lt;run&gt; &amp; more" in text and "<run>" not in text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and all(address[1:] in ids for address in addresses if address.startswith("#"))
    assert text == write_report(run, tmp_path / "again.html", unfinished=True).read_text()


def test_the_report_shows_tables_curves_pictures_and_where_it_ran(run: Path, tmp_path: Path) -> None:
    page = Page(write_report(run, tmp_path / "r.html", unfinished=True).read_text())
    for told in (
        ".850 ± .050 (2)",
        "2 of 10",
        ".870 at epoch 2",
        "-.010",
        "n < 3: no interval.",
        SECRET,
        "0123456789ab+",
    ):
        assert told in page.cells, told
    drawn = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg"]
    assert [label.split(":")[0].split(";")[0] for label in drawn] == [
        "Accuracy by epoch on digits",
        "Accuracy by epoch on mnist",
        "ST-DAC, 2 STN on digits, seed 1",
    ]
    assert any("after 2 of 10 epochs" in cell for cell in page.cells)
    finished = write_report(run, tmp_path / "finished.html").read_text()
    assert "mnist" not in finished


def test_the_command_writes_the_report_into_the_run(run: Path) -> None:
    result = CliRunner().invoke(grid.main, ["report", str(run), "--unfinished"])
    assert result.exit_code == 0 and result.output.strip() == str(run / "report.html")
    assert (run / "report.html").stat().st_size > 20_000
    result = CliRunner().invoke(grid.main, ["report", str(run / "nothing")])
    assert result.exit_code == 1 and "is not a run" in result.output
    result = CliRunner().invoke(grid.main, ["report", str(run), "-o", str(run / "no" / "r.html")])
    assert result.exit_code == 1 and "there is no folder" in result.output


def test_what_is_published_names_no_host(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "name"
    paths = publish(run, out)
    assert sorted(out.iterdir()) == sorted(paths)
    names = {path.name for path in paths}
    assert names == {"metrics.parquet", "report.html", "environment.json", "commands.txt", "grid.toml"}
    for path in paths:
        content = path.read_bytes()
        assert SECRET.encode() not in content and b"424242" not in content and str(run).encode() not in content
    rows = pq.read_table(out / "metrics.parquet")
    assert rows.schema.equals(ROWS) and rows.equals(read_metrics(run, unfinished=True))
    told = {trial["trial_id"]: trial for trial in json.loads((out / "environment.json").read_text())}
    unfinished = told[resolve(MNIST).id]
    assert (unfinished["finished"], unfinished["epoch"], unfinished["epochs"]) == (False, 2, 10)
    assert unfinished["attempts"][0]["cpu"] == "A Processor" and unfinished["params"]["stn"] == 3


def test_a_published_folder_is_published_as_it_is(run: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "name")
    publish(tmp_path / "name", tmp_path / "copy" / "name")
    for path in (tmp_path / "name").iterdir():
        if path.suffix != ".html":  # the pictures' data is in the run folder only
            assert path.read_bytes() == (tmp_path / "copy" / "name" / path.name).read_bytes()


def test_a_grid_is_published_in_pieces_and_the_next_leaves_out_what_is_finished(run: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "name")
    before = read_metrics(tmp_path / "name")
    more = {"dataset": "digits", "method": "kmeans", "seed": 7, "params": {"restarts": 1}}
    trial = resolve(more)
    run_trial(trial, TrialFolder(tmp_path / "piece" / "trials" / trial.id))
    publish(tmp_path / "piece", tmp_path / "name")
    after = read_metrics(tmp_path / "name")
    assert set(after["trial_id"].to_pylist()) == {*before["trial_id"].to_pylist(), trial.id}
    kept = after.filter(pc.not_equal(after["trial_id"], trial.id))
    assert kept.to_pylist() == before.to_pylist()
    told = {each["trial_id"]: each for each in json.loads((tmp_path / "name" / "environment.json").read_text())}
    assert all(told[name]["attempts"] for name in set(after["trial_id"].to_pylist()))
    text = '[[trials]]\ndataset = "digits"\nmethod = "kmeans"\nseed = [7, 8]\nparams = { restarts = 1 }\n'
    (tmp_path / "grid.toml").write_text(text)
    left = load_grid(str(tmp_path / "grid.toml"), tmp_path / "name").trials
    assert [each.seed for each in left] == [8]
    (tmp_path / "grid.toml").write_text(text.replace("[7, 8]", "7"))
    with pytest.raises(StdacError, match=r"all 1 trials of .* are finished in .*name"):
        load_grid(str(tmp_path / "grid.toml"), tmp_path / "name")


def test_a_grid_that_was_written_down_is_published_word_for_word(run: Path, tmp_path: Path) -> None:
    (run / "grid.toml").write_text('# mine\n[[trials]]\ndataset = "digits"\n')
    (run / "grid-2.toml").write_text("# and more\n")
    publish(run, tmp_path / "name")
    assert (tmp_path / "name" / "grid.toml").read_text() == (run / "grid.toml").read_text()
    assert (
        "launch grid.toml --out runs/name\nstdac-grid launch grid-2.toml"
        in (tmp_path / "name" / "commands.txt").read_text()
    )


def test_the_grid_worked_out_of_trials_is_of_these_trials(run: Path, tmp_path: Path) -> None:
    odd = {"dataset": "/odd \"name\" 'é'\\n", "n_clusters": 4, "limit": 50, "image_size": 9, "params": {"lr": 1e-7}}
    write_trial(run, odd | {"seed": 3}, [None, None])
    write_trial(run, {"dataset": "mnist", "params": {"stn": 0, "preset": "text", "theta_bias": 0.5}}, [0.1])
    rows = read_metrics(run, unfinished=True)
    text = derive_grid(rows)
    (tmp_path / "grid.toml").write_text(text)
    trials = [trial.id for trial in load_grid(str(tmp_path / "grid.toml")).trials]
    assert sorted(trials) == sorted(set(rows["trial_id"].to_pylist()))
    assert 'dataset = "mnist"\nmethod = "st-dac"\nseed = [0]\nparams = { stn = 3 }' in text


def test_publishing_what_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(analysis.publish.main, [str(tmp_path), str(tmp_path / "out")])
    assert result.exit_code == 1 and re.fullmatch(r"Error: .* is not a run: [^\n]*\n", result.output)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StdacError, match=r"is not a run: expected a folder with trials/ or metrics\.parquet"):
        publish(tmp_path, tmp_path / "file" / "out")


def test_the_readmes_blocks_are_filled_and_stale_ones_are_told(run: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "results" / "one")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results:one -->\nold\n<!-- /results -->\nafter\n")
    check = [str(readme), "--check"]
    result = CliRunner().invoke(analysis.readme.main, check)
    assert result.exit_code == 1 and "is not what results/ says" in result.output and "old" in readme.read_text()
    assert CliRunner().invoke(analysis.readme.main, [str(readme)]).exit_code == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- results:one -->\nMean ±") and text.endswith("\n<!-- /results -->\nafter\n")
    assert "| ST-DAC, 3 STN | 2 of 10 | .860 (1) | .870 at epoch 2 | -.010 |" in text
    assert CliRunner().invoke(analysis.readme.main, check).exit_code == 0
    readme.write_text(text.replace("results:one", "results:two"))
    result = CliRunner().invoke(analysis.readme.main, check)
    assert result.exit_code == 1 and "two is not a run" in result.output


def test_the_readme_says_what_the_results_say() -> None:
    if not list((REPOSITORY / "results").glob("*/metrics.parquet")):
        pytest.skip("results/ has no folder yet")
    result = CliRunner().invoke(analysis.readme.main, [str(REPOSITORY / "README.md"), "--check"])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no chromium on the PATH, and $CHROMIUM names none")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_the_report_fits_the_screen_and_can_be_read(
    run: Path, tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    path = write_report(run, tmp_path / "r.html", unfinished=True)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert abs(brightness(ink) - brightness(ground)) > 0.7
    assert page.evaluate("[...document.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().width > 300)")
    assert wrong == []
    context.close()


def brightness(colour: str) -> float:
    """The mean of a CSS rgb(), in [0, 1]."""
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 / 255

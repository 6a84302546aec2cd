"""The documents: what they tell to type runs, or says why not; links, sentences and tables are true.

A block of shell or Python has a comment before it: `<!-- runs -->`, or `<!-- not run: REASON -->`, and
`<!-- file: PATH -->` saves a block for those after it. The blocks of a page run in order in a folder of its own, where
there are photos/ and march/ (pictures of digits), images.npz, images.npy, model.pt, model.onnx, february.parquet
(photos/ sorted with it), and runs/quick (a finished grid).
"""

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from cluster_jobs.plan import TRIALS
from export.results.drift import OUTLIERS
from export.results.rows import CLUSTERS
from stdac.data import load
from stdac.errors import StdacError
from stdac.methods import METHODS, resolve
from stdac.pictures.sources import KINDS
from stdac.run import run_trial
from tests.conftest import CPU
from tests.waiting import LONG_S

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, *(ROOT / name / "README.md" for name in ("slurm", "benchmarks", "results")), ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (?P<kind>runs|not run|file)(?:: (?P<what>.+))? -->")
AT_ONCE = 2

GRID = """
name = "quick"
[defaults]
dataset = "digits"
limit = 100
[[trials]]
method = "kmeans"
seeds = 2
params = { restarts = 1 }
[[trials]]
method = "st-dac"
epochs = 2
params = { stn = 1, width = 0.05, macro_batch = 100 }
"""


class Block(NamedTuple):
    """A fenced block. kind: runs, not run, file, or "" where no comment says; what: the reason or the path."""

    page: Path
    line: int
    language: str
    text: str
    kind: str
    what: str

    @property
    def place(self) -> str:
        """Where it is, as an editor opens it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip().rpartition("\n")[2].strip()
        mark = MARK.fullmatch(before)
        kind, what = (mark["kind"], mark["what"] or "") if mark else ("", "")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["language"], textwrap.dedent(match["text"]), kind, what))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNING = [page for page in PAGES if any(block.kind == "runs" for block in blocks_of(page))]
COMMANDS = sorted(
    {
        (line, block.place)
        for block in BLOCKS
        if block.language == "sh"
        for line in block.text.splitlines()
        if re.match(r"stdac(-grid)? ", line)
    }
)


def name_of(page: Path) -> str:
    """A page's name in the tests' ids."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_says_whether_it_runs(block: Block) -> None:
    assert block.language in ("sh", "python", "toml", "text", "mermaid"), f"{block.place}: give the block a language"
    if block.language in ("sh", "python"):
        assert block.kind, f"{block.place}: put <!-- runs --> or <!-- not run: REASON --> before the block"
    else:
        assert block.kind in ("", "file"), f"{block.place}: this is no block that could run"
    assert bool(block.what) == (block.kind in ("not run", "file")), (
        f"{block.place}: the comment lacks its reason or path"
    )


@pytest.mark.parametrize(("line", "place"), COMMANDS, ids=[f"{place}-{line[:40]}" for line, place in COMMANDS])
def test_a_command_parses(line: str, place: str) -> None:
    tool, name, *words = shlex.split(line, comments=True)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, attribute = scripts[tool].partition(":")
    group = getattr(importlib.import_module(module), attribute)
    assert name in group.commands, place
    group.commands[name].make_context(name, words)


# what runs


def environment(folder: Path) -> dict[str, str]:
    """This environment's scripts, this checkout's code, no cluster, one thread."""
    wanted = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "STDAC_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), wanted["PATH"]])
    return wanted | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "STDAC_DATA": str(folder / "data")}


def run(command: list[str], folder: Path, place: str) -> None:
    """Run a command in a folder. Fails with what it said."""
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert ended.returncode == 0, f"{place} ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, model: Path, digits: NDArray[np.uint8]) -> Path:
    """The folder that every page starts from."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("model.pt", "model.onnx"):
        shutil.copy(model.with_name(name), folder)
    for name, images in (("photos", digits[:12]), ("march", digits[12:24])):
        (folder / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image[0]).save(folder / name / f"{i}.png")
    np.savez(folder / "images.npz", images=digits[:20, 0], labels=np.arange(20))
    np.save(folder / "images.npy", digits[:20, 0])
    for name in ("examples", "results"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "small.toml").write_text(GRID)
    launch = "stdac-grid launch small.toml --out runs/quick --backend local --workers 1"
    sort = "stdac cluster model.onnx photos/ -o february.parquet --workers 1"
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda line: run(shlex.split(line), folder, line), (launch, sort)))
    return folder


@pytest.fixture(scope="module")
def outcomes(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, "Future[None]"]]:
    """What became of every page: all run at once, as far as there are cores."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        folders = {page: tmp_path_factory.mktemp(page.stem) / "here" for page in RUNNING}
        yield {page: pool.submit(run_page, page, prepared, folder) for page, folder in folders.items()}


def run_page(page: Path, prepared: Path, folder: Path) -> None:
    """Run the blocks of a page in order."""
    shutil.copytree(prepared, folder, symlinks=True)
    for block in blocks_of(page):
        if block.kind == "file":
            (folder / block.what).write_text(block.text)
        elif block.kind == "runs":
            program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
            run([*program, block.text], folder, block.place)


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, outcomes: dict[Path, "Future[None]"]) -> None:
    outcomes[page].result()


def import_example(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that a page shows, as it stands there."""
    name = Path(path).stem
    block = next(block for block in BLOCKS if block.what == path)
    (folder / f"{name}.py").write_text(block.text)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_example_of_an_input_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_example("stdac/pictures/listfile.py", tmp_path, monkeypatch)
    monkeypatch.setitem(KINDS, "list", module.ListFile)
    monkeypatch.setattr("stdac.pictures.sources.recognize_kind", lambda _path: "list")
    for i in range(3):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "some.list").write_text("2.png\n\n0.png\n")
    assert load(str(tmp_path / "some.list")).images[:, 0, 0, 0].tolist() == [80, 0]
    (tmp_path / "some.list").write_text("2.png\nmissing.png\n")
    notes = load(str(tmp_path / "some.list")).notes
    assert notes[0] == f"1 of 2 pictures left out: {tmp_path}/missing.png (No such file or directory)"
    (tmp_path / "some.list").write_text("")
    with pytest.raises(StdacError, match=r"cannot read .*some.list: it holds no images"):
        load(str(tmp_path / "some.list"))


def test_the_example_of_a_method_trains(tmp_path: Path, new_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = next(block.page for block in BLOCKS if block.what == "stdac/methods/online_kmeans.py")
    line = next(block.text for block in blocks_of(page) if block.text.startswith('"online-kmeans"'))
    module = import_example("stdac/methods/online_kmeans.py", tmp_path, monkeypatch)
    for name, method in eval(f"{{{line}}}", vars(module)).items():
        monkeypatch.setitem(METHODS, name, method)
    trial = resolve({"method": "online-kmeans", "dataset": "digits", "limit": 300, "epochs": 3})
    folder = new_folder("trial")
    assert run_trial(trial, folder, machine=CPU)
    rows = pq.read_table(folder.path / "attempt-1" / "metrics.parquet").to_pylist()
    assert [(row["phase"], row["epoch"]) for row in rows] == [*(("follow", e) for e in range(4)), ("deployed", 3)]
    assert rows[3]["loss_distance"] < rows[1]["loss_distance"] and rows[-1]["acc"] > 0.3


# what is said


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return set(found)


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)} links to {target}, which is not there"
        if anchor:
            assert anchor in slugs(there), f"{name_of(page)} links to {target}, which has no such heading"


def test_every_page_is_within_reach_of_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {name_of(page) for page in PAGES[1:]}


def code_texts() -> list[str]:
    """All texts in the code; of an f-string the parts between what is filled in."""
    texts = []
    for package in ("stdac", "cluster_jobs", "export", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            texts += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return texts


def test_the_sentences_of_troubleshooting_are_the_codes() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    sentences = [row.split("` |")[0] for row in re.findall(r"^\| `(.+)$", page, re.MULTILINE)]
    assert len(sentences) > 50
    said = "\n".join(code_texts())
    lost = [(s, part) for s in sentences for part in s.split("…") if len(part) > 4 and part.strip() not in said]
    assert not lost, "no code says so any more: " + "; ".join(f"{part!r} of {s!r}" for s, part in lost)


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_parameters_of_a_method_are_told_with_their_defaults(method: str) -> None:
    told: dict[str, str] = {}
    for names, values in re.findall(
        r"^\| (`.+?`) \| (.+?) \|", sections(ROOT / "docs" / "methods.md")[method], re.MULTILINE
    ):
        parameters = re.findall(r"`(\w+)`", names)
        given = values.split(", ") if len(parameters) > 1 and "preset" not in values else [values] * len(parameters)
        told |= dict(zip(parameters, given, strict=True))
    for field in fields(METHODS[method].params):
        assert field.name in told, f"docs/methods.md does not tell {method}'s {field.name}"
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert float(told[field.name]) == field.default, field.name
        elif isinstance(field.default, str):
            assert told[field.name].strip("`–") == field.default, field.name


def test_every_column_of_a_file_is_told() -> None:
    told = sections(ROOT / "docs" / "inputs-and-outputs.md")
    schemas = json.loads((ROOT / "tests" / "frozen" / "schemas.json").read_text())
    assert {"metrics", "assignments"} <= set(schemas)
    untold = [
        (name, column)
        for name, columns in schemas.items()
        if f"{name}.parquet" in told
        for column in columns
        if f"`{column}`" not in told[f"{name}.parquet"] and not column.startswith("loss_")
    ]
    assert not untold
    names = "clusters.parquet", "outliers.parquet", "trials.parquet"
    for name, schema in zip(names, (CLUSTERS, OUTLIERS, TRIALS), strict=True):
        assert [column for column in schema.names if f"`{column}`" not in told[name]] == [], name

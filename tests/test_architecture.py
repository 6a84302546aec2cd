"""Imports run downward only, from the command lines to one trial, and what is imported at the start is light."""

import subprocess
import sys
from graphlib import TopologicalSorter

import grimp
import pytest
from click.testing import CliRunner

from docs.graph import ROOT, list_packages, main

FLOORS = ["tests", "benchmarks", "cluster_jobs", {"analysis", "export"}, "stdac"]
MOST_LINES = 400


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """All imports, those inside functions too; but for the names that `stdac` hands out on first use (PEP 562), as
    importing the package, which every module does, imports none of them."""
    graph = grimp.build_graph("stdac", "analysis", "export", "cluster_jobs", "benchmarks", "tests", cache_dir=None)
    for name in graph.find_modules_directly_imported_by("stdac"):
        graph.remove_import(importer="stdac", imported=name)
    return graph


def test_no_import_runs_back_up(graph: grimp.ImportGraph) -> None:
    upward = graph.find_illegal_dependencies_for_layers(FLOORS)
    assert not upward, [f"{arrow.importer} -> {arrow.imported}" for arrow in upward]


def test_nothing_below_imports_the_command_lines(graph: grimp.ImportGraph) -> None:
    roof = "cluster_jobs.commands"
    below = {m for m in graph.modules if m.startswith("cluster_jobs.") and not f"{m}.".startswith(f"{roof}.")}
    arrows = {(m, other) for m in below for other in graph.find_modules_directly_imported_by(m)}
    assert not [arrow for arrow in arrows if arrow[1].startswith(roof)]


def test_modules_import_each_other_in_no_circle(graph: grimp.ImportGraph) -> None:
    TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}).prepare()


def test_no_module_is_long() -> None:
    paths = [path for package in list_packages() for path in (ROOT / package.replace(".", "/")).glob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in paths}
    assert not {path: n for path, n in lines.items() if n > MOST_LINES}


def test_the_graph_in_the_docs_is_that_of_the_code() -> None:
    checked = CliRunner().invoke(main, ["--check"])
    assert checked.exit_code == 0, checked.output


TRAINING = {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "ray", "onnx", "stdac.methods"}
HELP = "from click.testing import CliRunner; assert CliRunner().invoke(main, {words}).exit_code == 0"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import stdac.methods", {"umap", "numba", "sklearn", "scipy"}),
        ("import stdac", TRAINING | {"numpy", "pyarrow", "PIL", "rich", "click"}),
        (f"from cluster_jobs.commands.stdac import main; {HELP.format(words=['--help'])}", TRAINING | {"pyarrow"}),
        (f"from cluster_jobs.commands.stdac import main; {HELP.format(words=['cluster', '-h'])}", {"numpy", "pyarrow"}),
        (f"from cluster_jobs.commands.grid import main; {HELP.format(words=['--help'])}", TRAINING | {"pyarrow"}),
        ("import export.cluster, export.gallery.gallery, export.web.page, export.results.drift", TRAINING),
    ],
)
def test_what_starts_fast_imports_nothing_heavy(code: str, heavy: set[str]) -> None:
    report = f"import sys; {code}; print(*sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr

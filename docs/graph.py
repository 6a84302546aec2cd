"""python -m docs.graph: draw the packages and the imports between them into docs/design.md; --check only compares."""

import tomllib
from collections import Counter
from pathlib import Path

import click
import grimp

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- graph -->\n", "<!-- /graph -->"


def list_packages() -> list[str]:
    """The packages that are installed, as pyproject.toml lists them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages: list[str] = settings["tool"]["setuptools"]["packages"]
    return packages


def package_of(module: str, packages: list[str]) -> str:
    """The innermost of the packages that a module is in."""
    return max((p for p in packages if f"{module}.".startswith(f"{p}.")), key=len)


def count_imports(packages: list[str]) -> Counter[tuple[str, str]]:
    """How many modules of one package import how many of another, as pairs; those inside functions count too."""
    roots = sorted({package.partition(".")[0] for package in packages})
    graph = grimp.build_graph(roots[0], *roots[1:], cache_dir=None)
    pairs = ((m, other) for m in graph.modules for other in graph.find_modules_directly_imported_by(m))
    arrows = Counter((package_of(m, packages), package_of(other, packages)) for m, other in pairs)
    return Counter({(a, b): n for (a, b), n in arrows.items() if a != b})


def draw_graph() -> str:
    """The graph in Mermaid's language, on arrows the number of pairs of modules that import one another."""
    packages = list_packages()
    lines = [f'    {package.replace(".", "_")}["{package}"]' for package in sorted(packages)]
    for (a, b), n in sorted(count_imports(packages).items()):
        lines.append(f"    {a.replace('.', '_')} -->|{n}| {b.replace('.', '_')}")
    return "\n".join(["```mermaid", "graph TD", *lines, "```", ""])


def replace_graph(page: str) -> str:
    """The page with the graph of the code between its marks. Raises ClickException where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(f"{PAGE} has no place for the graph: expected the lines {BEGIN.strip()} and {END}")
    return before + begin + draw_graph() + end + after


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where the graph is not that of the code.")
def main(check: bool) -> None:
    """Draw the graph of packages into docs/design.md."""
    page = PAGE.read_text("utf-8")
    drawn = replace_graph(page)
    if check and drawn != page:
        raise click.ClickException(f"the graph in {PAGE} is not that of the code: run make graph")
    if not check:
        PAGE.write_text(drawn, "utf-8")


if __name__ == "__main__":
    main()

"""The results in the documents: `python -m analysis.readme` writes their blocks anew, `--check` says whether they are
stale.

What lies between `<!-- results:NAME -->` and `<!-- /results -->` is what `stdac-grid results results/NAME --unfinished
--markdown` prints.
"""

import re
from pathlib import Path

import click

from analysis.cells import make_cells
from analysis.runs import read_metrics
from analysis.table import format_results
from stdac.errors import StdacError
from stdac.files import atomic_write

BLOCK = re.compile(r"(<!-- results:([\w.-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def _find_results(page: Path) -> Path:
    """The folder results/ beside a page, or beside the folder that it is in."""
    folders = (folder / "results" for folder in page.resolve().parents[:2])
    return next((folder for folder in folders if folder.is_dir()), page.parent / "results")


def fill_blocks(text: str, folder: Path) -> str:
    """The text with each of its blocks filled from `folder`/NAME. Raises StdacError where that is no run."""

    def fill(match: re.Match[str]) -> str:
        rows = read_metrics(folder / match[2], unfinished=True)
        return f"{match[1]}{format_results(make_cells(rows), markdown=True)}{match[3]}"

    return BLOCK.sub(fill, text)


@click.command()
@click.argument("readme", type=click.Path(path_type=Path, exists=True, dir_okay=False), default="docs/results.md")
@click.option("--check", is_flag=True, help="Write nothing; the exit code is 1 where it is stale.")
def main(readme: Path, check: bool) -> None:
    """Fill the blocks of results in a page, README, from the folder results/ beside it or beside its folder."""
    try:
        text = readme.read_text("utf-8")
        new = fill_blocks(text, _find_results(readme))
        if check and new != text:
            raise StdacError(f"{readme} is not what results/ says: python -m analysis.readme writes it anew")
        if new != text:
            with atomic_write(readme) as file:
                file.write(new.encode())
    except StdacError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

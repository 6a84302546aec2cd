"""The results in README.md: `python -m analysis.readme` writes its blocks anew, `--check` says whether they are stale.

What lies between `<!-- results:NAME -->` and `<!-- /results -->` is what `stdac-grid results results/NAME --unfinished
--markdown` prints.
"""

import re
from pathlib import Path

import click

from analysis.cells import results
from analysis.runs import read_metrics
from analysis.table import format_results
from stdac.errors import StdacError
from stdac.files import atomic_write

BLOCK = re.compile(r"(<!-- results:([\w.-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def filled(text: str, folder: Path) -> str:
    """The text with each of its blocks filled from `folder`/NAME. Raises StdacError where that is no run."""

    def fill(match: re.Match[str]) -> str:
        rows = read_metrics(folder / match[2], unfinished=True)
        return f"{match[1]}{format_results(results(rows), markdown=True)}{match[3]}"

    return BLOCK.sub(fill, text)


@click.command()
@click.argument("readme", type=click.Path(path_type=Path, exists=True, dir_okay=False), default="README.md")
@click.option("--check", is_flag=True, help="Write nothing; the exit code is 1 where it is stale.")
def main(readme: Path, check: bool) -> None:
    """Fill the blocks of results in README from the folder results/ beside it."""
    try:
        text = readme.read_text()
        new = filled(text, readme.parent / "results")
        if check and new != text:
            raise StdacError(f"{readme} is not what results/ says: python -m analysis.readme writes it anew")
        if new != text:
            with atomic_write(readme) as file:
                file.write(new.encode())
    except StdacError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

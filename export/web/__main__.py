"""`python -m export.web fetch`: put onnxruntime-web beside the page's files, for a wheel or to work offline."""

import os
from pathlib import Path

import click

from export.web import PACKAGE, VENDORED, VERSION, find_cache_folder, install_runtime, is_complete
from stdac.command import Commands


@click.group(cls=Commands)
def main() -> None:
    """What the page of `stdac page` is made of."""


@main.command()
@click.argument("package", type=click.Path(path_type=Path), required=False, metavar="[FILE.tgz]")
def fetch(package: Path | None) -> None:
    """Fetch onnxruntime-web with npm, or take it from FILE.tgz, and check its digest.

    It is put beside the page's files, or into the user's cache where stdac is installed read-only.
    """
    folder = VENDORED if os.access(VENDORED.parents[1], os.W_OK) else find_cache_folder()
    if not is_complete(folder):
        install_runtime(folder, package)
    click.echo(f"{PACKAGE} {VERSION} is in {folder}")


main(prog_name="python -m export.web")

"""The command `stdac neighbours`. Heavy imports stay inside: `stdac --help` is instant."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stdac.words import count_noun, escape_line

if TYPE_CHECKING:
    from export.embeddings import Place
    from export.neighbours import Answer, Search

TOLD = 10  # queries whose neighbours are printed


@click.command("neighbours")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.argument("queries", nargs=-1, required=True, metavar="QUERY...")
@click.option("--among", required=True, metavar="INPUT", help="Images to search, or a Parquet file of embeddings.")
@click.option("-n", "n", type=click.IntRange(1, 1000), default=5, help="Neighbours of each query.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Rows to write: .parquet, .csv or .jsonl.")
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE.html", help="Show queries and answers.")
@click.option(
    "--save-embeddings",
    type=click.Path(path_type=Path),
    metavar="FILE.parquet",
    help="Keep the embeddings of what is searched, for --among another time.",
)
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt", "openvino"]),
    default="auto",
    help="Where the model runs; auto: cuda where it works, else cpu.",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that decode pictures; one a CPU if not given.")
@click.option("--quiet", is_flag=True, help="Print no neighbours.")
def neighbours_command(
    model: Path,
    queries: tuple[str, ...],
    among: str,
    n: int,
    output: Path | None,
    page: Path | None,
    save_embeddings: Path | None,
    provider: str,
    workers: int | None,
    quiet: bool,
) -> None:
    """Find the images that are nearest to each QUERY by the embeddings that MODEL.onnx gives.

    MODEL: any that has an embedding, as stdac export makes of a method that embeds images, and with --with-embedding of
    one that clusters them. QUERY and --among: what stdac cluster takes; --among also takes the clusters.parquet of a
    model with its embedding, and what --save-embeddings has kept. A query is no neighbour of itself, nor are its exact
    copies. Needs no torch.
    """
    from export.cluster import check_output
    from export.neighbours import find_neighbours, write_neighbours
    from export.results.formats import WRITERS, keep_table, write_as_named

    read = [model, Path(among), *map(Path, queries)]
    for path, suffixes in (
        (output, tuple(WRITERS)),
        (page, (".html", ".htm")),
        (save_embeddings, (".parquet",)),
    ):
        if path is not None:
            check_output(path, read, suffixes)
            read.append(path)
    search = find_neighbours(model, queries, among, n, provider=provider, workers=workers, keep=save_embeddings)
    if search.unread:
        told = f"{count_noun(len(search.unread), 'image')} could not be read (the first: {search.unread[0]})"
        click.echo(escape_line(told), err=True)
    if not quiet:
        click.echo("\n".join(_tell_answers(search)))
    if output is not None:
        with keep_table(output) as table:
            write_neighbours(table, search.answers)
            write_as_named(table, output)
        if not quiet:
            click.echo(f"wrote {escape_line(output)}: {count_noun(n * len(search.answers), 'row')}")
    if page is not None:
        from export.gallery.neighbours_page import write_page

        shown = write_page(page, search, workers)
        if not quiet:
            click.echo(f"wrote {escape_line(page)}: shows {count_noun(shown, 'query', 'queries')}")
    if save_embeddings is not None and not quiet:
        click.echo(f"wrote {escape_line(save_embeddings)}: {count_noun(search.searched, 'embedding')}")


def _tell_answers(search: "Search") -> list[str]:
    """The first queries, each with its neighbours and their distances."""
    lines = [line for answer in search.answers[:TOLD] for line in _tell_answer(answer)]
    left = len(search.answers) - TOLD
    return [*lines, f"… and {count_noun(left, 'query', 'queries')} more"] if left > 0 else lines


def _tell_answer(answer: "Answer") -> list[str]:
    """A query, and a line a neighbour."""
    found = [f"  {distance:9.4f}  {_name(place)}" for place, distance in answer.neighbours]
    return [_name(answer.query), *found]


def _name(place: "Place") -> str:
    """What an image is called in a line."""
    return escape_line(
        f"{place.source}, {place.member or place.number}" if place.member or place.number else place.source
    )

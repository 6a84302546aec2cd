"""The commands `stdac export` and `stdac cluster`. Heavy imports stay inside: `stdac --help` is instant."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from export.cluster import Progress, Summary
    from export.to_onnx import ExportReport

LINE_EVERY_S = 10


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.pt")
@click.argument("onnx", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option(
    "--names", type=click.Path(path_type=Path), help="Text file with one cluster name a line, cluster 0 first."
)
@click.option("--verify-on", metavar="DATASET", help="Verify on real images too: the first 256 of a data set or path.")
def export_command(model: Path, onnx: Path, names: Path | None, verify_on: str | None) -> None:
    """Turn a trained MODEL.pt into one MODEL.onnx, verified against torch.

    The file takes uint8 images and gives clusters; any ONNX runtime opens it. Nothing is written if it disagrees.
    """
    from export.sources import sample
    from export.to_onnx import export_model
    from stdac.model_file import load_model

    labels = () if names is None else read_names(names)
    images = None if verify_on is None else sample(verify_on, load_model(model)[1].shape)
    click.echo(export_text(export_model(model, onnx, images, labels)))


def read_names(path: Path) -> tuple[str, ...]:
    """Cluster names, one a line of a UTF-8 file. Raises StdacError where it cannot be read."""
    from stdac.errors import StdacError

    try:
        return tuple(line.strip() for line in path.read_text("utf-8").rstrip().split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise StdacError(
            f"cannot read {path} ({error}): expected a UTF-8 text file with one cluster name a line"
        ) from error


def export_text(report: "ExportReport") -> str:
    """What was written and how it was verified, in two lines."""
    info, agreement = report.info, report.agreement
    takes = f"{info.width}x{info.height} {'gray' if info.colour_mode == 'L' else 'RGB'} images"
    return (
        f"wrote {report.path}: {info.k} clusters, {takes}, opset {info.opset}, {report.bytes / 1e6:.1f} MB\n"
        f"verified against torch on {agreement.images} images in {agreement.cases} cases: "
        f"scores differ by at most {agreement.max_difference:.1e}"
    )


@click.command("cluster")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="clusters.parquet", show_default=True)
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--quiet", is_flag=True, help="No progress and no table.")
def cluster_command(model: Path, inputs: tuple[str, ...], output: Path, provider: str, quiet: bool) -> None:
    """Sort the images of each INPUT into the clusters of MODEL.onnx.

    INPUT: a folder (searched below too), an image, an .npz, .npy or IDX file, or a data set's name. A file that cannot
    be read becomes a row with an error; the exit code is 0 if at least one image was sorted. Needs no torch.
    """
    import warnings

    from export.cluster import cluster_files
    from stdac.errors import StdacError

    with warnings.catch_warnings(), progress_shown(quiet) as show:
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files
        summary = cluster_files(model, inputs, output, provider, show)
    if not summary.images:
        raise StdacError(f"no image was sorted: {unread_text(summary)}")
    if not quiet:
        click.echo(sizes_text(summary))
    if summary.errors:
        click.echo(unread_text(summary), err=True)


@contextmanager
def progress_shown(quiet: bool) -> Iterator["Callable[[Progress], None] | None"]:
    """A progress bar on stderr where it is a terminal, else a line now and then."""
    if quiet or not sys.stderr.isatty():
        yield None if quiet else progress_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("sorting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rate="")

        def show(progress: "Progress") -> None:
            speed = bar.tasks[task].speed
            rate = f"{speed:,.0f} images/s" if speed else ""
            bar.update(task, completed=progress.done, total=progress.total, rate=rate)

        yield show


def progress_lines() -> "Callable[[Progress], None]":
    """A function that tells the progress as a line on stderr, at most one in LINE_EVERY_S."""
    last = time.monotonic()

    def show(progress: "Progress") -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            total = "" if progress.total is None else f" of {progress.total:,}"
            click.echo(f"{progress.done:,}{total} images", err=True)

    return show


def sizes_text(summary: "Summary") -> str:
    """A table of the clusters, and what was written."""
    names = [one_line(name) for name in summary.cluster_names] or [""] * len(summary.sizes)
    wide = max(map(len, ("name", *names)))
    lines = [f"cluster  {'name':{wide}}  {'images':>9}  mean confidence"]
    for k, (name, size, mean) in enumerate(zip(names, summary.sizes, summary.mean_confidence, strict=True)):
        lines.append(f"{k:>7}  {name:{wide}}  {size:>9,}  {'' if size == 0 else f'{mean:15.3f}'}".rstrip())
    rate = summary.images / max(summary.seconds, 1e-9)
    took = f"{summary.seconds:.1f} s, {rate:,.0f} images/s on {summary.provider}"
    return "\n".join([*lines, f"wrote {summary.output}: {counted(summary.images, 'image')} sorted ({took})"])


def unread_text(summary: "Summary") -> str:
    """How many files could not be read, and why the first could not."""
    if summary.first_error is None:
        return "the inputs hold none"
    files, first = counted(summary.errors, "file"), one_line(summary.first_error)
    return f"{files} could not be read (the first: {first}); the column error of {summary.output} says why"


def one_line(text: str) -> str:
    """The text without line breaks or control characters, which a file's or cluster's name may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(n: int, noun: str) -> str:
    """A number with its noun."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"

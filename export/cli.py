"""The commands `stdac export` and `stdac cluster`. Heavy imports stay inside: `stdac --help` is instant."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stdac.command import require
from stdac.files import check_suffix
from stdac.words import count_noun, escape_line, format_duration

if TYPE_CHECKING:
    from export.cluster import Progress, Summary
    from export.convert.to_onnx import ExportReport
    from export.metadata import ModelInfo

LINE_EVERY_S = 10


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.pt")
@click.argument("onnx", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16: half the size, for GPUs; int8: a quarter, for CPUs, with ranges from training images.",
)
@click.option("--with-embedding", is_flag=True, help="Give the features that the last layer clusters as an output too.")
@click.option(
    "--names", type=click.Path(path_type=Path), help="Cluster names: a names.toml, or text with one name a line."
)
@click.option(
    "--verify-on",
    metavar="INPUT",
    help="Images to verify, calibrate and measure on, as stdac cluster takes them; the training set if not given.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
def export_command(
    model: Path,
    onnx: Path,
    precision: str,
    with_embedding: bool,
    names: Path | None,
    verify_on: str | None,
    data_dir: Path | None,
) -> None:
    """Turn a trained MODEL.pt into one MODEL.onnx, verified against torch.

    The file takes uint8 images and gives clusters, or of an embedding model embeddings; any ONNX runtime opens it.
    Nothing is written if it disagrees.
    """
    check_suffix(onnx, (".onnx",))
    require("onnx", "onnxscript")  # before torch, which their extra brings too
    from export.convert.to_onnx import export_model
    from stdac.data import open_input
    from stdac.model_file import load_model
    from stdac.pictures.samples import sample_images

    config = load_model(model)[1]
    report = export_model(
        model,
        onnx,
        None if verify_on is None else sample_images(open_input(verify_on), config.shape, config.trial.background),
        () if names is None else read_names(names, config.trial.n_clusters),
        precision=precision,
        with_embedding=with_embedding,
        data_dir=data_dir,
    )
    click.echo(_export_text(report))


def read_names(path: Path, k: int) -> tuple[str, ...]:
    """K cluster names, from a names.toml or one a line of a UTF-8 file. Raises StdacError where it cannot be read."""
    from stdac.errors import StdacError
    from stdac.text import read_text

    if path.suffix == ".toml":
        from export.results.names import load_names

        names = load_names(path)
        if names is None:
            raise StdacError(f"there is no {path}: expected a names.toml, which the gallery of stdac cluster saves")
        return names.of(k)
    try:
        return tuple(line.strip() for line in read_text(path).rstrip().split("\n"))
    except OSError as error:
        raise StdacError(f"cannot read {path} ({error}): expected a text file with one cluster name a line") from error


def _export_text(report: "ExportReport") -> str:
    """What was written and how it was verified, in two or three lines."""
    info, agreement = report.info, report.agreement
    takes = f"{info.width}x{info.height} {'gray' if info.colour_mode == 'L' else 'RGB'} images"
    lines = [
        f"wrote {escape_line(report.path)}: {_describe_outputs(info)}, {takes}, {info.precision}, "
        f"opset {info.opset}, {report.bytes / 1e6:.1f} MB",
        f"verified against torch on {count_noun(agreement.images, 'image')} in {agreement.cases} cases: "
        f"{'scores' if info.k else 'embeddings'} differ by at most {agreement.max_difference:.1e}",
    ]
    if agreement.same_cluster is not None:
        text = (
            f"of {count_noun(agreement.measured, 'training image')} {agreement.same_cluster:.2%} keep their cluster, "
        )
        text += f"{agreement.same_moved:.2%} of as many copies that are moved a little"
        if agreement.accuracy is not None:
            text += f"; ACC {agreement.accuracy[0]:.4f} in float32, {agreement.accuracy[1]:.4f} in {info.precision}"
        lines.append(text)
    return "\n".join(lines)


def _describe_outputs(info: "ModelInfo") -> str:
    """What a model gives."""
    return count_noun(info.k, "cluster") if info.k else f"an embedding of {count_noun(info.embedding, 'value')}"


@click.command("cluster")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="clusters.parquet",
    show_default=True,
    help="The rows: .parquet, .csv or .jsonl.",
)
@click.option(
    "--gallery", type=click.Path(path_type=Path), metavar="FILE.html", help="Show the result as one HTML page."
)
@click.option(
    "--names",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Cluster names; names.toml beside OUTPUT if not given.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The truth, to score against: CSV, Parquet, .npy, IDX.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="OLD.parquet",
    help="Say how the images differ from an earlier run's.",
)
@click.option("--resume", is_flag=True, help="Keep OUTPUT's rows: sort new and changed files only.")
@click.option("--fresh", is_flag=True, help="Start anew where an interrupted run could go on.")
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt", "openvino"]),
    default="auto",
    show_default=True,
    help="Where the model runs; auto: cuda where it works, else cpu.",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that decode pictures; one a CPU if not given.")
@click.option(
    "--decode-seconds",
    type=float,
    metavar="S",
    help="CPU time that one picture may take to decode; 20 if not given (or $STDAC_DECODE_S).",
)
@click.option("--quiet", is_flag=True, help="No progress and no table.")
def cluster_command(
    model: Path,
    inputs: tuple[str, ...],
    output: Path,
    gallery: Path | None,
    names: Path | None,
    labels: Path | None,
    compare: Path | None,
    resume: bool,
    fresh: bool,
    provider: str,
    workers: int | None,
    decode_seconds: float | None,
    quiet: bool,
) -> None:
    """Sort the images of each INPUT into the clusters of MODEL.onnx.

    INPUT: a folder (searched below too), an image, an .npz, .npy or IDX file, a Parquet file or a tar of images, a data
    set's name, or - for a list of paths on stdin. A file that cannot be read becomes a row with an error; the exit code
    is 0 if at least one image was sorted. Interrupted, the same command goes on where it stopped. Needs no torch.
    """
    from export.cluster import Settings, check_output, cluster_files
    from export.results.formats import WRITERS, keep_table, write_as_named
    from export.results.rows import check_rows
    from stdac.errors import StdacError
    from stdac.pictures.collect import describe_flat
    from stdac.pictures.walk import describe_left_out

    read = [path for path in (model, *map(Path, inputs), labels, names, compare) if path is not None]
    check_output(output, read, tuple(WRITERS))
    if gallery is not None:
        check_output(gallery, [*read, output], (".html", ".htm"))
    if resume and output.suffix.lower() != ".parquet":
        raise StdacError(f"--resume takes rows from a Parquet file, and {output} is none: name -o clusters.parquet")
    if compare is not None:
        check_rows(compare)
    settings = Settings(
        provider=provider,
        workers=workers,
        resume=resume,
        fresh=fresh,
        labels=labels,
        names=names or output.parent / "names.toml",
        earlier=compare,
        decode_s=decode_seconds,
    )
    with keep_table(output) as table:
        try:
            with _show_progress(quiet) as show:
                summary = cluster_files(model, inputs, table, settings, show)
        except KeyboardInterrupt:
            raise StdacError("stopped; what is sorted is kept, and the same command goes on from there") from None
        write_as_named(table, output)
        summary.output = output
        if summary.left_out:
            click.echo(escape_line(describe_left_out(summary.left_out)), err=True)
        if not summary.images:
            raise StdacError(f"no image was sorted: {_describe_unread(summary)}")
        if not quiet:
            click.echo(_format_sizes(summary))
        for line in ([_describe_unread(summary)] if summary.errors else []) + summary.notes:
            click.echo(escape_line(line), err=True)
        if summary.flat:
            flat = describe_flat(summary.flat, summary.images, output.name, summary.reading.background)
            click.echo(escape_line(flat), err=True)
        _say_truth(table, summary, quiet)
        if compare is not None:
            _say_drift(compare, table, summary)
        if gallery is not None:
            _show_gallery(gallery, inputs, table, summary, workers, quiet)


def _say_truth(table: Path, summary: "Summary", quiet: bool) -> None:
    """Print the scores against the labels, where the inputs or a labels file have some."""
    from export.results.rows import open_rows
    from export.results.truth import describe_truth, score
    from stdac.errors import StdacError

    if quiet:
        return
    try:
        with open_rows(table) as file:
            truth = score(file.read(["cluster", "label"], use_threads=False), len(summary.sizes))
    except StdacError as error:  # scipy is missing: the clusters are there all the same
        click.echo(str(error), err=True)
    else:
        if truth is not None:
            click.echo(describe_truth(truth, summary.names))


def _say_drift(earlier: Path, table: Path, summary: "Summary") -> None:
    """Print how the images differ from an earlier run's, and write the outliers beside the output."""
    from export.results.drift import compare, write_outliers
    from export.results.drift_text import describe_drift

    drift = compare(earlier, table)
    click.echo(f"\n{describe_drift(drift, [name or '' for name in summary.names])}")
    path = summary.output.with_suffix(".outliers.parquet")
    click.echo(f"wrote {escape_line(path)}: {count_noun(write_outliers(path, drift), 'outlier')}")


def _show_gallery(
    path: Path, inputs: tuple[str, ...], table: Path, summary: "Summary", workers: int | None, quiet: bool
) -> None:
    """Write the gallery."""
    from functools import partial

    from export.gallery.gallery import describe_gallery, write_gallery
    from stdac.pictures.thumbnails import read_thumbnails
    from stdac.text import escape_name

    written = write_gallery(
        path,
        table,
        partial(read_thumbnails, summary.sources, workers=workers, reading=summary.reading),
        title=", ".join(escape_name(Path(text).name or text) for text in inputs),
        names=summary.names,
        model_id=summary.model_id,
        k=len(summary.sizes),
    )
    if not quiet:
        click.echo(describe_gallery(written))


@contextmanager
def _show_progress(quiet: bool) -> Iterator["Callable[[Progress], None] | None"]:
    """A progress bar on stderr where it is a terminal, else a line now and then."""
    if quiet or not sys.stderr.isatty():
        yield None if quiet else _print_progress()
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


def _print_progress() -> "Callable[[Progress], None]":
    """A function that tells the progress as a line on stderr, at most one in LINE_EVERY_S."""
    began = last = time.monotonic()
    before: int | None = None  # images that were sorted when the first were told: starting takes a while

    def show(progress: "Progress") -> None:
        nonlocal began, before, last
        now, new = time.monotonic(), progress.done - progress.known
        if before is None:
            began, before = now, new
        if now - last < LINE_EVERY_S or now == began:
            return
        last = now
        rate = (new - before) / (now - began)
        text = f"{count_noun(progress.done, 'image')}, {rate:,.0f} images/s"
        if progress.total is not None:
            total = max(progress.total, progress.done)  # an archive that breaks has a row more than it says
            text = f"{progress.done:,} of {count_noun(total, 'image')}, {rate:,.0f} images/s"
            text += f", {format_duration((total - progress.done) / rate)} left" if rate else ""
        click.echo(text, err=True)

    return show


def _format_sizes(summary: "Summary") -> str:
    """A table of the clusters, and what was written."""
    names = ["" if name is None else escape_line(name) for name in summary.names]
    wide = max(map(len, ("name", *names)))
    lines = [f"cluster  {'name':{wide}}  {'images':>9}  mean confidence"]
    for k, (name, size, mean) in enumerate(zip(names, summary.sizes, summary.mean_confidence, strict=True)):
        lines.append(f"{k:>7}  {name:{wide}}  {size:>9,}  {'' if size == 0 else f'{mean:15.3f}'}".rstrip())
    rate = summary.images / max(summary.seconds, 1e-9)
    took = f"{summary.seconds:.1f} s, {rate:,.0f} images/s on {summary.provider}"
    if summary.known:
        took += f"; {summary.known:,} were known from before"
    return "\n".join(
        [*lines, f"wrote {escape_line(summary.output)}: {count_noun(summary.images, 'image')} sorted ({took})"]
    )


def _describe_unread(summary: "Summary") -> str:
    """How many files could not be read, and why the first could not."""
    if summary.first_error is None:
        return "the inputs hold none"
    files, first = count_noun(summary.errors, "file"), escape_line(summary.first_error)
    return f"{files} could not be read (the first: {first}); the column error of {escape_line(summary.output)} says why"

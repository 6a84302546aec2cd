"""A run folder as a small folder to publish: `python -m analysis.publish runs/paper results/paper`.

The folder has metrics.parquet (a ROWS table, see `analysis.runs`), report.html, environment.json, commands.txt and
grid.toml. Models stay where they are, and no file names a host.
"""

from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.provenance import describe_environment, list_commands, read_grids
from analysis.report import make_page
from analysis.runs import ROWS, concat_rows, read_metrics
from stdac.errors import StdacError
from stdac.files import atomic_write, encode_json


def publish(run: Path, out: Path) -> list[Path]:
    """Write what is to be published of a run, unfinished trials included, to the folder `out`; returns the paths.

    run: see `analysis.runs.read_metrics`. What `out` has of finished trials that the run has not finished stays: a long
    grid may be run in pieces, on one machine after another. Raises StdacError as that does, or where `out` cannot be
    written.
    """
    kept = _read_kept_rows(out)
    rows = read_metrics(run, unfinished=True)
    finished = rows.filter(rows["finished"])["trial_id"]
    kept = kept.filter(pc.invert(pc.is_in(kept["trial_id"], finished)))
    rows = rows.filter(pc.invert(pc.is_in(rows["trial_id"], kept["trial_id"])))
    rows = concat_rows([kept, rows]).combine_chunks()
    files, name = read_grids(run, rows), out.resolve().name
    told = f"{list_commands(name, list(files))}python -m analysis.publish runs/{name} results/{name}\n"
    contents = {
        "report.html": make_page(run, rows, name, hosts=False).encode(),
        "environment.json": encode_json(_describe_all(run, out, rows)),
        "commands.txt": told.encode(),
        **{name: text.encode() for name, text in files.items()},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StdacError(f"cannot make the folder {out} ({error.strerror}): choose another place") from error
    with atomic_write(out / "metrics.parquet") as file:
        pq.write_table(rows, file, compression="zstd", write_page_checksum=True)
    for name, content in contents.items():
        with atomic_write(out / name) as file:
            file.write(content)
    return [out / name for name in ("metrics.parquet", *contents)]


def _read_kept_rows(out: Path) -> pa.Table:
    """The rows of the finished trials that a folder has published, a ROWS table; empty where there are none yet."""
    return read_metrics(out) if (out / "metrics.parquet").exists() else ROWS.empty_table()


def _describe_all(run: Path, out: Path, rows: pa.Table) -> list[dict[str, Any]]:
    """`describe_environment` of each trial, from the run, or from what `out` has of it where the run has nothing."""
    of_run = describe_environment(run, rows, hosts=False)
    of_out = {trial["trial_id"]: trial for trial in describe_environment(out, rows, hosts=False)}
    return [trial if trial["attempts"] else of_out[trial["trial_id"]] for trial in of_run]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(run: Path, out: Path) -> None:
    """Write what is to be published of RUN to the folder OUT."""
    try:
        for path in publish(run, out):
            click.echo(path)
    except StdacError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

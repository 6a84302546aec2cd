"""The command `stdac sort`: from a folder of pictures to named groups, by the other commands one after the other.

Each step leaves a file or a run folder in OUT and is done again in no time, or goes on, where it was interrupted: the
pictures, small, in images.npz; the short trials and those of suggest-k; the trials that vote and their student in run;
model.onnx, clusters.parquet and the gallery.
"""

import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster_jobs.commands.launch import HOURS_TO_CONFIRM, estimate_all, launch
from cluster_jobs.commands.suggest_k import suggest_k_command
from export.cli import cluster_command, export_command
from stdac.command import read_side
from stdac.errors import StdacError
from stdac.text import escape_name
from stdac.words import count_noun, escape_line, format_duration, format_score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cluster_jobs.album import Album

COMMANDS: dict[str, click.Command] = {
    "stdac-grid launch": launch,
    "stdac suggest-k": suggest_k_command,
    "stdac export": export_command,
    "stdac cluster": cluster_command,
}

SHOWN_K = 10
"""The number of groups in what is shown, where it would be suggested first."""


@click.command("sort")
@click.argument("pictures", type=click.Path(path_type=Path), metavar="PICTURES")
@click.option("--clusters", type=click.IntRange(2), metavar="K", help="Number of groups; suggested if not given.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("sorted"), help="Folder of what comes out.")
@click.option("--into", type=click.Choice(["copies", "links"]), help="Also a folder for each group, OUT/groups.")
@click.option(
    "--sure", type=click.FloatRange(0, 1), default=0.0, help="With --into: less confident pictures go to `unsure`."
)
@click.option("--image-size", callback=read_side, metavar="N", help="Side in pixels that pictures are looked at.")
@click.option(
    "--background", type=click.Choice(["black", "white", "auto"]), default="auto", help="What transparency is laid on."
)
@click.option(
    "--stn", type=click.IntRange(0, 3), help="Number of spatial transformers; short trials decide if not given."
)
@click.option(
    "--epochs", type=click.IntRange(1), help="Epochs of each network; as many as the pictures need if not given."
)
@click.option("--backend", type=click.Choice(["auto", "local", "ray", "slurm"]), help="As of stdac-grid launch.")
@click.option("--nodes", type=click.IntRange(1), help="As of stdac-grid launch.")
@click.option("--workers", type=click.IntRange(1), help="Trials at a time; one a core, or one a GPU, if not given.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--show", is_flag=True, help="Print the grid and the commands that it stands for; run none.")
@click.option("--yes", is_flag=True, help="Do not ask before hours of computing.")
def sort_command(
    pictures: Path,
    clusters: int | None,
    out: Path,
    into: str | None,
    sure: float,
    image_size: int | str | None,
    background: str,
    stn: int | None,
    epochs: int | None,
    backend: str | None,
    nodes: int | None,
    workers: int | None,
    device: str,
    show: bool,
    yes: bool,
) -> None:
    """Sort PICTURES into groups of like ones: many trials vote, and a student learns what they agree on.

    PICTURES: a folder, or whatever else stdac train takes. OUT gets a model, the rows, and a gallery to name the groups
    in. No picture is changed or moved. Stopped or killed, the same command goes on.
    """
    from cluster_jobs.album import check_clusters, choose_members, choose_student, choose_study, count_epochs
    from export.results.groups import check_pictures, lay_out

    if into is not None:
        check_pictures(pictures)
    images = out / "images.npz"
    album = _open_album(pictures, out, image_size, background)
    click.echo(f"{escape_line(pictures)}: {album.describe()}", err=True)
    check_clusters(album, clusters)
    options = _make_options(device=device if device != "auto" else None, workers=workers)
    run = Runner(show=show)

    # how many groups
    if clusters is None:
        study = choose_study(album)
        run("stdac suggest-k", images, *study, "--out", out / "suggest-k", *options, *_make_options(yes=yes))
        clusters = SHOWN_K if show else _read_suggestion(out / "suggest-k", len(album.images))

    # which trials vote
    epochs = epochs or count_epochs(album)
    defaults = {"dataset": images.name, "n_clusters": clusters, "background": background}
    if stn is None:
        stn = _try_transformers(album, out, defaults, run, options)
    plan = choose_members(album, epochs=epochs, stn=stn, layout=find_spec("umap") is not None)
    for line in plan.lines:
        click.echo(line, err=True)
    teacher = {"method": "committee", "params": {"members": plan.members}}
    student = {"method": "student", "params": {**choose_student(album), "teacher": teacher}}
    grid = _write_grid(out / "sort.toml", defaults, student, run)
    if not show:
        _confirm(grid, out / "run", len(album.images), device, workers, yes)
    asked = _make_options(backend=backend, nodes=nodes, yes=True)
    run("stdac-grid launch", grid, "--out", out / "run", *options, *asked)

    # what comes of them
    model, rows, gallery = (out / name for name in ("model.onnx", "clusters.parquet", "gallery.html"))
    run("stdac export", out / "run" / "MODEL.pt" if show else _find_student(grid, out / "run"), model)
    run("stdac cluster", model, pictures, "-o", rows, "--gallery", gallery)
    if show:
        return
    if into is not None:
        click.echo(lay_out(rows, out / "groups", links=into == "links", sure=sure))
    _say_what_next(out)


class Runner:
    """Says each command as it would be typed, and runs it here. show: says them alone."""

    def __init__(self, *, show: bool) -> None:
        self.show = show

    def __call__(self, name: str, *words: object) -> None:
        """Run a command of COMMANDS. Raises what it raises."""
        texts = list(map(str, words))
        line = f"$ {name} {shlex.join(map(escape_name, texts))}"
        click.echo(line if self.show else f"\n{line}", err=not self.show)
        if not self.show:
            COMMANDS[name].main(texts, prog_name=name, standalone_mode=False)


def _make_options(**values: object) -> list[str]:
    """The options that are given, as words of a command line."""
    words: list[str] = []
    for name, value in values.items():
        if value is True:
            words.append(f"--{name}")
        elif value:
            words += [f"--{name}", str(value)]
    return words


def _open_album(pictures: Path, out: Path, image_size: int | str | None, background: str) -> "Album":
    """The album of the pictures, which OUT/images.npz keeps. Raises StdacError where they cannot be loaded, or OUT is
    of other pictures or settings."""
    import numpy as np

    from cluster_jobs.album import look_at
    from stdac.data import NAMES, load, resolve_name
    from stdac.files import atomic_write, encode_json, explain_refusal, link_once, read_record
    from stdac.presets import NATIVE
    from stdac.sizing import choose_side, survey_pictures
    from stdac.trial_data import hash_files

    dataset = resolve_name(str(pictures))
    about, kept = out / "album.json", out / "images.npz"
    if dataset in NAMES:
        raise StdacError(f"got {dataset}, expected a folder of pictures: stdac train takes data sets by their names")
    found = survey_pictures(dataset)
    side = image_size if isinstance(image_size, int) else None if image_size == NATIVE else choose_side(found)
    sizes = sorted(found.sizes)
    asked: dict[str, Any] = {"pictures": dataset, "files": hash_files({"dataset": dataset}), "background": background}
    asked |= {} if side is None else {"side": side}
    if about.exists():
        _refuse_others(
            asked, read_record(about, {"pictures": str, "files": str, "background": str}, {"side": int}), out
        )
    if about.exists() and kept.exists():
        return look_at(load(str(kept)).images, sizes)
    taken = load(dataset, image_size=side, background=background)
    for note in taken.notes:
        click.echo(escape_line(note), err=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_refusal(error, out) from error
    with atomic_write(kept) as file:
        np.savez(file, images=taken.images)
    link_once(about, encode_json(asked))
    return look_at(taken.images, sizes, taken.notes)


def _refuse_others(asked: Mapping[str, Any], before: Mapping[str, Any], out: Path) -> None:
    """Raise StdacError where OUT was made of other pictures, or with other settings."""
    for name, what in (("pictures", "of"), ("side", "at an image size of"), ("background", "on a background")):
        if asked.get(name) != before.get(name):
            then, now = before.get(name, "their own"), asked.get(name, "their own")
            raise StdacError(f"{out} was begun {what} {then}, now it is {now}: choose another folder (-o)")
    if asked["files"] != before["files"]:
        raise StdacError(
            f"{asked['pictures']} holds other pictures than {out} was begun with: sort them with the model that is "
            f"there (stdac cluster {out / 'model.onnx'} {asked['pictures']}), or choose another folder (-o)"
        )


def _read_suggestion(study: Path, n: int) -> int:
    """The number of clusters that a study suggests. Raises StdacError where it suggests none."""
    from stdac.files import read_record

    found = read_record(study / "suggestion.json", {"candidates": list}, {"k": int})
    others = ", ".join(map(str, found["candidates"]))
    if found.get("k") is None:
        raise StdacError(
            f"no number of groups suggests itself for {count_noun(n, 'picture')}: name one with --clusters"
        )
    click.echo(f"taking {found['k']} groups (candidates: {others}); --clusters K sets another number", err=True)
    return int(found["k"])


def _try_transformers(album: "Album", out: Path, defaults: Mapping[str, Any], run: Runner, options: list[str]) -> int:
    """0 or 2 spatial transformers: the one of which short trials on some of the pictures agree better."""
    from cluster_jobs.album import FEW, NETWORK, SEEDS, TRIED, TRIED_EPOCHS, choose_stn

    if album.different < FEW:
        return 0
    short = {"method": "st-dac", "seeds": SEEDS, "epochs": TRIED_EPOCHS, "limit": min(TRIED, len(album.images))}
    grid = _write_grid(out / "try.toml", defaults, {**short, "params": {"stn": [0, 2], **NETWORK}}, run)
    run("stdac-grid launch", grid, "--out", out / "try", *options, "--yes")
    if run.show:
        return 0
    agreements = _measure_agreements(grid, out / "try")
    told = ", ".join(f"{stn} transformers {format_score(value)}" for stn, value in agreements.items())
    stn = choose_stn(agreements)
    click.echo(
        f"agreement (NMI) of {SEEDS} short trials each: {told}; taking {stn}, --stn N sets another number", err=True
    )
    return stn


def _measure_agreements(grid: Path, run: Path) -> dict[int, float]:
    """The mean agreement of the trials that differ in their seeds alone, by their number of transformers."""
    import numpy as np

    from cluster_jobs.grid import load_grid
    from cluster_jobs.ledger import Ledger
    from stdac.consensus import count_votes, measure_agreement

    ledger = Ledger(run)
    by_stn: dict[int, list[NDArray[np.int64]]] = {}
    for trial in load_grid(str(grid)).trials:
        by_stn.setdefault(trial.to_json()["params"]["stn"], []).append(ledger.result(trial.id).read_clusters())
    return {stn: float(np.mean(measure_agreement(count_votes(members)))) for stn, members in by_stn.items()}


def _write_grid(path: Path, defaults: Mapping[str, Any], block: Mapping[str, Any], run: Runner) -> Path:
    """Write a grid of one block, or print it where commands are shown."""
    from cluster_jobs.grid import to_toml
    from stdac.files import atomic_write

    lines = ["[defaults]", *(f"{key} = {to_toml(value)}" for key, value in defaults.items()), "", "[[trials]]"]
    text = "\n".join([*lines, *(f"{key} = {to_toml(value)}" for key, value in block.items()), ""])
    if run.show:
        click.echo(f"\n# {path}\n{text}")
        return path
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def _confirm(grid: Path, run: Path, images: int, device: str, workers: int | None, yes: bool) -> None:
    """Say how long what is left of a grid on so many images takes, and ask where that is hours."""
    from cluster_jobs.grid import load_grid
    from cluster_jobs.ledger import Ledger
    from cluster_jobs.local import count_places, uses_gpu

    ledger = Ledger(run)
    left = [trial for trial in load_grid(str(grid)).trials if ledger.folder(trial.id).done() is None]
    seconds = estimate_all(left, uses_gpu(device), workers or count_places(device), images)
    if left:
        click.echo(f"{count_noun(len(left), 'trial')}, roughly {format_duration(seconds)} on this machine", err=True)
    if seconds > HOURS_TO_CONFIRM * 3600 and not yes:
        click.confirm("Go on?", abort=True, err=True)


def _find_student(grid: Path, run: Path) -> Path:
    """The model of the student, the last trial of the grid."""
    from cluster_jobs.grid import load_grid
    from cluster_jobs.ledger import Ledger

    return Ledger(run).result(load_grid(str(grid)).trials[-1].id).path / "model.pt"


def _say_what_next(out: Path) -> None:
    """What is there, and what to do with it."""
    click.echo(
        f"\n{escape_line(out / 'gallery.html')}: open it, name the groups, and save names.toml beside it\n"
        f"{escape_line(out / 'clusters.parquet')}: a row a picture\n"
        f"{escape_line(out / 'model.onnx')}: sorts new pictures, stdac cluster {escape_line(out / 'model.onnx')} MORE/"
    )

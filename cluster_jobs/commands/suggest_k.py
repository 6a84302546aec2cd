"""The command `stdac suggest-k`: small trials at many K, through the grid, then their curves and what they suggest.

The images are taken once, small and without labels, into RUN/images.npz, on which all trials run: a trial cannot look
at ground truth, loads in no time, and resumes on the same images whatever became of the input.
"""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cluster_jobs.commands.train import BACKGROUND_HELP, PRESET_HELP, SIDE_HELP
from stdac.command import parse_setting, read_side
from stdac.errors import StdacError
from stdac.presets import NATIVE, PRESETS
from stdac.words import count_noun, escape_line, format_duration

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cluster_jobs.backends import Backend
    from cluster_jobs.grid import Grid
    from cluster_jobs.ledger import Ledger

RANGE = re.compile(r"(\d{1,6})\.\.(\d{1,6})(?:\.\.(\d{1,6}))?")
SEEN = 1 / 3  # of what training needs to see: these trials learn three times as fast
LEAST_SEEDS = 3  # fewer have no standard error


class Study(NamedTuple):
    """What a study of K fixes: all but the K and the seeds, of which more may be added later. epochs and image_size
    None: chosen by the images, see `stdac.sizing`."""

    input: str
    method: str
    epochs: int | None
    limit: int
    image_size: int | str | None
    params: dict[str, Any]
    background: str = "black"

    def folder(self) -> Path:
        """Its run folder where none is named: of other settings, another one."""
        from stdac.trial import write_canonical

        name = re.sub(r"[^a-z0-9.]+", "-", Path(self.input).name.lower()).strip("-.") or "images"
        digest = hashlib.sha256(write_canonical(self._asdict()).encode()).hexdigest()[:8]
        return Path("runs/suggest-k") / f"{name}-{digest}"


@click.command("suggest-k")
@click.argument("input_", metavar="INPUT")
@click.option("--k", "ks", default="2..20", help="Numbers of clusters to try: 2..20, 2..20..2 or 5,8,10.")
@click.option("--method", default="st-dac", help="Clustering method.")
@click.option("--seeds", type=click.IntRange(LEAST_SEEDS), default=3, help="Trials of each K.")
@click.option("--limit", type=click.IntRange(50), default=2000, help="Use a random subset of this many images.")
@click.option("--image-size", callback=read_side, metavar="N", help=SIDE_HELP)
@click.option("--background", type=click.Choice(["black", "white", "auto"]), help=BACKGROUND_HELP)
@click.option("--preset", type=click.Choice([*PRESETS]), help=PRESET_HELP)
@click.option("--epochs", type=click.IntRange(1), help="Epochs of a trial; as many as the images need if not given.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A hyperparameter of the method.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/suggest-k/NAME if not given.")
@click.option("--workers", type=click.IntRange(1), help="Trials at a time; one a core, or one a GPU, if not given.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
@click.option("--yes", is_flag=True, help="Do not ask before hours of computing.")
def suggest_k_command(
    input_: str,
    ks: str,
    method: str,
    seeds: int,
    limit: int,
    image_size: int | str | None,
    background: str | None,
    preset: str | None,
    epochs: int | None,
    settings: tuple[str, ...],
    out: Path | None,
    workers: int | None,
    device: str,
    data_dir: Path | None,
    yes: bool,
) -> None:
    """Suggest a number of clusters for the images of INPUT, with the curves and the reasons behind it.

    INPUT: a data set's name, or a path as `stdac train` takes it. Trains small models, several seeds at each K, and
    looks at how far the seeds agree and how well the clusters are separated; labels are never used. Stopped or killed,
    the same command goes on; more K or seeds add to what is done.
    """
    from analysis.k_figure import describe_study, draw_study
    from analysis.k_study import score_study, suggest
    from cluster_jobs.backends import use_this_machine
    from cluster_jobs.request import Options, Request
    from stdac.data import resolve_name
    from stdac.files import write_json
    from stdac.methods import METHODS, check_names
    from stdac.sizing import fill_preset

    check_names({method}, METHODS, "method")
    given = dict(map(parse_setting, settings))
    spec: dict[str, Any] = {"method": method, "image_size": image_size, "background": background, "params": given}
    if preset is not None:
        click.echo(f"--preset {preset}: {PRESETS[preset].flags}", err=True)
        spec = fill_preset(preset, spec)
    params = dict(METHODS[method].small) | spec["params"]
    asked = Study(
        resolve_name(input_), method, epochs, limit, spec["image_size"], params, spec["background"] or "black"
    )
    run = (out or asked.folder()).resolve()
    numbers = parse_ks(ks)
    images, files = _take_images(asked, run, data_dir)
    grid = make_grid(asked, run, numbers, seeds, len(images))
    backend = use_this_machine("as asked", Request(run, Options(device), workers=workers))
    confirm(grid, run, images, backend, yes)
    _keep_images(asked, run, images, files)
    launch(grid, run, backend, len(images))
    curves = score_study(run, {trial.id for trial in grid.trials}, images)
    suggestion = suggest(curves)
    click.echo(describe_study(curves, suggestion))
    figure = draw_study(curves, suggestion, run / "suggest-k.png", title=Path(input_).name)
    known = {} if suggestion.k is None else {"k": suggestion.k}
    write_json(run / "suggestion.json", {"candidates": suggestion.candidates, "reasons": suggestion.reasons} | known)
    click.echo(f"wrote {figure} and suggestion.json beside it", err=True)
    _say_what_to_export(grid, run, suggestion.k)


def parse_ks(text: str) -> list[int]:
    """The numbers of "2..20", "2..20..2" or "5,8,10" (also mixed), ascending. Raises StdacError for anything else."""
    numbers: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = RANGE.fullmatch(part)
        if match:
            first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
            numbers.update(range(first, last + 1, step) if step else ())
        elif re.fullmatch(r"\d{1,6}", part):
            numbers.add(int(part))
        else:
            numbers.clear()
            break
    if len(numbers) < 2 or min(numbers) < 2:
        raise StdacError(f"got --k {text}, expected at least two numbers from 2 up, as in 2..20, 2..20..2 or 5,8,10")
    return sorted(numbers)


def _take_images(asked: Study, run: Path, data_dir: Path | None) -> "tuple[NDArray[np.uint8], str | None]":
    """The study's images (N, C, H, W) uint8, and `hash_files` of its input; those in RUN where it was launched before.

    Raises StdacError where the input cannot be loaded or holds other images now, or RUN a study of other settings.
    """
    from stdac.data import NAMES, load
    from stdac.files import read_json
    from stdac.trial_data import hash_files

    about, path, files = run / "study.json", run / "images.npz", run / "files.json"
    if about.exists() and {"background": "black"} | read_json(about) != asked._asdict():
        raise StdacError(f"{run} holds a study of other images or settings: choose another --out")
    kept = load(str(path)) if about.exists() and path.exists() else None
    is_there = asked.input in NAMES or Path(asked.input).exists()
    now = hash_files({"dataset": asked.input}) if is_there else None
    if kept is not None and (now is None or (files.exists() and read_json(files) == now)):
        return kept.images, now
    side = _choose_side(asked)
    taken = load(asked.input, data_dir=data_dir, image_size=side, limit=asked.limit, background=asked.background)
    for note in taken.notes:
        click.echo(escape_line(note), err=True)
    if kept is not None and taken.fingerprint != kept.fingerprint:
        raise StdacError(
            f"{asked.input} holds other images than the study in {run} has taken from it ({len(kept.images):,} then, "
            f"{len(taken.images):,} now): put the old ones back, or choose another --out"
        )
    return taken.images, now


def _choose_side(asked: Study) -> int | None:
    """The side that images are resized to; says so where nobody has."""
    from stdac.data import NAMES
    from stdac.sizing import choose_side, explain_side, survey_pictures

    if isinstance(asked.image_size, int):
        return asked.image_size
    if asked.image_size == NATIVE or asked.input in NAMES:
        return None
    found = survey_pictures(asked.input)
    side = choose_side(found)
    if side is not None:
        click.echo(explain_side(found, side), err=True)
    return side


def _keep_images(asked: Study, run: Path, images: "NDArray[np.uint8]", files: str | None) -> None:
    """Write RUN/images.npz, RUN/files.json and RUN/study.json, where they are not there yet. Raises StdacError where it
    cannot."""
    import numpy as np

    from stdac.files import atomic_write, encode_json, explain_refusal, link_once, write_json

    try:
        run.mkdir(parents=True, exist_ok=True)
        if files is not None:
            write_json(run / "files.json", files)
        if (run / "study.json").exists() and (run / "images.npz").exists():
            return
    except OSError as error:
        raise explain_refusal(error, run) from error
    with atomic_write(run / "images.npz") as file:
        np.savez(file, images=images)
    link_once(run / "study.json", encode_json(asked._asdict()))


def make_grid(asked: Study, run: Path, numbers: list[int], seeds: int, n: int) -> "Grid":
    """The trials of a study on n images, and their TOML. Raises StdacError for settings that the method refuses."""
    from dataclasses import asdict

    from cluster_jobs.grid import Grid, expand, to_toml
    from stdac.methods import METHODS, resolve, resolve_params
    from stdac.sizing import choose_epochs, count_passes

    if numbers[-1] > n:
        raise StdacError(f"got --k up to {numbers[-1]} for {n} images: expected at most one cluster an image")
    method = METHODS[asked.method]
    if not method.takes_k:
        raise StdacError(
            f"method {asked.method} is not given the number of clusters, so none can be suggested for it: expected one "
            "that is, such as st-dac"
        )
    params = asdict(resolve_params(method.params, asked.params).resolved(asked.input))
    epochs = asked.epochs or choose_epochs(method, n, count_passes(method, params), SEEN) or 1  # ignored without
    cell = {"dataset": str(run / "images.npz"), "method": asked.method, "epochs": epochs, "n_clusters": numbers}
    block = cell | {"seeds": seeds}
    given = {name: value for name, value in params.items() if value is not None}
    lines = [f"{key} = {to_toml(value)}" for key, value in block.items()]
    table = ", ".join(f"{name} = {to_toml(value)}" for name, value in given.items())
    text = "\n".join(["[[trials]]", *lines, f"params = {{ {table} }}", ""])
    return Grid("suggest-k", [resolve(trial) for trial in expand(block | {"params": given})], text, {})


def confirm(grid: "Grid", run: Path, images: "NDArray[np.uint8]", backend: "Backend", yes: bool) -> None:
    """Say what will be run and roughly how long it takes; ask where that is hours. Raises StdacError for images that
    the method's network does not take."""
    from cluster_jobs.commands.launch import HOURS_TO_CONFIRM
    from cluster_jobs.ledger import Ledger
    from stdac.methods import add_needs

    ledger = Ledger(run)
    left = [trial for trial in add_needs(grid.trials) if ledger.folder(trial.id).done() is None]  # planned or not yet
    seconds = sum(estimate(trial, images, backend.gpu) for trial in left) / max(1, min(backend.at_once, len(left)))
    click.echo(_plan_text(grid, images, run), err=True)
    if left:
        click.echo(f"{len(left)} to run: roughly {format_duration(seconds)}, {backend.at_once} at a time", err=True)
    if seconds > HOURS_TO_CONFIRM * 3600 and not yes:
        click.confirm("Go on?", abort=True, err=True)


def launch(grid: "Grid", run: Path, backend: "Backend", n: int) -> None:
    """Run what is missing on this machine, on n images. Raises StdacError where it was stopped, or too few trials ended
    well."""
    from cluster_jobs.backends import drive
    from cluster_jobs.ledger import Ledger
    from cluster_jobs.pace import write_costs
    from stdac.methods import add_needs

    ledger = Ledger(run)
    trials = add_needs(grid.trials)
    vanished = ledger.plan(trials, grid.text)
    write_costs(run, trials, gpu=backend.gpu, images=n)
    earlier = [trial_id for trial_id in vanished if ledger.status(trial_id).state != "done"]
    if earlier:
        click.echo(f"and {count_noun(len(earlier), 'trial')} asked for in this folder before, not done yet", err=True)
    ledger.resume()
    ledger.retry()
    try:
        with _make_display(ledger) as display:
            drive(ledger, backend, display)
    except KeyboardInterrupt:
        raise StdacError("stopped; what is done is kept, and the same command goes on from there") from None
    _check_finished(ledger, grid)


def _plan_text(grid: "Grid", images: "NDArray[np.uint8]", run: Path) -> str:
    """What is run, on what, where, and how to go on."""
    trial, (n, _, height, width) = grid.trials[0], images.shape
    numbers = sorted({t.n_clusters for t in grid.trials})
    seeds = len(grid.trials) // len(numbers)
    size = f", width {trial.params.width:g}" if hasattr(trial.params, "width") else ""
    return (
        f"{len(grid.trials)} trials: {trial.method}{size}, {count_noun(trial.epochs, 'epoch')}, "
        f"at {len(numbers)} numbers of clusters from {numbers[0]} to {numbers[-1]}, {seeds} seeds each\n"
        f"on {n:,} images of {width}x{height} pixels, without labels, in {run}\n"
        "stopped or killed, the same command goes on"
    )


def estimate(trial: Any, images: "NDArray[np.uint8]", gpu: bool) -> float:
    """A rough guess of one trial's seconds."""
    from dataclasses import replace

    from stdac.cost import estimate_seconds

    return estimate_seconds(replace(trial, image_size=max(images.shape[2:])), gpu=gpu, images=len(images))


def _say_what_to_export(grid: "Grid", run: Path, k: int | None) -> None:
    """Say that the models are there to be used, by the first of the suggested K."""
    from cluster_jobs.ledger import Ledger

    ledger = Ledger(run)
    wanted = [trial for trial in grid.trials if k in (None, trial.n_clusters)]
    found = [(trial, ledger.folder(trial.id).result()) for trial in wanted]
    for trial, path in found:
        if path is not None and (path / "model.pt").exists():
            what = f"K = {trial.n_clusters}, seed {trial.seed}"
            click.echo(
                f"its models can be exported, as that of {what}: stdac export {path}/model.pt model.onnx", err=True
            )
            return


def _make_display(ledger: "Ledger") -> Any:
    """The grid's display, which names a trial by its K, or one that others need by its method."""
    from cluster_jobs.display import Display, describe_place

    def label(trial: Any) -> str:
        return f"{f'K = {k}' if (k := trial['n_clusters']) else trial['method']}, seed {trial['seed']}"

    class StudyDisplay(Display):
        def ended(self, status: Any) -> str:
            failed = "FAILED: " if status.state == "failed" else ""
            return f"{self.labels[status.trial_id]}: {failed}{describe_place(status)}"

    return StudyDisplay(ledger, label)


def _check_finished(ledger: "Ledger", grid: "Grid") -> None:
    """Say which trials failed. Raises StdacError where fewer than two K are left to compare."""
    statuses = [ledger.status(trial.id) for trial in grid.trials]
    failed = [status for status in statuses if status.state == "failed"]
    done = [trial.n_clusters for trial, status in zip(grid.trials, statuses, strict=True) if status.state == "done"]
    first = f"; the first: {failed[0].detail['reason']} ({failed[0].detail['log']})" if failed else ""
    if sum(done.count(k) > 1 for k in set(done)) < 2:
        raise StdacError(f"{len(done)} of {len(statuses)} trials ended well, too few for a curve{first}")
    if failed:
        click.echo(f"left out: {count_noun(len(failed), 'trial')} that failed{first}; launch again to retry", err=True)

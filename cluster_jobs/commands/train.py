"""The command `stdac train`: one trial, its scores as they come, and the folder of its result."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster_jobs.train_display import TrainDisplay
from stdac.command import parse_setting, read_side
from stdac.errors import StdacError
from stdac.presets import NATIVE, PRESETS
from stdac.words import format_duration

if TYPE_CHECKING:
    from stdac.machine import Machine
    from stdac.results import Result
    from stdac.trial import Trial


TOLD_S = 60.0  # a trial that takes less is not announced
SIDE_HELP = "Resize images to this side in pixels; of pictures of your own above 32, or of mixed sizes, 28; or native."
BACKGROUND_HELP = (
    "What transparency is laid on, black if not given; auto: white below a dark picture, black below a bright one."
)
PRESET_HELP = "Flags that suit a kind of pictures; those that are given as well win."


@click.command("train")
@click.option("--dataset", required=True, help="A name (digits, mnist, fashion-mnist, ...) or a path to images.")
@click.option("--method", default="st-dac", help="Clustering method.")
@click.option("--stn", type=int, help="Number of spatial transformers, 0 to 3 (short for --set stn=N).")
@click.option("--source", help="A labelled data set, of a method that learns from one; as --dataset.")
@click.option("--seed", type=int, default=0, help="Seed of every random number.")
@click.option("--epochs", type=int, help="Epochs of the main phase; of pictures of your own as many as they need.")
@click.option("--clusters", type=int, help="Number of clusters; 10 for data sets that have a name.")
@click.option("--limit", type=int, help="Use a fixed random subset of this many images.")
@click.option("--image-size", callback=read_side, metavar="N", help=SIDE_HELP)
@click.option("--background", type=click.Choice(["black", "white", "auto"]), help=BACKGROUND_HELP)
@click.option("--preset", type=click.Choice([*PRESETS]), help=PRESET_HELP)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A hyperparameter of the method.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/one"), help="Run folder.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets are kept (or $STDAC_DATA).")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--compile", "compile_", type=click.Choice(["auto", "on", "off"]), default="auto", help="torch.compile.")
@click.option("--threads", type=int, help="CPU threads; all cores if not given.")
def train_command(
    dataset: str,
    method: str,
    stn: int | None,
    source: str | None,
    seed: int,
    epochs: int | None,
    clusters: int | None,
    limit: int | None,
    image_size: int | str | None,
    background: str | None,
    preset: str | None,
    settings: tuple[str, ...],
    out: Path,
    data_dir: Path | None,
    device: str,
    compile_: str,
    threads: int | None,
) -> None:
    """Train one model; run again, it goes on where it stopped.

    Writes OUT/trials/ID with the scores of every epoch, the cluster of every image, and model.pt.
    """
    from stdac.machine import Machine
    from stdac.methods import add_needs

    params = dict(parse_setting(text) for text in settings) | ({} if stn is None else {"stn": stn})
    spec = {"dataset": dataset, "method": method, "seed": seed, "epochs": epochs, "n_clusters": clusters}
    spec |= {"limit": limit, "image_size": image_size, "source": source, "background": background}
    machine = Machine(device, compile_, threads)
    trial = _size_trial(spec | {"params": params}, preset, machine)
    results: dict[str, Result] = {}
    for each in add_needs([trial]):
        clusters_of = f", {each.n_clusters} clusters" if each.n_clusters else ""
        what = f"{each.method} on {each.dataset}{clusters_of}, seed {each.seed}"
        click.echo(f"trial {each.id}: {what}{'' if each == trial else f', which {trial.id} needs'}", err=True)
        results[each.id] = _train_one(each, out, machine, data_dir, results)
    click.echo(results[trial.id].path)


def _size_trial(spec: dict[str, Any], preset: str | None, machine: "Machine") -> "Trial":
    """The trial; what is not given is that of the preset and, of pictures of one's own, chosen by them. Says what, why,
    and how long it takes.

    Raises StdacError as `resolve` and `survey_pictures` do.
    """
    from stdac.cost import estimate_seconds
    from stdac.methods import METHODS, check_names, resolve
    from stdac.sizing import fill_preset, fill_sizes, is_own, survey_pictures

    check_names({spec["method"]}, METHODS, "method")
    if preset is not None:
        click.echo(f"--preset {preset}: {PRESETS[preset].flags}", err=True)
        spec = fill_preset(preset, spec)
    native = {"image_size": None} if spec["image_size"] == NATIVE else {}
    trial = resolve(spec | native)  # what is wrong in it is said before anything is looked at
    images = None
    if is_own(trial.dataset):
        found = survey_pictures(trial.dataset)
        spec, lines = fill_sizes(spec, found)
        for line in lines:
            click.echo(line, err=True)
        trial, images = resolve(spec), found.images
    gpu = machine.torch_device().type == "cuda"
    seconds = estimate_seconds(trial, gpu=gpu, images=images)
    if seconds >= TOLD_S:
        where = "GPU" if gpu else "core"
        click.echo(f"roughly {format_duration(seconds)} on one {where}, if that has nothing else to do", err=True)
    return trial


def _train_one(
    trial: "Trial", out: Path, machine: "Machine", data_dir: Path | None, results: Mapping[str, "Result"]
) -> "Result":
    """Run one trial in OUT, or go on with it. Raises StdacError where another process is at it, or a trial that it
    needs is neither among the results nor done in OUT."""
    from stdac.folder import TrialFolder
    from stdac.layout import TRIAL_ID
    from stdac.results import take_result
    from stdac.run import run_trial
    from stdac.trial_data import refuse_changes

    folder = TrialFolder(out / "trials" / trial.id)
    others = {name: TrialFolder(out / "trials" / name) for name in trial.needs if name not in results}
    for name, other in others.items():
        if not TRIAL_ID.fullmatch(name) or other.done() is None:
            raise StdacError(
                f"trial {trial.id} needs trial {name}, which is not done in {out}: name its run folder with --out, "
                "or run both in one grid with stdac-grid launch"
            )
    needed = [results[name] if name in results else take_result(others[name]) for name in trial.needs]
    with TrainDisplay(trial) as display, _say_how_to_go_on():
        ran = run_trial(trial, folder, machine=machine, data_dir=data_dir, needed=needed, observer=display)
    done = folder.done()
    if done is None:
        raise StdacError(f"{folder.path} is being written by another process: wait for it, or choose another --out")
    if not ran:
        refuse_changes([(trial.to_json(), done)], data_dir)
        click.echo("already done: nothing to do", err=True)
    return take_result(folder)


@contextmanager
def _say_how_to_go_on() -> Iterator[None]:
    """Ctrl-C ends in a sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise StdacError("stopped; the same command goes on after the last epoch that was done") from None

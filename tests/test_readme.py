"""The README's commands exist, with the options it gives them."""

import re
import shlex
from pathlib import Path

import pytest

from cluster_jobs.commands import grid, stdac

README = (Path(__file__).parents[1] / "README.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BLOCKS = [block for language, block in FENCED if not language]
COMMANDS = sorted({line for block in BLOCKS for line in block.splitlines() if re.match(r"stdac(-grid)? ", line)})


def test_the_readme_shows_commands() -> None:
    assert {"train", "export", "cluster", "show", "launch", "results"} <= {line.split()[1] for line in COMMANDS}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_parses(line: str) -> None:
    tool, name, *words = shlex.split(line, comments=True)
    group = {"stdac": stdac.main, "stdac-grid": grid.main}[tool]
    group.commands[name].make_context(name, words)


def test_every_file_that_the_readme_names_is_there() -> None:
    for path in re.findall(r"\]\(([\w/.-]+)\)", README):
        assert (Path(__file__).parents[1] / path).exists(), path

"""The README: it shows the commands, and its numbers are those of the tables that are made from results/."""

import re
from pathlib import Path

from click.testing import CliRunner

import analysis.readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TABLES = ROOT / "docs" / "results.md"


def test_the_readme_shows_commands() -> None:
    words = set(re.findall(r"^stdac(?:-grid)? ([a-z-]+)", README, re.MULTILINE))
    assert {"sort", "suggest-k", "train", "export", "cluster", "plan", "launch", "status", "results"} <= words
    assert "\nmake demo\n" in README and "pip install '.[cpu]'" in README


def test_the_tables_say_what_the_results_say() -> None:
    assert "<!-- results:paper -->" in TABLES.read_text()
    result = CliRunner().invoke(analysis.readme.main, [str(TABLES), "--check"])
    assert result.exit_code == 0, result.output


def test_the_readmes_numbers_are_those_of_the_tables() -> None:
    section = README.partition("## Results")[2].partition("\n## ")[0]
    numbers = re.findall(r"(?<![\d.])\.\d{3}", section)
    assert len(numbers) >= 3
    tables = TABLES.read_text().partition("<!-- results:paper -->")[2].partition("<!-- /results -->")[0]
    assert [number for number in numbers if number not in tables] == []

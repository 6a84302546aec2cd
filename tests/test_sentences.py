"""Every sentence that tells a person what went wrong, in one file to be read from top to bottom.

`python -m tests.test_sentences` writes it anew: read what has changed, as one who gets it would.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FROZEN = ROOT / "tests" / "frozen" / "sentences.txt"
PACKAGES = ("stdac", "export", "analysis", "cluster_jobs")
TELLING = {
    *("StdacError", "MachineError", "NotHere", "DiskFull", "Superseded", "ClickException", "BadParameter"),
    *("ChildNotStarted", "Damaged", "Foreign", "Unreadable", "Finding", "ImportError"),
}
"""What is called with a sentence, or with a part of one."""


def find_sentences(code: str) -> Iterator[str]:
    """The texts in calls of TELLING, in the order of the code; what is filled in as {…}."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        if name in TELLING:
            texts = map(read_text, [*call.args, *(keyword.value for keyword in call.keywords)])
            yield from (text for text in texts if " " in text)


def read_text(node: ast.expr) -> str:
    """A string or f-string as a person reads it; of other expressions what strings there are in them."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(read_text(part) if isinstance(part, ast.Constant) else "{…}" for part in node.values)
    if isinstance(node, ast.IfExp):
        return " | ".join(filter(None, map(read_text, (node.body, node.orelse))))
    if isinstance(node, ast.BinOp):
        return read_text(node.left) + read_text(node.right)
    return ""


def list_sentences() -> str:
    """All sentences, file by file."""
    blocks = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        found = list(find_sentences(path.read_text("utf-8")))
        if found and "node_modules" not in path.parts:
            blocks.append("\n".join([f"[{path.relative_to(ROOT)}]", *found]))
    return "\n\n".join(blocks) + "\n"


def test_the_sentences_are_those_that_were_read() -> None:
    assert list_sentences() == FROZEN.read_text("utf-8"), (
        "run python -m tests.test_sentences, and read what has changed"
    )


if __name__ == "__main__":
    FROZEN.write_text(list_sentences(), "utf-8")

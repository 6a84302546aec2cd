"""Modules that a folder of pictures may hold: whatever we start there must not import them."""

from pathlib import Path

NAMES = ("random", "socket", "json", "numpy", "PIL", "torch", "pyarrow", "stdac", "export", "analysis", "cluster_jobs")


def set_traps(folder: Path) -> None:
    """Modules in the folder that leave a file there when they are imported, and fail."""
    sprung = str(folder / "sprung")
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({sprung!r}, 'a').write({name!r})\nraise SystemExit(9)\n")


def is_untouched(folder: Path) -> bool:
    """Whether none of them was imported."""
    return not (folder / "sprung").exists()

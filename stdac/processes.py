"""Processes: what names one beyond its number, which the kernel gives out again; and what a Python may import."""

import os
import site
import sysconfig
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def read_namespace() -> str:
    """Names what a process id means something in: this boot of this machine, and the container we are in."""
    words = []
    with suppress(OSError):
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip())
        words.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(words)


def read_process_start(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since boot: names it together with the pid. None if gone."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def make_python_environment() -> dict[str, str]:
    """The environment for a Python that we start: it never imports from the folder that it happens to stand in.

    `python -m` and an empty entry of PYTHONPATH would put that folder first on the import path, and a folder of
    pictures may hold a random.py. Ours is this process's environment with PYTHONSAFEPATH=1, and a PYTHONPATH without
    empty entries on which this code comes first, unless it is installed where Python looks anyway.
    """
    root = str(Path(__file__).resolve().parents[1])
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != root]
    if root not in _list_site_folders():
        entries.insert(0, root)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
    return environment | ({"PYTHONPATH": os.pathsep.join(entries)} if entries else {})


def _list_site_folders() -> set[str]:
    """Where Python finds installed packages by itself: to name them on PYTHONPATH would put them before its library."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return {str(Path(folder).resolve()) for folder in [*folders, site.getusersitepackages()]}

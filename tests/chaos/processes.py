"""The processes of a run, whoever started them, found by the folder that their command line or environment names."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stdac.processes import read_process_start

MARK = "STDAC_CHAOS"  # in the environment of all that a round starts: the round's run folder

ROLES = {
    "worker": "cluster_jobs.worker",
    "launch": "main() launch ",
    "work": "main() work ",
    "ray driver": "ray_driver",
    "unit": "ray::Unit",
    "raylet": "/raylet/raylet ",
    "head": "gcs_server",
    "task": "submitit.core._submit",
}
"""What the command line of a process contains, by what it is."""


class Process(NamedTuple):
    """A process; its start, in clock ticks since boot, tells it from a later one with its number."""

    pid: int
    start: int
    command: str

    def alive(self) -> bool:
        """Whether it still is there, and is no zombie."""
        return read_process_start(self.pid) == self.start

    def stopped(self) -> bool:
        """Whether it has been stopped by a signal."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def signal(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def role(self) -> str:
        """What it is, a key of ROLES, or "other"."""
        return next((role for role, words in ROLES.items() if words in self.command), "other")


def processes(folder: Path) -> list[Process]:
    """The living processes that name a folder, by number; this one is none of them."""
    name, mark = os.fsencode(folder), f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            start = read_process_start(int(entry.name))
            if start is not None and (name in command or mark in environment.split(b"\0")):
                found.append(Process(int(entry.name), start, command.replace(b"\0", b" ").decode(errors="replace")))
    return sorted(found)


def descendants(ancestor: Process) -> list[Process]:
    """The processes that a process has started, and those that these have."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[Process(int(entry.name), int(fields[19]), "")] = int(fields[1])
    found = {ancestor.pid}
    while more := {child.pid for child, parent in parents.items() if parent in found} - found:
        found |= more
    return [process for process in parents if process.pid in found - {ancestor.pid}]

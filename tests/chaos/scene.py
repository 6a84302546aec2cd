"""A run in progress, as faults see it: its folder, its disk, its processes, and what will be undone when."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from cluster_jobs.ledger import Ledger, Status
from cluster_jobs.local import read_last_line
from stdac.processes import make_python_environment
from tests.chaos.processes import MARK, Process, processes

ROOT = Path(__file__).parents[2]
DISK_MIB = 160


class Volume:
    """A disk to run on. small: whether it is one of its own, which may be filled."""

    def __init__(self, path: Path, small: bool = False) -> None:
        self.path, self.small, self.ballast = path, small, path / "ballast"

    def fill(self, spare: int) -> int:
        """Take all space but `spare` bytes; the number of bytes taken."""
        free = os.statvfs(self.path)
        size = max(0, free.f_bavail * free.f_frsize - spare)
        with open(self.ballast, "wb") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, size)
        return size

    def free(self) -> None:
        """Give the space back."""
        self.ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path) -> Iterator[Volume]:
    """A disk of DISK_MIB at a path; an ordinary folder where none can be mounted."""
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "stdac-chaos", str(path)]
    small = os.geteuid() == 0 and subprocess.run(words, capture_output=True, check=False).returncode == 0
    try:
        yield Volume(path, small)
    finally:
        if small:
            subprocess.run(["umount", "--lazy", str(path)], check=False)


class Command(NamedTuple):
    """A command of stdac-grid that was started, and what it says."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def __str__(self) -> str:
        ending = f" ended with {self.process.returncode}: {read_last_line(self.log)}" if self.over() else ""
        return f"{self.log.stem}, process {self.process.pid}{ending}"


@dataclass
class Scene:
    """One round's run. words: how to launch it. environment: of its processes, besides ours. said: where they speak.
    spoiled: the done trials whose results were damaged, with their done.json; until the doctor has put them aside."""

    run: Path
    grid: Path
    words: Sequence[str]
    environment: dict[str, str]
    chance: Random
    volume: Volume
    said: Path
    commands: list[Command] = field(default_factory=list)
    later: list[tuple[float, str, Callable[[], object]]] = field(default_factory=list)
    spoiled: dict[str, bytes] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        """The run folder."""
        return Ledger(self.run)

    def trials(self, state: str) -> list[Status]:
        """The trials in a state; none before the run is planned."""
        return [s for s in self.ledger.statuses() if s.state == state] if self.ledger.exists() else []

    def launch(self) -> Command:
        """Launch the run, or launch it again."""
        return self.start("launch", str(self.grid), "--out", str(self.run), "--device", "cpu", "--yes", *self.words)

    def work(self, host: str) -> Command:
        """Start a worker by hand that takes itself for another host, so that it cannot see whether processes live."""
        words = ("work", str(self.run), "--device", "cpu", "--threads", "1")
        return self.start(*words, prefix=["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host])

    def start(self, *words: str, prefix: Sequence[str] = ()) -> Command:
        """Start a command of stdac-grid."""
        log = self.said / f"{words[0]}-{len(self.commands) + 1}.log"
        own = {"OMP_NUM_THREADS": "1", MARK: str(self.run)}
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-c", "from cluster_jobs.commands.grid import main; main()", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=make_python_environment() | own | self.environment,
                process_group=0,
            )
        self.commands.append(Command(process, log))
        return self.commands[-1]

    def launches(self) -> list[Command]:
        """The launches that have not ended."""
        return [command for command in self.commands if command.log.name.startswith("launch") and not command.over()]

    def processes(self, *roles: str) -> list[Process]:
        """The run's living processes of these roles; all without."""
        return [process for process in processes(self.run) if not roles or process.role() in roles]

    def undo_later(self, seconds: float, what: str, action: Callable[[], object]) -> None:
        """Have something undone after that time, or at the round's end."""
        self.later.append((time.monotonic() + seconds, what, action))

    def undo(self, everything: bool = False) -> list[str]:
        """Undo what is due; what that was."""
        due = [item for item in self.later if everything or item[0] <= time.monotonic()]
        self.later = [item for item in self.later if item not in due]
        for _, _, action in due:
            action()
        return [what for _, what, _ in due]

    def end(self) -> None:
        """Undo everything, and leave no process."""
        self.undo(everything=True)
        for process in self.processes():
            process.signal(signal.SIGKILL)
        for command in self.commands:
            command.process.wait()

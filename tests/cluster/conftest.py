"""A real SLURM of four nodes on this machine, where root, its packages and ../shared/slurm are to be had."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import LONG_S, wait_for

SCRIPTS = Path(__file__).resolve().parents[2].parent / "shared" / "slurm"
STATE = Path(os.environ.get("SLURM_LAB", Path(os.environ.get("TMPDIR", "/tmp")) / "stdac-slurm"))
CONTROLLER = STATE / "run" / "slurmctld.pid"


def alive(pid_file: Path) -> bool:
    """Whether the process that a file names is there."""
    return pid_file.exists() and Path(f"/proc/{pid_file.read_text().strip()}").exists()


class Lab:
    """The cluster and what can befall it: nodes n1 to n4 of 4 CPUs and 2 pretended GPUs, one partition, `gpu`."""

    def __init__(self, accounting: bool) -> None:
        self.accounting = accounting
        self.conf = STATE / "etc" / "slurm.conf"

    def script(self, name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of the lab's scripts. Its daemons outlive it, so that its output goes to a file, not to a pipe."""
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [SCRIPTS / name, *words],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=LONG_S,
                check=False,
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read())

    def up(self) -> bool:
        """Whether a cluster of this kind runs already."""
        return alive(CONTROLLER) and ("slurmdbd" in self.conf.read_text()) == self.accounting

    def start(self) -> str | None:
        """Start what does not run; the reason where that cannot be."""
        done = self.script("start-slurm.sh", DBD=str(int(self.accounting)))
        return None if done.returncode == 0 else (done.stdout.strip().splitlines() or ["it said nothing"])[-1]

    def power_cut(self, node: str) -> None:
        """End everything that runs on a node."""
        assert self.script("power-cut.sh", node).returncode == 0

    def end_controller(self, how: signal.Signals) -> None:
        """End slurmctld: by SIGKILL it may forget the last seconds, and start what has ended in them once more."""
        os.kill(int(CONTROLLER.read_text()), how)
        wait_for(lambda: not alive(CONTROLLER))

    def start_controller(self, *lines: str) -> None:
        """Start slurmctld again, with further lines in its configuration."""
        with self.conf.open("a") as conf:
            conf.writelines(f"{line}\n" for line in lines)
        subprocess.run(["slurmctld", "-f", self.conf], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: self.ask("scontrol", "ping") and "is UP" in self.ask("scontrol", "ping"))

    def on_node(self, node: str, *command: str) -> None:
        """Run a command in a node's view of the file system."""
        pid = (STATE / "run" / f"init-{node}.pid").read_text().strip()
        subprocess.run(["nsenter", "-t", pid, "-m", *command], check=True, timeout=LONG_S)

    @staticmethod
    def ask(*command: str) -> str:
        """What a SLURM command prints."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
        return done.stdout

    def queue(self) -> list[str]:
        """The jobs that run or wait, all users' and names."""
        return self.ask("squeue", "--noheader", "--array", "--format=%i %j %T").splitlines()


def why_not() -> str | None:
    """Why there can be no SLURM here, or None."""
    if not SCRIPTS.is_dir():
        return f"no SLURM to start: there is no folder {SCRIPTS}"
    return None if os.geteuid() == 0 else "no SLURM to start: that needs root"


@pytest.fixture(scope="session", params=["plain", pytest.param("accounting", marks=pytest.mark.slow)])
def slurm(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A cluster without or with slurmdbd. One of the same kind that is there is used; else it takes the other's place.

    Most tests meet accounting in the slow runs only; those marked `with_and_without_accounting` meet both always.
    """
    problem = why_not()
    if problem is not None:
        pytest.skip(problem)
    lab = Lab(accounting=request.param == "accounting")
    found, other = lab.up(), Lab(not lab.accounting)
    replaced = other.up()
    if not found:
        lab.script("stop-slurm.sh", "--purge")
    problem = lab.start()
    if problem is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(lab.conf))
            yield lab
    if not found:
        lab.script("stop-slurm.sh", "--purge")
    if replaced:
        other.start()
    if problem is not None:
        pytest.skip(f"no SLURM ({request.param}): {problem}")


with_and_without_accounting = pytest.mark.parametrize("slurm", ["plain", "accounting"], indirect=True, scope="session")

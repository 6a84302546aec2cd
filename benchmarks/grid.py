"""What a grid costs besides its trials: time and memory for trials that do nothing, and how well workers share them.

    python -m benchmarks.grid --backend local
    python -m benchmarks.grid --backend ray             # four Ray nodes simulated on this machine
    python -m benchmarks.grid --backend slurm --out /shared

Everything but the training is real: processes, claims, leases, rows, done.json, fsync. One after the other on the same
machine: --trials no-ops with one worker, --many with all workers, then sleeping trials with one worker and with all.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from stdac.files import write_json
from stdac.machine import describe_provenance

HERE = Path(__file__).parent
GRID = '[defaults]\ndataset = "digits"\nparams = {{ stn = 2 }}\n[[trials]]\nseeds = {trials}\n'
WORKERS = {"local": 2, "ray": 4, "slurm": 4}
PLACES = {"local": [], "ray": ["--nodes", "4", "--simulate"], "slurm": ["--nodes", "4", "--cpus-per-task", "1"]}
LOOK_S = 0.05


@dataclass(frozen=True)
class Launch:
    """A launch that was measured. whole_s: of the command; steady_s: from the first trial begun to the last done.

    peak_mib: the most memory that the launching process held, with Ray's beside it: high-water marks of the kernel,
    read every LOOK_S seconds.
    """

    trials: int
    workers: int
    sleep_s: float
    whole_s: float
    steady_s: float
    peak_mib: float


@click.command()
@click.option("--backend", type=click.Choice(list(WORKERS)), default="local", show_default=True)
@click.option("--trials", type=click.IntRange(1), default=1000, show_default=True, help="No-op trials, one worker.")
@click.option("--many", type=click.IntRange(0), default=10_000, show_default=True, help="No-op trials, all workers.")
@click.option("--sleeping", type=click.IntRange(1), default=60, show_default=True, help="Trials that sleep a second.")
@click.option("--out", type=click.Path(path_type=Path), help="A folder that all nodes see; else a temporary one.")
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results", help="Where the JSON goes.")
def main(backend: str, trials: int, many: int, sleeping: int, out: Path | None, results: Path) -> None:
    """Measure a backend; print a table and write grid-BACKEND.json."""
    workers = WORKERS[backend]
    asked = [(trials, 1, 0.0), (many, workers, 0.0), (sleeping, 1, 1.0), (sleeping, workers, 1.0)]
    launches = []
    for words in asked:
        if words[0]:
            launches.append(measure(backend, out, *words))
            click.echo(line(launches[-1]))
    found = findings(launches)
    for name, value in found.items():
        click.echo(f"{name:<30} {value:8.2f}")
    machine = {name: fact for name, fact in describe_provenance().items() if name != "host"}
    write_json(
        results / f"grid-{backend}.json",
        {"backend": backend, "provenance": machine, "launches": [asdict(x) for x in launches], **found},
    )


def findings(launches: list[Launch]) -> dict[str, float]:
    """What the launches say. Time and speed-up have one worker as their baseline, memory the fewer trials."""
    idle, busy = ([launch for launch in launches if bool(launch.sleep_s) == kind] for kind in (False, True))
    found = {
        "steady_ms_per_trial": idle[0].steady_s / idle[0].trials * 1000,
        "whole_ms_per_trial": idle[0].whole_s / idle[0].trials * 1000,
        "speed_up": busy[0].steady_s / busy[1].steady_s,
    }
    if len(idle) > 1:
        grown = (idle[1].peak_mib - idle[0].peak_mib) * 1024
        found["driver_kib_per_further_trial"] = grown / (idle[1].trials - idle[0].trials)
    return found


def line(launch: Launch) -> str:
    """A launch as a line of the table."""
    return (
        f"{launch.trials:6} trials of {launch.sleep_s:g} s, {launch.workers} workers: {launch.whole_s:7.1f} s in all, "
        f"{launch.steady_s:7.1f} s steadily, driver at most {launch.peak_mib:.1f} MiB"
    )


def measure(backend: str, out: Path | None, trials: int, workers: int, sleep_s: float) -> Launch:
    """Launch a grid of trials that sleep, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=out, prefix="stdac-grid-") as name:
        folder = Path(name)
        (folder / "grid.toml").write_text(GRID.format(trials=trials))
        words = ["launch", "grid.toml", "--out", "run", "--backend", backend, "--workers", str(workers), "--yes"]
        path = os.pathsep.join([str(HERE / "sleeping"), str(HERE.parent)])
        began = time.monotonic()
        with open(folder / "said", "wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "cluster_jobs.commands.grid", *words, "--device", "cpu", *PLACES[backend]],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": path, "STDAC_SLEEP_S": str(sleep_s)},
                stdout=said,
                stderr=said,
            )
            peak = watch_memory(process)
        whole_s = time.monotonic() - began
        if process.returncode:
            raise click.ClickException((folder / "said").read_text())
        begun = min(path.stat().st_mtime for path in folder.glob("run/trials/*/trial.json"))
        ended = [path.stat().st_mtime for path in folder.glob("run/trials/*/done.json")]
        return Launch(trials, workers, sleep_s, whole_s, max(ended) - begun, peak / 1024)


def watch_memory(process: "subprocess.Popen[bytes]") -> int:
    """The peak resident memory in KiB of a launch and the processes of ours that drive it, once it has ended."""
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in drivers(process.pid):
            peaks[pid] = max(peaks.get(pid, 0), high_water_kib(pid))
        time.sleep(LOOK_S)
    return sum(peaks.values())


def drivers(pid: int) -> Iterator[int]:
    """The launch and, where there is one, its child that talks to Ray."""
    yield pid
    for child in read(f"/proc/{pid}/task/{pid}/children").split():
        if "cluster_jobs.ray_driver" in read(f"/proc/{child}/cmdline"):
            yield int(child)


def high_water_kib(pid: int) -> int:
    """The most memory that a process has held, in KiB; 0 once it is gone."""
    lines = read(f"/proc/{pid}/status").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def read(path: str) -> str:
    """A file of /proc; empty once its process is gone."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()

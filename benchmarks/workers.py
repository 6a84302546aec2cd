"""How many times faster four workers are than one, with trials that only sleep; and what a trial costs us.

    python -m benchmarks.workers --backend local --trials 40 --sleep 1
    python -m benchmarks.workers --backend slurm --trials 5000 --sleep 0 --workers 8

From the first claim to the last done.json, by the run folder's own clock; one after the other on the same machine.
"""

import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import click

from cluster_jobs.ledger import Ledger

GRID = '[defaults]\ndataset = "digits"\n[[trials]]\nmethod = "kmeans"\nseeds = {trials}\n'


@click.command()
@click.option("--backend", type=click.Choice(["local", "ray", "slurm"]), default="local")
@click.option("--trials", type=click.IntRange(1), default=40)
@click.option("--sleep", type=float, default=1.0, help="Seconds that a trial sleeps.")
@click.option("--workers", multiple=True, type=click.IntRange(1), default=[1, 4])
@click.option("--out", type=click.Path(path_type=Path), help="A folder that all nodes see; else a temporary one.")
def main(backend: str, trials: int, sleep: float, workers: tuple[int, ...], out: Path | None) -> None:
    """Print the seconds for each number of workers, and the ratio to the first."""
    first = None
    for number in workers:
        with tempfile.TemporaryDirectory(dir=out, prefix="stdac-workers-") as folder:
            seconds = measure(Path(folder), backend, trials, sleep, number)
        first = first or seconds
        cost = (seconds * number / trials - sleep) * 1000
        ratio = f"{first / seconds:.2f} times as fast as with {workers[0]}"
        print(
            f"{backend}: {trials} trials of {sleep:g} s with {number} workers in {seconds:.1f} s, {ratio}; "
            f"{cost:.0f} ms of a worker's time a trial are ours"
        )


def measure(folder: Path, backend: str, trials: int, sleep: float, workers: int) -> float:
    """Seconds from the first claim to the last end of a run."""
    (folder / "grid.toml").write_text(GRID.format(trials=trials))
    words = ["launch", "grid.toml", "--out", "run", "--backend", backend, "--workers", str(workers), "--device", "cpu"]
    words += ["--nodes", "4", "--simulate"] if backend == "ray" else ["--nodes", "4"] if backend == "slurm" else []
    here = Path(__file__).parent
    path = os.pathsep.join([str(here / "sleeping"), str(here.parent)])
    subprocess.run(
        [sys.executable, "-m", "cluster_jobs.cli", *words, "--yes"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "STDAC_SLEEP_S": str(sleep)},
        check=True,
    )
    ledger = Ledger(folder / "run")
    ends = [ledger.folder(trial_id).path for trial_id in ledger.trials()]
    began = min(datetime.fromisoformat(ledger.folder(path.name).lease(1)["began"]).timestamp() for path in ends)
    return max((path / "done.json").stat().st_mtime for path in ends) - began


if __name__ == "__main__":
    main()

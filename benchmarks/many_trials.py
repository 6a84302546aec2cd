"""What the commands cost on a run of many trials: `python -m benchmarks.many_trials --trials 10000`.

The trials are copies of one that was run, each under its own id and seed, as `--keep metrics` leaves them. Measured are
the CPU seconds and the most memory of each command, beside those of `find` listing the same files.
"""

import hashlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from cluster_jobs.ledger import Ledger
from stdac.folder import TrialFolder
from stdac.methods import resolve
from stdac.processes import make_python_environment
from stdac.run import run_trial
from stdac.trial import Trial

GRID = """
[[trials]]
dataset = "digits"
method = "kmeans"
limit = 100
seeds = {trials}
params = {{ restarts = 1 }}
"""
COMMANDS = ("plan GRID", "status RUN", "collect RUN", "results RUN", "doctor RUN", "launch GRID --out RUN --workers 1")


def make_run(run: Path, trials: int, left: int) -> None:
    """A run of so many trials, all but the last `left` of them done."""
    spec = {"dataset": "digits", "method": "kmeans", "limit": 100, "params": {"restarts": 1}}
    first = resolve(spec)
    planned = [replace(first, seed=seed) for seed in range(trials)]
    Ledger(run).plan(planned, GRID.format(trials=trials))
    folder = TrialFolder(run / "trials" / first.id)
    run_trial(first, folder, keep="metrics")
    rows = pq.read_table(folder.path / "attempt-1" / "metrics.parquet")
    for trial in planned[1 : trials - left]:
        _copy(folder, run / "trials" / trial.id, trial, rows)


def _copy(folder: TrialFolder, target: Path, trial: Trial, rows: pa.Table) -> None:
    """The done trial in `folder` as another one."""
    (target / "attempt-1").mkdir(parents=True)
    rows = rows.set_column(0, "trial_id", pa.array([trial.id] * len(rows)))
    rows = rows.set_column(3, "seed", pa.array([trial.seed] * len(rows), pa.int64()))
    pq.write_table(rows, target / "attempt-1" / "metrics.parquet", compression="zstd")
    (target / "trial.json").write_text(json.dumps(trial.to_json(), indent=1, sort_keys=True))
    shutil.copy2(folder.lease_path(1), target)
    done = dict(folder.done() or {})
    digest = hashlib.sha256((target / "attempt-1" / "metrics.parquet").read_bytes()).hexdigest()
    done |= {"trial_id": trial.id, "sha256": {"metrics.parquet": digest}}
    (target / "done.json").write_text(json.dumps(done, indent=1, sort_keys=True))


def measure(words: list[str]) -> tuple[float, float, float]:
    """CPU seconds, seconds and MiB at most of a command, which has to end well."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = ["/usr/bin/env", "time", "-f", "%M", *words] if shutil.which("time") else words
    done = subprocess.run(command, capture_output=True, text=True, env=make_python_environment(), check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise click.ClickException(f"{' '.join(words)} failed: {done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - began, after.ru_maxrss / 1024


@click.command()
@click.option("--trials", default=10_000)
@click.option("--left", default=12, help="Trials that are not done, which the launch runs.")
@click.option("--only", help="Only the command that begins so.")
def main(trials: int, left: int, only: str | None) -> None:
    """Print what each command costs."""
    with tempfile.TemporaryDirectory() as folder:
        run, grid = Path(folder) / "run", Path(folder) / "grid.toml"
        grid.write_text(GRID.format(trials=trials))
        make_run(run, trials, left)
        files = sum(path.is_file() for path in run.glob("trials/*/**/*"))
        click.echo(f"{trials:,} trials, {files / (trials - left):.1f} files a done one")
        cpu, seconds, _ = measure(["find", str(run), "-size", "+1G"])
        click.echo(f"{'find':<40} {cpu:6.2f} s of CPU  {seconds:6.2f} s")
        for command in COMMANDS:
            if only and not command.startswith(only):
                continue
            words = [str(run) if w == "RUN" else str(grid) if w == "GRID" else w for w in command.split()]
            program = "from cluster_jobs.commands.grid import main; main()"
            cpu, seconds, mib = measure([sys.executable, "-c", program, *words])
            click.echo(f"{command:<40} {cpu:6.2f} s of CPU  {seconds:6.2f} s  (most memory so far {mib:.0f} MiB)")


if __name__ == "__main__":
    main()

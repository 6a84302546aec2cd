"""What the commands cost on a run of many trials: `python -m benchmarks.many_trials --trials 10000`.

The trials are copies of one that was run, each under its own id and seed, as `--keep metrics` leaves them. Measured are
the CPU seconds and the most memory of each command, beside those of `find` listing the same files.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
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


LAUNCH = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
spent = [used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024]
print(json.dumps([done.returncode, done.stderr, *spent]))
"""
"""A small process between: the most memory of a child is at least that of the process which starts it."""


def measure(words: list[str]) -> tuple[float, float, float]:
    """CPU seconds, seconds and MiB at most of a command, which has to end well."""
    launched = [sys.executable, "-c", LAUNCH, *words]
    told = subprocess.run(launched, capture_output=True, text=True, env=make_python_environment(), check=True)
    code, said, cpu, seconds, mib = json.loads(told.stdout)
    if code:
        raise click.ClickException(f"{' '.join(words)} failed: {said}")
    return cpu, seconds, mib


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
            click.echo(f"{command:<40} {cpu:6.2f} s of CPU  {seconds:6.2f} s  {mib:.0f} MiB")


if __name__ == "__main__":
    main()

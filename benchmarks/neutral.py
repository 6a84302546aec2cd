"""Whether a faster way to compute leaves the result alone: ACC over seeds on digits, each way against the first.

    python -m benchmarks.neutral --seeds 10 --way compile=off --way compile=on --way compile=on,precision=bfloat16

A way is settings of `stdac.machine.Machine` (device, compile, threads) or of the trial's parameters. Every way runs
the same seeds. Reported: mean, standard deviation, the paired differences to the first way, and two tests: Wilcoxon's
of the pairs, and Kolmogorov and Smirnov's of the two distributions. A test that finds nothing does not prove equality;
the confidence interval of the mean difference says how large an effect could have been missed.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from scipy import stats

from stdac.folder import TrialFolder
from stdac.machine import Machine, describe_provenance
from stdac.methods import resolve
from stdac.observer import Observer
from stdac.run import run_trial

COMMON = "stn=2,width=0.25,macro_batch=600,passes=2,lr=0.0003"
SETTINGS = {field.name for field in fields(Machine)}


@click.command()
@click.option("--seeds", type=click.IntRange(2), default=10)
@click.option("--way", "ways", multiple=True, default=["compile=off", "compile=on"], help="NAME=VALUE,NAME=VALUE")
@click.option("--trial", "common", default=COMMON, help="Parameters of all trials, as the quick grid has them.")
@click.option("--epochs", type=click.IntRange(1), default=8)
@click.option("--method", default="st-dac")
@click.option("--out", type=click.Path(path_type=Path), help="Write everything there as JSON.")
def main(seeds: int, ways: tuple[str, ...], common: str, epochs: int, method: str, out: Path | None) -> None:
    """Print each way's ACC over seeds, and how far it is from the first way's."""
    scores: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(seeds):
        for way in ways:
            settings = parse(common) | parse(way)
            params = {name: value for name, value in settings.items() if name not in SETTINGS}
            trial = {"method": method, "dataset": "digits", "seed": seed, "epochs": epochs}
            machine = Machine(**{name: value for name, value in settings.items() if name in SETTINGS})
            scores[way].append(accuracy(trial | {"params": params}, machine))
            print(f"seed {seed}  {way}: ACC {scores[way][-1]:.4f}", flush=True)
    result = {way: summary(values, scores[ways[0]]) for way, values in scores.items()}
    for way, numbers in result.items():
        print(f"{way}: {json.dumps(numbers)}")
    if out is not None:
        what = {"method": method, "epochs": epochs, "params": parse(common)}
        machine_facts = {key: value for key, value in describe_provenance().items() if key != "host"}
        out.write_text(json.dumps(what | {"scores": scores, "summary": result, "machine": machine_facts}, indent=1))


def parse(text: str) -> dict[str, Any]:
    """Settings from NAME=VALUE,NAME=VALUE."""
    from stdac.command import parse_setting

    return dict(parse_setting(part) for part in text.split(",") if part)


class Keep(Observer):
    """Keeps the rows of a trial."""

    def __init__(self, rows: list[Mapping[str, Any]]) -> None:
        self.rows = rows

    def on_score(self, row: Mapping[str, Any]) -> None:
        """Keep it."""
        self.rows.append(row)


def accuracy(spec: dict[str, Any], machine: Machine) -> float:
    """ACC of a trial after its last epoch, by the protocol."""
    trial, rows = resolve(spec), []
    with tempfile.TemporaryDirectory() as folder:
        run_trial(trial, TrialFolder(Path(folder) / trial.id), machine=machine, keep="metrics", observer=Keep(rows))
    return float([row["acc"] for row in rows if row["main"]][-1])


def summary(values: list[float], reference: list[float]) -> dict[str, float]:
    """Mean and standard deviation; the mean difference to the reference with its 95 % interval; p-values."""
    numbers = {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    if any(differences):
        half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(differences) / len(values) ** 0.5
        numbers |= {"difference": statistics.fmean(differences), "half_interval": float(half)}
        numbers |= {"wilcoxon_p": float(stats.wilcoxon(differences).pvalue)}
        numbers |= {"ks_p": float(stats.ks_2samp(values, reference).pvalue)}
    return {name: round(number, 4) for name, number in numbers.items()}


if __name__ == "__main__":
    main()

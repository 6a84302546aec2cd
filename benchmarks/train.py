"""Training of ST-DAC: our step and label pass against plain eager PyTorch, beside the floor.

    python -m benchmarks.train --threads 2 --stn 2 --profile --out benchmarks/results/train-cpu.json
    python -m benchmarks.train --device cuda --precision bfloat16 --processes 1,2,4,8 --whole --out …

Contenders: ours, which is what `stdac train` runs; (a) `benchmarks/plain.py`; (b) the same with channels-last layout
and fused Adam. Each is a process of its own, set up once: compilation, allocator and threads of one do not touch
another. They take turns: in every round each labels a macro-batch of 992 images and takes optimiser steps of 32 on it,
so that a busy machine slows all of them; ratios are taken within a round. --processes measures several of ours at once,
on a CPU with the threads divided among them. Prints all that --out holds; what a run does not measure stays there.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

from benchmarks import floor
from benchmarks.contenders import CONTENDERS, MACRO_BATCH, Setting, contenders, in_process
from benchmarks.step_profile import profile_ours
from stdac.errors import StdacError
from stdac.folder import TrialFolder
from stdac.machine import Machine, describe_device, describe_provenance
from stdac.methods import resolve
from stdac.run import run_trial
from stdac.step import PRECISIONS

Times = dict[str, list[float]]  # "step" and "label": seconds, a value a round
Runs = dict[str, dict[str, Any]]


def numbers(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    """The numbers of a list with commas."""
    try:
        return tuple(int(number) for number in text.split(",") if number)
    except ValueError as error:
        raise click.BadParameter(f"got {text!r}, expected whole numbers with commas between them") from error


@click.command()
@click.option("--stn", callback=numbers, default="0,1,2,3", show_default=True, help="numbers of spatial transformers")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda")
@click.option("--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True)
@click.option("--threads", type=int, default=os.cpu_count(), show_default=True, help="of every contender")
@click.option("--rounds", type=click.IntRange(0), default=7, show_default=True, help="0: measure no contender")
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="in a round; a trial takes 31")
@click.option("--processes", callback=numbers, default="", help="also so many of ours at once, as in 1,2,4,8")
@click.option("--profile", is_flag=True, help="also say where the time of ours goes")
@click.option("--whole", is_flag=True, help="also run one real trial of each")
@click.option("--epochs", default=10, show_default=True, help="of the whole trial")
@click.option("--limit", type=int, help="images of the whole trial, instead of all")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="where MNIST lies, instead of $STDAC_DATA"
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="a JSON file, added to where it exists")
def main(
    stn: tuple[int, ...],
    device: str,
    precision: str,
    threads: int,
    rounds: int,
    steps: int,
    processes: tuple[int, ...],
    profile: bool,
    whole: bool,
    epochs: int,
    limit: int | None,
    data_dir: Path | None,
    out: Path | None,
) -> None:
    """Measure training, and print the tables."""
    runs: Runs = json.loads(out.read_text())["runs"] if out is not None and out.exists() else {}
    for layers in stn:
        setting = Setting(layers, device, precision, threads, data_dir)
        jobs: dict[str, Callable[[], dict[str, Any]]] = {}
        if rounds:
            jobs["contenders"] = partial(compare, setting, rounds, steps)
        if processes and rounds:
            jobs["processes"] = partial(share, setting, processes, rounds, steps)
        if profile:
            jobs["profile"] = partial(in_process, profile_ours, setting)
        if whole:
            jobs["whole"] = partial(in_process, whole_trial, setting, epochs, limit)
        for kind, job in jobs.items():
            click.echo(f"{name_of(setting)}: {kind} …", err=True)
            try:
                runs[f"{kind}, {name_of(setting)}"] = {"kind": kind} | measured(job, setting)
            except StdacError as error:
                raise click.ClickException(str(error)) from error
            except EOFError as error:
                raise click.ClickException("a contender's process ended early: it has said above why") from error
            if out is not None:
                out.write_text(json.dumps({"what": WHAT, "runs": runs}, indent=1) + "\n")
    click.echo(tables(runs))


WHAT = (
    "seconds of one training step of 32 images and of one label pass of 992, a value a round; see benchmarks/train.py"
)


def name_of(setting: Setting) -> str:
    """What a run is called in the file."""
    where = f"cpu, {setting.threads} threads" if setting.device == "cpu" else setting.device
    return f"{setting.stn} STN, {setting.precision}, {where}"


def measured(job: Callable[[], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """What a job found, with its setting, the machine's rates and provenance, and how busy others kept the machine."""
    machine = Machine(device=setting.device, threads=setting.threads)
    machine.prepare()
    device = machine.torch_device()
    setting.images()  # where there are none, say so before anything is started
    rates = floor.measured_rates(setting.threads) if device.type == "cpu" else floor.H200[setting.precision]
    load, began = os.getloadavg()[0], time.perf_counter()
    found = job()
    about = {key: value for key, value in describe_provenance().items() if key != "host"}
    about |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": describe_device(device)}
    about |= {"load_before": load, "seconds": time.perf_counter() - began}
    what = {key: value for key, value in asdict(setting).items() if key != "data_dir"}
    return {"setting": what, **found, "rates": asdict(rates), "about": about}


def compare(setting: Setting, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of a step and of a label pass, by contender."""
    seconds: dict[str, Times] = {kind: {"step": [], "label": []} for kind in CONTENDERS}
    with contenders([(kind, setting) for kind in CONTENDERS]) as (pipes, setups):
        for _ in range(rounds):
            for kind, pipe in zip(CONTENDERS, pipes, strict=True):
                turn([pipe], steps, seconds[kind])
    return {"steps": steps, "seconds": seconds, "setup_s": dict(zip(CONTENDERS, setups, strict=True))}


def share(setting: Setting, counts: Sequence[int], rounds: int, steps: int) -> dict[str, Any]:
    """Seconds in which n processes take a step each, and label a macro-batch each, by n."""
    divided = {n: max(1, setting.threads // n) if setting.device == "cpu" else setting.threads for n in counts}
    seconds: dict[str, Times] = {str(n): {"step": [], "label": []} for n in counts}
    wanted = [("ours", replace(setting, threads=divided[n])) for n in counts for _ in range(n)]
    with contenders(wanted) as (pipes, _):
        for _ in range(rounds):
            waiting = iter(pipes)
            for n in counts:
                turn(list(islice(waiting, n)), steps, seconds[str(n)])
    return {"steps": steps, "seconds": seconds, "threads": {str(n): threads for n, threads in divided.items()}}


def turn(pipes: Sequence[Connection], steps: int, times: Times) -> None:
    """Let these contenders, together, label a macro-batch, then take `steps` steps each; note the seconds of both."""
    for what, n in (("label", 1), ("step", steps)):
        began = time.perf_counter()
        for pipe in pipes:
            pipe.send((what, n))
        for pipe in pipes:
            pipe.recv()
        times[what].append((time.perf_counter() - began) / n)


def whole_trial(setting: Setting, epochs: int, limit: int | None) -> dict[str, Any]:
    """A real trial, after a short one in the same process that compiles all it needs: their seconds, and its epochs."""
    machine = Machine(device=setting.device, compile="on", threads=setting.threads)
    params = {"stn": setting.stn, "precision": setting.precision}
    rows: list[Any] = []
    walls: list[float] = []
    with tempfile.TemporaryDirectory() as root:
        for few, n in ((3000, 1), (limit, epochs)):
            rows.clear()
            trial = resolve({"dataset": "mnist", "epochs": n, "limit": few, "params": params})
            began = time.perf_counter()
            run_trial(
                trial,
                TrialFolder(Path(root) / trial.id),
                machine=machine,
                data_dir=setting.data_dir,
                on_score=rows.append,
            )
            walls.append(time.perf_counter() - began)
    epoch_s = [row["seconds"] for row in rows if row.get("seconds")]
    acc = {row["phase"]: row["acc"] for row in rows}
    return {"compiling_s": walls[0], "wall_s": walls[1], "epoch_s": epoch_s, "limit": limit, "acc": acc}


def tables(runs: Runs) -> str:
    """All that a file holds, as Markdown."""
    texts = []
    for name, run in runs.items():
        cost, rates = floor.st_dac(run["setting"]["stn"]), fastest(runs, run)
        table = {"contenders": contenders_table, "processes": processes_table, "profile": profile_table}
        text = whole_line(run, cost, rates) if run["kind"] == "whole" else table[run["kind"]](run, cost, rates)
        about = run["about"]
        texts.append(f"{name} ({about['device']}, {about['date']}, commit {about['commit']})\n\n{text}")
    return "\n\n".join(texts)


def fastest(runs: Runs, run: dict[str, Any]) -> floor.Rates:
    """The best rates that any run of the file found with this device, precision and number of threads."""
    alike = [
        other["rates"]
        for other in runs.values()
        if all(other["setting"][key] == run["setting"][key] for key in ("device", "precision", "threads"))
    ]
    return floor.Rates(alike[0]["name"], max(r["flop"] for r in alike), max(r["bytes"] for r in alike))


def contenders_table(run: dict[str, Any], cost: floor.Cost, rates: floor.Rates) -> str:
    """A row a contender: a step, a label pass, a trial; how many times ours they take, and how many times the floor."""
    ours, label = run["seconds"]["ours"], label_work(cost)
    head = ["", "a step, ms", "to ours", "to the floor", "label pass, ms", "to ours", "to the floor", "trial"]
    floors = [
        f"floor at {rates.flop / 1e9:,.0f} GFLOP/s, {rates.bytes / 1e9:,.0f} GB/s (in turn)",
        f"{floor.ms(rates.floor(cost.step))} ({floor.ms(rates.in_turn(cost.step))})",
        "",
        "",
        f"{floor.ms(rates.floor(label))} ({floor.ms(rates.in_turn(label))})",
        "",
        "",
        floor.duration(rates.floor(*cost.trial)),
    ]
    rows = [
        [
            CONTENDERS[kind],
            *cells(times["step"], ours["step"], rates.floor(cost.step)),
            *cells(times["label"], ours["label"], rates.floor(label)),
            floor.duration(statistics.median(trial_seconds(times, cost))),
        ]
        for kind, times in run["seconds"].items()
    ]
    return markdown(head, [floors, *rows])


def cells(times: list[float], ours: list[float], least: float) -> list[str]:
    """Milliseconds, times ours within a round, and times the floor: median (least to most) over the rounds."""
    ratio = "" if times is ours else spread([a / b for a, b in zip(times, ours, strict=True)]) + "×"
    return [spread([1e3 * t for t in times], milliseconds(times)), ratio, f"{statistics.median(times) / least:.1f}×"]


def milliseconds(times: list[float]) -> str:
    """A format for milliseconds that leaves three digits."""
    median = statistics.median(times)
    return ",.0f" if median > 0.1 else ".1f" if median > 0.01 else ".3f"


def label_work(cost: floor.Cost) -> floor.Work:
    """A label pass of 992 images."""
    return floor.Work(cost.label.flop * MACRO_BATCH / 1000, cost.label.bytes)


def trial_seconds(times: Times, cost: floor.Cost) -> list[float]:
    """Seconds of a whole trial of 10 epochs by its steps and label passes, a value a round."""
    each = zip(times["step"], times["label"], strict=True)
    return [cost.steps * step + cost.passes * label * 1000 / MACRO_BATCH for step, label in each]


def processes_table(run: dict[str, Any], cost: floor.Cost, _rates: floor.Rates) -> str:
    """A row a number of processes: what all of them do together, and how many times that of the first row."""
    rows, first = [], next(iter(run["seconds"]))
    for n, times in run["seconds"].items():
        row = [f"{n} × {run['threads'][n]}" if run["setting"]["device"] == "cpu" else n]
        for amount, seconds in (
            (32.0, lambda t: t["step"]),
            (float(MACRO_BATCH), lambda t: t["label"]),
            (3600.0, lambda t: trial_seconds(t, cost)),
        ):
            rates = [int(n) * amount / s for s in seconds(times)]
            base = [int(first) * amount / s for s in seconds(run["seconds"][first])]
            row += [f"{statistics.median(rates):,.3g}", spread([a / b for a, b in zip(rates, base, strict=True)]) + "×"]
        rows.append(row)
    which = "processes × threads" if run["setting"]["device"] == "cpu" else "processes"
    return markdown([which, "trained, images/s", "", "labelled, images/s", "", "trials an hour", ""], rows)


def profile_table(run: dict[str, Any], _cost: floor.Cost, _rates: floor.Rates) -> str:
    """Where the time of a step and of a label pass goes, and the longest operators of the step."""
    step, label = run["step"], run["label"]
    rows = [
        [part, f"{at['forward']:.1f}", f"{at['backward']:.1f}", f"{sum(label[part].values()):.1f}"]
        for part, at in step.items()
    ]
    totals = [sum(at[direction] for at in step.values()) for direction in ("forward", "backward")]
    rows.append(["all", *(f"{t:.1f}" for t in totals), f"{sum(sum(at.values()) for at in label.values()):.1f}"])
    longest = ", ".join(f"`{name[:60]}` {ms:.1f}" for name, ms in run["operators"].items())
    table = markdown(["ms", "step, forward", "step, backward", "label pass of 992"], rows)
    return f"{table}\n\nLongest operators of a step, ms: {longest}"


def whole_line(run: dict[str, Any], cost: floor.Cost, rates: floor.Rates) -> str:
    """A whole trial in a sentence."""
    least = "" if run["limit"] else f", {run['wall_s'] / rates.floor(*cost.trial):.1f}× its floor for 10 epochs"
    inside = sum(run["epoch_s"])
    return (
        f"A trial of {len(run['epoch_s'])} epochs took {run['wall_s']:.1f} s, {inside:.1f} s of them in steps and "
        f"label passes{least}; the first in the process, which compiles, {run['compiling_s']:.0f} s."
    )


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median (least–most)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()

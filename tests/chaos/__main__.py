"""`python -m tests.chaos`: rounds of faults until there were enough; the exit code is 1 if anything was lost."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.chaos.campaign import Campaign
from tests.chaos.clusters import Cluster
from tests.chaos.ray_cluster import Ray
from tests.chaos.scene import small_disk
from tests.chaos.slurm_cluster import Slurm

CLUSTERS = {cluster.name: cluster for cluster in (Cluster, Ray, Slurm)}


@click.command()
@click.option("--backend", type=click.Choice(sorted(CLUSTERS)), default="local")
@click.option("--faults", type=click.IntRange(1), default=50, help="How many in all.")
@click.option("--seed", type=int, default=0, help="Of the first round; the next one takes seed + 1, and so on.")
@click.option("--pause", type=float, default=2.5, help="Mean seconds between two faults.")
@click.option("--grid", type=click.Path(exists=True, path_type=Path), default=Path(__file__).with_name("grid.toml"))
@click.option("--keep", type=click.Path(path_type=Path), default=Path("build/chaos"), help="Where failed runs go.")
@click.option("--light", is_flag=True, help="Trials only pretend to train: more faults in less time, counted apart.")
def main(backend: str, faults: int, seed: int, pause: float, grid: Path, keep: Path, light: bool) -> None:
    """Do harm at random while a grid runs, and prove that nothing is lost."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
    if light:
        os.environ |= {"STDAC_CHAOS_LIGHT": "1", "PYTHONPATH": str(Path(__file__).with_name("light"))}
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="stdac-chaos-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        small_disk(Path(folder) / "disk") as disk,
        CLUSTERS[backend](Path(folder)) as cluster,
    ):
        campaign = Campaign(cluster, disk, grid.resolve(), keep.resolve(), pause, light)
        try:
            campaign.run(faults, seed)
        finally:
            print(campaign.report(), f"in {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(1 if campaign.failures else 0)


if __name__ == "__main__":
    main()

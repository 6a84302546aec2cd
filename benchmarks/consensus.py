"""What a consensus costs, and whom it beats: `python -m benchmarks.consensus --images 70000 --members 100`.

Members are a made-up truth of K clusters with a share of images elsewhere, and pairs of clusters merged and others cut,
as seeds of one method do. Each contender is a process of its own; CPU seconds and the most memory are of the whole of
it, with its imports. Baselines: scikit-learn's SpectralCoclustering of the same table of votes, and its
SpectralClustering of the co-association, N × N, at a number of images where that fits.
"""

import json
import subprocess
import sys
from collections.abc import Callable

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.many_trials import LAUNCH
from stdac.consensus import CONSENSUS, MOST_PAIRED, count_votes, find_consensus, measure_agreement, measure_confidence
from stdac.metrics import Labels, accuracy

WRONG = 0.15  # share of images that a member has elsewhere


def make_members(n: int, members: int, k: int) -> tuple[Labels, list[Labels]]:
    """The truth and the members' clusters, each (N,) int64 in [0, K)."""
    random = np.random.default_rng(0)
    truth = random.integers(0, k, n)
    return truth, [_blur(truth, k, random) for _ in range(members)]


def _blur(truth: Labels, k: int, random: np.random.Generator) -> Labels:
    """The truth with one cluster merged into another, a third cut in two, and some images elsewhere."""
    merged, into, cut = random.choice(k, 3, replace=False)
    clusters = np.where(truth == merged, into, truth)
    clusters[(truth == cut) & (random.random(len(truth)) < 0.5)] = merged
    elsewhere = random.random(len(truth)) < WRONG
    blurred: Labels = np.where(elsewhere, random.integers(0, k, len(truth)), clusters)
    return blurred


def find_coclusters(members: list[Labels], k: int) -> NDArray[np.int32]:
    """scikit-learn's spectral co-clustering of the table of votes."""
    from sklearn.cluster import SpectralCoclustering

    rows: NDArray[np.int32] = SpectralCoclustering(k, random_state=0).fit(count_votes(members).table).row_labels_
    return rows


def cluster_coassociation(members: list[Labels], k: int) -> NDArray[np.int32]:
    """scikit-learn's spectral clustering of the N × N co-association."""
    from sklearn.cluster import SpectralClustering

    table = count_votes(members).table
    spectral = SpectralClustering(k, affinity="precomputed", random_state=0)
    labels: NDArray[np.int32] = spectral.fit_predict((table @ table.T).toarray())
    return labels


CONTENDERS: dict[str, Callable[[list[Labels], int], NDArray[np.integer]]] = {
    **{how: lambda members, k, how=how: find_consensus(members, k, how) for how in CONSENSUS},
    "SpectralCoclustering": find_coclusters,
    "SpectralClustering": cluster_coassociation,
}
PAIRED = ("average", "complete", "SpectralClustering")  # which need N × N


def run_part(part: str, images: int, members: int, k: int) -> None:
    """What one process does, and the ACC that it finds."""
    truth, clusterings = make_members(images, members, k)
    if part == "agreement":
        measure_agreement(count_votes(clusterings))
    elif part == "confidence":
        measure_confidence(count_votes(clusterings), truth)
    elif part != "members alone":
        acc = accuracy(truth, CONTENDERS[part](clusterings, k).astype(np.int64))
        print(f"ACC {acc:.3f}", file=sys.stderr)


@click.command()
@click.option("--images", default=70_000)
@click.option("--members", default=100)
@click.option("--clusters", "k", default=10)
@click.option("--part", hidden=True)
def main(images: int, members: int, k: int, part: str | None) -> None:
    """Print CPU seconds, seconds and memory of each way to a consensus, and of what is told of it."""
    if part is not None:
        run_part(part, images, members, k)
        return
    truth, clusterings = make_members(min(images, MOST_PAIRED), members, k)
    accs = [accuracy(truth, member) for member in clusterings]
    click.echo(f"{images:,} images, {members} members, K {k}: mean ACC {np.mean(accs):.3f}, best {max(accs):.3f}")
    for name in ("members alone", *CONTENDERS, "agreement", "confidence"):
        if name in PAIRED and images >= MOST_PAIRED:
            continue
        words = ["--images", images, "--members", members, "--clusters", k, "--part", name]
        launched = [sys.executable, "-c", LAUNCH, sys.executable, "-m", "benchmarks.consensus", *map(str, words)]
        told = subprocess.run(launched, capture_output=True, text=True, check=True)
        code, said, cpu, seconds, mib = json.loads(told.stdout)
        if code:
            raise click.ClickException(f"{name} failed: {said}")
        click.echo(f"{name:<22} {cpu:6.1f} s of CPU  {seconds:6.1f} s  {mib:6,.0f} MiB  {said.strip()}".rstrip())


if __name__ == "__main__":
    main()

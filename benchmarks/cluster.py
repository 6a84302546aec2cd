"""End to end: `cluster_files` against Pillow alone (a folder of PNGs) and against bare inference (IDX, Parquet, tar).

    python -m benchmarks.cluster --model model.onnx                # a model of 28x28 gray images
    python -m benchmarks.cluster --images 20000 --rounds 3         # k-means: inference costs next to nothing

Each round runs every baseline and every measurement once, in turn; a whole call is timed, with the start of its
processes and the load of its model. Pillow: as many processes as the clusterer has, each of which opens and decodes its
share of the same files to arrays and does nothing else. Bare inference: session.run on 256 images at a time, in memory.
"""

import gzip
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from export import Clusterer
from export.cluster import Settings, cluster_files
from stdac.cores import count_threads
from stdac.pictures.pixels import Pixels

PILLOW = """
import sys
import numpy as np
from PIL import Image
for line in sys.stdin:
    np.asarray(Image.open(line[:-1]))
"""


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="An ONNX file; k-means on digits if not given.")
@click.option("--images", type=click.IntRange(1), default=20_000)
@click.option("--rounds", type=click.IntRange(1), default=3)
@click.option("--workers", type=click.IntRange(1), default=None, help="Decoding processes; one a CPU if not given.")
def main(model: Path | None, images: int, rounds: int, workers: int | None) -> None:
    """Print images a second and ratios: median over the rounds, and their range."""
    workers = workers or count_threads()
    with tempfile.TemporaryDirectory(prefix="stdac-bench-") as name:
        folder = Path(name)
        model = model or kmeans_model(folder)
        pixels = noisy_digits(images)
        paths = write_inputs(folder, pixels)
        clusterer = Clusterer(model, "cpu")

        def sort(source: str) -> Callable[[], object]:
            settings = Settings(provider="cpu", workers=workers, fresh=True)
            return lambda: cluster_files(model, [str(folder / source)], folder / "out.parquet", settings)

        calls: dict[str, Callable[[], object]] = {
            "Pillow alone": lambda: pillow(paths, workers),
            "bare inference": lambda: [clusterer.predict(pixels[i : i + 256]) for i in range(0, images, 256)],
            "folder": sort("png"),
            "IDX": sort("images-idx3-ubyte"),
            "IDX.gz": sort("images-idx3-ubyte.gz"),
            "Parquet": sort("images.parquet"),
            "tar": sort("images.tar"),
        }
        rates = measure(calls, images, rounds)
    print(
        f"{images:,} images, {workers} processes, {rounds} rounds, {clusterer.info.dataset} {clusterer.info.trial_id}"
    )
    print("| | images/s | to Pillow | to inference | to the slower of both |")
    print("|---|---|---|---|---|")
    for what, found in rates.items():
        both = [min(pair) for pair in zip(rates["Pillow alone"], rates["bare inference"], strict=True)]
        ratios = [ratio(found, rates["Pillow alone"]), ratio(found, rates["bare inference"]), ratio(found, both)]
        print(f"| {what} | {median(found):,.0f} | " + " | ".join(ratios) + " |")


def measure(calls: dict[str, Callable[[], object]], images: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of each call in each round."""
    rates: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(rounds):
        for what, call in calls.items():
            began = time.perf_counter()
            call()
            rates[what].append(images / (time.perf_counter() - began))
    return rates


def ratio(rates: list[float], baseline: list[float]) -> str:
    """Median and range of the rounds' ratios."""
    ratios = [a / b for a, b in zip(rates, baseline, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def pillow(paths: list[Path], workers: int) -> None:
    """Decode the files with Pillow in that many processes."""
    children = [subprocess.Popen([sys.executable, "-c", PILLOW], stdin=subprocess.PIPE) for _ in range(workers)]
    for i, child in enumerate(children):
        assert child.stdin is not None
        child.stdin.write("".join(f"{path}\n" for path in paths[i::workers]).encode())
        child.stdin.close()
    codes = [child.wait() for child in children]
    if any(codes):
        raise RuntimeError("Pillow could not decode the files")


def kmeans_model(folder: Path) -> Path:
    """A k-means model of the digits, as ONNX."""
    from export.convert.to_onnx import export_model
    from stdac.folder import TrialFolder
    from stdac.methods import resolve
    from stdac.run import run_trial

    trial = TrialFolder(folder / "trial")
    run_trial(resolve({"method": "kmeans", "dataset": "digits"}), trial)
    export_model(trial.path / "attempt-1" / "model.pt", folder / "model.onnx")
    return folder / "model.onnx"


def noisy_digits(n: int) -> Pixels:
    """n different images (n, 1, 28, 28) uint8: the digits over and over, with noise on what is not background."""
    from stdac.data import load

    digits = load("digits").images
    tiled = digits[np.arange(n) % len(digits)].astype(np.int16)
    noise = np.random.default_rng(0).integers(-20, 21, tiled.shape)
    return np.where(tiled > 0, (tiled + noise).clip(1, 255), 0).astype(np.uint8)


def write_inputs(folder: Path, pixels: Pixels) -> list[Path]:
    """The images as a folder of PNGs, IDX, IDX.gz, Parquet and tar; returns the PNGs' paths."""
    encoded = []
    for image in pixels[:, 0]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    (folder / "png").mkdir()
    paths = [folder / "png" / f"{i:07}.png" for i in range(len(pixels))]
    for path, data in zip(paths, encoded, strict=True):
        path.write_bytes(data)
    header = b"\0\0\x08\x03" + np.array([len(pixels), *pixels.shape[2:]], ">u4").tobytes()
    (folder / "images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    with gzip.open(folder / "images-idx3-ubyte.gz", "wb", 6) as file:
        file.write(header + pixels.tobytes())
    pq.write_table(pa.table({"image": pa.array(encoded, pa.binary())}), folder / "images.parquet")
    with tarfile.open(folder / "images.tar", "w") as archive:
        for path, data in zip(paths, encoded, strict=True):
            about = tarfile.TarInfo(path.name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return paths


if __name__ == "__main__":
    main()

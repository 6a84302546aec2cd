"""run_trial: a Trial in, a finished folder out. The only place where ground truth and training meet, after the fact."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stdac.cost import training_macs
from stdac.data import Dataset, load
from stdac.errors import DiskFull, StdacError
from stdac.files import atomic_write
from stdac.folder import Attempt, Superseded, TrialFolder
from stdac.machine import Machine, device_name, provenance
from stdac.methods import METHODS
from stdac.methods.method import Fitted
from stdac.metrics import scores
from stdac.model_file import ModelConfig, save_model
from stdac.record import ASSIGNMENTS, metrics_table
from stdac.step import multiplying
from stdac.train import Assignment, Progress, Run
from stdac.trial import SCHEMA_VERSION, Trial, canonical_json

OnClaim = Callable[[Attempt], None]
OnProgress = Callable[[Progress], None]
OnScore = Callable[[Mapping[str, Any]], None]
MustSave = Callable[[int], bool]

MAIN_PHASE = "cluster"
SAVING_SHARE = 0.1  # of a trial's time at most, but for the first checkpoint


class Scorer:
    """Scores each assignment against the ground truth, keeps the rows, and writes the checkpoints that carry them."""

    def __init__(
        self,
        trial: Trial,
        dataset: Dataset,
        device: str,
        attempt: Attempt | None = None,
        on_progress: OnProgress | None = None,
        on_score: OnScore | None = None,
        must_save: MustSave | None = None,
    ) -> None:
        self.trial, self.labels, self.device = trial, dataset.labels, device
        self.fingerprint = dataset.fingerprint if attempt is not None else ""
        self.attempt, self.on_progress, self.on_score, self.must_save = attempt, on_progress, on_score, must_save
        self.rows: list[dict[str, Any]] = []
        self.saved, self._next_save = 0, 0.0  # the epoch that is safe; when saving is cheap enough again
        self.protocol: Assignment | None = None

    def score(self, phase: str, epoch: int, assignment: Assignment, log: Mapping[str, float]) -> None:
        """Add the row (phase, epoch)."""
        if phase == MAIN_PHASE:
            confidence = assignment.confidence
            self.protocol = Assignment(assignment.labels.cpu(), None if confidence is None else confidence.cpu())
        confidence = assignment.confidence
        row = {
            "trial_id": self.trial.id,
            "method": self.trial.method,
            "dataset": self.trial.dataset,
            "seed": self.trial.seed,
            "phase": phase,
            "epoch": epoch,
            **scores(self.labels, assignment.labels.cpu().numpy()),
            "mean_confidence": None if confidence is None else float(confidence.double().mean()),
            **log,
            "device": self.device,
            "params": canonical_json(self.trial.to_json()["params"]),
            "schema_version": SCHEMA_VERSION,
        }
        self.rows.append(row)
        if self.on_score is not None:
            self.on_score(row)

    def checkpoint(self, phases: Mapping[str, Any]) -> None:
        """Save the phases and the rows so far, in one file, where SAVING_SHARE allows it.

        An epoch of minutes is always saved. On a fast GPU writing a checkpoint may take as long as an epoch.
        """
        epoch = main_epoch(phases)
        demanded = self.must_save is not None and self.must_save(epoch)
        if self.attempt is None or not (demanded or time.monotonic() >= self._next_save):
            return
        began = time.monotonic()
        protocol = None if self.protocol is None else list(self.protocol)
        self.attempt.save_checkpoint(
            {"phases": dict(phases), "rows": self.rows, "protocol": protocol, "fingerprint": self.fingerprint}
        )
        self.saved, ended = epoch, time.monotonic()
        self._next_save = ended + (ended - began) / SAVING_SHARE

    def resume(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Take over a checkpoint's rows; returns its phases. Raises StdacError where the images have changed since."""
        if checkpoint["fingerprint"] != self.fingerprint:
            raise StdacError(
                f"the images of {self.trial.dataset} are not those that trial {self.trial.id} began with: "
                "start a new run folder, or put the old images back"
            )
        self.rows = list(checkpoint["rows"])
        self.protocol = None if checkpoint["protocol"] is None else Assignment(*checkpoint["protocol"])
        self.saved = main_epoch(checkpoint["phases"])
        return dict(checkpoint["phases"])

    def progress(self, progress: Progress) -> None:
        """Pass on where the trial is."""
        if self.attempt is not None:
            self.attempt.progress(progress._asdict() | {"saved": self.saved})
        if self.on_progress is not None:
            self.on_progress(progress)


def main_epoch(phases: Mapping[str, Any]) -> int:
    """The epochs of the main phase that a checkpoint's phases hold."""
    return int(phases.get(MAIN_PHASE, {}).get("epoch", 0))


def run_trial(
    trial: Trial,
    folder: TrialFolder,
    *,
    machine: Machine | None = None,
    data_dir: Path | None = None,
    keep: str = "all",
    on_claim: OnClaim | None = None,
    on_progress: OnProgress | None = None,
    on_score: OnScore | None = None,
    must_save: MustSave | None = None,
) -> bool:
    """Run a trial, or go on with it, until its folder has done.json.

    keep: "all" or "metrics" (no model, assignments or figures' data). must_save: told an epoch of the main phase, says
    whether its checkpoint is needed, which is else left out where it would cost too much time. Returns False where
    there was nothing to do: the trial is done, or another process is at it. Raises what made the trial fail, after
    writing error.txt; DiskFull, which is no trial's fault, leaves none.
    """
    machine = machine or Machine()
    folder.create(trial.to_json())
    attempt = folder.claim(provenance())
    if attempt is None:
        return False
    with attempt:
        try:
            if on_claim is not None:
                on_claim(attempt)
            folder.clear_error()
            finish_attempt(trial, attempt, machine, data_dir, keep, on_progress, on_score, must_save)
        except Superseded:
            return False
        except DiskFull:
            raise
        except Exception as error:
            if not attempt.current():  # its winner may have swept the folder from under it
                return False
            attempt.fail(error, trial.to_json())
            raise
    return True


def finish_attempt(
    trial: Trial,
    attempt: Attempt,
    machine: Machine,
    data_dir: Path | None,
    keep: str,
    on_progress: OnProgress | None,
    on_score: OnScore | None,
    must_save: MustSave | None,
) -> None:
    """Load, fit, score, write."""
    began = time.perf_counter()
    machine.prepare()
    device = machine.torch_device()
    dataset = load(trial.dataset, data_dir=data_dir, image_size=trial.image_size, limit=trial.limit)
    scorer = Scorer(trial, dataset, device_name(device), attempt, on_progress, on_score, must_save)
    checkpoint = newest_checkpoint(attempt)
    saved = {} if checkpoint is None else scorer.resume(checkpoint)
    fitted = fit(trial, dataset.images, scorer, machine, saved)
    if scorer.protocol is None:
        scorer.score("cluster", 0, Assignment(fitted.labels), {})
    if fitted.model is not None:
        scorer.score("deployed", scorer.rows[-1]["epoch"], Assignment(fitted.labels), {})
    attempt.check()
    attempt.write_table("metrics.parquet", metrics_table(scorer.rows))
    if keep == "all":
        write_results(attempt, trial, dataset, fitted, scorer)
    summary = {"seconds": time.perf_counter() - began, "fingerprint": scorer.fingerprint, "device": scorer.device}
    attempt.finish(summary | {"trial_id": trial.id})


def newest_checkpoint(attempt: Attempt) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; a damaged one is passed over with a line on stderr."""
    for path in attempt.folder.checkpoints():
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - torch raises whatever a damaged archive makes it stumble over
            print(f"{path} cannot be read ({str(error).splitlines()[0]}): going on without it", file=sys.stderr)
        else:
            return checkpoint
    return None


def fit(trial: Trial, images: NDArray[np.uint8], scorer: Scorer, machine: Machine, saved: dict[str, Any]) -> Fitted:
    """Fit the trial's method to images (N, C, H, W) uint8, seeded; the caller's random state is left as it was."""
    k, n = trial.n_clusters, len(images)
    if k > n:
        raise StdacError(f"got {k} clusters for {n} images: expected at most one cluster an image")
    method, device = METHODS[trial.method], machine.torch_device()
    shape = (images.shape[1], images.shape[2], images.shape[3])
    macs = training_macs(trial, shape, n)
    precision, compiles = getattr(trial.params, "precision", "float32"), machine.compiles(device, macs)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), multiplying(precision):
        seed_everything(trial.seed)
        run = Run(trial.seed, trial.epochs, scorer, device, compiles, machine.graphs(device), saved)
        return method.fit(torch.from_numpy(np.ascontiguousarray(images)).to(device), k, trial.params, run)


def seed_everything(seed: int) -> None:
    """Seed torch on every device; numpy's and Python's generators are not used by any method."""
    torch.manual_seed(seed)


def write_results(attempt: Attempt, trial: Trial, dataset: Dataset, fitted: Fitted, scorer: Scorer) -> None:
    """Assignments, the model, and the figures' data."""
    attempt.write_table("assignments.parquet", assignments_table(dataset, fitted, scorer))
    if fitted.model is not None:
        _, channels, height, width = dataset.images.shape
        deployed = {key: scorer.rows[-1][key] for key in ("acc", "nmi", "ari")}
        config = ModelConfig(trial, (channels, height, width), dataset.class_names, deployed)
        save_model(attempt.path / "model.pt", fitted.model, config)
    if fitted.stn is not None:
        with atomic_write(attempt.path / "stn.npz") as file:
            np.savez_compressed(file, allow_pickle=False, **fitted.stn)


def assignments_table(dataset: Dataset, fitted: Fitted, scorer: Scorer) -> pa.Table:
    """One row an image, see ASSIGNMENTS."""
    n = len(dataset.images)
    labels, confidence = scorer.protocol if scorer.protocol is not None else (None, None)
    return pa.table(
        {
            "index": range(n),
            "cluster": fitted.labels.cpu().numpy(),
            "protocol_cluster": [None] * n if labels is None else labels.numpy(),
            "protocol_confidence": [None] * n if confidence is None else confidence.float().numpy(),
            "label": [None] * n if dataset.labels is None else dataset.labels,
        },
        schema=ASSIGNMENTS,
    )

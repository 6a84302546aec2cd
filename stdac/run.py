"""run_trial: a Trial in, a finished folder out. The only place where ground truth and training meet, after the fact."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stdac.checkpoints import load_checkpoint
from stdac.command import describe_missing
from stdac.compiling import set_compiler
from stdac.cost import count_main_macs
from stdac.data import Dataset
from stdac.errors import MachineError, NotHere, StdacError
from stdac.files import atomic_write
from stdac.folder import Attempt, Superseded, TrialFolder
from stdac.machine import Machine, describe_device, describe_provenance
from stdac.methods import METHODS
from stdac.methods.method import Fitted, check_fitted
from stdac.metrics import measure_precision, score_clusters
from stdac.model_file import ModelConfig, save_model
from stdac.observer import Observer
from stdac.record import ASSIGNMENTS, FIGURES, FIRST_MAIN, MOVED, PRECISION, check_log, make_metrics
from stdac.results import Result
from stdac.step import set_precision
from stdac.torch_state import borrow_generators, fix_state
from stdac.train import Assignment, Needed, Progress, Source, Trainer
from stdac.trial import SCHEMA_VERSION, Trial, make_id, write_canonical
from stdac.trial_data import DATA, load_trial_data
from stdac.words import count_noun

SAVING_SHARE = 0.1  # of a trial's time at most, but for the first checkpoint


class Scorer:
    """Scores each assignment against the ground truth, keeps the rows, and writes the checkpoints that carry them."""

    def __init__(
        self,
        trial: Trial,
        dataset: Dataset,
        device: str,
        attempt: Attempt | None = None,
        observer: Observer | None = None,
        fingerprint: str = "",
    ) -> None:
        self.trial, self.truth, self.device = trial, dataset.labels, device
        self.attempt, self.observer, self.fingerprint = attempt, observer or Observer(), fingerprint
        self.rows: list[dict[str, Any]] = []
        self.saved = 0  # the last epoch of the main phase that a checkpoint holds
        self._next_save = 0.0  # before this time a checkpoint would cost more than SAVING_SHARE
        self.protocol: Assignment | None = None

    def score(
        self, phase: str, epoch: int, assignment: Assignment | None, log: Mapping[str, float], *, main: bool = False
    ) -> None:
        """Add the row (phase, epoch), without scores where there is no assignment. Raises StdacError for a term in the
        log whose name METRICS does not take."""
        check_log(log)
        scores = {} if assignment is None else self._score_assignment(assignment, main)
        row = {
            "trial_id": self.trial.id,
            "method": self.trial.method,
            "dataset": self.trial.dataset,
            "seed": self.trial.seed,
            "phase": phase,
            "epoch": epoch,
            **scores,
            **log,
            "device": self.device,
            "params": write_canonical(self.trial.to_json()["params"]),
            "schema_version": SCHEMA_VERSION,
            "main": main,
        }
        self.rows.append(row)
        self.observer.on_score(row)

    def _score_assignment(self, assignment: Assignment, main: bool) -> dict[str, float | int | None]:
        """The scores of an assignment, which is the protocol's from now on if it is of the main phase."""
        clusters, confidence = assignment.clusters.cpu(), assignment.confidence
        scores = score_clusters(self.truth, clusters.numpy())
        scores["mean_confidence"] = None if confidence is None else float(confidence.double().mean())
        if main:
            if self.protocol is not None:
                scores[MOVED] = float((clusters != self.protocol.clusters).double().mean())
            self.protocol = Assignment(clusters, None if confidence is None else confidence.cpu())
        self.observer.on_clusters(clusters.numpy())
        return scores

    @property
    def last_epoch(self) -> int:
        """The last scored epoch of the main phase."""
        return max((row["epoch"] for row in self.rows if row["main"]), default=0)

    def checkpoint(self, phases: Mapping[str, Any]) -> None:
        """Save the phases and the rows so far, in one file, where SAVING_SHARE allows it.

        An epoch of minutes is always saved. On a fast GPU writing a checkpoint may take as long as an epoch.
        """
        epoch = _main_epoch(phases)
        demanded = self.observer.must_save(epoch)
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
        self.rows = [row | {"main": row.get("main", row["phase"] == FIRST_MAIN)} for row in checkpoint["rows"]]
        self.protocol = None if checkpoint["protocol"] is None else Assignment(*checkpoint["protocol"])
        self.saved = _main_epoch(checkpoint["phases"])
        return dict(checkpoint["phases"])

    def progress(self, progress: Progress) -> None:
        """Pass on where the trial is."""
        if self.attempt is not None:
            took = self.rows[-1].get("seconds") if self.rows and self.rows[-1]["phase"] == progress.phase else None
            self.attempt.progress(progress._asdict() | {"saved": self.saved} | ({"epoch_s": took} if took else {}))
        self.observer.on_progress(progress)


def _main_epoch(phases: Mapping[str, Any]) -> int:
    """The epochs of the main phase that a checkpoint's phases hold."""
    return max((int(p["epoch"]) for name, p in phases.items() if p.get("main", name == FIRST_MAIN)), default=0)


def run_trial(
    trial: Trial,
    folder: TrialFolder,
    *,
    machine: Machine | None = None,
    data_dir: Path | None = None,
    keep: str = "all",
    needed: Sequence[Result] = (),
    observer: Observer | None = None,
) -> bool:
    """Run a trial, or go on with it, until its folder has done.json.

    keep: "all" or "metrics" (no model, assignments or figures' data). needed: the results of the trials that this one
    needs, in their order. Returns False where there was nothing to do: the trial is done, or another process is at it.
    Raises what made the trial fail, after writing error.txt; a MachineError, which is no trial's fault, leaves none.

    >>> from stdac.methods import resolve
    >>> trial = resolve({"dataset": "digits", "method": "kmeans", "limit": 100})
    >>> run_trial(trial, TrialFolder(Path("one") / "trials" / trial.id))
    True
    """
    machine, observer = machine or Machine(), observer or Observer()
    folder.create(trial.to_json())
    attempt = folder.claim(describe_provenance())
    if attempt is None:
        return False
    with attempt, machine.prepared():
        try:
            observer.on_claim(attempt)
            folder.clear_error()
            finish_attempt(trial, attempt, machine, data_dir, keep, needed, observer)
        except Superseded:
            return False
        except MachineError:
            raise
        except ModuleNotFoundError as error:
            raise NotHere(describe_missing(error)) from error
        except ImportError as error:
            raise NotHere(f"a library of method {trial.method} cannot be imported here: {error}") from error
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
    needed: Sequence[Result],
    observer: Observer,
) -> None:
    """Load, fit, score, write."""
    began = time.perf_counter()
    device = machine.torch_device()

    # the images, and those of the labelled source where the trial has one
    data = load_trial_data(trial.to_json(), data_dir)
    dataset, about = data.dataset, data.describe()
    for note in data.notes:
        observer.on_note(note)
    _check_needed(trial, needed, dataset.fingerprint if needed else "")

    # train, from the newest checkpoint on
    scorer = Scorer(trial, dataset, describe_device(device), attempt, observer, about["fingerprint"])
    checkpoint = _load_newest_checkpoint(attempt)
    saved = {} if checkpoint is None else scorer.resume(checkpoint)
    fitted = fit(trial, dataset.images, scorer, machine, saved, needed=needed, source=data.source)

    # the scores of what training leaves, and the files
    if scorer.protocol is None and fitted.labels is not None:
        terms = {**fitted.terms, **_measure_spaces(dataset, fitted)}
        scorer.score(FIRST_MAIN, 0, Assignment(fitted.labels, fitted.confidence), terms, main=True)
    if fitted.model is not None and fitted.labels is not None:
        scorer.score("deployed", scorer.last_epoch, Assignment(fitted.labels), {})
    observer.on_fitted(fitted, dataset.images)
    attempt.check()
    attempt.write_table("metrics.parquet", make_metrics(scorer.rows))
    if keep == "all":
        _write_results(attempt, trial, dataset, fitted, scorer)
    summary = {"seconds": time.perf_counter() - began, "device": scorer.device, "trial_id": trial.id}
    attempt.finish(summary | about)


def _measure_spaces(dataset: Dataset, fitted: Fitted) -> dict[str, float]:
    """How often the nearest images have an image's class, in the spaces of a method and in pixels."""
    if dataset.labels is None or not fitted.spaces:
        return {}
    spaces = {**fitted.spaces, "pixels": dataset.images.reshape(len(dataset.images), -1)}
    return {f"{PRECISION}{name}": measure_precision(dataset.labels, points) for name, points in spaces.items()}


def _check_needed(trial: Trial, needed: Sequence[Result], fingerprint: str) -> None:
    """Raise StdacError where the results are not those that the trial needs, or of other images of its data set."""
    got = tuple(make_id(result.trial) for result in needed)
    if got != trial.needs:
        raise StdacError(
            f"trial {trial.id} needs the trials {' '.join(trial.needs) or 'none'}, got {' '.join(got) or 'none'}: "
            "run it through stdac train or a grid, which see to them"
        )
    for name, result in zip(got, needed, strict=True):
        same = all(result.trial.get(key) == trial.to_json().get(key) for key in DATA)
        if same and trial.source is None and result.fingerprint != fingerprint:
            raise StdacError(
                f"the images of {trial.dataset} are not those that trial {name} was trained on, which this one needs: "
                "start a new run folder, or put the old images back"
            )


def _load_newest_checkpoint(attempt: Attempt) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a line on stderr."""
    for path in attempt.folder.checkpoints():
        try:
            return load_checkpoint(path)
        except StdacError as error:
            print(f"{error}: going on without it", file=sys.stderr)
    return None


def fit(
    trial: Trial,
    images: NDArray[np.uint8],
    scorer: Scorer,
    machine: Machine,
    saved: dict[str, Any],
    *,
    needed: Sequence[Needed] = (),
    source: Dataset | None = None,
) -> Fitted:
    """Fit the trial's method to images (N, C, H, W) uint8, seeded; what the process has set does not matter, and stays.

    Raises StdacError where the method does not keep its contract, see `Fitted` and `phase`.
    """
    k, n = trial.n_clusters, len(images)
    check_clusters(k, n)
    method, device = METHODS[trial.method], machine.torch_device()
    shape = (images.shape[1], images.shape[2], images.shape[3])
    precision = getattr(trial.params, "precision", "float32")
    with ExitStack() as stack:
        for context in (fix_state(), borrow_generators(cuda=True), set_precision(precision)):
            stack.enter_context(context)
        compiles = machine.compiles(device, count_main_macs(trial, shape, n))
        if compiles:
            stack.enter_context(set_compiler())
        seed_everything(trial.seed)
        trainer = Trainer(trial.seed, trial.epochs, scorer, device, compiles, machine.graphs(device), saved, needed)
        trainer.source = None if source is None else _to_source(source, device)
        x = _to_tensor(images, device)
        fitted = method.fit(x, k, trial.params, trainer)
        if trial.epochs and not trainer.has_main:
            raise StdacError(f"method {trial.method} has marked no main phase: pass main=True to one call of phase()")
        if trial.epochs and scorer.protocol is None and fitted.labels is not None:
            raise StdacError(
                f"the main phase of method {trial.method} has no evaluate: expected a function that clusters all images"
            )
        check_fitted(fitted, x, k, trial.method)
    return fitted


def check_clusters(k: int, n: int) -> None:
    """Raise StdacError for more clusters than images."""
    if k > n:
        raise StdacError(f"got {k} clusters for {count_noun(n, 'image')}: expected at most one cluster an image")


def _to_tensor(images: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Images (N, C, H, W) uint8 on the device."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device)


def _to_source(source: Dataset, device: torch.device) -> Source:
    """A labelled data set on the device, its classes numbered from 0."""
    assert source.labels is not None, "load_trial_data has seen to it"
    names, labels = np.unique(source.labels, return_inverse=True)
    return Source(_to_tensor(source.images, device), torch.from_numpy(labels.reshape(-1)).to(device), len(names))


def seed_everything(seed: int) -> None:
    """Seed torch on every device; numpy's and Python's generators are not used by any method."""
    torch.manual_seed(seed)


def _write_results(attempt: Attempt, trial: Trial, dataset: Dataset, fitted: Fitted, scorer: Scorer) -> None:
    """Assignments, the model or encoder, and the figures' data."""
    if fitted.labels is not None:
        attempt.write_table("assignments.parquet", _make_assignments(dataset, fitted.labels, scorer))
    module = fitted.encoder if fitted.model is None else fitted.model
    if module is not None:
        _, channels, height, width = dataset.images.shape
        deployed = {key: scorer.rows[-1].get(key) for key in ("acc", "nmi", "ari")}
        clusters = fitted.model is not None
        config = ModelConfig(trial, (channels, height, width), dataset.class_names, deployed, clusters=clusters)
        save_model(attempt.path / "model.pt", module, config)
    if fitted.figures:
        with atomic_write(attempt.path / FIGURES) as file:
            np.savez_compressed(file, allow_pickle=False, **fitted.figures)


def _make_assignments(dataset: Dataset, labels: torch.Tensor, scorer: Scorer) -> pa.Table:
    """One row an image, see ASSIGNMENTS."""
    n = len(dataset.images)
    clusters, confidence = scorer.protocol if scorer.protocol is not None else (None, None)
    return pa.table(
        {
            "index": range(n),
            "cluster": labels.cpu().numpy(),
            "protocol_cluster": [None] * n if clusters is None else clusters.numpy(),
            "protocol_confidence": [None] * n if confidence is None else confidence.float().numpy(),
            "label": [None] * n if dataset.labels is None else dataset.labels,
        },
        schema=ASSIGNMENTS,
    )

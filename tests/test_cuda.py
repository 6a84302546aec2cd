"""Training on a GPU: what the CPU cannot show."""

from pathlib import Path

import pytest
import torch

from stdac.data import Dataset, load
from stdac.folder import TrialFolder
from stdac.machine import Machine
from stdac.methods import resolve
from stdac.run import Scorer, fit, run_trial
from stdac.step import ReplayedStep, set_precision
from stdac.stn import SpatialTransformer
from tests.conftest import Watch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are captured only where that is asked for."""
    monkeypatch.setenv("STDAC_CUDA_GRAPHS", "1")


METHODS = ["st-dac", "dac-star", "dec"]


def spec(method: str, **changes: object) -> dict[str, object]:
    """A small trial with an odd last macro-batch."""
    params: dict[str, object] = {"width": 0.25}
    params |= {"update_interval": 20, "pretrain_epochs": 2} if method == "dec" else {"macro_batch": 400}
    return {"method": method, "dataset": "digits", "epochs": 3, "limit": 1000, "params": params} | changes


def rows_of(trial_spec: dict[str, object], machine: Machine) -> list[dict[str, object]]:
    trial, dataset = resolve(trial_spec), load("digits", limit=1000)
    scorer = Scorer(trial, Dataset(dataset.images, dataset.labels), "cuda")
    fit(trial, dataset.images, scorer, machine, {})
    return [row for row in scorer.rows if row["main"]]


@pytest.mark.parametrize("method", METHODS)
def test_captured_steps_learn_what_ordinary_ones_learn(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    captured, ordinary = (rows_of(spec(method), Machine("cuda", compile)) for compile in ("on", "off"))
    assert "cannot be captured" not in capsys.readouterr().err
    for ours, theirs in zip(captured[1:], ordinary[1:], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)
    assert captured[-1]["acc"] == pytest.approx(ordinary[-1]["acc"], abs=0.25)


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch compiles and captures; the later ones must not synchronise before their means are read."""
    replays = []
    call = ReplayedStep.__call__

    def watched(self: ReplayedStep, *batch: torch.Tensor) -> None:
        steady = self.steps > 0 and bool(self.replays)
        torch.cuda.set_sync_debug_mode("error" if steady else "default")
        try:
            call(self, *batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        replays.append(steady)

    monkeypatch.setattr(ReplayedStep, "__call__", watched)
    rows_of(spec("st-dac"), Machine("cuda", "on"))
    assert sum(replays) > 30


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_every_precision_trains(precision: str) -> None:
    params = {"width": 0.25, "macro_batch": 400, "precision": precision}
    rows = rows_of(spec("st-dac", params=params), Machine("cuda", "on"))
    assert rows[-1]["acc"] > 0.3 and rows[-1]["loss"] < rows[1]["loss"]


def test_the_grid_is_exact_whatever_products_round_to() -> None:
    transformer = SpatialTransformer(1, 28, 28).cuda()
    theta = torch.rand(64, 6, device="cuda") * 2 - 1
    exact = theta.double() @ transformer.matrix.double() + transformer.shift.double()
    with set_precision("bfloat16"):
        assert (transformer.grid(theta) - exact).abs().max() < 1e-6


def test_a_trial_begun_on_a_gpu_goes_on_on_the_cpu_and_the_other_way(tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def cut(progress) -> None:
        if progress.epoch == 2:
            raise Cut

    for name, first, second in (("down", "cuda", "cpu"), ("up", "cpu", "cuda")):
        trial = resolve(spec("st-dac", limit=400))
        folder = TrialFolder(tmp_path / name / trial.id)
        with pytest.raises(Cut):
            run_trial(trial, folder, machine=Machine(first), observer=Watch(progress=cut))
        assert run_trial(trial, folder, machine=Machine(second))
        assert folder.done() is not None

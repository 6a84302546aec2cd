"""Grids: TOML files, the presets, and what is wrong with a bad one; the ledger, and a worker's environment."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster_jobs import ledger as ledgers
from cluster_jobs.display import Display, report
from cluster_jobs.grid import list_presets, load_grid
from cluster_jobs.ledger import Ledger
from cluster_jobs.local import Workers, choose_gpu
from cluster_jobs.request import Options
from cluster_jobs.worker import Worker
from stdac.errors import StdacError
from stdac.files import write_json
from stdac.folder import TrialFolder
from stdac.methods import resolve
from stdac.record import TIMINGS
from stdac.train import Progress
from stdac.trial import Trial
from tests.conftest import CPU, small


def write(folder: Path, text: str) -> str:
    (folder / "grid.toml").write_text(text)
    return str(folder / "grid.toml")


def test_paper_is_table_6_and_then_what_differs_from_it() -> None:
    trials, rest = load_grid("paper").trials[:100], load_grid("paper").trials[100:]
    assert {(t.dataset, t.method) for t in rest} >= {("mnist", "dec"), ("fashion-mnist", "dec")}
    assert {t.seed for t in rest} == set(range(10))
    assert all(t.params.preset == "code" for t in trials if t.method == "st-dac")
    cells = {(t.dataset, t.method, getattr(t.params, "stn", None)) for t in trials}
    assert len(cells) == 10 and {t.seed for t in trials} == set(range(10))
    assert {t.epochs for t in trials if t.method == "st-dac"} == {10}
    assert {t.epochs for t in trials if t.method == "dac-star"} == {20}


def test_quick_has_every_ablation_cell_twice() -> None:
    trials = load_grid("quick").trials
    assert {getattr(t.params, "stn", None) for t in trials if t.method == "st-dac"} == {0, 1, 2, 3}
    assert {"kmeans", "dac-star", "st-dac"} == {t.method for t in trials}
    assert all(t.dataset == "digits" for t in trials) and len({t.seed for t in trials}) >= 2


def test_every_preset_expands() -> None:
    assert {"quick", "paper"} <= set(list_presets())
    assert all(load_grid(name).trials for name in list_presets())


def test_lists_are_axes_and_equal_trials_are_kept_once(tmp_path: Path) -> None:
    grid = load_grid(
        write(
            tmp_path,
            """
            [defaults]
            dataset = ["digits", "mnist"]
            params = { width = 0.5 }
            [[trials]]
            seeds = 3
            params = { stn = [0, 1] }
            [[trials]]
            seed = 0
            params = { stn = 1, lr = 0.001 }
            [[trials]]
            dataset = "digits"
            params = { stn = 1 }
            """,
        )
    )
    assert len(grid.trials) == 2 * 3 * 2 + 2 and grid.name == "grid"
    assert {t.params.width for t in grid.trials} == {0.5}
    assert [t.seed for t in grid.trials[:5]] == [0, 0, 0, 0, 1]  # a cut-off grid has whole seeds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trials = 3", "{grid} has no trials: expected at least one [[trials]] block"),
        (
            "[[trials]]\ndataset='mnist'\nmethod='x'",
            "{grid}, block 1 of [[trials]]: unknown method 'x': expected one of kmeans, pca-kmeans, ",
        ),
        (
            "[[trials]]\ndataset='mnist'\nparams={stx=1}",
            "{grid}, block 1 of [[trials]]: unknown parameter of STDAC 'stx': expected one of stn, ",
        ),
        (
            "[[trials]]\ndataset='mnist'\nseeds=0",
            "{grid}, block 1 of [[trials]]: got seeds = 0, expected a whole number of at least 1, and no seed beside",
        ),
        (
            "[defaults]\nepohcs=3\nparams={stn=2}\n[[trials]]\ndataset='mnist'",
            "{grid}, [defaults]: unknown trial key 'epohcs': expected one of method, ",
        ),
        (
            "[defaults]\nparams={stx=2}\n[[trials]]\ndataset='mnist'",
            "{grid}, [defaults]: unknown parameter of STDAC 'stx'",
        ),
        (
            "[defaults]\nepochs=0\n[[trials]]\ndataset='mnist'\n[[trials]]\ndataset='kmnist'\nepochs=3",
            "{grid}, [defaults]: got epochs = 0, expected a whole number",
        ),
        (
            "[defaults]\nepochs=1\n[[trials]]\ndataset='mnist'\nepochs=0",
            "{grid}, block 1 of [[trials]]: got epochs = 0, expected a whole number",
        ),
        (
            "[[trials]]\ndataset='mnist'\n[default]\nseed=1",
            "{grid} has an unknown key 'default': expected name, about, [defaults], [slurm] and [[trials]]",
        ),
        ("[[trials", "{grid} is not TOML: "),
    ],
)
def test_a_bad_grid_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(StdacError) as caught:
        load_grid(path)
    assert str(caught.value).startswith(said.replace("{grid}", path))


def test_an_unknown_grid_names_the_presets() -> None:
    with pytest.raises(StdacError, match=r"^unknown grid 'papre': expected one of paper, quick, or a TOML file$"):
        load_grid("papre")


def test_a_changed_grid_adds_and_keeps(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    old, new = [resolve(small("kmeans", seed=s)) for s in (0, 1)], [resolve(small("kmeans", seed=s)) for s in (1, 2)]
    assert ledger.plan(old, "old") == []
    assert ledger.plan(new, "new") == [old[0].id]
    assert list(ledger.trials()) == [t.id for t in [*old, new[1]]]
    assert (tmp_path / "run" / "grid.toml").read_text() == "old"
    assert (tmp_path / "run" / "grid-2.toml").read_text() == "new"
    assert Ledger(tmp_path / "run").plan(new, "new") == [old[0].id] and len(ledger.parts()) == 2


def test_plans_made_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    grids = [[resolve(small("kmeans", seed=10 * n + s)) for s in range(5)] for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda grid: Ledger(tmp_path / "run").plan(grid, ""), grids))
    assert set(Ledger(tmp_path / "run").trials()) == {t.id for grid in grids for t in grid}


def test_workers_that_look_at_once_share_the_trials(tmp_path: Path) -> None:
    """The ledger of a worker that is beaten to a trial goes on to the next."""
    ledger = Ledger(tmp_path)
    trials = [resolve(small("kmeans", seed=s)) for s in range(2)]
    ledger.plan(trials, "")
    folder = ledger.folder(trials[0].id)
    folder.create(trials[0].to_json())
    with folder.claim({}):
        worker = Worker(tmp_path, Options("cpu", 1))
        assert worker.run_next(CPU) and ledger.folder(trials[1].id).done() is not None
        assert not worker.run_next(CPU)


def test_states_are_read_from_the_files_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    trials = [resolve(small("kmeans", seed=s)) for s in range(4)]
    ledger.plan(trials, "")
    folders = [TrialFolder(tmp_path / "trials" / t.id) for t in trials]
    for folder, trial in zip(folders[:3], trials, strict=False):
        folder.create(trial.to_json())
    write_json(folders[0].path / "done.json", {"attempt": 1, "seconds": 1.0, "attempts": 1})
    folders[1].claim({})
    (folders[2].path / "error.txt").write_text("it broke\ndetails")
    assert [s.state for s in ledger.statuses()] == ["done", "running", "failed", "waiting"]
    assert ledger.statuses()[2].detail["reason"] == "it broke"
    assert ledger.retry() == [trials[2].id]
    assert [s.state for s in ledger.statuses()] == ["done", "running", "waiting", "waiting"]


def pause(folder: TrialFolder, trial: Trial, epoch: int) -> None:
    """Leave a trial at the checkpoint of an epoch."""
    folder.create(trial.to_json())
    with folder.claim({}) as attempt:
        attempt.save_checkpoint({})
        attempt.progress({"phase": "cluster", "epoch": epoch + 1, "epochs": 5, "saved": epoch})


def test_only_who_asks_for_it_sees_a_trial_paused(tmp_path: Path) -> None:
    trial, ledger = resolve(small("st-dac", epochs=5)), Ledger(tmp_path)
    ledger.plan([trial], "")
    pause(ledger.folder(trial.id), trial, 2)
    seen = {epoch: Ledger(tmp_path, epoch).state(trial.id) for epoch in (1, 2, 3)}
    assert seen == {1: "paused", 2: "paused", 3: "waiting"}
    assert ledger.state(trial.id) == "waiting" and "after epoch 2/5" in report(ledger)
    (ledger.folder(trial.id).path / "attempt-1" / "progress.json").write_text("[")
    assert Ledger(tmp_path, 1).state(trial.id) == "waiting"


def test_a_paused_trial_is_left_alone_and_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    trials = [resolve(small("st-dac", epochs=3, params={"stn": 0})), resolve(small("dec")), resolve(small("kmeans"))]
    for name, stops in {"straight": [None], "paused": [2, 2, 1, None]}.items():
        run = Ledger(tmp_path / name)
        run.plan(trials, "")
        for stop in stops:
            Worker(run.path, Options("cpu", 1, pause_after=stop)).work()
            if stop is not None:
                assert Ledger(run.path, stop).count("paused") == 2 and run.count("done") == 1
                assert [len(run.folder(t.id).leases()) for t in trials] == [1, 1, 1]
                assert all(run.folder(t.id).holder() is None for t in trials)
        run.collect()
    tables = [pq.read_table(tmp_path / name / "metrics.parquet") for name in ("straight", "paused")]
    straight, paused = (table.drop_columns(list(TIMINGS)) for table in tables)
    assert straight.equals(paused) and len(paused) == 4 + 4 + 1 + 3


@pytest.mark.parametrize(("step", "saved"), [((1, 1), 0), ((3, 1), 3), ((3, 2), 3)])
def test_a_worker_that_is_told_to_leave_loses_no_epoch_where_checkpoints_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[int, int], saved: int
) -> None:
    """Saving is too dear after the first epoch here, and the signal comes in the step after a checkpoint left out."""
    monkeypatch.setattr("stdac.run.SAVING_SHARE", 1e-9)
    trial, ledger = resolve(small("st-dac", epochs=5, params={"stn": 0})), Ledger(tmp_path)
    ledger.plan([trial], "")
    worker = Worker(tmp_path, Options("cpu", 1))
    on_progress = worker.on_progress

    def told(progress: Progress) -> None:
        if (progress.epoch, progress.step) == step:
            worker.leave(0, None)
        on_progress(progress)

    worker.on_progress = told  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        worker.work()
    assert ledger.status(trial.id).detail == ({"epoch": saved, "epochs": 5} if saved else {})
    Worker(tmp_path, Options("cpu", 1)).work()
    assert ledger.state(trial.id) == "done"


def test_collected_rows_do_not_depend_on_how_many_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    ledger.plan([resolve(small("kmeans", seed=s)) for s in range(5)], "")
    Worker(tmp_path, Options("cpu", 1)).work()
    whole = pq.read_table(ledger.collect())
    monkeypatch.setattr(ledgers, "AT_ONCE", 2)
    assert pq.read_table(ledger.collect()).equals(whole) and len(whole) == 10


def test_trials_that_another_launch_adds_are_run_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (resolve(small("kmeans", seed=s)) for s in (0, 1))
    Ledger(tmp_path).plan([old], "")
    worker, display = Worker(tmp_path, Options("cpu", 1)), Display(Ledger(tmp_path))
    assert worker.run_next(CPU)
    Ledger(tmp_path).plan([new], "")
    assert worker.run_next(CPU) and not worker.run_next(CPU)
    display.tick()
    said = capsys.readouterr().err
    assert "seed 0" in said and "seed 1" in said and display.summary(display.look()) == "2 of 2 done"


def test_a_worker_inherits_what_the_user_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS is a pipe's folder in the environment; compiled code is shared by all workers of a node."""
    for name in ("TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/mps")
    workers = Workers(tmp_path, 2, Options("cpu", 3), gpus=2)
    first, second = workers.make_environment(0), workers.make_environment(1)
    assert first["CUDA_MPS_PIPE_DIRECTORY"] == "/tmp/mps" and first["TORCHINDUCTOR_COMPILE_THREADS"] == "3"
    assert {name for name in first if first[name] != second[name]} == {"CUDA_VISIBLE_DEVICES", "STDAC_LOG"}
    assert not {"TORCHINDUCTOR_CACHE_DIR", "TMPDIR"} & (first.keys() - os.environ.keys())
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "7")
    assert workers.make_environment(0)["TORCHINDUCTOR_COMPILE_THREADS"] == "7"


def test_workers_share_the_gpus_in_turn() -> None:
    assert choose_gpu(0, 1, None) == {} == choose_gpu(3, 0, "0,1")
    assert [choose_gpu(slot, 2, None)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    assert choose_gpu(1, 2, "4,7") == {"CUDA_VISIBLE_DEVICES": "7"}


def test_a_run_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.plan([resolve(small("kmeans"))], "")
    table = pq.read_table(tmp_path / "trials.parquet")
    column = table.schema.get_field_index("schema_version")
    pq.write_table(table.set_column(column, "schema_version", pa.array([99], pa.int32())), tmp_path / "trials.parquet")
    with pytest.raises(StdacError, match="schema version 99, this stdac reads 1"):
        Ledger(tmp_path).statuses()
    with pytest.raises(StdacError, match="schema version 99, this stdac reads 1: use the stdac that wrote it"):
        Ledger(tmp_path).plan([resolve(small("kmeans", seed=1))], "")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StdacError, match=r"is not a run folder: it has no trials\.parquet; stdac-grid launch makes one"
    ):
        Ledger(tmp_path).statuses()

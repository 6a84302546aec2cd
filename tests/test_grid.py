"""Grids: TOML files, the presets, and what is wrong with a bad one; the ledger, and a worker's environment."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cluster_jobs import ledger as ledgers
from cluster_jobs import local
from cluster_jobs.commands.grid import main
from cluster_jobs.display import Display, report
from cluster_jobs.grid import list_presets, load_grid
from cluster_jobs.ledger import LEFT, Ledger
from cluster_jobs.local import Workers, choose_gpu
from cluster_jobs.request import Options
from cluster_jobs.worker import Worker
from stdac.errors import StdacError
from stdac.files import write_json
from stdac.folder import TrialFolder
from stdac.methods import resolve
from stdac.record import TIMINGS
from stdac.train import Progress
from stdac.trial import Trial, make_id, write_canonical
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


def test_quick_has_every_ablation_cell_three_times_and_a_student_of_a_committee() -> None:
    trials = load_grid("quick").trials
    cells = [(t.method, t.params.stn) for t in trials if t.method == "st-dac"]
    assert {cells.count(cell) for cell in cells} == {3} and {stn for _, stn in cells} == {0, 1, 2, 3}
    assert {"kmeans", "hog-kmeans", "umap-gmm", "dac-star"} <= {t.method for t in trials}
    (committee,), (student,) = ([t for t in trials if t.method == name] for name in ("committee", "student"))
    assert student.needs == (committee.id,) and set(committee.needs) < {t.id for t in trials}
    assert len(committee.needs) == 9 and len(trials) == 26, "the members are trials of the table"
    assert all(t.dataset == "digits" for t in trials)


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
        *[
            (f"name = {json.dumps(name)}\n[[trials]]\ndataset='mnist'", "{grid} has name = ")
            for name in ("../../../x", "/tmp/x", "a/b", "a\\b", "..", ".hidden", "", "a\nb", "\x1b[31m", 3, "x" * 200)
        ],
    ],
)
def test_a_bad_grid_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(StdacError) as caught:
        load_grid(path)
    assert str(caught.value).startswith(said.replace("{grid}", path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('params = "x"', "got params = x, expected a table"),
        ("params = [1]", r"got params = \[1\], expected a table"),
        ('method = ["kmeans", ["x"]]', "unknown method"),
        ("seeds = 1000000000", "at most 1,000,000 trials"),
        (f"seed = {list(range(1100))}\nlimit = {list(range(2, 1102))}", "1,210,000"),
        ("seed = 18446744073709551616", r"below 2\^63"),
        ("params = { macro_batch = 99999999999999999999 }", r"below 2\^63"),
        ("seed = []", "no trials: expected no empty list"),
        (f"seed = {'9' * 5000}", "is not TOML"),
        (f"params = {{ width = {'[' * 3000}1{']' * 3000} }}", "is not TOML"),
    ],
)
def test_a_grid_of_odd_values_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(f'[[trials]]\ndataset = "digits"\n{text}\n')
    with pytest.raises(StdacError, match=said):
        load_grid(str(tmp_path / "g.toml"))
    (tmp_path / "g.toml").write_text('defaults = [1]\n[[trials]]\ndataset = "digits"\n')
    with pytest.raises(StdacError, match=r"expected a table \[defaults\]"):
        load_grid(str(tmp_path / "g.toml"))


def test_an_unknown_grid_names_the_presets() -> None:
    with pytest.raises(StdacError, match=r"^unknown grid 'papre': expected one of alpha-study, .*methods, .*paper, "):
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


def test_a_done_trial_that_is_put_aside_meanwhile_runs_again_in_the_same_launch(tmp_path: Path) -> None:
    trials, ledger = [resolve(small("kmeans", seed=s)) for s in range(2)], Ledger(tmp_path)
    ledger.plan(trials, "")
    Worker(tmp_path, Options("cpu", 1)).work()
    assert ledger.count("done") == 2
    (tmp_path / "trials" / trials[0].id).rename(tmp_path / "aside")  # as the doctor does
    assert list(ledger.states().values()) == ["waiting", "done"] and ledger.count(*LEFT) == 1
    Worker(tmp_path, Options("cpu", 1)).work()
    assert ledger.count("done") == 2


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
    trials = [
        resolve(small("st-dac", epochs=3, params={"stn": 0})),
        resolve(small("dac-star", epochs=3)),
        resolve(small("kmeans")),
    ]
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
    assert straight.equals(paused) and len(paused) == 5 + 5 + 2


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


# a run folder that somebody else may write to


def ask(*words: str | Path) -> Result:
    """Run stdac-grid."""
    return CliRunner().invoke(main, [str(word) for word in words])


def plan_by_hand(run: Path, trial_id: object, text: str) -> None:
    """A trials.parquet of one trial, as anybody may write one."""
    row = {"trial_id": trial_id, "method": "kmeans", "dataset": "digits", "seed": 0, "trial": text, "schema_version": 1}
    run.mkdir()
    pq.write_table(pa.Table.from_pylist([row]), run / "trials.parquet")


def make_plan(**changes: object) -> str:
    return write_canonical(resolve(small("kmeans")).to_json() | changes)


DEEP = '{"a":' * 100_000


@pytest.mark.parametrize(
    ("trial_id", "text"),
    [
        ("../../x", make_plan()),
        ("0123456789abcdef", make_plan()),
        (make_id(json.loads(make_plan())) + "/..", make_plan()),
        (7, make_plan()),
        (make_id([1]), "[1]"),
        (make_id({"needs": []}), '{"needs":[]}'),
        (make_id(json.loads(make_plan(needs=["../../x"]))), make_plan(needs=["../../x"])),
        (make_id(json.loads(make_plan(method=["kmeans"]))), make_plan(method=["kmeans"])),
        ("0123456789abcdef", DEEP),
        ("0123456789abcdef", "not JSON"),
    ],
)
def test_an_id_that_is_not_its_trial_s_is_refused_by_every_command(tmp_path: Path, trial_id: object, text: str) -> None:
    run = tmp_path / "a" / "b" / "run"
    run.parent.mkdir(parents=True)
    plan_by_hand(run, trial_id, text)
    began = time.process_time()
    for command in (["work"], ["status"], ["status", "--json"], ["cancel"], ["retry"], ["collect"], ["logs", "0"]):
        said = ask(command[0], run, *command[1:])
        assert said.exit_code == 1 and "that no grid has planned" in said.output, (command, said.output)
    assert time.process_time() - began < 30
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"a", "a/b", "a/b/run", "a/b/run/trials.parquet"}


def test_a_plan_that_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trials.parquet")
    said = ask("status", tmp_path)
    assert said.exit_code == 1 and "trials.parquet is not a plain file" in said.output


def spoil(folder: TrialFolder, kind: str, outside: Path) -> None:
    """Make a trial's folder one that nobody can use."""
    if kind == "link":
        folder.path.symlink_to(outside)
        return
    if kind == "file":
        folder.path.write_text("here")
        return
    folder.path.mkdir()
    if kind == "pipe":
        os.mkfifo(folder.done_path)
    elif kind == "brackets":
        folder.done_path.write_text("[" * 200_000)
    elif kind == "traversal":
        write_json(folder.done_path, {"attempt": "1/../../../../outside", "seconds": 1.0, "device": "cpu"})
    elif kind == "types":
        write_json(folder.done_path, {"attempt": 1, "seconds": "long", "device": "cpu", "hosts": []})
    elif kind == "lease":
        write_json(folder.lease_path(1), {"host": ["x"], "pid": "../1", "began": "\x1b[31m", "process_start": 0})


@pytest.mark.parametrize("kind", ["link", "file", "pipe", "brackets", "traversal", "types", "lease"])
def test_one_hostile_trial_folder_stops_no_command_for_the_others(kind: str, tmp_path: Path) -> None:
    trials = [resolve(small("kmeans", seed=seed, limit=60)) for seed in range(3)]
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    Ledger(run).plan(trials, "")
    (run / "trials").mkdir()
    bad = Ledger(run).folder(trials[1].id)
    spoil(bad, kind, outside)
    Worker(run, Options("cpu", 1)).work()
    states = {status.trial_id: status for status in Ledger(run).statuses()}
    assert [states[trial.id].state for trial in trials] == ["done", "failed", "done"]
    assert str(bad.path) in states[bad.path.name].detail["reason"] or kind == "file"
    said = ask("status", run)
    assert said.exit_code == 0 and "2 of 3 done, 1 failed" in said.output and "\x1b" not in said.output
    for command in ("collect", "results", "report", "retry", "cancel", "best"):
        said = ask(command, run, *(["--method", "kmeans"] if command == "best" else []))
        assert "(unexpected" not in said.output, (command, said.output)
        assert said.exit_code == 0 or command == "best", (command, said.output)
    assert len(pq.read_table(run / "metrics.parquet")) == 4
    assert ask("logs", run, bad.path.name).exit_code == 0
    assert not list(outside.iterdir())


def test_a_trial_folder_without_rights_is_a_failure_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [resolve(small("kmeans", seed=seed, limit=60)) for seed in range(2)]
    ledger = Ledger(tmp_path / "run")
    ledger.plan(trials, "")
    closed = str(ledger.folder(trials[0].id).path)
    check = TrialFolder.check_place

    def refuse(folder: TrialFolder) -> None:
        if str(folder.path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        check(folder)

    monkeypatch.setattr("stdac.layout.TrialFiles.check_place", refuse)
    Worker(ledger.path, Options("cpu", 1)).work()
    first, second = ledger.statuses()
    assert (first.state, second.state) == ("failed", "done") and "Permission denied" in first.detail["reason"]


def test_what_a_lease_says_reaches_the_terminal_as_text(tmp_path: Path) -> None:
    trial = resolve(small("kmeans"))
    Ledger(tmp_path).plan([trial], "")
    folder = Ledger(tmp_path).folder(trial.id)
    folder.create(trial.to_json())
    folder.claim({})
    lease = folder.lease(1) | {"host": "\x1b]0;owned\x07\x1b[2J", "job": "\x1b[31m", "log": "../../etc/passwd"}
    write_json(folder.lease_path(1), lease)
    write_json(folder.progress_path(1), {"phase": "\x1b[5m", "epoch": 1, "epochs": 2, "images_per_s": 1.0})
    for said in (ask("status", tmp_path), ask("logs", tmp_path, trial.id)):
        assert said.exit_code == 0 and not {"\x1b", "\x07"} & set(said.output)
    assert "\\x1b]0;owned\\x07" in ask("status", tmp_path).output
    assert "names a log that is not in" in ask("logs", tmp_path, trial.id).output
    folder.fail("\x1b[31mred\x1b[0m")
    os.utime(folder.lease_path(1), (0, 0))
    for command in (["status", tmp_path], ["logs", tmp_path, trial.id], ["doctor", tmp_path]):
        said = ask(*command)
        assert "\\x1b[31mred" in said.output and "\x1b" not in said.output


def test_a_lease_ahead_of_time_is_told_without_hours(tmp_path: Path) -> None:
    trial = resolve(small("kmeans"))
    Ledger(tmp_path).plan([trial], "")
    folder = Ledger(tmp_path).folder(trial.id)
    folder.create(trial.to_json())
    folder.claim({})
    write_json(folder.lease_path(1), folder.lease(1) | {"host": "elsewhere"})
    ahead = time.time() + 3 * 3600
    os.utime(folder.lease_path(1), (ahead, ahead))
    said = ask("status", tmp_path).output
    assert "if it lives: its lease lies" in said and "ahead of the clock of its files" in said
    assert Worker(tmp_path, Options("cpu", 1)).has_to_wait()  # until it is known whether it changes


def test_a_pause_is_no_interruption(tmp_path: Path) -> None:
    trial, ledger = resolve(small("st-dac", epochs=2, params={"stn": 0})), Ledger(tmp_path)
    ledger.plan([trial], "")
    Worker(tmp_path, Options("cpu", 1, pause_after=1)).work()
    Worker(tmp_path, Options("cpu", 1)).work()
    done = ledger.folder(trial.id).done()
    assert (done["attempts"], done["pauses"]) == (2, 1) and "interrupted" not in report(ledger)


def test_retry_after_cancel_counts_what_will_be_taken(tmp_path: Path) -> None:
    trials = [resolve(small("kmeans", seed=seed)) for seed in range(3)]
    ledger = Ledger(tmp_path)
    ledger.plan(trials, "")
    assert ask("cancel", tmp_path).exit_code == 0
    assert ask("retry", tmp_path).output.startswith("3 trials that waited will be taken: ")
    ledger.folder(trials[0].id).fail("it broke")
    said = ask("retry", tmp_path).output
    assert said.startswith("1 trial that had failed will be tried again and 2 trials that waited will be taken: ")


def test_a_task_counts_what_its_own_workers_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tasks of ablation.sh once said that they had done 12, 10, 11 and 10 trials of 12."""
    trials = [resolve(small("kmeans", seed=seed)) for seed in range(5)]
    ledger = Ledger(tmp_path)
    ledger.plan(trials, "")

    def end(trial: Trial, log: str, *, well: bool = True) -> None:
        monkeypatch.setenv("STDAC_LOG", log)
        folder = ledger.folder(trial.id)
        folder.create(trial.to_json())
        with folder.claim({}) as attempt:
            if well:
                attempt.finish({"seconds": 1.0, "device": "cpu"})
            else:
                attempt.fail(ValueError("it broke"), {})

    def watch(workers: Workers, _tick: object) -> None:
        end(trials[0], workers.name_log(0))
        end(trials[1], workers.name_log(1))
        end(trials[2], "logs/9-elsewhere-0.log")
        end(trials[3], workers.name_log(0), well=False)
        end(trials[4], "logs/9-elsewhere-1.log", well=False)

    monkeypatch.setattr(Workers, "watch", watch)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert local.work_here(ledger, 2, Options("cpu", 1), 1.0) == (2, 1)


def test_a_driver_does_not_die_of_one_trial_s_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger(tmp_path).plan([resolve(small("kmeans", seed=s)) for s in (0, 1)], "")
    worker, display = Worker(tmp_path, Options("cpu", 1)), Display(Ledger(tmp_path))
    assert worker.run_next(CPU)
    path = next((tmp_path / "trials").glob("*/attempt-1/metrics.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert worker.run_next(CPU)
    display.tick()
    said = capsys.readouterr().err
    assert "is not what its attempt wrote" in said and display.summary(display.look()) == "2 of 2 done"

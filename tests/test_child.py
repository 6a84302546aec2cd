"""Child processes: what a hostile file does to a library stays in the child."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stdac.pictures.decode
from stdac.errors import StdacError
from stdac.pictures.batches import Batch
from stdac.pictures.child import Child, ChildDied, ChildLate, ChildNotStarted, ChildSlow, iterate_in_child
from stdac.pictures.decode import Reading, choose_reading, decode_each_safely, decode_safely
from stdac.pictures.tar import TarFile
from stdac.processes import make_python_environment
from tests.traps import is_untouched, set_traps
from tests.waiting import LONG_S, wait_for


def double(x: int) -> int:
    """Called in a child."""
    return 2 * x


def misbehave(how: str) -> str:
    """Called in a child."""
    if how == "abort":
        os.abort()
    if how == "bloat":
        bytearray(1 << 30)
    if how == "hang":
        time.sleep(3600)
    if how == "pause":
        time.sleep(1.5)
    if how == "burn":
        while True:
            pass
    if how == "fail":
        raise ValueError("no good")
    if how == "refuse":
        raise StdacError("one sentence")
    return str(os.getpid())


def count(n: int, how: str = "") -> Iterator[int]:
    """Iterated over in a child."""
    yield from range(n)
    misbehave(how)


def test_a_child_answers_call_after_call() -> None:
    with Child("tests.test_child:double") as child:
        assert [child.call(x) for x in (1, 2, 3)] == [2, 4, 6]


def test_what_the_function_raises_is_raised_and_the_child_goes_on() -> None:
    with Child("tests.test_child:misbehave") as child:
        first = child.call("")
        with pytest.raises(StdacError, match="no good"):
            child.call("fail")
        with pytest.raises(StdacError, match="one sentence"):
            child.call("refuse")
        assert child.call("") == first


def test_a_child_that_crashes_or_hangs_is_replaced_by_the_next_call() -> None:
    with Child("tests.test_child:misbehave") as child:
        with pytest.raises(ChildDied):
            child.call("abort")
        assert int(child.call("")) != os.getpid()
        began = time.monotonic()
        with pytest.raises(ChildLate):
            child.call("hang", wait_s=0.5)
        assert time.monotonic() - began < 300
        assert child.call("")


def test_a_child_that_is_stopped_ends_a_call_at_once_and_stays_stopped() -> None:
    with Child("tests.test_child:misbehave") as child, ThreadPoolExecutor(1) as pool:
        assert child.call("")
        call = pool.submit(child.call, "hang")
        time.sleep(0.2)
        began = time.monotonic()
        child.stop()
        with pytest.raises(ChildDied):
            call.result()
        with pytest.raises(ChildDied):
            child.call("")
        assert time.monotonic() - began < 300


def test_a_child_may_not_take_more_memory_than_it_is_given() -> None:
    with Child("tests.test_child:misbehave", memory_bytes=512 << 20) as child:
        with pytest.raises(MemoryError):
            child.call("bloat")
        assert child.call("")


def test_a_generator_is_iterated_over_in_a_child() -> None:
    assert list(iterate_in_child("tests.test_child:count", 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("abort", "^reading it crashed the reader: the file is damaged$"),
        ("bloat", "^reading it takes more than 512 MiB of memory: the file is damaged, or its parts are too large"),
        ("fail", "^no good$"),
    ],
)
def test_a_generator_that_breaks_gives_what_it_had_and_one_sentence(how: str, match: str) -> None:
    found = []
    with pytest.raises(StdacError, match=match):
        found.extend(iterate_in_child("tests.test_child:count", 3, how, memory_bytes=512 << 20))
    items = iterate_in_child("tests.test_child:count", 3, how, memory_bytes=512 << 20)
    assert [next(items) for _ in range(3)] == [0, 1, 2]


PARENT = """
from stdac.pictures.child import Child
child = Child("tests.test_child:misbehave")
print(child.call(""), flush=True)
child.call("hang")
"""


def test_a_child_ends_with_its_parent_even_in_the_middle_of_a_call() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: not (Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes()))


def test_nothing_is_imported_from_the_folder_that_a_child_starts_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_traps(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # as a script in that folder has it
    monkeypatch.setenv("PYTHONPATH", os.pathsep)  # an empty entry is the current folder
    with Child("tests.test_child:double") as child:
        assert child.call(2) == 4
    words = [sys.executable, "-m", "cluster_jobs.worker", "--help"]
    subprocess.run(words, env=make_python_environment(), capture_output=True, check=True, timeout=LONG_S)
    assert is_untouched(tmp_path)


def test_of_a_call_the_cpu_time_counts_not_the_clock() -> None:
    with Child("tests.test_child:misbehave") as child:
        assert child.call("pause", cpu_s=1, wait_s=LONG_S)
        began = time.monotonic()
        with pytest.raises(ChildSlow):
            child.call("burn", cpu_s=1, wait_s=LONG_S)
        assert time.monotonic() - began < LONG_S - 5
        assert child.call("", cpu_s=1, wait_s=LONG_S)


BROKEN = """
import sys
if 'stdac.pictures.child' in sys.orig_argv:
    import stdac.pictures.image as images
    read = images.read_file
    def misread(path):
        while path.endswith('slow.png'):
            pass
        if path.endswith('bad.png'):
            import os; os.abort()
        return read(path)
    images.read_file = misread
"""


def test_a_picture_that_breaks_its_decoder_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    paths = [str(tmp_path / name) for name in ("a.png", "slow.png", "bad.png", "b.png")]
    for path in paths:
        Image.new("L", (4, 4), 77).save(path)
    batch = Batch(paths, np.zeros(4, np.int64), list(paths), [None] * 4, None)
    monkeypatch.setattr(stdac.pictures.decode, "WAIT_FACTOR", 100)  # a busy machine gives less than a tenth of a CPU
    slow = "decoding it takes more than 1 s of CPU: set STDAC_DECODE_S to allow more"
    with Child("stdac.pictures.decode:decode_batch") as child:
        decoded = decode_safely(child, batch, (1, 4, 4), Reading(seconds=1))
    assert decoded.errors == [None, slow, "it crashed its decoder", None]
    assert decoded.images[[0, 3]].tolist() == np.full((2, 1, 4, 4), 77).tolist()
    with Child("stdac.pictures.decode:decode_each") as child:
        images = decode_each_safely(child, batch.select([2, 3]), None, Reading(seconds=1))
    assert images[0] == ("it crashed its decoder", False)


def test_a_child_that_is_killed_as_it_starts_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = tmp_path / "once"
    kill = f"if not os.path.exists({str(once)!r}):\n    open({str(once)!r}, 'w')\n    os.kill(os.getpid(), 9)\n"
    (tmp_path / "sitecustomize.py").write_text(f"import os\n{kill}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child("tests.test_child:double") as child:
        assert child.call(2) == 4
    assert once.exists()


def test_how_long_a_picture_may_take_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STDAC_DECODE_S", raising=False)
    assert choose_reading("white") == ("white", 20)
    monkeypatch.setenv("STDAC_DECODE_S", "2.5")
    assert choose_reading().seconds == 2.5
    assert choose_reading(seconds=7).seconds == 7
    for wrong in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("STDAC_DECODE_S", wrong)
        with pytest.raises(StdacError, match=rf"got {wrong} seconds .*STDAC_DECODE_S.*expected a number above 0"):
            choose_reading()


def test_a_child_that_cannot_start_says_so_and_blames_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('this is no numpy')")
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    batch = Batch(["a"], np.zeros(1, np.int64), [str(tmp_path / "a.png")], [None], None)
    match = "^a process that is to read pictures and files could not start: ImportError: this is no numpy$"
    with Child("stdac.pictures.decode:decode_batch") as child, pytest.raises(ChildNotStarted, match=match):
        decode_safely(child, batch, (1, 4, 4))
    with pytest.raises(ChildNotStarted, match=match):
        list(TarFile(str(tmp_path / "a.tar")).batches())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with Child("tests.test_child:double") as child, pytest.raises(ChildNotStarted, match="No such file or directory"):
        child.call(1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Child("tests.test_child:double") as child, pytest.raises(ChildNotStarted, match=r"exit code 1$"):
        child.call(1)

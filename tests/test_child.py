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
from stdac.pictures.child import Child, ChildDied, iterate_in_child
from stdac.pictures.decode import decode_safely
from stdac.processes import make_python_environment
from tests.traps import is_untouched, set_traps


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
        time.sleep(600)
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
        with pytest.raises(ChildDied):
            child.call("hang", timeout_s=0.5)
        assert time.monotonic() - began < 30
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
        assert time.monotonic() - began < 30


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
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
    subprocess.run(words, env=make_python_environment(), capture_output=True, check=True, timeout=60)
    assert is_untouched(tmp_path)


def test_a_picture_that_takes_too_long_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'stdac.pictures.child' in sys.orig_argv:\n"
        "    import stdac.pictures.image as images\n"
        "    read = images.read_file\n"
        "    images.read_file = lambda path: time.sleep(600) if path.endswith('slow.png') else read(path)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(stdac.pictures.decode, "BATCH_TIMEOUT_S", 2.0)
    monkeypatch.setattr(stdac.pictures.decode, "IMAGE_TIMEOUT_S", 2.0)
    paths = [str(tmp_path / name) for name in ("a.png", "slow.png", "b.png")]
    for path in paths:
        Image.new("L", (4, 4), 77).save(path)
    with Child("stdac.pictures.decode:decode_batch") as child:
        decoded = decode_safely(child, Batch(paths, np.zeros(3, np.int64), list(paths), [None] * 3, None), (1, 4, 4))
    assert decoded.errors == [None, "its decoder crashed, or took more than 2 s", None]
    assert decoded.images[[0, 2]].tolist() == np.full((2, 1, 4, 4), 77).tolist()

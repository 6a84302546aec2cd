"""Code that a hostile file may crash, bloat or hang runs in a child process, under a memory limit."""

import ctypes
import importlib
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self

from stdac.errors import StdacError

MEMORY_BYTES = 1 << 30
PDEATHSIG = 1  # of prctl(2)
READY = "ready"
SAID_BYTES = 1 << 16
END_S = 10.0
STARTS = 3  # of a child that others kill as it starts, as a system does that is short of memory


START_S = 300.0
"""How long a child may take to start, which is long on a busy machine, or where Python comes over a network."""


class ChildDied(Exception):  # an event that the caller answers
    """The child process crashed, or was stopped."""


class ChildSlow(ChildDied):
    """The child process used up the CPU time of its call."""


class ChildLate(ChildDied):
    """The child process did not answer in time, without using up its CPU time: the machine is busy, or a disk hangs."""


class ChildNotStarted(StdacError):
    """A child process could not start: a fault of this machine or installation, and of no file."""


class Child:
    """A child process that calls one function, as often as it is asked to.

    function: "package.module:name", imported in the child. memory_bytes: how much it may allocate; beyond that its
    allocations fail. It starts with the first call, ignores Ctrl-C (the parent decides) and ends with its parent.
    """

    def __init__(self, function: str, memory_bytes: int = MEMORY_BYTES) -> None:
        self.function, self.memory_bytes = function, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, *args: Any, cpu_s: float | None = None, wait_s: float | None = None) -> Any:
        """The function's result, picklable as its arguments are.

        cpu_s: the CPU time that it may use, rounded up to seconds; wait_s: how long its answer is waited for. Raises
        what it raised, ChildSlow and ChildLate beyond these, ChildDied where it crashed, and ChildNotStarted.
        """
        connection = self._start()
        try:
            connection.send(("call", args, cpu_s))
            if wait_s is not None and not connection.poll(wait_s):
                self.close()
                raise ChildLate
            return self._receive(connection)
        except (EOFError, OSError) as error:
            slow = self._wait_for_end() == -signal.SIGXCPU
            self.close()
            raise (ChildSlow if slow else ChildDied) from error

    def iterate(self, *args: Any) -> Iterator[Any]:
        """What the function, a generator, yields. Raises what it raised, ChildDied or ChildNotStarted."""
        connection = self._start()
        try:
            connection.send(("iterate", args, None))
            while True:
                item = self._receive(connection)
                if item is None:
                    return
                yield item[0]
        except (EOFError, OSError) as error:
            raise ChildDied from error
        finally:
            self.close()

    def _receive(self, connection: Connection) -> Any:
        value, error = connection.recv()
        if error is not None:
            raise error
        return value

    def _start(self) -> Connection:
        """A process that is ready, started if there is none."""
        tries = 0
        while self._connection is None and not self._stopped:
            tries += 1
            why = self._try_to_start()
            if why is None or self._stopped:
                break
            killed = self._process is not None and (self._wait_for_end() or 0) < 0
            self.close()
            if not killed or tries == STARTS:
                raise ChildNotStarted(f"a process that is to read pictures and files could not start: {why}")
        if self._connection is None or self._stopped:
            self.close()
            raise ChildDied
        return self._connection

    def _try_to_start(self) -> str | None:
        """Start the process and wait until it has imported its function; what it said if it did not."""
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs, tempfile.TemporaryFile() as said:
            arguments = [str(theirs.fileno()), str(os.getpid()), self.function, str(self.memory_bytes)]
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "stdac.pictures.child", *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **QUIET_ENVIRONMENT},
                )
            except OSError as error:
                return error.strerror
            theirs.close()
            try:
                if self._connection.poll(START_S) and self._connection.recv() == READY:
                    return None
                why = f"it was not ready after {START_S:.0f} s"
            except (EOFError, OSError):
                why = _describe_end(self._wait_for_end())
            said.seek(0)
            lines = said.read(SAID_BYTES).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else why

    def _wait_for_end(self) -> int | None:
        """The exit code of a child that has hung up."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(END_S)
        return None

    def stop(self) -> None:
        """End the process for good, also from another thread: a call in progress, and any later one, is ChildDied."""
        self._stopped = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None


def _describe_end(code: int | None) -> str:
    """How a process ended, by its exit code."""
    if code is None or code >= 0:
        return f"it ended with exit code {code}"
    return f"it was ended by signal {-code} ({signal.strsignal(-code)})"


QUIET_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}


def iterate_in_child(function: str, *args: Any, memory_bytes: int = MEMORY_BYTES) -> Iterator[Any]:
    """Iterate over a generator function ("package.module:name") that runs in a child process; items are pickled.

    Raises what it raises, and StdacError where it crashes or needs more than `memory_bytes`.
    """
    with Child(function, memory_bytes) as child:
        try:
            yield from child.iterate(*args)
        except ChildDied as error:
            raise StdacError("reading it crashed the reader: the file is damaged") from error
        except MemoryError as error:
            raise StdacError(
                f"reading it takes more than {memory_bytes >> 20} MiB of memory: the file is damaged, or its parts are "
                "too large; write it in smaller ones"
            ) from error


def main(descriptor: str, parent: str, function: str, memory_bytes: str) -> None:
    """Serve calls of the function until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError, AttributeError):  # Linux: also while it is in the middle of something
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return
    module, name = function.split(":")
    called = getattr(importlib.import_module(module), name)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory_bytes), int(memory_bytes)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Connection(int(descriptor)) as connection, suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(READY)
        with open(os.devnull, "wb") as nothing:  # C libraries remark on odd files
            os.dup2(nothing.fileno(), 2)
        _serve(connection, called)


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """Answer ("call", args, cpu_s) with (result, None), "iterate" with ((item,), None) each and (None, None) last."""
    while True:
        how, args, cpu_s = connection.recv()
        _limit_cpu(cpu_s)
        for answer in [_call_function(function, args)] if how == "call" else _iterate_function(function, args):
            connection.send(answer)


def _limit_cpu(seconds: float | None) -> None:
    """Let the system end this process by SIGXCPU once it has used so many more seconds of CPU, or lift the limit."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = hard if seconds is None else math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    if hard != resource.RLIM_INFINITY:  # the user's, which holds besides
        soft = min(soft, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


Answer = tuple[Any, Exception | None]


def _call_function(function: Callable[..., Any], args: tuple[Any, ...]) -> Answer:
    """The function's result, or what it raised."""
    try:
        return function(*args), None
    except Exception as error:  # noqa: BLE001  # parsers raise anything on hostile files
        return None, _make_portable(error)


def _iterate_function(function: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[Answer]:
    """What the function yields, then the end or what it raised."""
    try:
        for item in function(*args):
            yield (item,), None
    except Exception as error:  # noqa: BLE001
        yield None, _make_portable(error)
    else:
        yield None, None


def _make_portable(error: Exception) -> Exception:
    """An error as the parent can unpickle it."""
    if isinstance(error, MemoryError):
        return MemoryError()
    return StdacError(str(error) or type(error).__name__)


if __name__ == "__main__":
    main(*sys.argv[1:])

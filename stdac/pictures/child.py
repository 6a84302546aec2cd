"""Code that a hostile file may crash, bloat or hang runs in a child process, under a memory limit."""

import ctypes
import importlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self

from stdac.errors import StdacError
from stdac.processes import make_python_environment

MEMORY_BYTES = 1 << 30
PDEATHSIG = 1  # of prctl(2)


class ChildDied(Exception):  # an event that the caller answers
    """The child process crashed, or was stopped because it took too long."""


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

    def call(self, *args: Any, timeout_s: float | None = None) -> Any:
        """The function's result, picklable as its arguments are. Raises what it raised, or ChildDied."""
        connection = self._start()
        try:
            connection.send(("call", args))
            return self._receive(connection, timeout_s)
        except (EOFError, OSError) as error:
            self.close()
            raise ChildDied from error

    def iterate(self, *args: Any) -> Iterator[Any]:
        """What the function, a generator, yields. Raises what it raised, or ChildDied."""
        connection = self._start()
        try:
            connection.send(("iterate", args))
            while True:
                item = self._receive(connection, None)
                if item is None:
                    return
                yield item[0]
        except (EOFError, OSError) as error:
            raise ChildDied from error
        finally:
            self.close()

    def _receive(self, connection: Connection, timeout_s: float | None) -> Any:
        if timeout_s is not None and not connection.poll(timeout_s):
            raise EOFError
        value, error = connection.recv()
        if error is not None:
            raise error
        return value

    def _start(self) -> Connection:
        if self._connection is None:
            ours, theirs = socket.socketpair()
            with theirs:
                arguments = [str(theirs.fileno()), str(os.getpid()), self.function, str(self.memory_bytes)]
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "stdac.pictures.child", *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # C libraries remark on odd files there
                    env=make_python_environment() | QUIET_ENVIRONMENT,
                )
            self._connection = Connection(ours.detach())
        if self._stopped:
            self.close()
            raise ChildDied
        return self._connection

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
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory_bytes), int(memory_bytes)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module, name = function.split(":")
    with Connection(int(descriptor)) as connection, suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(connection, getattr(importlib.import_module(module), name))


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """Answer ("call", args) with (result, None), ("iterate", args) with ((item,), None) each and (None, None) last."""
    while True:
        how, args = connection.recv()
        for answer in [_call_function(function, args)] if how == "call" else _iterate_function(function, args):
            connection.send(answer)


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

"""Waiting for what other processes do: as long as a busy machine may need, no longer than they live."""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LONG_S = 600.0
"""Seconds for what takes some on a machine that is free: where it takes many times as long, that is no failure."""


def wait_for(
    condition: Callable[[], object], seconds: float = LONG_S, *, of: "subprocess.Popen[Any] | None" = None
) -> None:
    """Until the condition holds; it is no longer waited for once the process `of` that is to bring it about has ended.

    What is waited for must be seen by a look now and then: a state that lasts, or one of several in turn.
    """
    deadline = time.monotonic() + seconds
    while True:
        ended = of is not None and of.poll() is not None
        if condition():
            return
        assert not ended, f"waited for a process that has ended with {of and of.returncode}: {said_by(of)}"
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain: {said_by(of)}"
        time.sleep(0.05)


def said_by(process: "subprocess.Popen[Any] | None") -> str:
    """What a process has written on its stderr by now, where that is a pipe; nobody else can read it then."""
    found = b""
    if process is not None and process.stderr is not None and not process.stderr.closed:
        pipe = process.stderr.fileno()
        os.set_blocking(pipe, False)
        with suppress(BlockingIOError):
            while more := os.read(pipe, 1 << 16):
                found += more
    return found.decode(errors="replace")

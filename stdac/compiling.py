"""torch.compile where it works, which is tried and not assumed; where it does not, training goes on without.

A compiler may be there and fail: one of another name, no headers of Python, a folder for temporary files that nothing
may be run from, a GPU too old for Triton.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from stdac.torch_state import read_generators, write_generators

ARCHITECTURES = 64  # a process compiles a function for so many architectures; further ones run uncompiled

T = TypeVar("T")

_faults: list[str] = []  # why torch.compile does not work in this process, once that is known


@contextmanager
def set_compiler() -> Iterator[None]:
    """Let torch.compile draw the random numbers of code that is not compiled; afterwards its settings are as before."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    with dynamo.patch(recompile_limit=ARCHITECTURES), inductor.patch(fallback_random=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\._(dynamo|inductor)")  # its own deprecations, not the user's
        yield


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or functools.partial of one, under torch.compile.

    Compiled once for each architecture that it meets in this process, whichever trial's network comes with it: the
    function is module-level and networks are arguments, so that nothing of one trial is baked in.
    """
    if isinstance(function, partial):
        return partial(compile_function(function.func), *function.args, **function.keywords)
    return compile_once(function)


@cache
def compile_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a module-level function."""
    return torch.compile(function, dynamic=False)


def find_fault(kind: str) -> str | None:
    """Why torch.compile does not work here for a kind of device ("cpu", "cuda"); None where it does."""
    return next(iter(_faults), None) or _try_compiling(kind)


@cache
def _try_compiling(kind: str) -> str | None:
    """Compile a small function and its gradient; what went wrong, or None."""
    try:
        with set_compiler():
            compile_once(_wave)(torch.ones(64, device=kind, requires_grad=True)).backward()
    except Exception as error:  # noqa: BLE001 - whatever part of a long chain of tools gives up
        return _find_reason(error)
    return None


def _wave(x: Tensor) -> Tensor:
    return x.sin().sum()


def _find_reason(error: Exception) -> str:
    """The first line of what went wrong below torch.compile, which wraps it."""
    return take_first_line(getattr(error, "inner_exception", error))


def take_first_line(error: Exception) -> str:
    """The first line of an error's text, 200 characters at most, or its type's name."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:199]}…"


def say_without(reason: str) -> None:
    """Tell that nothing is compiled, and why."""
    print(f"torch.compile does not work here ({reason}): training without torch.compile", file=sys.stderr)


class Compiled:
    """A function under torch.compile, or itself where the first use shows that it cannot be compiled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.plain, self.fast = function, compile_function(function)
        self.used = False

    def __call__(self, *args: Any) -> Any:
        return self.use(lambda function: function(*args))

    def use(self, do: Callable[[Callable[..., Any]], T]) -> T:
        """do(the compiled function). Where the first use fails, do(the function), on the same random numbers, and from
        then on; what fails either way is no fault of the compiler's, and raised."""
        if self.used:
            return do(self.fast)
        if _faults:
            self.fast = self.plain
        generators = read_generators()
        try:
            result = do(self.fast)
        except Exception as error:  # noqa: BLE001 - see _try_compiling
            write_generators(generators)
            result = do(self.plain)
            self.fast = self.plain
            _faults.append(_find_reason(error))
            say_without(_faults[-1])
        self.used = True
        return result

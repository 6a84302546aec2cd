"""torch as every fit and prediction finds it, whatever the process has set; afterwards all is as it was.

What torch keeps for each thread (grad mode, autocast, the default device) is set for each call. What it keeps for the
process (the default dtype, flags of the backends) is set by the first call that enters and put back by the last that
leaves, as calls of several threads overlap. The random generators are the process's too, and a fit draws from them from
beginning to end: fits wait for each other.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Setting(NamedTuple):
    """Something that torch keeps for the process, and what it is to be."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    wanted: Any


def _attribute(owner: Any, name: str, wanted: Any) -> Setting:
    """A Setting that is an attribute."""
    return Setting(partial(getattr, owner, name), partial(setattr, owner, name), wanted)


SETTINGS = (
    Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
    Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
    _attribute(torch.backends.cudnn, "enabled", True),
    _attribute(torch.backends.cudnn, "deterministic", False),
    _attribute(torch.backends.mkldnn, "enabled", True),
    _attribute(torch.backends.mkldnn, "deterministic", False),
)
ONE_THREAD = Setting(torch.get_num_threads, torch.set_num_threads, 1)
"""In a child that was forked: the threads that the parent has started are not there, and more than one would wait for
them for ever."""


class _Process:
    """What torch keeps for the process, fixed while any thread is inside."""

    def __init__(self, *, forked: bool = False) -> None:
        self.settings = (*SETTINGS, ONE_THREAD) if forked else SETTINGS
        self.generators = threading.RLock()
        self.entrance = threading.Lock()  # of the next two
        self.inside = 0
        self.before: list[Any] = []

    @contextmanager
    def fix(self) -> Iterator[None]:
        """Be inside."""
        with self.entrance:
            if not self.inside:
                self.before = [setting.read() for setting in self.settings]
                self.write([setting.wanted for setting in self.settings])
            self.inside += 1
        try:
            yield
        finally:
            with self.entrance:
                self.inside -= 1
                if not self.inside:
                    self.write(self.before)

    def write(self, values: list[Any]) -> None:
        """Set what is not as the values say."""
        for setting, value in zip(self.settings, values, strict=True):
            if setting.read() != value:
                setting.write(value)


_process = [_Process()]


def _begin_child() -> None:
    """In a child that was forked: no other thread of the parent is in here any more, whatever it held."""
    old, _process[:] = _process[0], [_Process(forked=True)]
    if old.inside:
        old.write(old.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


@contextmanager
def fix_state() -> Iterator[None]:
    """Let torch compute in float32, on the CPU where no device is named, with gradients, and by its usual kernels."""
    with ExitStack() as stack:
        stack.enter_context(_process[0].fix())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def borrow_generators(*, cuda: bool = False) -> Iterator[None]:
    """Draw from torch's global generators, one thread after another; afterwards they stand where they stood.

    cuda: those of the GPUs too. Another thread that draws from them in the meantime changes what is drawn in here.
    """
    with _process[0].generators, torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
        yield


def read_generators() -> list[Tensor]:
    """The states of torch's global generators: the CPU's, then those of the GPUs."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def write_generators(states: list[Tensor]) -> None:
    """Put back what `read_generators` took; GPUs that are not here are left out."""
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states[1:])

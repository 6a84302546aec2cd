"""What this machine is and how a trial uses it: device, threads, compilation. Nothing here defines an experiment."""

import ctypes
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stdac.compiling import find_fault, say_without, take_first_line
from stdac.cores import count_cores
from stdac.errors import NotHere, StdacError

# A trial of more multiply-adds than this repays the half minute that compiling takes, on the CPU.
COMPILE_PAYS_MACS = 2e13
GRAPHS = "STDAC_CUDA_GRAPHS"


@dataclass(frozen=True)
class Machine:
    """Where a trial runs. device: "cpu", "cuda", "cuda:1". compile: "auto", "on" or "off". threads: None = all."""

    device: str = "auto"
    compile: str = "auto"
    threads: int | None = None

    def torch_device(self) -> torch.device:
        """The device. Raises StdacError where it is not there."""
        try:
            device = torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise StdacError(f"got device {self.device!r}, expected auto, cpu, cuda or cuda:N") from error
        if self.device == "auto" and torch.cuda.is_available():
            fault = find_device_fault("cuda", os.getpid())
            if fault is None:
                return torch.device("cuda")
            print(f"torch sees a GPU and cannot compute on it ({fault}): going on on the CPU", file=sys.stderr)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise NotHere(
                f"got device {self.device!r}, but torch {torch.__version__} sees no GPU here: use --device cpu"
            )
        fault = None if device.type == "cpu" else find_device_fault(str(device), os.getpid())
        if fault is not None:
            raise NotHere(f"got device {self.device!r}, but torch cannot compute on it ({fault}): use --device cpu")
        return device

    def compiles(self, device: torch.device, macs: float) -> bool:
        """Whether a trial of `macs` multiply-adds in all is compiled: on a GPU always, on a CPU where it pays."""
        if self.compile != "auto":
            wanted = self.compile == "on"
        else:
            wanted = device.type == "cuda" or macs > COMPILE_PAYS_MACS
        fault = find_fault(device.type) if wanted else None
        if fault is not None:
            say_without(fault)
        return wanted and fault is None

    def graphs(self, device: torch.device) -> bool:
        """Whether a training step is captured as one CUDA graph: on a GPU where STDAC_CUDA_GRAPHS is 1, unless nothing
        is to be compiled. Off by default, as that has never run on a GPU."""
        return device.type == "cuda" and self.compile != "off" and os.environ.get(GRAPHS) == "1"

    def prepare(self) -> None:
        """Set the threads, let cuDNN search for the fastest convolutions, and keep freed memory for the next step
        instead of handing it back page by page."""
        threads = self.threads or min(torch.get_num_threads(), count_cores())
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = True
        keep_freed_memory()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """`prepare`; afterwards torch's threads and cuDNN are as they were."""
        threads, searches = torch.get_num_threads(), torch.backends.cudnn.benchmark
        self.prepare()
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = searches
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)


@cache
def find_device_fault(name: str, _process: int) -> str | None:
    """Why torch cannot compute on a device, tried once a process, as a fork cannot use its parent's; None: it can."""
    try:
        torch.ones(2, device=name, dtype=torch.float32).sum().item()
    except Exception as error:  # noqa: BLE001 - drivers and libraries fail in their own ways
        return take_first_line(error)
    return None


@cache
def keep_freed_memory() -> None:
    """Make glibc reuse big buffers. A 39-million-parameter gradient is 157 MB that would be mapped and zeroed anew by
    the kernel every step: measured on two cores, that was a fifth of the step. A no-op on other C libraries."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never give the top of the heap back


@cache
def describe_provenance() -> dict[str, Any]:
    """What a result depends on besides its Trial: host, process, commit, library versions."""
    packages = ("stdac", "torch", "numpy", "scikit-learn", "pyarrow")
    return {
        "host": socket.gethostname(),
        "commit": read_commit(),
        "python": platform.python_version(),
        "versions": {name: read_version(name) for name in packages},
        "cpus": os.cpu_count(),
        "cpu": read_cpu_name(),
    }


def read_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read_commit() -> str | None:
    """The commit of the checkout that this code lies in, with "+" where files differ from it; None outside of one."""
    try:
        head = run_git("rev-parse", "HEAD")
        dirty = run_git("status", "--porcelain", "-uno")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout else "") if head.returncode == 0 else None


def run_git(*words: str) -> subprocess.CompletedProcess[str]:
    """Run git in the folder of this code."""
    here = Path(__file__).parent
    return subprocess.run(
        ["git", *words],
        cwd=here,
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        timeout=10,
        check=False,
    )


def read_cpu_name() -> str:
    """The processor's name as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe_device(device: torch.device) -> str:
    """The device as the `device` column has it."""
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{read_cpu_name()} x{torch.get_num_threads()}"
    )

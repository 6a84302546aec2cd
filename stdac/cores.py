"""How many cores this process may use: the fewest of what the batch system, the kernel and the container say."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def count_cores(root: Path = Path("/")) -> int:
    """Cores to use: what SLURM gave, else those that the kernel lets this process run on, at most a cgroup's quota of
    CPU time, as containers have one, rounded up. root: where /proc and /sys are."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "") if os.environ.get("SLURM_JOB_ID") else ""
    if given.isdecimal() and int(given) > 0:
        return int(given)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here, max(1, math.ceil(min(_read_quotas(root), default=here))))


def count_threads() -> int:
    """Threads to use: $OMP_NUM_THREADS, as batch systems set it, else one a core."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return int(wish) if wish.isdecimal() and int(wish) > 0 else count_cores()


def _read_quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of this process's cgroups, version 1 or 2, and of those that hold them."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text("utf-8", errors="replace").splitlines()
    for line in (line for line in lines if line.count(":") >= 2):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _read_files(root / "sys/fs/cgroup", path, ("cpu.max",))
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                yield from _read_files(root / "sys/fs/cgroup" / mount, path, ("cpu.cfs_quota_us", "cpu.cfs_period_us"))


def _read_files(mount: Path, path: str, names: tuple[str, ...]) -> Iterator[float]:
    """quota / period of a cgroup and of those above it; the files hold both numbers together, "max" or -1 for none."""
    folder = mount / path.strip("/")
    for each in (folder, *folder.parents):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (float(n) for name in names for n in (each / name).read_text("utf-8").split())
            if quota > 0:
                yield quota / period
        if each == mount:
            return

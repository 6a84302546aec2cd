"""What names a process beyond its number, which the kernel gives out again."""

from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def read_namespace() -> str:
    """Names what a process id means something in: this boot of this machine, and the container we are in."""
    words = []
    with suppress(OSError):
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip())
        words.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(words)


def read_process_start(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since boot: names it together with the pid. None if gone."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None

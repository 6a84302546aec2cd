"""What SLURM knows of a run's jobs. It forgets jobs, and may not answer for a while: None says so."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cluster_jobs.slurm_settings import Partition, read_partitions
from stdac.errors import StdacError

ANSWER_S = 60.0  # a SLURM command that takes longer has not answered
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


class Job(NamedTuple):
    """A task of an array as SLURM knows it. id: "12_3". exit: "code:signal". reason: why it waits, or ended."""

    id: str
    state: str
    nodes: str
    reason: str
    exit: str

    @property
    def living(self) -> bool:
        """Whether it runs, waits or is about to do so again."""
        return self.state not in ENDED


def name_jobs(run: Path) -> str:
    """The name of a run's jobs: the same for every driver of that folder, and no other's."""
    folder = run.resolve()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name)[:40]
    return f"stdac-{readable}-{hashlib.sha256(bytes(folder)).hexdigest()[:6]}"


def ask_slurm(*command: str) -> str | None:
    """What a SLURM command prints, or None where it fails or does not answer."""
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout if process.returncode == 0 else None


def list_partitions() -> dict[str, Partition]:
    """The cluster's partitions. Raises StdacError where there is no SLURM, or it does not answer."""
    if shutil.which("sinfo") is None:
        raise StdacError("there is no SLURM here (sinfo is not on the PATH): launch on a login node of the cluster")
    text = ask_slurm("sinfo", "--noheader", "--format=%P|%l|%G")
    if text is None:
        raise StdacError(
            "the SLURM controller does not answer (sinfo failed): launch again when it does, or here with "
            "--backend local"
        )
    return read_partitions(text)


def find_array_limit() -> int:
    """The most tasks that an array may have here."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask_slurm("scontrol", "show", "config") or "", re.MULTILINE)
    return int(match[1]) if match else 1001


def list_jobs(name: str) -> list[Job] | None:
    """Our jobs of that name that the controller remembers; None where it does not answer.

    The controller knows at once what was submitted, and forgets a job some minutes after its end: see `find_ends`.
    """
    columns = "JobArrayID:64|,State:32|,NodeList:512|,Reason:64|,exit_code:16|"
    text = ask_slurm(
        *("squeue", "--noheader", "--array", "--states=all", f"--name={name}", f"--user={os.getuid()}"),
        f"--Format={columns}",
    )
    return None if text is None else [read_job(line) for line in text.splitlines() if line.strip()]


def read_job(line: str) -> Job:
    """A job from a line of `list_jobs`."""
    job, state, nodes, reason, status = (word.strip() for word in line.split("|")[:5])
    if status.isdigit():  # as wait() gives it; newer SLURM says code:signal
        status = f"{int(status) >> 8}:{int(status) & 127}"
    return Job(job, state, nodes, reason, status)


def find_ends(seen: Mapping[str, Job]) -> list[Job]:
    """How jobs ended: by sacct where it answers, else as the controller last knew them."""
    arrays = ",".join(sorted({job.split("_")[0] for job in seen}))
    text = ask_slurm("sacct", "-X", "-n", "-P", "-o", "JobID,State,NodeList,Reason,ExitCode", "-j", arrays)
    known = dict(seen)
    for line in (text or "").splitlines():
        job, state, nodes, reason, status = line.split("|")
        if job in seen:
            known[job] = Job(job, state.split()[0], nodes, reason, status)
    return list(known.values())


def _was_submitted(run: Path) -> bool:
    """Whether a run may have jobs: a driver has submitted some once, and SLURM is here to be asked."""
    return (run / "logs" / "slurm").is_dir() and shutil.which("squeue") is not None


def describe_jobs(run: Path) -> str:
    """Our jobs of a run in the queue: "2 running on n1 n2, 2 pending (Resources)"; "" for none, or no SLURM here."""
    if not _was_submitted(run):
        return ""
    known = list_jobs(name_jobs(run))
    return "the controller does not answer" if known is None else describe_queue(known)


def describe_queue(known: Sequence[Job]) -> str:
    """Living jobs in one line, by state; where they run, or why they wait."""
    parts = []
    for state in sorted({job.state for job in known if job.living}, key=lambda s: (s != "RUNNING", s)):
        mine = [job for job in known if job.state == state]
        nodes = sorted({job.nodes for job in mine if job.nodes})
        reasons = sorted({job.reason for job in mine} - {"", "None"}) if state == "PENDING" else []
        where = f" on {' '.join(nodes[:8])}{' …' if len(nodes) > 8 else ''}" if nodes else ""
        parts.append(f"{len(mine)} {state.lower()}{where}" + (f" ({', '.join(reasons)})" if reasons else ""))
    return ", ".join(parts)


def describe_end(job: Job) -> str:
    """How a job ended, in a few words."""
    code, _, number = job.exit.partition(":")
    if job.living:
        return "lost"
    if job.state != "FAILED":
        return job.state
    return f"FAILED by signal {number}" if code == "0" and number not in ("", "0") else f"FAILED with exit code {code}"


def cancel(run: Path) -> int:
    """Cancel all our jobs of a run; how many there were. Raises StdacError where the controller does not answer."""
    if not _was_submitted(run):
        return 0
    name = name_jobs(run)
    known = list_jobs(name)
    if known is None or ask_slurm("scancel", f"--name={name}", f"--user={os.getuid()}") is None:
        raise StdacError(f"the SLURM controller does not answer: run `scancel --name={name}` when it does")
    return sum(job.living for job in known)

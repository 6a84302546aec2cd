"""The Ray backend as the launching process sees it: which cluster to use, and a process of its own that talks to Ray.

Ray lives in that other process (`cluster_jobs.ray_driver`) because it ends its process without asking when its head is
gone, prints what it likes, and can take minutes to find out that nobody answers. Here it is only started, listened to,
and ended: politely, so that it hands every lease back, then for good.
"""

import hashlib
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster_jobs.logs import open_log
from cluster_jobs.request import Request, check_keys, to_plain
from stdac.errors import StdacError
from stdac.files import (
    explain_refusal,
    is_real_folder,
    read_file_time,
    read_json,
    read_record,
    remove_folder,
    require_links,
    write_json,
)
from stdac.leases import LEASE_S, RENEW_S
from stdac.processes import make_python_environment, read_namespace, read_process_start

POLL_S = 0.5
STOP_S = 40.0  # for the Ray process to end all workers, wherever they are
GRACE_S = 3.0  # for workers to give their leases back when that process was killed
PORT = 6379  # Ray's own default
SCRATCH = ".ray-"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",  # how many units may wait is our decision
}
CURRENT_CLUSTER = "/tmp/ray/ray_current_cluster"  # where `ray start` notes the address of this machine's cluster


@dataclass(frozen=True)
class Job:
    """What the Ray process is to do. address: the cluster to join, None to start one here.

    launcher: the process that wants it done. scratch: Tune's files. cwd: where relative names of data sets start. log:
    what it says on stderr.
    """

    request: Request
    launcher: int
    scratch: Path
    cwd: Path
    log: Path
    address: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return to_plain(self)

    @classmethod
    def from_json(cls, values: Any) -> "Job":
        """What `to_json` gave. Raises StdacError for keys of another version."""
        job = cls(**check_keys(cls, values))
        scratch, cwd, log = Path(job.scratch), Path(job.cwd), Path(job.log)
        return replace(job, request=Request.from_json(job.request), scratch=scratch, cwd=cwd, log=log)


def find_cluster() -> tuple[str, str] | None:
    """The address of the cluster to join, and where it was found: RAY_ADDRESS, or a Ray that we run on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address == "local":
        return None
    if address not in ("", "auto"):
        return address, "RAY_ADDRESS is set"
    with suppress(OSError):
        noted = Path(CURRENT_CLUSTER)
        if noted.stat().st_uid == os.getuid() and can_reach(found := noted.read_text("utf-8").strip()):
            return found, "a Ray cluster runs on this machine"
    return None


def can_reach(address: str, timeout_s: float = 2.0) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    with suppress(OSError, ValueError, OverflowError):
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
        return True
    return False


def run_workers(request: Request, tick: Callable[[], None], say: Callable[[str], None]) -> None:
    """Run workers on every node of a Ray cluster until all trials are over, calling `tick` meanwhile.

    Joins the cluster that `find_cluster` finds, else starts Ray here: alone and on the loopback for one node; for more
    as a head that others can join, and `say` gets the command for them; with `simulate` as `nodes` nodes on this
    machine, without GPUs. Nodes that join later get work at once. Where no number of workers is asked for, there are as
    many as CPUs, or GPUs times `trials_per_gpu`. Raises StdacError where there is no cluster to be had, where workers
    keep failing, and where the head is lost.
    """
    request = request.resolve()
    cluster = None if request.simulate else find_cluster()
    address = check_address(cluster[0]) if cluster else None
    log = request.run / "logs" / f"ray-{socket.gethostname()}-{os.getpid()}.log"
    require_links(request.run)
    sweep(request.run)
    with make_scratch(request.run) as scratch:
        job = Job(request, os.getpid(), scratch, Path.cwd(), log, address)
        with _start_driver(job) as process:
            _listen(process, job, tick, say)


def check_address(address: str) -> str:
    """The address, if Ray may be there. Raises StdacError where nothing listens."""
    if "://" in address:
        raise StdacError(
            f"got RAY_ADDRESS={address}, an address for Ray Client: launch on a node of the cluster and give HOST:PORT"
        )
    if not can_reach(address, 10.0):
        raise StdacError(f"nothing answers at RAY_ADDRESS={address}: start Ray there, or unset it to run here")
    return address


def _listen(process: "subprocess.Popen[str]", job: Job, tick: Callable[[], None], say: Callable[[str], None]) -> None:
    """Pass on what the Ray process says until it ends. Raises StdacError where it failed."""
    inbox: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def receive() -> None:
        for line in process.stdout or ():
            inbox.put(tuple(json.loads(line)))

    reader = threading.Thread(target=receive, daemon=True)
    reader.start()
    errors: list[str] = []
    renewed = 0.0
    running = True
    while running:
        running = process.poll() is None
        if not running:
            reader.join(5)
        while not inbox.empty():
            kind, text = inbox.get()
            (errors.append if kind == "error" else say)(text)
        tick()
        if time.monotonic() - renewed > RENEW_S:
            renewed = time.monotonic()
            with suppress(OSError):
                os.utime(job.scratch)
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
    if errors:
        raise StdacError(errors[0])
    if process.returncode:
        raise StdacError(f"Ray ended unexpectedly (see {job.log}): launch again; nothing done is lost")


@contextmanager
def _start_driver(job: Job) -> Iterator["subprocess.Popen[str]"]:
    """The process that talks to Ray, in a session of its own so that Ctrl-C leaves it to us; ended on any exit."""
    words = [sys.executable, "-c", "from cluster_jobs.ray_driver import main; main()", json.dumps(job.to_json())]
    with open_log(job.log) as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="backslashreplace",
            env=make_environment(job),
            cwd=job.scratch,  # where a raylet that loses its head dumps its core
            start_new_session=True,
        )
    try:
        write_json(job.scratch / "session.json", process.pid)
        yield process
    finally:
        try:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        finally:
            process.kill()
            process.wait()
            _end_session(process.pid, GRACE_S if process.returncode else 0)


def _end_session(leader: int, grace_s: float) -> None:
    """End what is left of a session after `grace_s`: Ray's agents outlive a raylet that was killed by a minute."""
    deadline = time.monotonic() + grace_s
    try:
        while _list_members(leader) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for pid in _list_members(leader):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _list_members(session: int) -> list[int]:
    """The processes of a session, where the kernel tells."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, leader = stat.read_text().rpartition(")")[2].split()[:4]
            if int(leader) == session and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def make_environment(job: Job) -> dict[str, str]:
    """The environment of the Ray process, and of a Ray that it starts."""
    own = make_python_environment() | QUIET
    own.pop("RAY_ADDRESS", None)
    if job.address is not None:
        if "RAY_AUTH_MODE" not in own and _has_token():
            own["RAY_AUTH_MODE"] = "token"
        return own
    own.pop("RAY_AUTH_TOKEN", None)
    own |= {"RAY_enable_metrics_collection": "0", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token"}
    own |= {"RAY_AUTH_TOKEN_PATH": f"{job.scratch}/token", "RAY_TMPDIR": os.path.realpath(f"{job.scratch}/tmp")}
    if job.request.nodes == 1:
        own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what keeps Ray on the loopback there does so everywhere
    elif not job.request.simulate and not can_reach(f"127.0.0.1:{PORT}"):
        own.setdefault("RAY_GCS_SERVER_PORT", str(PORT))
    return own


def _has_token() -> bool:
    """Whether the user has a token for Ray clusters, in one of the places where Ray looks."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


@contextmanager
def make_scratch(run: Path) -> Iterator[Path]:
    """RUN/.ray-<random>: this launch's Tune files, the token of a Ray started here, a link to its folder of sockets.

    Removed on any exit; `sweep` removes what a killed launch left. Raises StdacError where it cannot be made.
    """
    try:
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=run))
    except OSError as error:
        raise explain_refusal(error, run) from error
    try:
        _furnish(scratch)
        yield scratch
    finally:
        remove_scratch(scratch)


def _furnish(scratch: Path) -> None:
    """Put into a scratch folder who made it, a token, and a link to a folder whose name is short enough for sockets."""
    own = {"namespace": read_namespace(), "pid": os.getpid(), "process_start": read_process_start(os.getpid())}
    write_json(scratch / "owner.json", own)
    try:
        descriptor = os.open(scratch / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
        # a socket's path has room for 107 bytes, of which Ray takes 76; linked before it is made, so that none is lost
        sockets = _name_sockets(scratch)
        (scratch / "tmp").symlink_to(sockets)
        sockets.mkdir(mode=0o700)
    except OSError as error:
        raise explain_refusal(error, scratch) from error


def _name_sockets(scratch: Path) -> Path:
    """The folder of sockets of a scratch folder, and of no other."""
    return Path("/tmp") / f"stdac-ray-{hashlib.sha256(bytes(scratch.resolve())).hexdigest()[:12]}"


def is_ours(scratch: Path) -> bool:
    """Whether a scratch folder is one that we have made: a real folder of ours, no link to one."""
    return is_real_folder(scratch) and scratch.lstat().st_uid == os.geteuid()


def sweep(run: Path) -> None:
    """Remove the scratch folders of launches that are gone: at once where we can tell, else when long not renewed."""
    for scratch in run.glob(f"{SCRATCH}*"):
        if is_ours(scratch) and _is_left_over(scratch):
            remove_scratch(scratch)


def _is_left_over(scratch: Path) -> bool:
    """Whether the launch that made a scratch folder is gone, and the Ray that it started, which would write there."""
    owner: dict[str, Any] = {}
    session: int | None = None
    with suppress(OSError, StdacError):
        owner = read_record(scratch / "owner.json", {"namespace": str, "pid": int, "process_start": int | None}, {})
        session = read_json(scratch / "session.json")
    if owner.get("namespace") == read_namespace():
        ended = bool(read_process_start(owner["pid"]) != owner["process_start"])
        return ended and not (session is not None and _list_members(session))
    try:
        return read_file_time(scratch.parent) - scratch.stat().st_mtime > LEASE_S
    except OSError:
        return False


def remove_scratch(scratch: Path) -> None:
    """Remove a scratch folder of ours and its folder of sockets, while processes that are ending may still write there.

    Where its link leads is not asked: whoever may write to the run folder may have made that.
    """
    deadline = time.monotonic() + 5
    while is_ours(scratch) and time.monotonic() < deadline:
        sockets = _name_sockets(scratch)
        remove_folder(sockets)
        if not is_ours(sockets):
            remove_folder(scratch)
        if scratch.exists():
            time.sleep(0.2)

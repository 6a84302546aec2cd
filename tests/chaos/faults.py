"""The faults: functions of the scene that do their harm and say to whom, or None where there is no victim now."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

from cluster_jobs.doctor import examine, mend
from stdac.errors import StdacError
from stdac.files import write_json
from stdac.folder import TrialFolder
from stdac.leases import LEASE_S
from tests.chaos.processes import Process
from tests.chaos.scene import Scene

Fault = Callable[[Scene], str | None]
Find = Callable[[Scene], Iterable[Process]]


def of_role(*roles: str) -> Find:
    """Finds the run's processes of these roles."""
    return lambda scene: scene.processes(*roles)


def signalled(find: Find, number: int, times: int = 1) -> Fault:
    """Sends a signal to one of the processes found, several times within a second."""

    def fault(scene: Scene) -> str | None:
        victim = choose(scene, find)
        if victim is None:
            return None
        for turn in range(times):
            time.sleep(0.3 * (turn > 0))
            victim.signal(number)
        return name(victim)

    return fault


def frozen(find: Find) -> Fault:
    """Stops one of the processes found; it goes on after its lease, most of the time."""

    def fault(scene: Scene) -> str | None:
        victim = choose(scene, lambda scene: [process for process in find(scene) if not process.stopped()])
        if victim is None:
            return None
        seconds = LEASE_S * scene.chance.uniform(0.5, 2.5)
        victim.signal(signal.SIGSTOP)
        scene.undo_later(seconds, f"{name(victim)} goes on", partial(victim.signal, signal.SIGCONT))
        return f"{name(victim)} for {seconds:.0f} s"

    return fault


def power_cut(scene: Scene) -> str | None:
    """Every process of the run on this machine is gone at once."""
    victims = scene.processes()
    kill_at_once(victims)
    return f"{len(victims)} processes" if victims else None


def kill_at_once(victims: Sequence[Process]) -> None:
    """Kill processes before any of them can see another die."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for victim in victims:
            victim.signal(number)


def full_disk(scene: Scene) -> str | None:
    """No space is left, or so little that small files still find some, for a while."""
    if not scene.volume.small or scene.volume.ballast.exists():
        return None
    spare = scene.chance.choice([0, 0, 8192, 65536])
    seconds = scene.chance.uniform(1, 8)
    taken = scene.volume.fill(spare)
    scene.undo_later(seconds, "there is space again", scene.volume.free)
    return f"{taken >> 20} MiB taken, {spare} bytes left, for {seconds:.0f} s"


def split_brain(scene: Scene) -> str | None:
    """A living attempt's lease looks old until another attempt has taken over: both run at the same time."""
    running = scene.trials("running")
    if not running:
        return None
    status = scene.chance.choice(running)
    folder, number = scene.ledger.folder(status.trial_id), status.detail["attempt"]
    another_host(scene)
    threading.Thread(target=keep_old, args=(folder, number), daemon=True).start()
    return f"trial {status.trial_id} attempt {number}"


def keep_old(folder: TrialFolder, number: int) -> None:
    """Make a lease look old, again and again, until it is given back, a later attempt exists or a while has passed."""
    lease, deadline = folder.lease_path(number), time.monotonic() + 5 * LEASE_S
    with suppress(OSError):
        while (folder.leases() or [0])[-1] == number and lease.stat().st_mtime > 0 and time.monotonic() < deadline:
            os.utime(lease, (1, 1))
            time.sleep(0.01)


def another_host(scene: Scene) -> str | None:
    """A worker of another host joins, started by hand; there is one at a time."""
    if os.geteuid() != 0 or scene.processes("work"):
        return None
    return str(scene.work(f"elsewhere{len(scene.commands)}"))


def second_launch(scene: Scene) -> str | None:
    """Another launch of the same run, at the same time."""
    return str(scene.launch()) if len(scene.launches()) == 1 else None


def doctor(scene: Scene) -> str | None:
    """The doctor mends what it finds, in the middle of everything."""
    findings = examine(scene.ledger)
    mended = 0
    for finding in findings:
        with suppress(StdacError):
            mend(finding)
            mended += finding.mend is not None
    return f"{len(findings)} findings, {mended} mended" if findings else None


def cancelled(scene: Scene) -> str | None:
    """The run is cancelled; the next launch takes that back."""
    if scene.ledger.cancelled() or not scene.trials("running"):
        return None
    with suppress(StdacError):  # a full disk
        scene.ledger.cancel()
    return scene.run.name


def damaged_checkpoint(scene: Scene) -> str | None:
    """A checkpoint that nobody writes any more loses its second half, as on a disk that lied about fsync."""
    idle = [scene.ledger.folder(status.trial_id) for status in scene.trials("waiting")]
    paths = [path for folder in idle for path in folder.checkpoints()]
    if not paths:
        return None
    path = scene.chance.choice(paths)
    os.truncate(path, path.stat().st_size // 2)
    return str(path.relative_to(scene.run))


def flipped_checkpoint(scene: Scene) -> str | None:
    """One bit of a checkpoint that nobody writes any more flips, as in memory or on a disk that is going to fail."""
    idle = [scene.ledger.folder(status.trial_id) for status in scene.trials("waiting")]
    paths = [path for folder in idle for path in folder.checkpoints()]
    if not paths:
        return None
    return f"bit {flip_bit(path := scene.chance.choice(paths), scene.chance)} of {path.relative_to(scene.run)}"


def flipped_part(scene: Scene) -> str | None:
    """One bit of a done trial's result flips; the doctor must find it, and the trial run again."""
    done = [status for status in scene.trials("done") if status.trial_id not in scene.spoiled]
    if not done:
        return None
    status = scene.chance.choice(done)
    folder = scene.ledger.folder(status.trial_id).attempt_path(status.detail["attempt"])
    path = scene.chance.choice(sorted(path for path in folder.iterdir() if path.name in status.detail["sha256"]))
    content = scene.ledger.folder(status.trial_id).done_path.read_bytes()
    bit = flip_bit(path, scene.chance)
    scene.spoiled[status.trial_id] = content
    return f"bit {bit} of {path.relative_to(scene.run)}"


def flip_bit(path: Path, chance: Random) -> int:
    """Flip one bit of a file in its place, as hardware does: nobody is told; which bit it was."""
    about = path.stat()
    bit = chance.randrange(8 * about.st_size)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    return bit


def deleted_lease(scene: Scene) -> str | None:
    """Somebody deletes the newest lease of a trial, which runs or waits."""
    found = [scene.ledger.folder(s.trial_id) for state in ("running", "waiting") for s in scene.trials(state)]
    paths = [folder.lease_path(numbers[-1]) for folder in found if (numbers := folder.leases())]
    paths = [path for path in paths if path.exists()]
    if not paths:
        return None
    path = scene.chance.choice(paths)
    path.unlink()
    return str(path.relative_to(scene.run))


def moved_lease(scene: Scene, ahead_s: float = 0.0) -> str | None:
    """The lease of a running trial becomes that of a second host, whose processes nobody here can see; most of the time
    its process is gone. ahead_s: how far ahead the lease then lies."""
    running = scene.trials("running")
    if not running:
        return None
    status = scene.chance.choice(running)
    path = scene.ledger.folder(status.trial_id).lease_path(status.detail["attempt"])
    gone = scene.chance.random() < 0.7
    for process in scene.processes("worker"):
        if gone and process.pid == status.detail["pid"]:
            process.signal(signal.SIGKILL)
    lease = json.loads(path.read_bytes()) | {"host": "second-host", "namespace": "of another boot"}
    if path.stat().st_mtime:
        with suppress(StdacError):  # another fault may have filled the disk
            write_json(path, lease)
        now = time.time() + ahead_s
        os.utime(path, (now, now))
    return f"trial {status.trial_id} attempt {status.detail['attempt']}, its process {'gone' if gone else 'left alive'}"


def read_only(scene: Scene) -> str | None:
    """The run folder is remounted read-only for a while, by a mount over it; open files stay writable."""
    if not scene.volume.small or not os.access(scene.run, os.W_OK):
        return None
    run, seconds = str(scene.run), scene.chance.uniform(1, 8)
    words = [["mount", "--bind", run, run], ["mount", "-o", "remount,bind,ro", run]]
    if any(subprocess.run(command, capture_output=True, check=False).returncode for command in words):
        return None
    undo = partial(subprocess.run, ["umount", "--lazy", run], check=False)
    scene.undo_later(seconds, "the run folder can be written again", undo)
    return f"for {seconds:.0f} s"


def choose(scene: Scene, find: Find) -> Process | None:
    """One of the processes found, or None."""
    found = sorted(find(scene))
    return scene.chance.choice(found) if found else None


def name(process: Process) -> str:
    """A process in two words."""
    return f"{process.role()} {process.pid}"


ANYWHERE: dict[str, Fault] = {
    "kill a worker": signalled(of_role("worker"), signal.SIGKILL),
    "terminate a worker": signalled(of_role("worker"), signal.SIGTERM),
    "ask a worker to leave": signalled(of_role("worker"), signal.SIGUSR2),
    "freeze a worker": frozen(of_role("worker")),
    "kill the driver": signalled(of_role("launch"), signal.SIGKILL),
    "terminate the driver": signalled(of_role("launch"), signal.SIGTERM),
    "hang up on the driver": signalled(of_role("launch"), signal.SIGHUP),
    "interrupt the driver": signalled(of_role("launch"), signal.SIGINT),
    "interrupt the driver twice": signalled(of_role("launch"), signal.SIGINT, times=2),
    "freeze the driver": frozen(of_role("launch")),
    "cut the power": power_cut,
    "fill the disk": full_disk,
    "split brain": split_brain,
    "another host joins": another_host,
    "a second launch": second_launch,
    "the doctor calls": doctor,
    "cancel the run": cancelled,
    "damage a checkpoint": damaged_checkpoint,
    "flip a bit of a checkpoint": flipped_checkpoint,
    "flip a bit of a result": flipped_part,
    "delete a lease": deleted_lease,
    "a second host": moved_lease,
    "a lease ahead of time": partial(moved_lease, ahead_s=3 * 3600),
}
"""The faults that any backend can meet, by kind."""

HERE: dict[str, Fault] = {"remount read-only": read_only}
"""The faults that only this machine alone can meet: mounts of one node are not those of another."""

COMMON = {
    "kill a worker": 6,
    "freeze a worker": 8,
    "split brain": 8,
    "terminate a worker": 3,
    "ask a worker to leave": 3,
    "fill the disk": 4,
    "the doctor calls": 4,
    "damage a checkpoint": 4,
    "flip a bit of a checkpoint": 4,
    "flip a bit of a result": 4,
    "delete a lease": 4,
    "a second host": 3,
    "a lease ahead of time": 4,
    "remount read-only": 3,
}
"""How much more often some kinds come than the others: those that hit a trial, and do not keep the run from running."""

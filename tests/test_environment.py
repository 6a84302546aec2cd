"""What surrounds a command: standard output that cannot be written to, temporary files, CPU quotas, a notebook."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from analysis.figures import open_figure
from stdac.command import Commands
from stdac.cores import count_cores, count_threads
from stdac.errors import DiskFull, StdacError
from stdac.scratch import open_scratch

MAIN = "from cluster_jobs.commands.{} import main; main(prog_name='stdac')"
FULL = "Error: cannot write to standard output (No space left on device): expected a file or a pipe that takes it\n"


def run_command(redirection: str, program: str, words: str) -> subprocess.CompletedProcess[str]:
    """A command under a shell that redirects its standard output."""
    line = f'"$0" -c "$1" {words} {redirection}'
    code = MAIN.format(program)
    return subprocess.run(["sh", "-c", line, sys.executable, code], stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(
    ("program", "words"), [("stdac", "--help"), ("stdac", "--version"), ("stdac", "show --help"), ("grid", "-h")]
)
def test_a_full_standard_output_is_one_sentence(program: str, words: str) -> None:
    ran = run_command("> /dev/full", program, words)
    assert (ran.returncode, ran.stderr) == (1, FULL)


def test_a_closed_standard_output_is_one_sentence() -> None:
    ran = run_command(">&-", "stdac", "--help")
    assert (ran.returncode, ran.stderr) == (
        1,
        "Error: standard output is closed: expected a file, a pipe or /dev/null\n",
    )


def test_a_reader_that_has_gone_is_left_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = MAIN.format("stdac")
    try:
        ran = subprocess.run([sys.executable, "-c", code, "--help"], stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left for temporary files in .*TMPDIR"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "no space left for /data/x: .*free some space"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/x']"), "set TMPDIR to a folder"),
    ],
)
def test_no_command_calls_a_full_disk_unexpected(error: OSError, sentence: str) -> None:
    @click.group(cls=Commands)
    def main() -> None: ...

    @main.command()
    def write() -> None:
        raise error

    ran = CliRunner().invoke(main, ["write"])
    assert ran.exit_code == 1 and "unexpected" not in ran.output
    assert ran.output.startswith("Error: ") and len(ran.output.splitlines()) == 1
    assert re.search(sentence, ran.output)


def test_where_temporary_files_cannot_be_written_tmpdir_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StdacError, match=r"temporary files in .*gone \(No such file.*set TMPDIR"), open_scratch():
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DiskFull, match=r"no space left for temporary files in .*gone: .*TMPDIR"), open_scratch():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


V1 = "cpu,cpuacct/task/{}"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        ("0::/not/seen/in/here", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "9900000 100000"}, 8),
        (
            "3:cpu,cpuacct:/task\n0::/",
            {V1.format("cpu.cfs_quota_us"): "250000", V1.format("cpu.cfs_period_us"): "100000"},
            3,
        ),
        (
            "3:cpu,cpuacct:/task\n0::/",
            {V1.format("cpu.cfs_quota_us"): "-1", V1.format("cpu.cfs_period_us"): "100000"},
            8,
        ),
        ("2:memory:/x", {}, 8),
        ("", {}, 8),
    ],
)
def test_the_cores_of_a_container_are_its_cpu_quota(
    groups: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    named = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in named.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert count_cores(tmp_path) == cores


def test_what_a_batch_system_gave_comes_before_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert count_cores() == count_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert (count_cores(), count_threads()) == (3, 5)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "many")
    assert count_cores() >= 1


def test_a_figure_is_drawn_whatever_backend_a_notebook_names_and_whatever_lies_in_the_folder(
    tmp_path: Path,
) -> None:
    """In a process of its own, as matplotlib reads both when it is imported."""
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 40\n")
    code = (
        "import os, sys; from pathlib import Path; from analysis.figures import open_figure\n"
        "with open_figure(Path('here.png'), (2, 2)) as fig: fig.subplots().plot([1, 2])\n"
        "assert os.environ['MPLBACKEND'] == 'module://no.such.backend' and 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {"MPLBACKEND": "module://no.such.backend", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    with open_figure(tmp_path / "there.png", (2, 2)) as fig:
        fig.subplots().plot([1, 2])
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()

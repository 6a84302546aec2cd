"""A model as a web page: what `stdac page` writes, and onnxruntime-web, which npm provides."""

import base64
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from stdac.errors import StdacError
from stdac.files import explain_refusal

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the package in base64, as the npm registry states it."""

RUNTIMES = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
"""Provider to its program and binary. The second runs on the CPU too, but loads twice as long and is larger."""

FILES = tuple(f"{name}.gz" for pair in RUNTIMES.values() for name in pair)
"""As they are kept: compressed, 41 MB to 10, and so the page has them too."""

VENDORED = Path(__file__).parent / "onnxruntime" / VERSION
"""Where `python -m export.web fetch` puts them, and where they are in a wheel."""

NPM_TIMEOUT_S = 600


def find_runtime(say: Callable[[str], None]) -> Path:
    """The folder that holds FILES: beside this file, else in the user's cache, into which npm is made to fetch them.

    say: is told, in one line, before anything is fetched. Raises StdacError where that cannot be done.
    """
    for folder in (VENDORED, find_cache_folder()):
        if is_complete(folder):
            return folder
    say(f"fetching {PACKAGE} {VERSION} with npm into {find_cache_folder()} (once, 33 MB)")
    return install_runtime(find_cache_folder())


def is_complete(folder: Path) -> bool:
    """Whether all of FILES are in a folder."""
    return all((folder / name).is_file() for name in FILES)


def find_cache_folder() -> Path:
    """Where fetched files are kept for this user, after the system's custom."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "stdac" / f"{PACKAGE}-{VERSION}"


def install_runtime(folder: Path, package: Path | None = None) -> Path:
    """Put FILES into a folder, all or none, and return it.

    package: the .tgz that npm provides; fetched with npm where it is None. Raises StdacError for a package with another
    content than INTEGRITY, for a missing or failing npm, and for a folder that cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
            new = Path(temporary) / folder.name
            _extract_package(package or _run_npm_pack(Path(temporary)), new)
            if not is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
                new.rename(folder)
    except OSError as error:
        raise explain_refusal(error, folder) from error
    return folder


def _run_npm_pack(folder: Path) -> Path:
    """The package as npm delivers it, put into a folder. Nothing of it is run."""
    npm = shutil.which("npm")
    by_hand = f"or get {PACKAGE}-{VERSION}.tgz elsewhere and run python -m export.web fetch FILE.tgz"
    if npm is None:
        raise StdacError(
            f"the page needs {PACKAGE} {VERSION}, and there is no npm to fetch it: install Node.js, {by_hand}"
        )
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--loglevel=error", "--pack-destination", "."]
    try:
        ran = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=NPM_TIMEOUT_S,
            check=False,
        )
        said = next((line for line in ran.stderr.splitlines() if "npm error" in line), "")
    except subprocess.TimeoutExpired:
        said = f"no answer in {NPM_TIMEOUT_S} s"
    package = folder / f"{PACKAGE}-{VERSION}.tgz"
    if not package.is_file():
        raise StdacError(
            f"npm could not fetch {PACKAGE} {VERSION} ({said or 'it said nothing'}): check the network, {by_hand}"
        )
    return package


def _extract_package(package: Path, folder: Path) -> None:
    """Check the package against INTEGRITY and put FILES, compressed, into a new folder."""
    try:
        with package.open("rb") as file:
            digest = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    except OSError as error:
        raise StdacError(
            f"cannot read {package} ({error.strerror}): expected {PACKAGE}-{VERSION}.tgz as npm pack writes it"
        ) from error
    if digest != INTEGRITY:
        raise StdacError(
            f"{package.name} is not {PACKAGE} {VERSION}: its SHA-512 is {digest[:12]}..., expected {INTEGRITY[:12]}..."
        )
    folder.mkdir()
    with tarfile.open(package) as archive:
        for name in FILES:
            member = archive.extractfile(f"package/dist/{name.removesuffix('.gz')}")
            assert member is not None
            (folder / name).write_bytes(gzip.compress(member.read(), 9, mtime=0))

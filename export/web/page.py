"""A model as a web page: one folder, opened by double click or served, that sorts pictures in the browser."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from stdac.errors import StdacError
from stdac.files import atomic_write, explain_refusal
from stdac.words import count_noun

if TYPE_CHECKING:
    from export.clusterer import Clusterer
    from export.metadata import ModelInfo
    from export.results.names import Names

WEB = Path(__file__).parent
GENERATOR = '<meta name="generator" content="stdac">'
PAGE_SCRIPTS = ("parts.js", "inputs.js", "engine.js", "view.js", "main.js")
WORKER_SCRIPTS = ("resample.js", "worker.js")

PART_BYTES = 3 << 20
"""Bytes in a script of parts/: a browser refuses fetch() beside a file it was given, but not scripts. 157 MB in such
parts load in 2.4 s, in parts of 48 MiB in 7.5 s."""

PART_NAME = re.compile(r"\.?[a-z]+-[0-9a-f]{8}-[0-9]{3,}\.js(\..*\.tmp)?")
CHECKS = 4
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}


class PageSummary(NamedTuple):
    """What was written: path of index.html, number of files, their bytes in all, and the model's metadata."""

    path: Path
    files: int
    bytes: int
    info: "ModelInfo"


@click.command("page")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("page"), show_default=True)
@click.option("--names", type=click.Path(path_type=Path), help="The names.toml with this model's cluster names.")
def page_command(model: Path, output: Path, names: Path | None) -> None:
    """Make a web page of MODEL.onnx that sorts pictures in the browser.

    Drop pictures or folders on it, see their clusters, save them as CSV. It works offline, and no picture leaves the
    computer. Open index.html, or serve the folder with any web server.
    """
    known = None if names is None else read_names(names)
    summary = write_page(model, output, known, lambda line: click.echo(line, err=True))
    click.echo(
        f"wrote {summary.path}: {count_noun(summary.files, 'file')}, {summary.bytes / 1e6:.1f} MB; "
        f"open it in a browser, or serve it with python -m http.server -d {output}"
    )


def read_names(path: Path) -> "Names":
    """The names in a names.toml. Raises StdacError where there is none, or a damaged one."""
    from export.results.names import load_names

    names = load_names(path)
    if names is None:
        raise StdacError(f"there is no {path}: expected a names.toml, which the gallery of stdac cluster writes")
    return names


def write_page(
    model: Path, folder: Path, names: "Names | None" = None, say: Callable[[str], None] = lambda line: None
) -> PageSummary:
    """Write a page that runs model.onnx with onnxruntime-web; the folder then holds all that it needs.

    The page compares its answers with those of onnxruntime, stored in it, before it takes pictures. folder: a new one,
    an empty one, or one with such a page, which is replaced; hidden files in it stay. names: of this model's clusters,
    in place of those in the file. say: is told before anything is fetched. Raises StdacError for a file that is not
    ours, names that do not fit, a folder with other things in it or that cannot be written, and where onnxruntime-web
    is missing.
    """
    from export.clusterer import Clusterer
    from export.web import find_runtime

    clusterer = Clusterer(model, "cpu")
    described = describe(clusterer, names)
    check_folder(folder)
    probes = _check_images(clusterer.info.shape)
    described["scores"] = clusterer.predict(probes).scores.tolist()
    content = {"model": model.read_bytes(), "check": probes.tobytes()} | _read_runtime(find_runtime(say))
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        files = {name: _write_parts(folder / "parts", name, data) for name, data in content.items()}
        _write_index(folder / "index.html", described | {"files": files})
        _remove_others(folder, {part for file in files.values() for part in file["parts"]})
        written = [folder / "index.html", *split_parts(folder)]
        return PageSummary(written[0], len(written), sum(p.stat().st_size for p in written), clusterer.info)
    except OSError as error:
        raise explain_refusal(error, folder) from error


def _read_runtime(folder: Path) -> dict[str, bytes]:
    """The compressed program and binary of each provider, by the names that the page has for them."""
    from export.web import RUNTIMES

    found = {}
    for provider, (program, binary) in RUNTIMES.items():
        found[f"{provider}program"] = (folder / f"{program}.gz").read_bytes()
        found[f"{provider}binary"] = (folder / f"{binary}.gz").read_bytes()
    return found


def describe(clusterer: "Clusterer", names: "Names | None") -> dict[str, Any]:
    """What the page says about the model, and needs to know of it. Raises StdacError for another model's names."""
    info = clusterer.info
    if names is not None and names.model != info.model_id:
        raise StdacError(
            f"the names are of model {names.model}, but {clusterer.path} is model {info.model_id}: stdac cluster with "
            "--gallery matches them to it"
        )
    own = info.cluster_names or ("",) * info.k
    given = ("",) * info.k if names is None else names.of(info.k)
    return {
        "title": f"{info.k} clusters of {info.dataset}",
        "method": info.trial.get("method"),
        "names": [name or default for name, default in zip(given, own, strict=True)],
        "shape": list(info.shape),
        "background": info.background,
        "precision": info.precision,
        "sha256": clusterer.sha256,
        "model": clusterer.path.name,
        "version": info.stdac_version,
        "tolerance": TOLERANCES[info.precision],
    }


def _check_images(shape: tuple[int, int, int]) -> Any:
    """CHECKS images of noise, (CHECKS, C, H, W) uint8, on which the page compares itself with onnxruntime."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (CHECKS, *shape), dtype=np.uint8)


def check_folder(folder: Path) -> None:
    """Raise StdacError where a folder holds something that `write_page` did not put there, or is not a folder."""
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise StdacError(f"cannot write {folder}: it is a file; name a folder")
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and not _is_ours(p))
    except OSError as error:
        raise explain_refusal(error, folder) from error
    if others:
        raise StdacError(
            f"{folder} holds {others[0]}, which is no part of a page of stdac: name a new folder, or an empty one"
        )


def _is_ours(path: Path) -> bool:
    """Whether an entry of the output folder is an index.html or a folder parts/ of an earlier page."""
    if path.name == "index.html" and path.is_file():
        with path.open("rb") as file:
            return GENERATOR.encode() in file.read(500)
    is_parts = path.name == "parts" and path.is_dir() and not path.is_symlink()
    return is_parts and all(PART_NAME.fullmatch(part.name) for part in path.iterdir())


def split_parts(folder: Path) -> list[Path]:
    """The parts in a page's folder, half-written ones of a killed run too."""
    return [path for path in sorted((folder / "parts").iterdir()) if PART_NAME.fullmatch(path.name)]


def _remove_others(folder: Path, kept: Collection[str]) -> None:
    """Remove the parts of an earlier page from its folder."""
    for path in split_parts(folder):
        if path.name not in kept:
            path.unlink()


def _write_parts(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    """Write bytes as scripts that hand them to the page; what the page has to know to read them again."""
    digest = sha256(data).hexdigest()[:8]
    parts = []
    for i, start in enumerate(range(0, len(data), PART_BYTES)):
        parts.append(f"{name}-{digest}-{i:03}.js")
        text = b64encode(data[start : start + PART_BYTES]).decode()
        with atomic_write(folder / parts[-1]) as file:
            file.write(f'receive("{parts[-1]}","{text}");\n'.encode())
    return {"parts": parts, "bytes": len(data), "gzip": data.startswith(b"\x1f\x8b")}


def _write_index(path: Path, described: Mapping[str, Any]) -> None:
    """Write index.html: the template with style, scripts and the model's description in it.

    Its content security policy lets these scripts and those of parts/ run, and forbids every connection.
    """
    from export.web import PACKAGE, VERSION

    style, script = read("page.css"), "".join(map(read, PAGE_SCRIPTS))
    values = {
        "GENERATOR": GENERATOR,
        "TITLE": escape(described["title"]),
        "VERSION": escape(described["version"]),
        "RUNTIME": f"{PACKAGE} {VERSION}",
        "STYLE": style,
        "STYLE_HASH": _hash_parts(style),
        "SCRIPT": script,
        "SCRIPT_HASH": _hash_parts(script),
        "WORKER": "".join(map(read, WORKER_SCRIPTS)),
        "MODEL": json.dumps(described, ensure_ascii=False).replace("<", "\\u003c"),
    }
    page = re.sub(r"\{\{([A-Z_]+)\}\}", lambda match: values[match[1]], read("index.html"))
    with atomic_write(path) as file:
        file.write(page.encode())


def read(name: str) -> str:
    """A text of the page's template."""
    return (WEB / name).read_text("utf-8")


def _hash_parts(text: str) -> str:
    """A hash of an inline style or script, as a content security policy takes it."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"

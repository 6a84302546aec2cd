"""What a launch asks for, and how its workers run their trials: this alone crosses from process to process, as JSON."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from stdac.errors import StdacError


@dataclass(frozen=True)
class Options:
    """How a worker runs its trials; see `stdac.machine.Machine` and `stdac.run.run_trial`.

    pause_after: trials are left at the checkpoint of that epoch of their main phase.
    """

    device: str = "auto"
    threads: int | None = None
    data_dir: Path | None = None
    keep: str = "all"
    pause_after: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return to_plain(self)

    @classmethod
    def from_json(cls, values: Any) -> "Options":
        """What `to_json` gave. Raises StdacError for keys of another version."""
        options = cls(**check_keys(cls, values))
        return replace(options, data_dir=None if options.data_dir is None else Path(options.data_dir))


@dataclass(frozen=True)
class Request:
    """What a launch was asked for. workers: trials at a time in all, None for as many as the hardware has places.

    nodes: of the cluster. trials_per_gpu: those that share a GPU. simulate: the nodes are parts of this machine.
    """

    run: Path
    options: Options
    nodes: int = 1
    workers: int | None = None
    trials_per_gpu: int = 1
    simulate: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return to_plain(self)

    @classmethod
    def from_json(cls, values: Any) -> "Request":
        """What `to_json` gave. Raises StdacError for keys of another version."""
        request = cls(**check_keys(cls, values))
        return replace(request, run=Path(request.run), options=Options.from_json(request.options))

    def resolve(self) -> "Request":
        """The same with every path from the root, as processes that start elsewhere need it."""
        data_dir = self.options.data_dir
        options = replace(self.options, data_dir=None if data_dir is None else data_dir.resolve())
        return replace(self, run=self.run.resolve(), options=options)


def to_plain(value: Any) -> dict[str, Any]:
    """A dataclass and those in it as plain values; a path as text."""

    def collect(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        return {name: str(item) if isinstance(item, Path) else item for name, item in items}

    return asdict(value, dict_factory=collect)


def check_keys(kind: type[Any], values: Any) -> dict[str, Any]:
    """The values of a JSON object whose keys a dataclass of that kind has. Raises StdacError for anything else."""
    if not isinstance(values, dict):
        raise StdacError(f"got {values!r} as {kind.__name__}, expected a JSON object")
    names = [field.name for field in fields(kind)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise StdacError(
            f"got an unknown key {unknown[0]!r} in {kind.__name__}, expected some of {', '.join(names)}: "
            "another version of stdac made it; use one version in all processes"
        )
    return values

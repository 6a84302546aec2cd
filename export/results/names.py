"""Names of clusters that outlive a run, and a model: names.toml, carried over to other ids by the images they share."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from export.results.rows import open_rows
from stdac.errors import StdacError
from stdac.files import atomic_write
from stdac.text import read_text
from stdac.words import count_noun

MAJORITY = 0.5
LEAST_SHARED = 5  # all five of five images in one old cluster: by chance 3 %, if only half of the cluster were from it
LISTED = 5
MODEL_ID = re.compile(r"[0-9A-Za-z._-]{1,64}")
CLUSTER_ID = re.compile(r"0|[1-9][0-9]{0,8}")


class Names(NamedTuple):
    """The names of one model's clusters. model: its model_id. clusters: id -> name; one without a name is left out."""

    model: str
    clusters: Mapping[int, str]

    def of(self, k: int) -> tuple[str, ...]:
        """K names, "" for none. Raises StdacError for a name of a cluster that a model of K clusters does not have."""
        beyond = [cluster for cluster in self.clusters if cluster >= k]
        if beyond:
            raise StdacError(
                f"the names are for a cluster {max(beyond)}, but the model has clusters 0 to {k - 1}: "
                "take that line out of names.toml, or give the file of this model's names"
            )
        return tuple(self.clusters.get(cluster, "") for cluster in range(k))


class Matching(NamedTuple):
    """Which clusters of two runs are the same, told by the images that both have.

    shared: (K_old, K_new) int64, the images (of different content) in each pair of clusters. old_of: for each new
    cluster the old one that it continues, or None.
    """

    shared: NDArray[np.int64]
    old_of: tuple[int | None, ...]

    @property
    def images(self) -> int:
        """How many images of different content both runs have."""
        return int(self.shared.sum())

    @property
    def agreement(self) -> float:
        """Share of those images whose new cluster continues their old one, in [0, 1]; NaN without any."""
        kept = sum(int(self.shared[old, new]) for new, old in enumerate(self.old_of) if old is not None)
        return kept / self.images if self.images else float("nan")


def load_names(path: Path) -> Names | None:
    """The names in a names.toml; None where there is no such file. Raises StdacError where it is damaged."""
    try:
        if path.exists() and not path.is_file():
            raise StdacError(f"{path} is not a file: expected a names.toml, or none and it will be made")
        spec = tomllib.loads(read_text(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StdacError(
            f"cannot read {path} ({error.strerror}): expected a names.toml, or none and it will be made"
        ) from error
    except (ValueError, RecursionError) as error:
        raise StdacError(f"{path} is not TOML ({error}): mend it, or move it away and it will be made anew") from error
    model, clusters = spec.get("model"), spec.get("clusters")
    if set(spec) != {"model", "clusters"} or not isinstance(model, str) or not isinstance(clusters, dict):
        raise StdacError(f'{path} is no file of cluster names: expected model = "..." and a table [clusters], no more')
    if not MODEL_ID.fullmatch(model):
        raise StdacError(
            f"{path} has model = {model!r}, expected the id of a model: what stdac show calls its model_id"
        )
    for key, name in clusters.items():
        if not CLUSTER_ID.fullmatch(key) or not isinstance(name, str):
            raise StdacError(f'{path} has {key} = {name!r} in [clusters], expected lines such as 0 = "name"')
    return Names(model, {int(key): name for key, name in clusters.items() if name})


def write_names(path: Path, names: Names) -> None:
    """Write names.toml, whole or not at all. Raises StdacError where it cannot be written."""
    lines = [f"model = {_write_toml_string(names.model)}", "", "[clusters]"]
    lines += [f"{cluster} = {_write_toml_string(name)}" for cluster, name in sorted(names.clusters.items())]
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode("utf-8", "replace"))


def _write_toml_string(text: str) -> str:
    """A basic string of TOML: JSON's, but for the control character DEL, which TOML wants escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def match_clusters(old: Path | pa.Table, new: Path | pa.Table) -> Matching:
    """Match the clusters of two clusters.parquet (or tables with cluster and content_hash) by the images both have.

    A new cluster continues an old one where more than half of its shared images come from there, more than half of the
    old one's went here, and they are at least LEAST_SHARED. At most one pair can satisfy this for any cluster, so no
    assignment problem is left: an optimal assignment (Hungarian) agrees, or pairs clusters that are not each other's
    majority. A cluster that was split in halves, or merged of two equal ones, is therefore new. Raises StdacError for
    a file that cannot be read or lacks a column.
    """
    once = [_cluster_of_content(run) for run in (old, new)]
    both = once[0].join(once[1], "content_hash", join_type="inner", left_suffix="_old", right_suffix="_new")
    pairs = both.group_by(["cluster_old", "cluster_new"]).aggregate([([], "count_all")])
    row, column = pairs["cluster_old"].to_numpy(), pairs["cluster_new"].to_numpy()
    shared = np.zeros([cluster_count(run, table["cluster"]) for run, table in zip((old, new), once, strict=True)], int)
    shared[row, column] = pairs["count_all"].to_numpy()
    same = (shared > MAJORITY * shared.sum(0)) & (shared > MAJORITY * shared.sum(1, keepdims=True))
    same &= shared >= LEAST_SHARED
    return Matching(shared, tuple(int(olds.argmax()) if olds.any() else None for olds in same.T))


def _cluster_of_content(run: Path | pa.Table) -> pa.Table:
    """content_hash and cluster, one row for each content: copies of an image are in one cluster."""
    table = read_columns(run, ["content_hash", "cluster"]) if isinstance(run, Path) else run
    table = table.select(["content_hash", "cluster"]).drop_null()
    return table.group_by("content_hash").aggregate([("cluster", "min")]).rename_columns(["content_hash", "cluster"])


def read_columns(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a clusters.parquet, with its metadata. Raises StdacError where it cannot be read or lacks one."""
    try:
        with open_rows(path) as file:
            there = set(file.schema_arrow.names)
            if missing := [name for name in columns if name not in there]:
                raise pa.ArrowInvalid(f"it has no column {missing[0]}")
            return file.read(columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise explain_unreadable(path, error) from error


def explain_unreadable(path: Path, error: Exception) -> StdacError:
    """One sentence for a clusters.parquet that is missing, damaged or of an older stdac."""
    if isinstance(error, FileNotFoundError):
        return StdacError(f"there is no {path}: expected a clusters.parquet of an earlier stdac cluster")
    reason = (str(error).splitlines() or [""])[0]
    return StdacError(f"cannot read {path} as clusters.parquet ({reason}): write it again with stdac cluster")


def read_model_id(run: Path | pa.Table) -> str | None:
    """The model_id in a run's metadata, None where it says nothing."""
    return metadata(run).get(b"stdac.model_id", b"").decode("utf-8", "replace") or None


def cluster_count(run: Path | pa.Table, clusters: pa.ChunkedArray) -> int:
    """K of a run: from its metadata, or as many as its highest id asks for."""
    said = metadata(run).get(b"stdac.k", b"")
    return max(int(said) if said.isdigit() else 0, (pc.max(clusters).as_py() or 0) + 1 if len(clusters) else 0)


def metadata(run: Path | pa.Table) -> Mapping[bytes, bytes]:
    """The key-value metadata of a run's schema. Raises StdacError for a file that cannot be read."""
    try:
        if isinstance(run, pa.Table):
            return run.schema.metadata or {}
        with open_rows(run) as file:
            return file.schema_arrow.metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise explain_unreadable(run, error) from error


def carry_names(
    names: Names, model_id: str, k: int, old: Path | pa.Table | None, new: Path | pa.Table
) -> tuple[Names, str]:
    """The names for a run of the model `hash_model` with K clusters, and a sentence that tells the user what became of
    them ("" where nothing changed).

    names: of this model, then they stay; or of another one, then each goes to the cluster that continues its own by
    `match_clusters`. old: clusters.parquet of the model that the names are of, None where there is none; new: of this
    run. Raises StdacError for names that do not fit K, or runs that cannot be read.
    """
    if names.model == model_id:
        names.of(k)
        return names, ""
    none = Names(model_id, {})
    if not names.clusters:
        return none, ""
    lost = "the names are another model's, and none was carried over"
    if old is None:
        return none, f"{lost}: there is no earlier clusters.parquet to match the clusters by."
    if read_model_id(old) != names.model:
        return none, f"{lost}: the earlier clusters.parquet is not of the model that they were given for."
    matching = match_clusters(old, new)
    if matching.images < LEAST_SHARED:
        common = f"{count_noun(matching.images, 'image')} in common"
        return none, f"{lost}: the two runs have {common}, too few to match clusters by."
    carried = {
        cluster: names.clusters[before]
        for cluster, before in enumerate(matching.old_of)
        if before is not None and before in names.clusters
    }
    return Names(model_id, carried), _describe_carried(names, carried, matching)


def _describe_carried(names: Names, carried: Mapping[int, str], matching: Matching) -> str:
    """What was carried over, by what, and what was not."""
    text = f"the model is another one: {len(carried)} of {count_noun(len(names.clusters), 'name')} carried over"
    text += f", by the {count_noun(matching.images, 'image')} that both runs have"
    kept = {before for before in matching.old_of if before is not None}
    lost = [name for cluster, name in sorted(names.clusters.items()) if cluster not in kept]
    if not lost:
        return text + "."
    shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in lost[:LISTED])
    more = f" and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    return f"{text}; not carried, as no new cluster has most of their images: {shown}{more}."

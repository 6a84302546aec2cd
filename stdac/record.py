"""The schema of what a trial leaves: the rows of its metrics, its images' clusters, and the files they are in."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stdac.errors import StdacError

METRICS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        ("phase", pa.string()),
        ("epoch", pa.int32()),
        ("acc", pa.float64()),
        ("nmi", pa.float64()),
        ("ari", pa.float64()),
        ("purity", pa.float64()),
        ("nmi_geometric", pa.float64()),
        ("clusters_used", pa.int32()),
        ("loss", pa.float64()),
        ("loss_pair", pa.float64()),
        ("loss_auxiliary", pa.float64()),
        ("loss_reconstruction", pa.float64()),
        ("loss_clustering", pa.float64()),
        ("threshold", pa.float64()),
        ("positive_fraction", pa.float64()),
        ("selected_fraction", pa.float64()),
        ("mean_confidence", pa.float64()),
        ("images_seen", pa.int64()),
        ("seconds", pa.float64()),
        ("images_per_s", pa.float64()),
        ("device", pa.string()),
        ("params", pa.string()),
        ("schema_version", pa.int32()),
        ("noise", pa.float64()),
        ("main", pa.bool_()),
        ("acc_majority", pa.float64()),
        ("acc_relabelled", pa.float64()),
    ]
)
"""One row a (trial_id, phase, epoch); absent values are null. acc … nmi_geometric in [0, 1]; seconds: of the epoch;
noise: the share of images in no cluster; acc_majority, acc_relabelled: accuracies of other papers, see `stdac.metrics`;
main: whether the row is of the phase whose epochs the trial counts.

A method may log further terms, columns of float64 after these: see OPEN. Of files of other versions, past or to come,
CORE is what a reader needs; what else is missing is null, what else is there is left out (`conform_metrics`).
"""

OPEN = re.compile(r"(loss|term)_[a-z0-9_]+")
"""The names of the columns that a method may add."""

MOVED = "term_moved"
"""The share of images that are in another cluster than after the epoch before; of a main phase, from epoch 1 on."""

PRECISION = "term_precision_"
"""Before the name of a space: how often the five nearest images there have an image's class, see `Fitted.spaces`."""

LOGGED = (
    *("loss", "threshold", "positive_fraction", "selected_fraction"),
    *("images_seen", "seconds", "images_per_s"),
)
"""The columns of METRICS that a phase fills, besides those that OPEN matches."""

LATER = ("noise", "main", "acc_majority", "acc_relabelled")
"""The columns that later versions added."""

CORE = tuple(name for name in METRICS.names if not OPEN.fullmatch(name) and name not in LATER)

FIRST_MAIN = "cluster"
"""What every main phase was called before rows marked it, and what the score of a method without phases is called."""

TIMINGS = ("seconds", "images_per_s", "device")
"""The columns of METRICS that differ between two runs of one trial; all others are equal bit for bit (on one CPU)."""

ASSIGNMENTS = pa.schema(
    [
        ("index", pa.int64()),
        ("cluster", pa.int32()),
        ("protocol_cluster", pa.int32()),
        ("protocol_confidence", pa.float32()),
        ("label", pa.int32()),
    ]
)
"""One row an image: the deployed model's cluster, the protocol's, and the ground truth where there is one."""


FIGURES = "stn.npz"
"""The arrays that pictures of a trial are drawn from, named after the first method that had some."""

PARTS = ("metrics.parquet", "assignments.parquet", "model.pt", FIGURES)
"""What a result is made of; `done.json` has the SHA-256 of each."""


def check_log(log: Mapping[str, float]) -> None:
    """Raise StdacError for a name that a phase may not log."""
    for name in log:
        if name not in LOGGED and not OPEN.fullmatch(name):
            raise StdacError(
                f"got a logged term named {name!r}, expected loss_… or term_… in small letters, digits and _, "
                f"or one of {', '.join(LOGGED)}: rename it in the loss"
            )


def make_metrics(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a METRICS table, with the columns of OPEN that they have; what a row lacks is null."""
    names = {name for row in rows for name in row}
    unknown = {name for name in names - set(METRICS.names) if not OPEN.fullmatch(name)}
    if unknown:
        raise ValueError(f"rows have columns {sorted(unknown)} that the schema does not")
    schema = pa.schema([*METRICS, *((name, pa.float64()) for name in sorted(names - set(METRICS.names)))])
    return pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)


def drop_terms(schema: pa.Schema) -> pa.Schema:
    """A schema without the columns that methods may add."""
    return pa.schema([f for f in schema if f.name in METRICS.names or not OPEN.fullmatch(f.name)])


def conform_metrics(table: pa.Table) -> pa.Table:
    """A table of any version as a METRICS table with its columns of OPEN. Raises StdacError where a column of CORE is
    missing, or a column has values of another type."""
    names = table.column_names
    missing = [name for name in CORE if name not in names]
    if missing:
        raise StdacError(f"it lacks the columns {', '.join(missing)}: expected a file that stdac wrote")
    if len(set(names)) < len(names):
        raise StdacError("it has two columns of one name: expected a file that stdac wrote")
    more = sorted(name for name in names if name not in METRICS.names and OPEN.fullmatch(name))
    schema = pa.schema([*METRICS, *((name, pa.float64()) for name in more)])
    columns = {f.name: table[f.name] if f.name in names else pa.nulls(len(table), f.type) for f in schema}
    try:
        columns["main"] = pc.coalesce(columns["main"], pc.equal(table["phase"], FIRST_MAIN))
        return pa.table(columns).cast(schema)
    except (pa.ArrowException, TypeError) as error:
        raise StdacError(f"it has values of another type ({str(error).splitlines()[0]})") from error

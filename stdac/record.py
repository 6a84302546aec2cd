"""The schema of what a trial leaves: the rows of its metrics, its images' clusters, and the files they are in."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

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
    ]
)
"""One row a (trial_id, phase, epoch); absent values are null. acc … nmi_geometric in [0, 1]; seconds: of the epoch."""

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


PARTS = ("metrics.parquet", "assignments.parquet", "model.pt", "stn.npz")
"""What a result is made of; `done.json` has the SHA-256 of each."""


def metrics_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a METRICS table; missing columns are null, unknown ones an error."""
    unknown = {key for row in rows for key in row} - set(METRICS.names)
    if unknown:
        raise ValueError(f"rows have columns {sorted(unknown)} that the schema does not")
    return pa.table({name: [row.get(name) for row in rows] for name in METRICS.names}, schema=METRICS)

"""Columns of Parquet files, by what their values can be: encoded pictures, labels, names."""

import json
import math
from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from stdac.errors import StdacError
from stdac.text import escape_label

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def find_values(kind: "pa.DataType") -> "pa.DataType":
    """The type of a column's values, which a dictionary, an extension or an encoding of runs may be around."""
    import pyarrow as pa

    while True:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def is_bytes(kind: "pa.DataType") -> bool:
    """Whether values of a type are bytes, which lists of uint8 are too."""
    import pyarrow as pa

    kind, types = find_values(kind), pa.types
    if is_list(kind):
        return bool(types.is_uint8(kind.value_type))
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_a(kind) for is_a in binary) and not types.is_decimal(kind)


def is_list(kind: "pa.DataType") -> bool:
    """Whether values of a type are lists of others."""
    import pyarrow as pa

    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_a(kind) for is_a in lists)


def is_image(kind: "pa.DataType") -> bool:
    """Whether values of a type may be encoded pictures."""
    import pyarrow as pa

    kind = find_values(kind)
    return is_bytes(kind) or (pa.types.is_struct(kind) and any(f.name == "bytes" and is_bytes(f.type) for f in kind))


def is_name(kind: "pa.DataType") -> bool:
    """Whether values of a type may be names of files, or places in one."""
    import pyarrow as pa

    kind, types = find_values(kind), pa.types
    return any(is_a(kind) for is_a in (types.is_string, types.is_large_string, types.is_string_view, types.is_integer))


def is_label(kind: "pa.DataType") -> bool:
    """Whether values of a type may be labels: all but nested ones; of floats, those that are whole."""
    import pyarrow as pa

    kind = find_values(kind)
    return not pa.types.is_nested(kind)


def refuse_label(name: str, kind: object, value: object = None) -> StdacError:
    """The error for a column of labels whose values are none."""
    such = "" if value is None else f" with values such as {value}"
    return StdacError(f"column {name} has type {kind}{such}, expected text or whole numbers as labels")


def read_features(schema: "pa.Schema") -> dict[Any, dict[str, Any]]:
    """What the library `datasets` notes of each column, {} where it did not write the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def read_label_text(label: Any, classes: tuple[str, ...] = ()) -> str | None:
    """A label as text: the class's name where it has one; None for a missing one, which Hugging Face writes as -1.

    Raises ValueError for a number that is not whole.
    """
    if label is None or (isinstance(label, float) and math.isnan(label)):  # as pandas has missing numbers
        return None
    if isinstance(label, float | Decimal):
        if label % 1 != 0:
            raise ValueError(f"a label is {label}, expected text or whole numbers")
        label = int(label)
    if isinstance(label, int) and classes:
        return None if label < 0 else escape_label(classes[label]) if label < len(classes) else str(label)
    return escape_label(label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else str(label))


def find_fraction(file: "pq.ParquetFile", column: str) -> object:
    """The first value of a column that is a number and no label, as it is not whole; None where there is none."""
    import pyarrow as pa

    kind = find_values(file.schema_arrow.field(column).type)
    if not (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return None
    batches: Iterable[pa.RecordBatch] = file.iter_batches(columns=[column], use_threads=False)
    for batch in batches:
        for value in batch.column(0).to_pylist():
            try:
                read_label_text(value)
            except ValueError:
                return value
    return None

"""Pictures in Parquet files, read in a child process: hostile ones may crash a reader, or take any amount of memory."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from stdac.errors import StdacError
from stdac.pictures.batches import (
    BATCH_BYTES,
    Batch,
    Content,
    Item,
    Unreadable,
    batch_items,
    end_with_reason,
    read_stat,
    refuse_large,
)
from stdac.pictures.child import iterate_in_child
from stdac.pictures.columns import (
    find_fraction,
    is_bytes,
    is_image,
    is_label,
    read_features,
    read_label_text,
    refuse_label,
)
from stdac.text import escape_name

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MEMORY_BYTES = 1 << 30
BUFFER_BYTES = 1 << 20

IMAGE_NAMES = ("image", "images", "img", "picture", "photo", "bytes", "data", "content", "jpg", "jpeg", "png", "webp")
LABEL_NAMES = ("label", "labels", "class", "target", "y")

READ_ROWS = 32  # read at once, and lost where one of them is damaged


class ParquetFile:
    """The pictures in a column of a Parquet file. Raises StdacError where no column is one, or several could be."""

    def __init__(self, path: str) -> None:
        self.path, self.name = path, escape_name(path)
        self._columns: Columns | None = None
        try:
            ((images, columns),) = iterate_in_child(
                "stdac.pictures.parquet:_describe_parquet", path, memory_bytes=MEMORY_BYTES
            )
        except StdacError:
            return  # batches() tells, in a row
        if isinstance(columns, str):
            raise StdacError(f"{self.name} {columns}")
        self._images, self._columns = images, columns

    @property
    def notes(self) -> list[str]:
        """What a person should know of how it is read."""
        note = "" if self._columns is None else self._columns.note
        return [f"{self.name} is read without labels: {note}"] if note else []

    def count(self) -> int:
        return 1 if self._columns is None else max(1, self._images)

    def batches(self) -> Iterator[Batch]:
        batches = iterate_in_child(
            "stdac.pictures.parquet:_read_parquet", self.path, self._columns, memory_bytes=MEMORY_BYTES
        )
        return end_with_reason(batches, self.path, read_stat(self.path))


class Columns(NamedTuple):
    """Where a Parquet file has its pictures and their labels, and the names of the classes if labels are numbers.

    note: why a column that is named as labels are is none, "" where none is.
    """

    image: str
    label: str | None
    classes: tuple[str, ...]
    note: str = ""


def _describe_parquet(path: str) -> Iterator[tuple[int, Columns | str]]:
    """How many rows a Parquet file has, and its columns, or what is wrong with them; once."""
    import pyarrow.parquet as pq

    with open(path, "rb") as opened, pq.ParquetFile(opened) as file:  # a name that is not UTF-8 is nothing for Arrow
        try:
            columns = find_columns(file.schema_arrow)
            if columns.label is not None and (value := find_fraction(file, columns.label)) is not None:
                kind = file.schema_arrow.field(columns.label).type
                columns = Columns(columns.image, None, (), str(refuse_label(columns.label, kind, value)))
            yield file.metadata.num_rows, columns
        except StdacError as error:
            yield file.metadata.num_rows, str(error)


def find_columns(schema: "pa.Schema") -> Columns:
    """The columns of pictures and labels, by type, by Hugging Face's description, by name. Raises StdacError."""
    features = read_features(schema)
    image = _find_image(schema, features)
    named = [f for name in LABEL_NAMES for f in schema if f.name.lower() == name and f.name != image]
    labels = [f.name for f in named if is_label(f.type)]
    described = [f.name for f in schema if is_label(f.type) and features.get(f.name, {}).get("_type") == "ClassLabel"]
    label = next(iter(labels), described[0] if len(described) == 1 else None)
    classes = features.get(label, {}).get("names") if label is not None else None
    note = str(refuse_label(named[0].name, named[0].type)) if named and label is None else ""
    return Columns(image, label, tuple(map(str, classes)) if isinstance(classes, list) else (), note)


def _find_image(schema: "pa.Schema", features: dict[Any, dict[str, Any]]) -> str:
    """The column of pictures. Raises StdacError, without the file's name, where it is not clear."""
    fit = [f.name for f in schema if is_image(f.type)]
    described = [name for name in fit if features.get(name, {}).get("_type") == "Image"]
    named = [name for name in fit if name.lower() in IMAGE_NAMES]
    for choice in (described, named, fit):
        if len(choice) == 1:
            return str(choice[0])
    have = ", ".join(f"{field.name} ({field.type})" for field in schema)[:500]
    what = "has several columns that could be the images" if fit else "holds no images"
    raise StdacError(
        f"{what}: expected one binary column, or a struct with the binary field bytes, named image; "
        f"its columns are {have or 'none'}"
    )


def _read_parquet(path: str, columns: Columns | None) -> Iterator[Batch]:
    """The pictures of a Parquet file; for a process of its own. Raises whatever pyarrow does where it is damaged."""
    return batch_items(_read_items(path, columns), escape_name(path), read_stat(path))


def _read_items(path: str, columns: Columns | None) -> Iterator[Item]:
    """The pictures of a Parquet file with their labels."""
    import pyarrow.parquet as pq

    options = {"pre_buffer": False, "buffer_size": BUFFER_BYTES, "page_checksum_verification": True}
    with open(path, "rb") as opened, pq.ParquetFile(opened, **options) as file:
        columns = columns or find_columns(file.schema_arrow)
        struct = not is_bytes(file.schema_arrow.field(columns.image).type)
        wanted = [f"{columns.image}.bytes" if struct else columns.image, columns.label or columns.image]
        for batch in file.iter_batches(_rows_at_once(file.metadata), columns=wanted, use_threads=False):
            images, labels = batch.column(columns.image), [None] * len(batch)
            if columns.label is not None:
                labels = batch.column(columns.label).to_pylist()
            for image, label in zip(images, labels, strict=True):
                value = image["bytes"] if struct and image.is_valid else image
                yield Item(_picture_in(read_bytes(value)), read_label_text(label, columns.classes))


def _rows_at_once(metadata: "pq.FileMetaData") -> int:
    """How many rows to read at a time, by the mean size of all columns together."""
    size: int = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    rows: int = metadata.num_rows
    return min(READ_ROWS, max(1, BATCH_BYTES * rows // max(size, 1)))


def read_bytes(scalar: "pa.Scalar") -> bytes | None:
    """The bytes in a scalar of `is_bytes`."""
    value = scalar.as_py()
    return bytes(value) if isinstance(value, list) else value


def _picture_in(value: bytes | None) -> Content:
    """An encoded picture of an archive, or why it is not read."""
    if value is None:
        return Unreadable("its row holds no bytes")
    return refuse_large(len(value)) or value

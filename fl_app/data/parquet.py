"""Parquet files of images and classes, by pandas, Polars or Hugging Face."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_app.config import ConfigError
from fl_app.data.tables import Columns, Table, in_order, nfc
from fl_app.data.tree import shown

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGES = ("image", "img")
_PATHS = (*_IMAGES, "path", "file_name")
_LABELS = ("label", "labels")


@dataclass(frozen=True)
class Schema:
    """The columns of a Parquet file, and those that may hold images or classes."""

    names: list[str]
    images: list[str]
    classes: dict[str, list[str]]
    """Columns of Hugging Face's ClassLabel, with the names of their classes."""


def schema_of(path: str, image_column: str = "") -> Schema:
    """Return what columns a Parquet file has.

    Raises:
        ConfigError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{shown(path)} is no Parquet file: {error}") from error
    features = _features(schema)
    declared = [n for n, f in features.items() if f.get("_type") == "Image"]
    held = [f.name for f in schema if _is_image(f.type)]
    images = [image_column] if image_column in schema.names else declared or held
    classes = {n: f["names"] for n, f in features.items() if "names" in f}
    named = [f.name for f in schema if f.name in _PATHS and _is_text(f.type)]
    if not images and (classes or any(n in schema.names for n in _LABELS)):
        images = named  # paths of files
    return Schema(schema.names, images, classes)


def holds_images(path: str, schema: Schema) -> bool:
    """Whether a Parquet file has images in it, and not only paths of other files."""
    import pyarrow.parquet as pq

    columns = schema.images[:1]
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1, columns=columns):
        value = batch.column(0)[0].as_py()
        inside = value.get("bytes") if isinstance(value, dict) else value
        return isinstance(inside, bytes)
    return False


def _features(schema: "pa.Schema") -> dict[str, Any]:
    """Return Hugging Face's description of the columns; {} where there is none."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        found = described["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {n: f for n, f in found.items() if isinstance(f, dict)}


def _is_image(of: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(of):
        inner = [of.field(i) for i in range(of.num_fields)]
        return any(f.name == "bytes" and _is_bytes(f.type) for f in inner)
    return _is_bytes(of)


def _is_text(of: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(of) or pa.types.is_large_string(of))


def _is_bytes(of: "pa.DataType") -> bool:
    import pyarrow as pa

    kinds = (
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
        pa.types.is_fixed_size_binary,
    )
    return any(is_kind(of) for is_kind in kinds)


def of_parquet(path: str, columns: Columns, files: Sequence[str] = ()) -> Table:
    """Return the images and classes in a Parquet file.

    Raises:
        ConfigError: it is not clear which columns are meant, or a row lacks something.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(path, columns.image)
    image_column, label_column = columns_of(shown(path), schema, columns)
    try:
        table = pq.read_table(path, columns=[image_column, label_column])
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{shown(path)} cannot be read: {error}") from error
    return of_arrow(
        *(table.column(image_column), table.column(label_column)),
        source=shown(path),
        label=label_column,
        class_names=schema.classes.get(label_column),
        folder=Path(path).parent,
        files=files,
    )


def columns_of(source: str, schema: Schema, columns: Columns) -> tuple[str, str]:
    """Return the columns of images and of labels.

    Raises:
        ConfigError: there is none, or several may be meant.
    """
    image = _image_column(source, schema, columns)
    return image, _label_column(source, schema, columns, image)


def _image_column(source: str, schema: Schema, columns: Columns) -> str:
    if columns.image and columns.image not in schema.names:
        raise ConfigError(
            f"image-column = {columns.image!r} is not in {source}, which has the "
            f"columns {schema.names}"
        )
    if len(schema.images) == 1:
        return schema.images[0]
    known = [name for name in _IMAGES if name in schema.images]
    if len(known) == 1:
        return known[0]
    if schema.images:
        raise ConfigError(
            f"{source} has the columns {schema.names}, and "
            f"{' and '.join(schema.images)} may be the images: say which with "
            "image-column"
        )
    raise ConfigError(
        f"{source} has the columns {schema.names}: one must hold images, as the bytes "
        "of image files or as their paths, and none does"
    )


def _label_column(
    source: str, schema: Schema, columns: Columns, image_column: str
) -> str:
    if columns.label:
        if columns.label not in schema.names:
            raise ConfigError(
                f"label-column = {columns.label!r} is not in {source}, which has the "
                f"columns {schema.names}"
            )
        return columns.label
    named = [name for name in _LABELS if name in schema.names] or list(schema.classes)
    if len(named) == 1:
        return named[0]
    if named:
        raise ConfigError(
            f"{source} has the columns {schema.names}, and {' and '.join(named)} may "
            'be the class: say which with label-column="..."'
        )
    others = [name for name in schema.names if name != image_column]
    raise ConfigError(
        f"{source} has the columns {schema.names}: one must be the class, called "
        f'label; if it is another, say which: label-column="..." (there are {others})'
    )


def of_arrow(
    images: "pa.ChunkedArray",
    labels: "pa.ChunkedArray",
    *,
    source: str,
    label: str,
    class_names: list[str] | None = None,
    folder: Path = Path(),
    files: Sequence[str] | None = None,
) -> Table:
    """Return the table of a column of images and one of labels.

    Args:
        images: bytes, or structs of bytes and a path.
        labels: text, whole numbers, or truth values.
        source: what they are of, for errors.
        label: the label column's name.
        class_names: what the numbers stand for; None if they stand for themselves.
        folder: what paths are relative to.
        files: the files that paths may name; None for any.
    """
    named = _named(labels, source, label, class_names)
    there = None if files is None else {os.path.normpath(path) for path in files}
    paths: dict[int, str] = {}
    for row, cell in enumerate(images):
        value = cell.as_py()
        inside = value.get("bytes") if isinstance(value, dict) else value
        path = value.get("path") if isinstance(value, dict) else value
        if isinstance(inside, bytes):
            continue
        if value is None or not isinstance(path, str):
            raise ConfigError(
                f"row {row} of {source} has no image: remove the row"
                if value is None or isinstance(value, dict)
                else f"{source}: its images are {images.type}, not the bytes of image "
                "files: save them as PNG"
            )
        file = os.path.normpath(folder / path)
        if not os.path.isfile(file) if there is None else file not in there:
            raise ConfigError(
                f"row {row} of {source}: there is no image {path!r} in {folder}"
            )
        paths[row] = file
    names = class_names or in_order(set(named))
    places = [f"row {row} of {source}" for row in range(len(named))]
    return Table(Cells(images, paths), places, named, [nfc(name) for name in names])


class Cells(Sequence[bytes]):
    """The images in a column, made into bytes or read when they are asked for."""

    def __init__(self, column: "pa.ChunkedArray", paths: Mapping[int, str]) -> None:
        self.paths = paths
        """By row, of images that are files beside the table."""
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        if row in self.paths:
            return Path(self.paths[row]).read_bytes()
        value = self._column[int(row)].as_py()
        return value["bytes"] if isinstance(value, dict) else value


def _named(
    labels: "pa.ChunkedArray", source: str, column: str, class_names: list[str] | None
) -> list[str]:
    """Return the names of the rows' classes."""
    import pyarrow as pa

    of = labels.type
    value = of.value_type if pa.types.is_dictionary(of) else of
    if pa.types.is_nested(value):
        raise ConfigError(
            f"{source}: {column!r} holds several labels a row ({value}): an image has "
            "one class here; choose a column of single labels with label-column"
        )
    found = []
    for row, label in enumerate(labels.to_pylist()):
        missing = label is None or label != label or label == ""  # noqa: PLR0124
        if missing or (class_names is not None and label == -1):
            raise ConfigError(
                f"{source} has rows without a label in {column!r}, row {row} the "
                "first: remove them, or give them one"
            )
        if isinstance(label, float):
            if not label.is_integer():
                raise ConfigError(
                    f"row {row} of {source}: {column!r} is {label}, which is no class: "
                    "labels are text, whole numbers, or truth values"
                )
            label = int(label)  # noqa: PLW2901
        if class_names is not None:
            if not isinstance(label, int) or not 0 <= label < len(class_names):
                raise ConfigError(f"row {row} of {source}: {label!r} names no class")
            label = class_names[label]  # noqa: PLW2901
        if not isinstance(label, str | int):
            raise ConfigError(
                f"{source}: {column!r} holds {value}: labels are text, whole numbers, "
                "or truth values"
            )
        found.append(nfc(str(label)))
    return found

"""metadata.csv: a file beside images that says their classes."""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fl_app.config import ConfigError
from fl_app.data.tables import Columns, Table, nfc, of_files
from fl_app.data.tree import shown


def metadata_columns(path: str) -> list[str]:
    """Return the names of the columns of a metadata.csv."""
    header, _ = _rows(path)
    return header


def gives_labels(path: str | None, columns: Columns) -> bool:
    """Whether a metadata.csv says the classes of files."""
    if path is None:
        return False
    header = metadata_columns(path)
    return "file_name" in header and (columns.label or "label") in header


def of_metadata(path: str, images: Sequence[str], columns: Columns) -> Table:
    """Return the images that a metadata.csv names, with their classes.

    Args:
        path: the file; names in it are relative to its folder.
        images: the images that there are.
        columns: the label column, if it is not `label`.

    Raises:
        ConfigError: a row has no label, or names no image that is there.
    """
    label_column = columns.label or "label"
    folder = Path(path).parent
    there = {nfc(shown(p.removeprefix(f"{folder}/"))): p for p in images}
    paths, labels = [], []
    header, rows = _rows(path)
    for number, row in rows:
        cells = dict(zip(header, row, strict=False))
        name = nfc(cells.get("file_name", "").strip())
        label = cells.get(label_column, "").strip()
        if not label:
            raise ConfigError(f"{shown(path)}, row {number}: no {label_column}")
        name = name.replace("\\", "/").removeprefix("./")
        if name not in there:
            raise ConfigError(
                f"{shown(path)}, row {number}: there is no image {name!r}: mend the "
                "row or remove it"
            )
        paths.append(there[name])
        labels.append(nfc(label))
    repeated = [p for p, n in Counter(paths).items() if n > 1]
    if repeated:
        raise ConfigError(
            f"{shown(path)} names {shown(repeated[0])} more than once: an image has "
            "one class"
        )
    return of_files(paths, labels)


def _rows(path: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return a CSV file's header and its rows with their numbers, from 2."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{shown(path)} cannot be read: {error.strerror}") from error
    try:
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, row) for row in reader if any(row)]
    except csv.Error as error:
        raise ConfigError(
            f"{shown(path)}, row {reader.line_num}, is no CSV: {error}"
        ) from error
    if not rows:
        return [], []
    return [name.strip() for name in rows[0][1]], rows[1:]

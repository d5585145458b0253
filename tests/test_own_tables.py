"""Parquet files and metadata.csv as people write them: what is read, what refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.own_folders import (
    boxed,
    encoded,
    features,
    images_read,
    look,
    photo,
    plant,
    put,
    refusal,
    write_parquet,
)

PETS = ("cat", "dog")


def flat(level: int) -> bytes:
    """Return an image of one level."""
    return encoded(np.full((4, 6), level, np.uint8))


def drawn(number: int = 20) -> list[bytes]:
    """Return images whose levels are 0, 10, 20, ...: even and odd ones take turns."""
    return [flat(10 * i) for i in range(number)]


def pets(number: int = 20) -> list[str]:
    return [PETS[i % 2] for i in range(number)]


def assert_paired(folder: Path, names: Sequence[str], **options: Any) -> None:
    """Check that each of 20 drawn images has the class that it was given."""
    seen = look(folder, **options)
    found = {}
    for split in ("train", "test"):
        images = getattr(seen.data, f"{split}_images")
        labels = getattr(seen.data, f"{split}_labels")
        for image, label in zip(images, labels, strict=True):
            found[int(image.max())] = seen.data.class_names[label]
    assert found == {10 * i: names[i % len(names)] for i in range(20)}
    assert len(seen.data.test_labels) == 4


# --- how images are held


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "struct",
                                  "large struct", "dictionary", "fixed"])  # fmt: skip
def test_kinds_of_image_columns(tmp_path: Path, kind: str) -> None:
    images = drawn()
    columns: dict[str, Callable[[], Any]] = {
        "struct": lambda: pa.array(boxed(images)),
        "large struct": lambda: pa.array(
            boxed(images),
            pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
        ),
        "dictionary": lambda: pa.array(images).dictionary_encode(),
        "fixed": lambda: pa.array(  # a tail does no harm
            [one.ljust(200, b"\0") for one in images], pa.binary(200)
        ),
    }
    made = columns.get(kind) or (lambda: pa.array(images, getattr(pa, kind)()))
    try:
        write_parquet(tmp_path / "train.parquet", {"image": made(), "label": pets()})
    except pa.ArrowNotImplementedError:
        pytest.skip(f"this pyarrow writes no {kind}")
    options = {"image_column": "image"} if kind == "dictionary" else {}
    assert_paired(tmp_path, PETS, **options)


def test_written_with_pandas(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": boxed(drawn()), "label": pets()})
    frame.to_parquet(tmp_path / "train.parquet")
    assert_paired(tmp_path, PETS)


def test_written_with_pandas_after_a_selection(tmp_path: Path) -> None:
    """Its index becomes a column; categories become a dictionary."""
    frame = pd.DataFrame({"image": drawn(25), "label": pets(25)})
    frame["label"] = frame["label"].astype("category")
    frame.iloc[:20].sample(frac=1, random_state=0).to_parquet(tmp_path / "t.parquet")
    assert_paired(tmp_path, PETS)


def test_written_with_hugging_face(tmp_path: Path) -> None:
    columns = {"image": boxed(drawn()), "label": [i % 2 for i in range(20)]}
    path = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(path, columns, features({"label": ["dog", "cat"]}))
    assert_paired(tmp_path, ("dog", "cat"))
    assert look(tmp_path).data.class_names == ["dog", "cat"]  # in their own order


@pytest.mark.parametrize("name", ["image", "img", "picture", "scan", "bytes"])
def test_the_image_column_may_have_any_name(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / "train.parquet", {name: drawn(), "label": pets()})
    assert_paired(tmp_path, PETS)


@pytest.mark.parametrize("kind", ["text", "struct", "absolute"])
def test_paths_of_files_beside_the_table(tmp_path: Path, kind: str) -> None:
    paths = [f"images/{i:02d}.png" for i in range(20)]
    for path, image in zip(paths, drawn(), strict=True):
        put(tmp_path / path, image)
    column: Any = list(paths)
    if kind == "struct":
        of = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": None, "path": path} for path in paths], of)
    elif kind == "absolute":
        column = [str(tmp_path / path) for path in paths]
    write_parquet(tmp_path / "train.parquet", {"image": column, "label": pets()})
    assert_paired(tmp_path, PETS)
    assert_paired(tmp_path, PETS, image_column="image")


def test_a_path_to_nothing_is_refused_by_name(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / f"images/{i}.png", flat(i))
    paths = [f"images/{i}.png" for i in (0, 1, 2, 7)]
    write_parquet(tmp_path / "train.parquet", {"image": paths, "label": pets(4)})
    assert "7.png" in refusal(tmp_path)


# --- how labels are held


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (("cat", "dog"), pa.string(), ["cat", "dog"]),
        (("cat", "dog"), pa.large_string(), ["cat", "dog"]),
        (("cat", "dog"), pa.dictionary(pa.int32(), pa.string()), ["cat", "dog"]),
        (("cat", "dog"), pa.dictionary(pa.uint8(), pa.large_string()), ["cat", "dog"]),
        ((0, 1), pa.int8(), ["0", "1"]),
        ((0, 1), pa.uint64(), ["0", "1"]),
        ((9, 10), pa.int64(), ["9", "10"]),
        (("9", "10"), pa.string(), ["9", "10"]),
        ((3.0, 11.0), pa.float64(), ["3", "11"]),
        ((0.0, 1.0), pa.float32(), ["0", "1"]),
        ((False, True), pa.bool_(), ["False", "True"]),
        (("La\u0308sion", "gesund"), pa.string(), ["Läsion", "gesund"]),
        (("健康", "γ"), pa.string(), ["γ", "健康"]),
    ],
)
def test_kinds_of_label_columns(
    tmp_path: Path, labels: tuple[Any, Any], kind: pa.DataType, names: list[str]
) -> None:
    cells = [labels[i % 2] for i in range(20)]
    if pa.types.is_dictionary(kind):
        column = pa.array(cells).dictionary_encode().cast(kind)
    else:
        column = pa.array(cells, kind)
    write_parquet(tmp_path / "train.parquet", {"image": drawn(), "label": column})
    seen = look(tmp_path)
    assert seen.data.class_names == names
    plain = [str(int(v)) if isinstance(v, float) else str(v) for v in labels]
    assert_paired(tmp_path, [v.replace("La\u0308", "Lä") for v in plain])


def test_text_views(tmp_path: Path) -> None:
    """As Polars holds text."""
    column = pa.array(pets(), pa.string_view())
    try:
        write_parquet(tmp_path / "train.parquet", {"image": drawn(), "label": column})
    except pa.ArrowNotImplementedError:
        pytest.skip("this pyarrow writes no string_view")
    assert_paired(tmp_path, PETS)


def test_half_classes_are_refused(tmp_path: Path) -> None:
    columns = {"image": drawn(), "label": [0.5 * (i % 2) for i in range(20)]}
    write_parquet(tmp_path / "train.parquet", columns)
    assert "label" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["null", "nan", "class label -1", "null class label",
                                  "null in a dictionary"])  # fmt: skip
def test_a_row_without_a_label_is_refused(tmp_path: Path, kind: str) -> None:
    labels: list[Any] = list(pets())
    info, missing = None, None
    if kind == "nan":
        missing, labels = float("nan"), [float(i % 2) for i in range(20)]
    elif "class label" in kind:
        info, labels = features({"label": PETS}), [i % 2 for i in range(20)]
        missing = -1 if "-1" in kind else None
    labels[13] = missing
    column = pa.array(labels)
    if "dictionary" in kind:
        column = column.dictionary_encode()
    columns = {"image": drawn(), "label": column}
    write_parquet(tmp_path / "train.parquet", columns, info)
    said = refusal(tmp_path)
    assert "train.parquet" in said
    assert "13" in said or "14" in said  # counted from 0 or 1
    assert "row" in said


@pytest.mark.parametrize("kind", ["null", "struct of nulls"])
def test_a_row_without_an_image_is_refused(tmp_path: Path, kind: str) -> None:
    images: list[Any] = boxed(drawn())
    images[7] = None if kind == "null" else {"bytes": None, "path": None}
    write_parquet(tmp_path / "train.parquet", {"image": images, "label": pets()})
    said = refusal(tmp_path)
    assert "train.parquet" in said
    assert "7" in said or "8" in said
    assert "row" in said


def test_a_row_with_a_damaged_image_is_refused(tmp_path: Path) -> None:
    images = drawn()
    images[7] = images[7][:-30]
    write_parquet(tmp_path / "train.parquet", {"image": images, "label": pets()})
    said = refusal(tmp_path)
    assert "train.parquet" in said
    assert "7" in said or "8" in said


@pytest.mark.parametrize("name", ["label", "labels"])
def test_several_labels_of_an_image_are_refused(tmp_path: Path, name: str) -> None:
    columns = {"image": drawn(), name: [[i % 2, 2] for i in range(20)]}
    write_parquet(tmp_path / "train.parquet", columns)
    assert name in refusal(tmp_path)


# --- which columns


def test_two_label_columns_are_asked_about(tmp_path: Path) -> None:
    """As CIFAR-100 has them."""
    columns = {
        "img": boxed(drawn()),
        "fine_label": [i % 4 for i in range(20)],
        "coarse_label": [i % 2 for i in range(20)],
    }
    classes = {"fine_label": "abcd", "coarse_label": "xy"}
    write_parquet(tmp_path / "train.parquet", columns, features(classes, "img"))
    said = refusal(tmp_path)
    for word in ("fine_label", "coarse_label", "label-column"):
        assert word in said
    assert_paired(tmp_path, "abcd", label_column="fine_label")
    assert_paired(tmp_path, "xy", label_column="coarse_label")


def test_two_image_columns_are_asked_about(tmp_path: Path) -> None:
    columns = {
        "scan": boxed(drawn()),
        "mask": boxed(flat(255) for _ in range(20)),
        "label": pets(),
    }
    info = json.loads(features({}, "scan"))
    info["info"]["features"]["mask"] = {"_type": "Image"}
    path = tmp_path / "train.parquet"
    write_parquet(path, columns, json.dumps(info).encode())
    said = refusal(tmp_path)
    for word in ("scan", "mask", "image-column"):
        assert word in said
    assert_paired(tmp_path, PETS, image_column="scan")


@pytest.mark.parametrize("typed", [True, False])
def test_a_label_column_of_another_name_is_asked_for(
    tmp_path: Path, typed: bool
) -> None:
    columns = {"image": boxed(drawn()), "diagnosis": pets(), "age": [40] * 20}
    path = tmp_path / "train.parquet"
    write_parquet(path, columns, features({}) if typed else None)
    said = refusal(tmp_path)
    assert "label-column" in said
    assert "diagnosis" in said
    assert_paired(tmp_path, PETS, label_column="diagnosis")


def test_the_only_class_label_is_the_label(tmp_path: Path) -> None:
    columns = {"image": boxed(drawn()), "breed": [i % 2 for i in range(20)]}
    info = features({"breed": PETS})
    write_parquet(tmp_path / "train.parquet", columns, info)
    assert_paired(tmp_path, PETS)


@pytest.mark.parametrize("option", ["label_column", "image_column"])
def test_a_column_that_is_not_there_is_refused(tmp_path: Path, option: str) -> None:
    write_parquet(tmp_path / "train.parquet", {"image": drawn(), "label": pets()})
    said = refusal(tmp_path, **{option: "nosuch"})
    assert "nosuch" in said
    assert "label" in said  # what there is


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", {"x": [1.5, 2.5], "label": ["a", "b"]})
    assert "image" in refusal(tmp_path)


# --- splits and several files


def write_split(path: Path, number: int, first: int = 0) -> None:
    images = [flat(first + i) for i in range(number)]
    write_parquet(path, {"image": images, "label": pets(number)})


@pytest.mark.parametrize(
    ("files", "train", "test"),
    [
        ({"train.parquet": 10, "test.parquet": 4}, 5, 2),
        ({"Train.parquet": 10, "TEST.parquet": 4}, 5, 2),
        ({"training.parquet": 10, "testing.parquet": 4}, 5, 2),
        ({"train.parquet": 20, "valid.parquet": 10}, 12, 3),
        ({"train.parquet": 20, "validation.parquet": 10, "test.parquet": 4}, 15, 2),
        (
            {
                "train-00000-of-00002.parquet": 10,
                "train-00001-of-00002.parquet": 6,
                "test-00000-of-00001.parquet": 4,
            },
            8,
            2,
        ),
        (
            {
                "train-00000-of-00001-8d2f0b5c7a1e4f36.parquet": 10,
                "test-00000-of-00001-1c7de0a94b5f2836.parquet": 4,
            },
            5,
            2,
        ),
        ({"train_0.parquet": 10, "train_1.parquet": 6, "test_0.parquet": 4}, 8, 2),
        ({"train/0.parquet": 10, "train/1.parquet": 6, "test/0.parquet": 4}, 8, 2),
        ({"data/train-00000-of-00001.parquet": 10, "data/test.parquet": 4}, 5, 2),
        ({"train.parquet": 10}, 4, 1),
        ({"part-0.parquet": 10, "part-1.parquet": 10}, 8, 2),
        ({"pets.parquet": 10}, 4, 1),
    ],
)
def test_splits_by_the_names_of_files(
    tmp_path: Path, files: dict[str, int], train: int, test: int
) -> None:
    for k, (name, number) in enumerate(files.items()):
        write_split(tmp_path / name, number, 60 * k)
    seen = look(tmp_path)
    assert seen.train == dict.fromkeys(PETS, train)
    assert seen.test == dict.fromkeys(PETS, test)
    assert images_read(seen.data.account) == sum(files.values())
    levels = {int(x.max()) for x in (*seen.data.train_images, *seen.data.test_images)}
    assert len(levels) == sum(files.values())


def test_names_that_only_hold_a_splits_word_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "my_train.parquet", 10)
    write_split(tmp_path / "my_test.parquet", 4)
    said = refusal(tmp_path)
    assert "my_train" in said or "my_test" in said


def test_files_whose_columns_differ(tmp_path: Path) -> None:
    """Two tools wrote them: plain bytes here, {bytes, path} there; more columns."""
    columns: dict[str, Any] = {"image": drawn(10), "label": pets(10)}
    write_parquet(tmp_path / "train.parquet", columns | {"age": list(range(10))})
    columns["image"] = boxed(columns["image"][:4])
    write_parquet(tmp_path / "test.parquet", columns | {"label": pets(4)})
    seen = look(tmp_path)
    assert (seen.train, seen.test) == ({"cat": 5, "dog": 5}, {"cat": 2, "dog": 2})


def test_row_groups_and_compression(tmp_path: Path) -> None:
    table = pa.table({"image": drawn(), "label": pets()})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3, compression="zstd")
    assert_paired(tmp_path, PETS)


def test_classes_of_both_splits_are_one_list(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "train.parquet", {"image": drawn(4), "label": ["b", "c", "b", "c"]}
    )
    write_parquet(
        tmp_path / "test.parquet", {"image": drawn(3), "label": ["a", "b", "c"]}
    )
    seen = look(tmp_path)
    assert seen.train == {"a": 0, "b": 2, "c": 2}
    assert seen.test == {"a": 1, "b": 1, "c": 1}


def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path) -> None:
    write_split(tmp_path / "train.parquet", 10)
    put(tmp_path / "test.parquet", "version https://git-lfs.github.com/spec/v1\n")
    assert "test.parquet" in refusal(tmp_path)


def test_leftovers_beside_tables(tmp_path: Path) -> None:
    write_split(tmp_path / "train.parquet", 10)
    put(tmp_path / "._train.parquet", b"\0\5\26\7" + bytes(60))
    put(tmp_path / "__MACOSX" / "._train.parquet", b"\0\5\26\7" + bytes(60))
    assert look(tmp_path).all == {"cat": 5, "dog": 5}


def test_an_index_of_class_folders_is_no_table_of_images(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 5, "dog": 5})
    paths = [f"{c}/{k:03d}.png" for c in PETS for k in range(5)]
    write_parquet(tmp_path / "index.parquet", {"file": paths, "age": [3] * 10})
    assert look(tmp_path).all == {"cat": 5, "dog": 5}


# --- metadata.csv


def table_of(root: Path, rows: list[str]) -> None:
    for i in range(20):
        put(root / "images" / f"{i}.png", flat(10 * i))
    put(root / "metadata.csv", "\n".join(rows) + "\n")


def rows_of(column: str = "label", labels: Sequence[str] = PETS) -> list[str]:
    found = [f"images/{i}.png,{labels[i % 2]}" for i in range(20)]
    return [f"file_name,{column}", *found]


def test_labels_by_a_table(tmp_path: Path) -> None:
    table_of(tmp_path, rows_of())
    assert_paired(tmp_path, PETS)


@pytest.mark.parametrize(
    "labels", [("0", "1"), ("Läsion", "gesund"), ('"a, b"', '"c ""d"""'), ("9", "10")]
)
def test_names_of_labels_in_a_table(tmp_path: Path, labels: Sequence[str]) -> None:
    table_of(tmp_path, rows_of(labels=labels))
    plain = [one[1:-1].replace('""', '"') if '"' in one else one for one in labels]
    assert_paired(tmp_path, plain)


def test_line_ends_of_windows(tmp_path: Path) -> None:
    table_of(tmp_path, ["\r\n".join(rows_of())])
    assert_paired(tmp_path, PETS)


def test_images_beside_the_table(tmp_path: Path) -> None:
    """All in one folder, as Hugging Face's ImageFolder wants it."""
    for i in range(20):
        put(tmp_path / f"{i}.png", flat(10 * i))
    rows = [f"{i}.png,{PETS[i % 2]}" for i in range(20)]
    put(tmp_path / "metadata.csv", "\n".join(["file_name,label", *rows]))
    assert_paired(tmp_path, PETS)


def test_the_label_column_of_a_table(tmp_path: Path) -> None:
    rows = rows_of("diagnosis")
    table_of(tmp_path, [f"{row},{k}" for k, row in enumerate(rows)])
    assert_paired(tmp_path, PETS, label_column="diagnosis")


def test_a_tables_labels_hold_before_the_folders(tmp_path: Path) -> None:
    rows = []
    for i in range(20):
        put(tmp_path / "ab"[i // 10] / f"{i}.png", flat(10 * i))
        rows.append(f"{'ab'[i // 10]}/{i}.png,{PETS[i % 2]}")
    put(tmp_path / "metadata.csv", "\n".join(["file_name,label", *rows]))
    assert_paired(tmp_path, PETS)


def test_a_row_for_a_missing_file_is_refused(tmp_path: Path) -> None:
    rows = rows_of()
    rows[6] = "images/nosuch.png,cat"
    table_of(tmp_path, rows)
    said = refusal(tmp_path)
    assert "metadata.csv" in said
    assert "nosuch.png" in said or "row" in said
    assert any(number in said for number in ("5", "6", "7"))


@pytest.mark.parametrize("row", ["images/5.png,", "images/5.png"])
def test_a_row_without_a_label_in_a_table_is_refused(tmp_path: Path, row: str) -> None:
    rows = rows_of()
    rows[6] = row
    table_of(tmp_path, rows)
    said = refusal(tmp_path)
    assert "metadata.csv" in said
    assert "row" in said
    assert any(number in said for number in ("5", "6", "7"))


def test_files_that_a_table_does_not_name_are_counted(tmp_path: Path) -> None:
    table_of(tmp_path, rows_of())
    for k in range(3):
        put(tmp_path / "images" / f"more{k}.png", photo())
    seen = look(tmp_path)
    assert seen.all == {"cat": 10, "dog": 10}
    assert images_read(seen.data.account) == 20
    assert "3" in seen.data.account


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_of_spreadsheets(tmp_path: Path, delimiter: str) -> None:
    """With a mark of the byte order, and other delimiters."""
    rows = [row.replace(",", delimiter) for row in rows_of()]
    table_of(tmp_path, ["\ufeff" + rows[0], *rows[1:]])
    assert_paired(tmp_path, PETS)


def test_a_table_in_each_split(tmp_path: Path) -> None:
    for split, number in (("train", 10), ("test", 4)):
        rows = ["file_name,label"]
        for i in range(number):
            put(tmp_path / split / f"{i}.png", flat(i))
            rows.append(f"{i}.png,{PETS[i % 2]}")
        put(tmp_path / split / "metadata.csv", "\n".join(rows))
    seen = look(tmp_path)
    assert (seen.train, seen.test) == ({"cat": 5, "dog": 5}, {"cat": 2, "dog": 2})


def test_an_image_named_twice_is_refused(tmp_path: Path) -> None:
    table_of(tmp_path, [*rows_of(), "images/5.png,cat"])
    assert "5.png" in refusal(tmp_path)


def test_decomposed_names_of_files(tmp_path: Path) -> None:
    """A Mac's file names, and a table that was typed elsewhere."""
    rows = ["file_name,label"]
    for i in range(20):
        put(tmp_path / "images" / f"La\u0308sion {i}.png", flat(10 * i))
        rows.append(f"images/Läsion {i}.png,{PETS[i % 2]}")
    put(tmp_path / "metadata.csv", "\n".join(rows))
    assert_paired(tmp_path, PETS)


def test_pixels_instead_of_files_are_refused(tmp_path: Path) -> None:
    columns = {"image": [list(range(12))] * 20, "label": pets()}
    write_parquet(tmp_path / "train.parquet", columns)
    assert "image" in refusal(tmp_path)


def test_a_table_without_rows(tmp_path: Path) -> None:
    empty = {"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}
    write_parquet(tmp_path / "train.parquet", empty)
    assert refusal(tmp_path)


def test_classes_that_no_row_has_are_kept(tmp_path: Path) -> None:
    columns = {"image": boxed(drawn()), "label": [i % 2 for i in range(20)]}
    info = features({"label": ["cat", "dog", "owl"]})
    write_parquet(tmp_path / "train.parquet", columns, info)
    assert look(tmp_path).all == {"cat": 10, "dog": 10, "owl": 0}


# --- what a last reading of the code found


@pytest.mark.parametrize("names", [("train_data", "test_data"), ("my-train", "my-val")])
def test_folders_that_are_nearly_splits_are_refused(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        write_parquet(
            tmp_path / name / "0.parquet", {"image": drawn(), "label": pets()}
        )
    assert "to which split" in refusal(tmp_path)


def test_an_image_has_one_class_in_a_table(tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        put(tmp_path / "images" / name, flat(9))
    rows = {"image": ["images/0.png", "images/1.png", "images/0.png"]}
    write_parquet(tmp_path / "train.parquet", rows | {"label": ["cat", "dog", "dog"]})
    said = refusal(tmp_path)
    assert "more than once" in said
    assert "0.png" in said


def test_a_table_of_tests_alone_is_read_and_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", {"image": drawn(), "label": pets()})
    seen = look(tmp_path)
    assert seen.all == {"cat": 10, "dog": 10}
    assert any("only split" in line for line in seen.data.warnings)

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
from PIL import Image

from fl_app.config import ConfigError
from fl_app.data import cache, datasets, reading
from tests.conftest import SHARED_DATA, make_config


def png(value: int, size: tuple[int, int] = (6, 4), mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    colour = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_classes(folder: Path, classes: dict[str, int], **image: Any) -> None:
    """Write images into class folders: `classes` maps a name to how many."""
    for index, (name, number) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            (folder / name / f"{i}.png").write_bytes(png(40 * index + i, **image))


def write_parquet(folder: Path, split: str, labels: list[int]) -> None:
    features = hf.Features(
        {"picture": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"picture": [{"bytes": png(10 * abs(i)), "path": None} for i in labels]}
    table = hf.Dataset.from_dict({**rows, "label": labels}, features=features)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_digits_are_scikit_learns_with_a_stratified_fifth_for_test() -> None:
    from sklearn.datasets import load_digits

    data = datasets.load(make_config())
    assert data.input_shape == (1, 8, 8)
    assert data.class_names == [str(i) for i in range(10)]
    assert len(data.train_labels) + len(data.test_labels) == 1797
    shares = np.bincount(data.test_labels) / np.bincount(load_digits().target)
    assert np.abs(shares - 0.2).max() < 0.005
    both = np.concatenate([data.train_images, data.test_images])
    levels = np.sort(both.reshape(len(both), -1).sum(axis=1))
    bundled = np.rint(load_digits().images * 255 / 16).reshape(1797, -1).sum(axis=1)
    np.testing.assert_array_equal(levels, np.sort(bundled))
    scaled = np.asarray(data.train_images) / 255
    assert data.mean[0] == pytest.approx(scaled.mean(), abs=1e-5)
    assert data.std[0] == pytest.approx(scaled.std(), abs=1e-5)


def test_arrays_are_mapped_not_loaded() -> None:
    data = datasets.load(make_config())
    assert isinstance(data.train_images, np.memmap)
    assert not data.train_images.flags.writeable


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 10, "dog": 20})
    data = datasets.load(make_config(dataset=str(tmp_path / "pets")))
    assert data.class_names == ["cat", "dog"]
    assert data.input_shape == (1, 4, 6)
    assert np.bincount(data.train_labels).tolist() == [8, 16]
    assert np.bincount(data.test_labels).tolist() == [2, 4]


def test_a_mixture_becomes_squares_of_its_median_side(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", {"x": 10, "y": 10}, mode="RGB")
    (tmp_path / "a" / "x" / "large.png").write_bytes(png(200, (30, 20)))
    data = datasets.load(make_config(dataset=str(tmp_path / "a")))
    assert data.input_shape == (3, 4, 4)


def test_parquet_with_a_test_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "mnist", "train", [0, 1, 1, 0, 1])
    write_parquet(tmp_path / "mnist", "test", [1, 0])
    data = datasets.load(make_config(dataset="mnist", data_dir=str(tmp_path)))
    assert data.class_names == ["cat", "dog"]
    assert data.train_labels.tolist() == [0, 1, 1, 0, 1]
    assert data.test_labels.tolist() == [1, 0]
    assert data.train_images[:, 0, 0, 0].tolist() == [0, 10, 10, 0, 10]


def test_folders_are_clients_and_test_is_the_servers(tmp_path: Path) -> None:
    write_classes(tmp_path / "north", {"cat": 3, "dog": 2})
    write_classes(tmp_path / "south", {"dog": 4})
    write_classes(tmp_path / "test", {"cat": 2, "dog": 1})
    config = make_config(
        dataset=str(tmp_path), partitioner="folders", num_clients=0,
        validation_fraction=0.0,
    )  # fmt: skip
    data = datasets.load(config)
    assert data.owners == ["north", "south"]
    counts = data.partition(config, num_nodes=7).label_counts()
    assert counts.tolist() == [[3, 2], [0, 4]]
    assert np.bincount(data.test_labels).tolist() == [2, 1]
    with pytest.raises(ConfigError, match="there are 2 clients in the data"):
        data.partition(config.model_copy(update={"num_clients": 5}), 7)


def test_folders_are_all_clients_by_default(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_classes(tmp_path / name, {"cat": 3, "dog": 2})
    config = make_config(dataset=str(tmp_path), partitioner="folders")
    assert len(datasets.load(config).partition(config, 1).clients) == 3


def test_folders_without_a_test_folder_have_no_test_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "north", {"cat": 3, "dog": 2})
    config = make_config(dataset=str(tmp_path), partitioner="folders", num_clients=0)
    assert len(datasets.load(config).test_labels) == 0


def test_a_changed_source_is_read_again(tmp_path: Path) -> None:
    write_classes(tmp_path / "d", {"cat": 5, "dog": 5})
    config = make_config(dataset=str(tmp_path / "d"))
    before = len(datasets.load(config).train_labels)
    for i in range(5):
        (tmp_path / "d" / "cat" / f"new{i}.png").write_bytes(png(i))
    assert len(datasets.load(config).train_labels) == before + 4


def test_num_clients_zero_is_one_per_node() -> None:
    config = make_config(num_clients=0)
    partition = datasets.load(config).partition(config, num_nodes=3)
    assert len(partition.clients) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"dataset": "mnits"},
            "dataset = 'mnits' is unknown; there are: cifar10, digits",
        ),
        ({"dataset": "/no/such/place"}, "there is no folder /no/such/place"),
        (
            {"dataset": "mnist", "data_dir": "/no/such"},
            "dataset = 'mnist' is not in data-dir = '/no/such'",
        ),
        ({"partitioner": "folders"}, "needs a local folder"),
    ],
)
def test_a_data_set_that_is_not_there_is_an_error(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        datasets.load(make_config(**changes))


def test_the_hub_out_of_reach_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flwr_datasets

    def fail(**_: Any) -> None:
        raise ConnectionError("no route to the Hub")

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", fail)
    with pytest.raises(ConfigError, match="no route to the Hub.*point data-dir"):
        datasets.load(make_config(dataset="mnist"))


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ConfigError, match="holds no data set|one must hold images"):
        datasets.load(make_config(dataset=str(tmp_path)))


def test_levels_that_do_not_fit_16_bits_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "d", {"cat": 5, "dog": 5})
    deep = Image.fromarray(np.full((4, 6), 0.5, np.float32))
    deep.save(tmp_path / "d" / "cat" / "deep.tif")
    with pytest.raises(ConfigError, match="do not fit 8 bits"):
        datasets.load(make_config(dataset=str(tmp_path / "d")))


def test_rows_without_a_label_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d", "train", [0, 1, 1])
    write_parquet(tmp_path / "d", "test", [-1, -1])
    with pytest.raises(ConfigError, match="rows without a label"):
        datasets.load(make_config(dataset=str(tmp_path / "d")))


def test_a_file_that_is_no_image_is_an_error(tmp_path: Path) -> None:
    write_classes(tmp_path / "d", {"cat": 5, "dog": 5})
    (tmp_path / "d" / "cat" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(ConfigError, match=r"cat/0.png is no image"):
        datasets.load(make_config(dataset=str(tmp_path / "d")))


# --- the cache


def contents() -> cache.Contents:
    return {"a": np.arange(1000), "b": np.ones((3, 4), np.uint8)}, {"note": "hello"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    cache.open_or_build("thing", contents)
    (made,) = (p for p in tmp_path.iterdir() if p.is_dir())
    return made


def refuse() -> cache.Contents:
    raise AssertionError("a sound cache must not be built again")


def test_a_sound_cache_is_not_built_again(folder: Path) -> None:
    arrays, described = cache.open_or_build("thing", refuse)
    assert arrays["a"].tolist() == list(range(1000))
    assert described == {"note": "hello"}


def flip_a_bit(folder: Path) -> None:
    raw = bytearray((folder / "a.npy").read_bytes())
    raw[-9] ^= 1
    (folder / "a.npy").write_bytes(raw)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda f: (f / "a.npy").write_bytes((f / "a.npy").read_bytes()[:200]),
        lambda f: (f / "b.npy").unlink(),
        lambda f: (f / "meta.json").unlink(),
        lambda f: (f / "meta.json").write_text('{"checksums": {"a"'),
        lambda f: (f / "meta.json").write_text("[]"),
        lambda f: (f / "meta.json").write_text(json.dumps({"checksums": {"a": 1}})),
    ],
)
def test_a_damaged_cache_is_built_again(folder: Path, damage: Any) -> None:
    damage(folder)
    arrays, _ = cache.open_or_build("thing", contents)
    assert arrays["a"].tolist() == list(range(1000))
    cache.open_or_build("thing", refuse)


def test_a_build_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))

    class Unwritable:
        def __array__(self, *_: Any, **__: Any) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.open_or_build("thing", lambda: ({"a": Unwritable()}, {}))  # type: ignore[dict-item]
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_processes_that_build_at_once_do_no_harm(tmp_path: Path) -> None:
    program = (
        "import time, numpy as np\n"
        "from fl_app.data import cache\n"
        "def build():\n"
        "    print('built'); time.sleep(0.3)\n"
        "    return {'a': np.arange(100000)}, {}\n"
        "arrays, _ = cache.open_or_build('thing', build)\n"
        "assert arrays['a'].sum() == 4999950000\n"
    )
    environment = {cache.CACHE_VARIABLE: str(tmp_path), "PATH": "/usr/bin:/bin"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert "".join(printed).count("built") == 1


# --- real data, where a developer has it


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no local copy of MNIST")
def test_real_mnist() -> None:
    data = datasets.load(make_config(dataset="mnist", data_dir=str(SHARED_DATA)))
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert data.mean == pytest.approx((0.1307,), abs=1e-4)
    assert data.std == pytest.approx((0.3081,), abs=1e-4)


def test_images_beside_class_folders_are_an_error(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    with pytest.raises(ConfigError, match="named for its class"):
        datasets.load(make_config(dataset=str(tmp_path)))


def test_a_cache_that_cannot_be_made_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, "/proc/nope")
    with pytest.raises(ConfigError, match="give another folder with FL_APP_CACHE"):
        datasets.load(make_config())


def test_the_hubs_reader_reads_what_flwr_datasets_hands_over(tmp_path: Path) -> None:
    # flwr_datasets takes a folder in the place of an owner/name: no network is needed.
    write_parquet(tmp_path / "pets", "train", [0, 1, 1, 0])
    write_parquet(tmp_path / "pets", "test", [1])
    arrays, described = reading.read_hub(str(tmp_path / "pets"), "owner/pets")
    assert arrays["train-labels"].tolist() == [0, 1, 1, 0]
    assert arrays["train-images"][:, 0, 0, 0].tolist() == [0, 10, 10, 0]
    assert arrays["test-labels"].tolist() == [1]
    assert described["class-names"] == ["cat", "dog"]


def test_a_hub_data_set_without_a_test_split_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets", "train", [0, 1] * 10)
    arrays, _ = reading.read_hub(str(tmp_path / "pets"), "owner/pets")
    assert len(arrays["train-labels"]) == 16
    assert len(arrays["test-labels"]) == 4


def test_a_table_that_is_rewritten_is_read_as_it_is_now(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets", "train", [0, 1] * 5)
    config = make_config(dataset=str(tmp_path / "pets"))
    assert len(datasets.load(config).train_labels) == 8
    shutil.rmtree(tmp_path / "pets")
    features = hf.Features({"img": hf.Image(), "label": hf.Value("string")})
    rows = {"img": [{"bytes": png(9), "path": None}] * 6, "label": ["a", "b"] * 3}
    (tmp_path / "pets").mkdir()
    table = hf.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "pets" / "train-00000-of-00001.parquet")
    assert datasets.load(config).class_names == ["a", "b"]

"""Pixels of people's own images: orientation, transparency, depth, damage, sizes."""

import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from fl_app import artifacts
from fl_app.artifacts import ModelInfo
from fl_app.data import datasets
from fl_app.serving import images
from tests import test_private, test_run
from tests.conftest import make_config
from tests.own_folders import (
    Array,
    encoded,
    look,
    model_info,
    photo,
    plant,
    put,
    refusal,
)

ORIENTATION = 0x0112
Nodes = dict[int, dict[str, Any] | None]


def write(root: Path, files: list[bytes], suffix: str = ".png") -> Path:
    """Deal files to two classes: the first, the third, ... are of class a."""
    for i, content in enumerate(files):
        put(root / "ab"[i % 2] / f"{i:03d}{suffix}", content)
    return root


def served(content: bytes, info: ModelInfo) -> tuple[Array, list[str]]:
    """Return what the service makes of an upload, (H, W, C), and what it says."""
    levels, received = images.read(content, info)
    return levels.transpose(1, 2, 0), received.converted


# --- orientation


def scene() -> Array:
    """Return an upright picture, 24 high and 16 wide, without any symmetry."""
    picture = np.zeros((24, 16, 3), np.uint8)
    picture[:12, :8] = (250, 10, 10)
    picture[:12, 8:] = (10, 250, 10)
    picture[12:, :8] = (10, 10, 250)
    picture[12:, 8:] = (240, 240, 240)
    return picture


def turned(upright: Array, orientation: int) -> Array:
    """Return how a camera stores it, so that a viewer's turning makes it upright."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]


def sideways(
    orientation: int, kind: str = "PNG", picture: Array | None = None, **how: Any
) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = turned(scene() if picture is None else picture, orientation)
    return encoded(np.ascontiguousarray(stored), kind, exif=exif, **how)


JPEG = {"quality": 95, "subsampling": 0}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "kind", "how", "near"),
    [
        (".jpg", "JPEG", JPEG, 20),
        (".png", "PNG", {}, 0),
        (".webp", "WEBP", {"lossless": True}, 0),
        (".tif", "TIFF", {}, 0),
    ],
)
def test_orientations(
    tmp_path: Path, orientation: int, suffix: str, kind: str, how: Any, near: int
) -> None:
    plain = encoded(scene(), kind, **how)
    odd = sideways(orientation, kind, **how)
    write(tmp_path, [plain, odd] * 5, suffix)
    seen = look(tmp_path)
    assert seen.shape == (3, 24, 16)
    for split in ("train", "test"):
        for picture in (*seen.of_class("a", split), *seen.of_class("b", split)):
            apart = np.abs(picture.astype(int) - scene()).max()
            assert apart <= near
    assert ("turned upright" in seen.data.account) == (orientation != 1)
    if orientation != 1:
        assert re.search(r"turned upright[^;:]*: 5\b", seen.data.account)
    assert seen.data.train_sizes is not None
    assert {tuple(size) for size in seen.data.train_sizes.tolist()} == {(16, 24)}
    levels, said = served(odd, model_info((3, 24, 16)))
    assert np.abs(levels - scene()).max() <= near
    assert any("upright" in line for line in said) == (orientation != 1)


def test_the_sky_is_up(tmp_path: Path) -> None:
    """Phones' pictures: half are stored sideways; the sky is dark."""
    for i, name in enumerate(("one", "other")):
        picture = np.full((24, 16, 3), 200, np.uint8)
        picture[: 6 + 10 * i] = 20
        for k in range(10):
            content = sideways(6 if k % 2 else 1, "JPEG", picture, **JPEG)
            put(tmp_path / name / f"{k:03d}.jpg", content)
    seen = look(tmp_path)
    assert seen.shape == (3, 24, 16)
    for name, high in (("one", 6), ("other", 16)):
        for picture in (*seen.of_class(name), *seen.of_class(name, "test")):
            assert picture[: high - 1].max() < 60
            assert picture[high + 1 :].min() > 160


def test_sideways_images_in_parquet(tmp_path: Path) -> None:
    from tests.own_folders import write_parquet

    columns = {"image": [sideways(6), sideways(1)] * 5, "label": [0, 1] * 5}
    write_parquet(tmp_path / "train.parquet", columns)
    seen = look(tmp_path)
    np.testing.assert_array_equal(seen.image(0), scene())
    np.testing.assert_array_equal(seen.image(1), scene())


def test_an_orientation_out_of_range_is_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    seen = look(write(tmp_path, [encoded(scene(), exif=exif)] * 10))
    np.testing.assert_array_equal(seen.image(0), scene())


def test_sideways_on_a_private_node(tmp_path: Path) -> None:
    """It tells the upright size, and trains the model that upright images make."""
    for name, orientation in (("own", 6), ("twin", 1)):
        for i in range(10):
            picture = scene() if i % 2 else scene()[:, ::-1]
            put(tmp_path / name / "ab"[i % 2] / f"{i}.png",
                sideways(orientation, picture=picture))  # fmt: skip
    made = [
        test_private.run(
            tmp_path / "results",
            {5: {"data-path": str(tmp_path / name), "client-id": "one"}},
            name,
            dataset="private",
            num_server_rounds=1,
        )
        for name in ("own", "twin")
    ]
    assert test_run.sha(made[0]) == test_run.sha(made[1])
    _, info = artifacts.read_model(made[0].path / "model.safetensors")
    assert tuple(info.input_shape) == (3, 24, 16)


# --- transparency: on white


def cut_out(mode: str) -> bytes:
    """Return a dark square on nothing; what is transparent is black underneath."""
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[4:12, 4:12] = (40, 40, 40, 255)
    image = Image.fromarray(picture)
    if mode in ("RGBA", "LA"):
        return encoded(image.convert(mode))
    if mode == "P":
        flat = Image.fromarray(np.where(picture[..., 3], 1, 0).astype(np.uint8))
        flat = flat.convert("P")
        flat.putpalette([0, 0, 0, 40, 40, 40])
        return encoded(flat, transparency=0)
    if mode == "P with several":
        flat = Image.fromarray(np.where(picture[..., 3], 1, 0).astype(np.uint8))
        flat = flat.convert("P")
        flat.putpalette([0, 0, 0, 40, 40, 40])
        return encoded(flat, transparency=bytes([0, 255]))
    if mode == "L with a key":
        return encoded(image.convert("L"), transparency=0)
    if mode == "RGB with a key":
        return encoded(image.convert("RGB"), transparency=(0, 0, 0))
    assert mode == "GIF"
    flat = Image.fromarray(np.where(picture[..., 3], 1, 0).astype(np.uint8))
    flat = flat.convert("P")
    flat.putpalette([0, 0, 0, 40, 40, 40])
    return encoded(flat, "GIF", transparency=0)


ON_WHITE = np.full((16, 16), 255)
ON_WHITE[4:12, 4:12] = 40
CUT_OUTS = {
    "RGBA": 3,
    "LA": 1,
    "P": 3,
    "P with several": 3,
    "L with a key": 1,
    "RGB with a key": 3,
    "GIF": 3,
}
"""Ways to be transparent, and the channels of such a set."""


@pytest.mark.parametrize(("mode", "channels"), CUT_OUTS.items())
def test_what_is_transparent_is_white(tmp_path: Path, mode: str, channels: int) -> None:
    content = cut_out(mode)
    suffix = ".gif" if mode == "GIF" else ".png"
    seen = look(write(tmp_path, [content] * 10, suffix))
    assert seen.shape == (channels, 16, 16)
    for channel in range(channels):
        np.testing.assert_array_equal(seen.image(0)[..., channel], ON_WHITE)
    assert "white" in seen.data.account
    for wanted in (1, 3):
        levels, said = served(content, model_info((wanted, 16, 16)))
        for channel in range(wanted):
            np.testing.assert_array_equal(levels[..., channel], ON_WHITE)
        assert any("white" in line for line in said)


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), (100, 0, 200, 128), np.uint8)
    seen = look(write(tmp_path, [encoded(pixels)] * 10))
    expected = np.array([100, 0, 200]) * 128 / 255 + 255 * 127 / 255
    assert np.abs(seen.image(0) - expected).max() <= 1
    levels, _ = served(encoded(pixels), model_info((3, 8, 8)))
    np.testing.assert_array_equal(levels, seen.image(0))


def test_icons_that_are_all_in_alpha(tmp_path: Path) -> None:
    icons = []
    for k in range(10):
        pixels = np.zeros((16, 16, 4), np.uint8)
        pixels[2 + k % 5 : 10 + k % 5, 4:12, 3] = 255
        icons.append(encoded(pixels))
    seen = look(write(tmp_path, icons))
    assert set(np.unique(seen.data.train_images)) == {0, 255}


def test_alpha_that_hides_nothing_changes_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    opaque = np.dstack([pixels, np.full((8, 8), 255, np.uint8)])
    seen = look(write(tmp_path, [encoded(opaque)] * 10))
    np.testing.assert_array_equal(seen.image(0), pixels)


def test_transparent_edges_are_white_after_resizing(tmp_path: Path) -> None:
    """Composed first, then resized: no dark rim."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 16:48] = 255
    seen = look(write(tmp_path, [encoded(pixels)] * 10), image_size=16)
    assert seen.data.train_images.min() >= 254


# --- depth


def deep(levels: Any, **how: Any) -> bytes:
    return encoded(np.asarray(levels, np.uint16), **how)


def ramp(highest: int) -> Array:
    """Return 8 x 8 levels from 0 to a highest one."""
    return np.linspace(0, highest, 64).round().astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize(
    ("highest", "white"),
    [
        (200, 255),
        (255, 255),
        (256, 1023),
        (1023, 1023),
        (1024, 4095),
        (4000, 4095),
        (4095, 4095),
        (4096, 16383),
        (16383, 16383),
        (16384, 65535),
        (65535, 65535),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_white_of_deep_grey(
    tmp_path: Path, highest: int, white: int, suffix: str
) -> None:
    kind = "PNG" if suffix == ".png" else "TIFF"
    content = encoded(ramp(highest), kind)
    seen = look(write(tmp_path, [content] * 10, suffix))
    assert seen.shape == (1, 8, 8)
    expected = ramp(highest) * (255 / white)
    for picture in (seen.image(0)[..., 0], seen.image(0, "test")[..., 0]):
        assert np.abs(picture - expected).max() <= 1
        assert (np.diff(picture.ravel().astype(int)) >= 0).all()
    info = model_info((1, 8, 8), white_level=white)
    levels, said = served(content, info)
    np.testing.assert_array_equal(levels, seen.image(0))
    assert said


def test_the_rule_is_of_all_training_images(tmp_path: Path) -> None:
    """One picture is brighter than 10 bits: all are of 12, and the test split too."""
    for split in ("train", "test"):
        for i in range(8):
            highest = 4000 if split == "train" and i == 3 else 900
            put(tmp_path / split / "ab"[i % 2] / f"{i}.png", deep(ramp(highest)))
    seen = look(tmp_path)
    tops = [int(x.max()) for x in (*seen.data.train_images, *seen.data.test_images)]
    assert sorted(tops)[-1] == round(4000 * 255 / 4095)
    assert set(tops) == {round(4000 * 255 / 4095), round(900 * 255 / 4095)}


def test_brighter_test_images_do_not_change_the_rule(tmp_path: Path) -> None:
    for i in range(8):
        put(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", deep(ramp(4095)))
        put(tmp_path / "test" / "ab"[i % 2] / f"{i}.png", deep(ramp(8190)))
    seen = look(tmp_path)
    half = np.minimum(ramp(8190) * (255 / 4095), 255)  # what is above white is white
    assert np.abs(seen.image(0, "test")[..., 0] - half).max() <= 1


def test_deep_images_in_the_test_split_alone(tmp_path: Path) -> None:
    for i in range(8):
        shallow = encoded(ramp(255).astype(np.uint8))
        put(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", shallow)
        put(tmp_path / "test" / "ab"[i % 2] / f"{i}.png", deep(ramp(65535)))
    seen = look(tmp_path)
    assert np.abs(seen.image(0, "test").astype(int) - seen.image(0)).max() <= 1


def test_deep_and_plain_grey_together(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path / "a" / f"{i}.png", deep(ramp(4095)))
        put(tmp_path / "b" / f"{i}.png", encoded(ramp(255).astype(np.uint8)))
    seen = look(tmp_path)
    for name in ("a", "b"):
        assert np.abs(seen.of_class(name)[0, ..., 0] - ramp(255).astype(int)).max() <= 1


def test_the_model_file_keeps_the_rule(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    files = [deep(draws.integers(0, 4096, (8, 8))) for _ in range(20)]
    folder = test_run.run(
        tmp_path,
        dataset=str(write(tmp_path / "set", files)),
        partitioner="iid",
        num_clients=2,
        num_server_rounds=1,
    )
    _, info = artifacts.read_model(folder.path / "model.safetensors")
    assert info.white_level == 4095
    both = np.concatenate([look(tmp_path / "set").data.train_images,
                           look(tmp_path / "set").data.test_images])  # fmt: skip
    read = {images.read(content, info)[0].astype(np.uint8).tobytes()
            for content in files}  # fmt: skip
    assert read == {picture.tobytes() for picture in both}


def test_private_nodes_agree_on_white(tmp_path: Path) -> None:
    """One clinic's scans are dark: both are read by the rule of the brighter one."""
    draws = np.random.default_rng(0)
    for owner, highest in (("north", 700), ("south", 4000)):
        for i in range(10):
            content = deep(draws.integers(0, highest, (8, 8)))
            put(tmp_path / "set" / owner / "ab"[i % 2] / f"{i}.png", content)
    nodes: Nodes = {
        k: {"data-path": str(tmp_path / "set" / owner)}
        for k, owner in enumerate(("south", "north"), 3)
    }
    own = test_private.run(
        tmp_path, nodes, "own", dataset="private", min_nodes=2, num_server_rounds=1
    )
    twin = test_private.run(
        tmp_path,
        {1: None},
        "twin",
        dataset=str(tmp_path / "set"),
        partitioner="folders",
        num_server_rounds=1,
    )
    assert test_run.sha(own) == test_run.sha(twin)
    for folder in (own, twin):
        _, info = artifacts.read_model(folder.path / "model.safetensors")
        assert info.white_level == 4095


def test_a_model_without_the_new_fields_is_read_as_before() -> None:
    info = model_info((1, 8, 8))
    assert (info.resize, info.white_level) == ("squeeze", 65535)
    levels, said = served(deep(np.full((8, 8), 32896)), info)
    assert (levels == 128).all()
    assert said == ["16-bit levels to 8 bits"]


# --- colour


def test_inks_become_colour(tmp_path: Path) -> None:
    """CMYK: as JPEG and as TIFF."""
    colour = np.full((8, 8, 3), (200, 60, 20), np.uint8)
    inks = Image.fromarray(colour).convert("CMYK")
    for kind, suffix in (("JPEG", ".jpg"), ("TIFF", ".tif")):
        root = tmp_path / kind
        content = encoded(inks, kind)
        seen = look(write(root, [content] * 10, suffix))
        assert seen.shape == (3, 8, 8)
        assert np.abs(seen.image(0).astype(int) - colour).max() <= 6
        assert "CMYK" in seen.data.account
        levels, said = served(content, model_info((3, 8, 8)))
        np.testing.assert_array_equal(levels, seen.image(0))
        assert said


def test_palettes_become_colour(tmp_path: Path) -> None:
    picture = Image.fromarray(scene()).quantize(16)
    seen = look(write(tmp_path, [encoded(picture)] * 10))
    np.testing.assert_array_equal(seen.image(0), np.asarray(picture.convert("RGB")))
    assert np.abs(seen.image(0).astype(int) - scene()).max() <= 4


def test_black_and_white_is_grey(tmp_path: Path) -> None:
    picture = Image.fromarray(scene()[..., 0]).convert("1")
    seen = look(write(tmp_path, [encoded(picture)] * 10))
    assert seen.shape == (1, 24, 16)
    assert set(np.unique(seen.data.train_images)) == {0, 255}


@pytest.mark.parametrize(
    ("kind", "suffix", "how"),
    [
        ("GIF", ".gif", {}),
        ("PNG", ".png", {}),
        ("WEBP", ".webp", {"lossless": True}),
        ("TIFF", ".tif", {}),
    ],
)
def test_of_several_pictures_the_first_is_read(
    tmp_path: Path, kind: str, suffix: str, how: Any
) -> None:
    first, *others = [Image.new("RGB", (10, 8), (c, c, c)) for c in (10, 250, 130)]
    content = encoded(first, kind, save_all=True, append_images=others, **how)
    seen = look(write(tmp_path, [content] * 10, suffix))
    assert (seen.data.train_images == 10).all()
    assert (seen.data.test_images == 10).all()
    assert "first" in seen.data.account
    assert re.search(r"\b10\b", seen.data.account)
    levels, _ = served(content, model_info((3, 8, 10)))
    assert (levels == 10).all()


def test_stereo_pictures_of_phones(tmp_path: Path) -> None:
    """A .jpg may be an MPO: the first of its pictures, upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    first = Image.fromarray(np.ascontiguousarray(turned(scene(), 6)))
    other = Image.new("RGB", first.size)
    content = encoded(
        first, "MPO", save_all=True, append_images=[other], exif=exif, **JPEG
    )
    assert Image.open(io.BytesIO(content)).format == "MPO"
    seen = look(write(tmp_path, [content] * 10, ".jpg"))
    assert np.abs(seen.image(0).astype(int) - scene()).max() <= 20
    levels, _ = served(content, model_info((3, 24, 16)))
    np.testing.assert_array_equal(levels, seen.image(0))


def test_levels_without_a_white_are_refused(tmp_path: Path) -> None:
    """Floating point: nobody can say what is white."""
    content = encoded(np.random.default_rng(0).random((8, 8), np.float32), "TIFF")
    assert "8 bits" in refusal(write(tmp_path, [content] * 10, ".tif"))


def test_deep_grey_of_other_machines(tmp_path: Path) -> None:
    """TIFF whose bytes come in the other order."""
    content = encoded(ramp(4095).astype(">u2"), "TIFF")
    seen = look(write(tmp_path, [content] * 10, ".tif"))
    assert np.abs(seen.image(0)[..., 0] - ramp(4095) * (255 / 4095)).max() <= 1
    levels, _ = served(content, model_info((1, 8, 8), white_level=4095))
    np.testing.assert_array_equal(levels, seen.image(0))


# --- damage


def with_a_broken_chunk() -> bytes:
    """Return a PNG whose second IDAT has a name that fell over."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    content = bytearray(encoded(noise))  # Pillow writes IDAT in pieces of 64 kB
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = b"\x8d\x03\x98\xa6"
    return bytes(content)


def with_a_flipped_bit() -> bytes:
    content = bytearray(photo(90, (40, 40)))
    content[content.index(b"IDAT") + 30] ^= 16
    return bytes(content)


DAMAGE: dict[str, Callable[[], bytes]] = {
    "chunk.png": with_a_broken_chunk,
    "bit.png": with_a_flipped_bit,
    "empty.png": lambda: b"",
    "page.jpg": lambda: b"<!DOCTYPE html><title>404</title>",
    "cut.png": lambda: photo(90, (40, 40))[:-300],
    "cut.jpg": lambda: photo(90, (60, 60), "JPEG")[:-500],
    "head.gif": lambda: photo(90, (60, 60), "GIF")[:12],
    "zeros.bmp": lambda: bytes(500),
    "pointer.png": lambda: b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_image_is_named(tmp_path: Path, name: str) -> None:
    plant(tmp_path, {"cat": 8, "dog": 8})
    put(tmp_path / "cat" / name, DAMAGE[name]())
    said = refusal(tmp_path)
    assert f"cat/{name}" in said
    assert "dog" not in said


def test_a_damaged_image_in_the_test_split_is_named(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        plant(tmp_path / split, {"cat": 3, "dog": 3})
    put(tmp_path / "test" / "cat" / "zero.png", b"")
    put(tmp_path / "val" / "dog" / "cut.png", photo()[:-30])
    said = refusal(tmp_path)
    assert "zero.png" in said
    assert "cut.png" in said


def test_all_damaged_images_are_named_at_once(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 8, "dog": 8})
    names = ["chunk.png", "empty.png", "page.jpg", "cut.jpg"]
    for name in names:
        put(tmp_path / "dog" / name, DAMAGE[name]())
    said = refusal(tmp_path)
    assert all(name in said for name in names)


def test_of_many_damaged_images_five_are_named_and_all_counted(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 8, "dog": 8})
    for k in range(13):
        put(tmp_path / "dog" / f"bad{k:02d}.png", photo()[: 20 + k])
    said = refusal(tmp_path)
    assert len(set(re.findall(r"bad\d\d\.png", said))) == 5
    assert re.search(r"\b(13|8 more)\b", said)


def test_a_damaged_image_of_an_owner_is_named(tmp_path: Path) -> None:
    for owner in ("north", "south"):
        plant(tmp_path / owner, {"cat": 3, "dog": 3})
    put(tmp_path / "south" / "cat" / "page.jpg", DAMAGE["page.jpg"]())
    assert "south/cat/page.jpg" in refusal(
        tmp_path, partitioner="folders", num_clients=0
    )


def test_an_image_under_another_suffix_is_read(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 4, "dog": 4})
    put(tmp_path / "cat" / "really_png.jpg", photo(50))
    put(tmp_path / "dog" / "really_jpeg.png", photo(120, kind="JPEG"))
    assert look(tmp_path).all == {"cat": 5, "dog": 5}


def test_a_bitmap_without_the_head_of_a_file_is_read(tmp_path: Path) -> None:
    """Some programs write .dib so; others write a whole BMP."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for k, kind in enumerate(("DIB", "BMP")):
        write(tmp_path / kind, [encoded(pixels, kind)] * 10, ".dib")
        np.testing.assert_array_equal(look(tmp_path / kind).image(k), pixels)


def test_a_large_comment_does_no_harm(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 8, "dog": 8})
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "x" * (3 * 2**20), zip=True)
    content = encoded(Image.open(io.BytesIO(photo(60))), pnginfo=note)
    put(tmp_path / "cat" / "edited.png", content)
    assert look(tmp_path).all == {"cat": 9, "dog": 8}
    levels, _ = served(content, model_info((3, 8, 10)))
    plain, _ = served(photo(60), model_info((3, 8, 10)))
    np.testing.assert_array_equal(levels, plain)


# --- sizes


def sized(root: Path, sizes: list[tuple[int, int]], grey: bool = False) -> Path:
    return write(root, [photo(90, size, grey=grey) for size in sizes])


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((10, 8), (3, 8, 10)),
        ((96, 96), (3, 96, 96)),
        ((96, 20), (3, 20, 96)),
        ((200, 100), (3, 48, 96)),
        ((100, 200), (3, 96, 48)),
        ((256, 192), (3, 72, 96)),
        ((128, 128), (3, 96, 96)),
        ((300, 1), (3, 1, 96)),
    ],
)
def test_one_size_stays(
    tmp_path: Path, size: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    seen = look(sized(tmp_path, [size] * 10))
    assert seen.shape == shape
    assert seen.data.train_sizes is not None
    assert seen.data.train_sizes.tolist() == [list(size)] * 8


def test_sizes_are_of_the_images_that_they_stand_beside(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path / "ab"[i % 2] / f"{i}.png",
            encoded(np.full((30 + i, 20), 20 * i, np.uint8)))  # fmt: skip
    data = look(tmp_path).data
    assert data.train_sizes is not None
    for image, size in zip(data.train_images, data.train_sizes, strict=True):
        assert size.tolist() == [20, 30 + int(image.max()) // 20]


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(30, 50), (40, 30), (30, 31), (30, 90), (60, 30)] * 2, 30),
        ([(20, 50), (30, 30), (30, 31), (30, 90), (60, 200)] * 2, 30),
        ([(30, 40)] * 9 + [(8, 300)], 30),
        ([(120 + 3 * i, 200 - i) for i in range(10)], 96),
        ([(10, 12), (12, 10)] * 5, 10),
        ([(300, 400)] * 6 + [(20, 20)] * 4, 96),
    ],
)
def test_a_mixture_becomes_squares(
    tmp_path: Path, sizes: list[tuple[int, int]], side: int
) -> None:
    seen = look(sized(tmp_path, sizes))
    assert seen.shape == (3, side, side)


@pytest.mark.parametrize("size", [16, 4, 100, 128])
@pytest.mark.parametrize("mixed", [True, False])
def test_squares_of_a_size(tmp_path: Path, size: int, mixed: bool) -> None:
    sizes = [(30, 20), (24, 40) if mixed else (30, 20)] * 5
    assert look(sized(tmp_path, sizes), image_size=size).shape == (3, size, size)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_squares_of_named_data(size: int) -> None:
    data = datasets.load(make_config(image_size=size))
    assert data.input_shape == (1, size, size)
    plain = datasets.load(make_config())
    np.testing.assert_array_equal(data.train_labels, plain.train_labels)
    if size == 8:
        np.testing.assert_array_equal(data.train_images, plain.train_images)
    else:
        means = [np.asarray(d.train_images, float).mean() for d in (data, plain)]
        assert means[0] == pytest.approx(means[1], rel=0.05)


def test_no_limit(tmp_path: Path) -> None:
    one = look(sized(tmp_path / "one", [(200, 100)] * 4), image_size=0)
    assert one.shape == (3, 100, 200)
    mixed = [(150, 200), (300, 150), (150, 151), (150, 180)]
    assert look(sized(tmp_path / "mixed", mixed), image_size=0).shape == (3, 150, 150)
    assert datasets.load(make_config(image_size=0)).input_shape == (1, 8, 8)


def test_owners_of_several_sizes(tmp_path: Path) -> None:
    """The median of the owners' medians: a large owner has one voice."""
    for owner, side, number in (("a", 20, 3), ("b", 30, 3), ("c", 60, 20)):
        for i in range(number):
            put(
                tmp_path / owner / "xy"[i % 2] / f"{i}.png", photo(90, (side, side + 4))
            )
    seen = look(tmp_path, "folders")
    assert seen.shape == (3, 30, 30)


def test_private_nodes_of_several_sizes(tmp_path: Path) -> None:
    for owner, side, number in (("a", 20, 4), ("b", 30, 4), ("c", 60, 20)):
        for i in range(number):
            put(
                tmp_path / owner / "xy"[i % 2] / f"{i}.png", photo(90, (side, side + 4))
            )
    nodes: Nodes = {
        k: {"data-path": str(tmp_path / name)} for k, name in enumerate("cab", 4)
    }
    folder = test_private.run(
        tmp_path, nodes, "own", dataset="private", min_nodes=3, num_server_rounds=1
    )
    _, info = artifacts.read_model(folder.path / "model.safetensors")
    assert tuple(info.input_shape) == (3, 30, 30)


@pytest.mark.parametrize("size", [-1, "large", 1.5])
def test_sizes_that_are_none(tmp_path: Path, size: Any) -> None:
    sized(tmp_path, [(10, 8)] * 4)
    assert "image-size" in refusal(tmp_path, image_size=size)


# --- three ways to a square


def stripes() -> Array:
    """Return red, green and blue beside each other, 16 wide each, 16 high."""
    picture = np.zeros((16, 48, 3), np.uint8)
    for k in range(3):
        picture[:, 16 * k : 16 * k + 16, k] = 255
    return picture


def as_square(resize: str, tall: bool) -> tuple[Array, Array]:
    """Return where a 16 x 16 picture of the stripes is known, and what it is there."""
    known, value = np.ones((16, 16), bool), np.zeros((16, 16, 3), int)
    if resize == "crop":
        value[..., 1] = 255
        known[:, [0, -1]] = False  # shrinking may mix the neighbours in
    else:
        edges = [(0, 4), (7, 9), (12, 16)]  # far from where colours meet
        rows = range(16) if resize == "squeeze" else range(7, 9)
        known[:] = False
        for k, (left, right) in enumerate(edges):
            known[rows.start : rows.stop, left:right] = True
            value[rows.start : rows.stop, left:right, k] = 255
        if resize == "letterbox":
            known[:4] = known[12:] = True
            value[:4] = value[12:] = 0
    if tall:
        known, value = known.T, value.swapaxes(0, 1)
    return known, value


@pytest.mark.parametrize("resize", ["crop", "letterbox", "squeeze"])
@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("scale", [1, 3])
def test_ways_to_a_square(tmp_path: Path, resize: str, tall: bool, scale: int) -> None:
    picture = np.kron(stripes(), np.ones((scale, scale, 1), np.uint8))
    picture = picture.swapaxes(0, 1) if tall else picture
    content = encoded(np.ascontiguousarray(picture))
    seen = look(write(tmp_path, [content] * 10), image_size=16, resize=resize)
    known, value = as_square(resize, tall)
    for found in (
        seen.image(0).astype(int),
        seen.image(0, "test").astype(int),
        served(content, model_info((3, 16, 16), resize=resize))[0],
    ):
        assert np.abs(found - value)[known].max() <= 8
    levels, said = served(content, model_info((3, 16, 16), resize=resize))
    np.testing.assert_array_equal(levels, seen.image(0))
    assert said


def test_a_square_is_the_same_in_every_way(tmp_path: Path) -> None:
    content = photo(90, (32, 32))
    write(tmp_path, [content] * 10)
    ways = [
        np.asarray(look(tmp_path, image_size=16, resize=resize).data.train_images)
        for resize in ("crop", "letterbox", "squeeze")
    ]
    np.testing.assert_array_equal(ways[0], ways[1])
    np.testing.assert_array_equal(ways[0], ways[2])


def test_a_way_that_is_none(tmp_path: Path) -> None:
    sized(tmp_path, [(10, 8)] * 4)
    assert "resize" in refusal(tmp_path, resize="stretch")


@pytest.mark.parametrize("resize", ["crop", "letterbox", "squeeze"])
@pytest.mark.parametrize("size", [(300, 1), (1, 300), (1, 1), (2, 3)])
def test_odd_sizes_become_squares(
    tmp_path: Path, resize: str, size: tuple[int, int]
) -> None:
    sizes = [size, (20, 20)] * 5
    seen = look(sized(tmp_path, sizes), image_size=8, resize=resize)
    assert seen.shape == (3, 8, 8)
    assert seen.of_class("a").max() > 50


def test_small_things_survive_shrinking(tmp_path: Path) -> None:
    """Shrinking takes means over areas, not single pixels."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    seen = look(write(tmp_path, [encoded(board.astype(np.uint8))] * 10), image_size=8)
    assert np.abs(seen.image(0).astype(int) - 128).max() <= 12


def test_the_model_file_keeps_the_way(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    files = [
        encoded(draws.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8))
        for i in range(12)
    ]
    root = write(tmp_path / "set", files)
    folder = test_run.run(
        tmp_path,
        dataset=str(root),
        partitioner="iid",
        num_clients=2,
        num_server_rounds=1,
        image_size=12,
        resize="letterbox",
    )
    _, info = artifacts.read_model(folder.path / "model.safetensors")
    assert info.resize == "letterbox"
    assert tuple(info.input_shape) == (3, 12, 12)
    data = look(root, image_size=12, resize="letterbox").data
    both = np.concatenate([data.train_images, data.test_images])
    read = {images.read(content, info)[0].astype(np.uint8).tobytes()
            for content in files}  # fmt: skip
    assert read == {picture.tobytes() for picture in both}


# --- any image


@st.composite
def any_image(draw: st.DrawFn, grey: bool) -> tuple[str, bytes]:
    """Return a suffix and an image of any kind that the service takes too."""
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    noise = np.random.default_rng(draw(st.integers(0, 99)))
    pixels = noise.integers(0, 256, (height, width, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = draw(st.integers(1, 8))
    modes = ["1", "L", "LA", "I;16"] if grey else ["RGB", "RGBA", "P", "CMYK", "L"]
    mode = draw(st.sampled_from(modes))
    if mode == "I;16":
        highest = draw(st.sampled_from([255, 1000, 4095, 65535]))
        image = Image.fromarray(
            noise.integers(0, highest + 1, (height, width)).astype(np.uint16)
        )
    else:
        image = Image.fromarray(pixels).convert(mode)
    kinds = {".png": "PNG", ".tif": "TIFF"}
    if mode in ("RGB", "L", "CMYK"):
        kinds[".jpg"] = "JPEG"
    if mode in ("RGB", "RGBA"):
        kinds[".webp"] = "WEBP"
    if mode == "CMYK":
        del kinds[".png"]
    suffix = draw(st.sampled_from(sorted(kinds)))
    return suffix, encoded(image, kinds[suffix], exif=exif)


@settings(max_examples=40, deadline=None, phases=[Phase.reuse, Phase.generate])
@given(st.data())
def test_the_service_makes_of_a_file_what_training_made(data: st.DataObject) -> None:
    grey = data.draw(st.booleans())
    files = data.draw(st.lists(any_image(grey), min_size=6, max_size=10))
    options: dict[str, Any] = {
        "image_size": data.draw(st.sampled_from(["auto", 0, 5, 30])),
        "resize": data.draw(st.sampled_from(["crop", "letterbox", "squeeze"])),
    }
    with tempfile.TemporaryDirectory() as folder:
        for i, (suffix, content) in enumerate(files):
            put(Path(folder) / "ab"[i % 2] / f"{i}{suffix}", content)
        seen = look(Path(folder), **options)
    info = model_info(
        seen.shape, resize=seen.data.resize, white_level=seen.data.white_level
    )
    both = np.concatenate([seen.data.train_images, seen.data.test_images])
    made = [images.read(content, info)[0].astype(np.uint8) for _, content in files]
    assert sorted(m.tobytes() for m in made) == sorted(m.tobytes() for m in both)

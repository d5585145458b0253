"""Names as labels: whatever a folder is called, it can be drawn and told apart."""

import io
import warnings

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fl_app import lettering, plots

NAMES = [
    *("北京", "上海", "Köln Süd", 'ward "B"', "a=b, c", "back\\slash", "$x$ and $y^"),
    *("[red]x[/red]", "مستشفى", "_hidden", "हिन्दी", "two\nlines", "\udc80", "x" * 300),
]


def test_plain_names_stay_as_they_are() -> None:
    plain = ["north", "Köln Süd", 'ward "B"', "a=b, c", "back\\slash", "_hidden"]
    assert lettering.labels(plain) == plain


def test_a_dollar_is_no_mathematics() -> None:
    (label,) = lettering.labels(["$x^$"])
    text = Figure().text(0, 0, label)
    assert text._preprocess_math(label) == ("$x^$", False)  # type: ignore[attr-defined]


def test_long_names_keep_both_ends() -> None:
    names = [f"a very long name of a hospital, building {i}" for i in range(12)]
    labels = lettering.labels(names)
    assert len(set(labels)) == 12
    assert all(len(label) <= 24 for label in labels)
    assert all(label.startswith("a very long") for label in labels)
    assert labels[7].endswith("building 7"[-8:])
    assert all(len(label) <= 10 for label in lettering.labels(names[:9], longest=10))


def test_what_looks_alike_gets_its_number() -> None:
    long = ["x" * 20 + middle + "y" * 20 for middle in "abc"]
    assert [label[-3:] for label in lettering.labels(long)] == ["(0)", "(1)", "(2)"]
    composed, apart = "Ko\u0308ln", "K\u00f6ln"
    assert lettering.labels([composed, apart]) == ["Köln (0)", "Köln (1)"]


def test_characters_without_a_glyph_become_boxes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fonts = (("DejaVu Sans", frozenset(map(chr, range(32, 256))) | {"□"}),)
    lettering._characters.cache_clear()
    monkeypatch.setattr(lettering, "_fonts", lambda: fonts)
    assert lettering.labels(["北京", "上海", "new\nline"]) == [
        *("□□ (0)", "□□ (1)", "new line")
    ]
    assert lettering.title("北 $") == r"□ \$"
    lettering._characters.cache_clear()


def test_other_fonts_are_taken_where_they_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = (("DejaVu Sans", frozenset("ab")), ("DejaVu Serif", frozenset("cd")))
    monkeypatch.setattr(lettering, "_fonts", lambda: ours)
    figure = Figure()
    plain, other = figure.text(0, 0, "ab"), figure.text(0, 0, "abc")
    lettering.choose_fonts(figure)
    assert other.get_fontfamily() == ["DejaVu Sans", "DejaVu Serif"]
    assert plain.get_fontfamily() != other.get_fontfamily()


def test_any_name_is_drawn_without_a_warning() -> None:
    figure = plots.new_figure(8, 6)
    axes = figure.subplots()
    axes.set_yticks(range(len(NAMES)), lettering.labels(NAMES))
    axes.set_title(lettering.title(" ".join(NAMES[:-1])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Image.open(io.BytesIO(plots.to_png(figure))).width == 880

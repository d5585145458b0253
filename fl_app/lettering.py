"""Names as labels in pictures: any script, any length, told apart."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST = 24
_NO_GLYPH = "□"
_OTHER_SCRIPTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("PingFang SC", "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai"),
    *("Kohinoor Devanagari", "Nirmala UI", "Leelawadee UI", "Tahoma", "Noto Emoji"),
)
"""Fonts that have what matplotlib's own lacks, taken where they are installed."""


def labels(names: Sequence[str], longest: int = _LONGEST) -> list[str]:
    """Return a label for each name, for matplotlib: short, drawable and unique.

    A name of more characters than `longest` loses its middle. A character that no
    installed font has becomes a box. A label that lost a character, or that two names
    share, also gets the position of its name in `names`.
    """
    whole = [_tidied(name) for name in names]
    drawn = [_drawable(text) for text in whole]
    short = [_shortened(text, longest) for text in drawn]
    shared = Counter(short)
    return [
        _escaped(f"{text} ({i})" if shared[text] > 1 or drawn[i] != whole[i] else text)
        for i, text in enumerate(short)
    ]


def title(text: str) -> str:
    """Return a line of text for matplotlib: at its full length, drawable."""
    return _escaped(_drawable(_tidied(text)))


def choose_fonts(figure: "Figure") -> None:
    """Let the texts of a figure fall back to the fonts that have their characters."""
    from matplotlib.text import Text

    (_, first), *others = _fonts()
    families = [family for family, _ in _fonts()]
    for text in figure.findobj(Text):
        if others and not first.issuperset(text.get_text()):
            text.set_fontfamily(families)


def _tidied(text: str) -> str:
    """Return the text composed, with plain spaces and without invisible marks."""
    composed = unicodedata.normalize("NFC", text)
    kept = (c for c in composed if unicodedata.category(c) != "Cf")
    return "".join(" " if c.isspace() else c for c in kept)


def _drawable(text: str) -> str:
    known = _characters()
    return "".join(c if c in known else _NO_GLYPH for c in text)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - 1 - end]}…{text[-end:]}"


def _escaped(text: str) -> str:
    """Return the text so that matplotlib takes no part of it for mathematics."""
    return text.replace("$", r"\$")


@cache
def _characters() -> frozenset[str]:
    return frozenset[str]().union(*(characters for _, characters in _fonts()))


@cache
def _fonts() -> tuple[tuple[str, frozenset[str]], ...]:
    """Return the default font and the installed others: family and characters."""
    from matplotlib import font_manager

    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    default = font_manager.get_font(
        font_manager.findfont(font_manager.FontProperties())
    ).family_name
    wanted = [default, *(family for family in _OTHER_SCRIPTS if family in installed)]
    found = []
    for family in wanted:
        font = font_manager.get_font(font_manager.findfont(family))
        characters = filter(str.isprintable, map(chr, font.get_charmap()))
        found.append((family, frozenset(characters)))
    return tuple(found)

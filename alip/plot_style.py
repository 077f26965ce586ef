"""One style for all plots: for a column (3.4 inches) or a page (7 inches) of a paper, as PNG and SVG.

Colours can be distinguished with any colour vision and in grey print: they differ in lightness (Paul Tol's "high
contrast", https://sronpersonalpages.nl/~pault), and lines and bars also differ in dashes, markers or hatches.
"""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from alip.files import atomic_path

COLUMN, PAGE = 3.4, 7.0  # widths in inches
BLUE, RED, YELLOW = "#004488", "#BB5566", "#DDAA33"  # from dark to light
GREY, LIGHT_GREY = "#767676", "#C8C8C8"
SERIES = (BLUE, YELLOW, RED, "#000000", "#77AADD")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MATCHED, MISMATCHED = BLUE, YELLOW

_FONT_SIZE = 8.0
_SUFFIXES = (".png", ".svg")
_SETTINGS = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": _FONT_SIZE,
    "axes.titlesize": _FONT_SIZE,
    "axes.labelsize": _FONT_SIZE,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "figure.titlesize": _FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": "#E0E0E0",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "legend.edgecolor": "none",  # no frame, but no line through the words either
    "legend.framealpha": 0.8,
    "text.parse_math": False,  # captions hold dollar signs
    "svg.fonttype": "path",  # looks the same where the fonts are not installed
    "svg.hashsalt": "alip",
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
}


@contextlib.contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of width × height inches in this style; saved as `path`.png and .svg when the block ends."""
    with matplotlib.rc_context(_SETTINGS):
        made = Figure(figsize=(width, height), layout="constrained")
        yield made
        for target in outputs(path):
            with atomic_path(target) as temporary:
                made.savefig(temporary, format=target.suffix[1:], metadata=_METADATA[target.suffix])


# No date inside: the same numbers give the same bytes.
_METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def outputs(path: Path) -> list[Path]:
    """The files that a plot named `path` (without suffix) becomes."""
    return [path.with_name(path.name + suffix) for suffix in _SUFFIXES]


def plot_or_warn(draw: Callable[[Path], object], path: Path) -> list[Path]:
    """Calls draw(path); returns the files. A plot never fails a run: an error is one warning line and no files."""
    try:
        draw(path)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"warning: {path.name} could not be plotted ({reason}); the numbers are saved", file=sys.stderr)
        return []
    return outputs(path)


def printable(text: str) -> str:
    """The text with only characters that a font here has; any other one by its name or number.

    `:grinning face:` for an emoji without a font, `\\u4e2d` for a Chinese character without one, `\\ud800` for half a
    surrogate pair. Control characters and line breaks become spaces.
    """
    return "".join(_printable_character(character) for character in text)


def shorten(text: str, width: int, keep_end: bool = False) -> str:
    """Printable, on one line, at most `width` characters. keep_end: what is too long loses its middle."""
    text = " ".join(printable(text).split())
    if len(text) <= width:
        return text
    end = text[len(text) - width // 2 :] if keep_end else ""
    return text[: width - 1 - len(end)].rstrip() + "…" + end


def wrap(text: str, width: int, lines: int) -> str:
    """Printable, at most `lines` lines of at most `width` characters; words longer than a line are cut."""
    done: list[str] = []
    words = " ".join(printable(text).split()).split(" ")
    for word in words:
        if done and len(done[-1]) + 1 + len(word) <= width:
            done[-1] += " " + word
            continue
        while True:
            done.append(word[:width])
            word = word[width:]
            if not word or len(done) > lines:
                break
        if len(done) > lines:
            break
    if len(done) > lines:
        done = done[:lines]
        done[-1] = done[-1][: width - 1].rstrip() + "…"
    return "\n".join(done)


@lru_cache(maxsize=4096)
def _printable_character(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cc", "Zl", "Zp"):
        return " "
    if category in ("Cf", "Mn", "Me") and not _has_glyph(character):
        return ""  # joiners, variation selectors, accents without a glyph
    if category != "Cs" and _has_glyph(character):
        return character
    name = unicodedata.name(character, "")
    if category.startswith("S") and name:
        return f":{name.lower()}:"
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def _has_glyph(character: str) -> bool:
    """True if the plots' font has the character, or another installed font has, which is then added as a fallback."""
    families = _SETTINGS["font.family"]
    if any(ord(character) in _characters_of(family) for family in families):
        return True
    for family in _other_families():
        if ord(character) in _characters_of(family):
            families.append(family)
            return True
    return False


@lru_cache(maxsize=1)
def _other_families() -> tuple[str, ...]:
    """Installed fonts for other scripts. Colour fonts are left out: matplotlib cannot draw their bitmaps."""
    names = sorted({entry.name for entry in font_manager.fontManager.ttflist})
    wanted = ("CJK", "Noto Sans", "WenQuanYi", "Droid Sans Fallback", "Unifont", "Symbola", "Arial Unicode", "IPA")
    return tuple(name for name in names if any(word in name for word in wanted) and "Color" not in name)


@lru_cache(maxsize=64)
def _characters_of(family: str) -> frozenset[int]:
    try:
        path = font_manager.findfont(font_manager.FontProperties(family=family), fallback_to_default=False)
        return frozenset(FT2Font(str(path)).get_charmap())
    except (ValueError, RuntimeError, OSError):
        return frozenset()

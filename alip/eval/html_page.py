"""Pages as one HTML file with data and the plotting library inside: they load nothing, and open without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alip.files import atomic_write

if TYPE_CHECKING:  # the module's name on Python 3.11 and later
    from importlib.resources.abc import Traversable

ASSETS = files("alip.eval") / "assets"  # what pages share


def write_page(path: Path, title: str, content: Mapping[str, Any], assets: Traversable, name: str = "page") -> int:
    """Writes frame.html with %%TITLE%%, %%STYLE%% (assets/NAME.css), %%BODY%% (NAME.html), %%DATA%%, %%LIBRARY%% and
    %%SCRIPT%% (NAME.js) filled in; returns its size in bytes.

    Texts in `content` come from anywhere: they enter the page as JSON in which no `<` is left, and the script puts
    them into the document as text, never as markup. The page's policy forbids every connection.
    """
    parts = {
        "TITLE": escape(title.encode("utf-8", "backslashreplace").decode()),
        "STYLE": _text(assets / f"{name}.css"),
        "BODY": _text(assets / f"{name}.html"),
        "DATA": script_json(content),
        "LIBRARY": _text(ASSETS / "plotly-basic.min.js"),
        "SCRIPT": _text(assets / f"{name}.js"),
    }
    pieces = []
    for piece in _text(ASSETS / "frame.html").split("%%"):  # %%NAME%%: the odd pieces are names
        pieces.append(parts[piece] if len(pieces) % 2 else piece)
    text = "".join(pieces)
    with atomic_write(path, text=True) as file:
        file.write(text)
    return len(text.encode())


def script_json(content: Any) -> str:
    """JSON that is safe inside a <script> element: `<`, `>` and `&` only as escapes, lone surrogates too."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(asset: Traversable) -> str:
    return asset.read_text(encoding="utf-8")

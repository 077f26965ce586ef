"""The report page: one HTML file with its data, its images and the plotting library inside. It loads nothing."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from alip.files import atomic_write

ASSETS = files("alip.eval.gates") / "assets"


def write_page(path: Path, content: dict[str, Any]) -> int:
    """Writes the page of `page_data.collect`'s values; its size in bytes.

    Texts of the data come from anywhere: they enter the page as JSON in which no `<` is left, and the script puts them
    into the document as text, never as markup. The page's policy forbids every connection.
    """
    page = _asset("page.html")
    parts = {
        "TITLE": escape(f"Gate report: {content['data']['name']}"),
        "STYLE": _asset("page.css"),
        "DATA": script_json(content),
        "LIBRARY": _asset("plotly-basic.min.js"),
        "SCRIPT": _asset("page.js"),
    }
    pieces = []
    for piece in page.split("%%"):  # %%NAME%%: the odd pieces are names
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


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")

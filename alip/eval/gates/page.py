"""The report page: one HTML file with its data, its images and the plotting library inside. It loads nothing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from alip.eval import html_page


def write_page(path: Path, content: dict[str, Any]) -> int:
    """Writes the page of `page_data.collect`'s values; its size in bytes."""
    title = f"Gate report: {content['data']['name']}"
    return html_page.write_page(path, title, content, files("alip.eval.gates") / "assets")

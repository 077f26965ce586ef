"""The noise study's table and plots."""

from __future__ import annotations

import json
from pathlib import Path

METRICS = ("text_to_image_R@1", "image_to_text_R@1", "top1")


def read_rows(path: Path) -> list[dict]:
    """The finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


def write(results: Path, total: int) -> None:
    print(f"{len(read_rows(results))} of {total} runs are finished")

"""Unpacks the demo's two test splits into plain images and lists, the forms that both evaluations read.

    python scripts/demo/unpack.py --output data/demo/eval

Writes, for each split, images/, captions.jsonl (retrieval: the query is the emoji's name) and classes.jsonl (zero-shot:
the class of the emoji), and classnames.json and templates.json for both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `import alip`, from anywhere

from classes import CLASSES, TEMPLATES
from texts import order, sample

from alip.command import CommandParser, file_path
from alip.errors import UserError, run_command

SPLITS = {"held-out-style": "demo-style", "held-out-concept": "demo-concept"}


def read_split(split: str, images: Path) -> list[dict]:
    """Writes the split's images into a folder and returns a record for each: image, name, class, style, code."""
    images.mkdir(parents=True)
    files: dict[str, str] = {}
    records: dict[str, dict] = {}
    for path in sorted(Path(__file__).parent.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = Path(member.name).name.rpartition(".")
                content = tar.extractfile(member).read()
                if suffix == "json":
                    records[key] = json.loads(content)
                else:
                    files[key] = f"images/{key}.{suffix}"
                    (images / f"{key}.{suffix}").write_bytes(content)
    return [
        {"image": files[key], "code": key.removeprefix(record["style"] + "-"), **record}
        for key, record in records.items()
    ]


def one_style_each(records: list[dict]) -> list[dict]:
    """One image of each concept: a query must have one right answer, and styles of a concept share its name."""
    styles: dict[str, list[str]] = {}
    for record in records:
        styles.setdefault(record["code"], []).append(record["style"])
    chosen = {code: order(names, code, "retrieval style")[0] for code, names in styles.items()}
    return [record for record in records if record["style"] == chosen[record["code"]]]


def write_lines(path: Path, rows: list[dict]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def unpack(output: Path, chosen: Callable[[str], bool] = lambda name: True) -> None:
    """Writes everything below `output`, which appears only when it is complete.

    chosen: name of a concept → whether it is part of the benchmarks.
    """
    if output.exists() and not (output / "classnames.json").is_file() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"{output}: exists and holds something else, which would be removed; choose another folder")
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for split in SPLITS:
        records = read_split(split, unfinished / split / "images")
        records = sorted((row for row in records if chosen(row["name"])), key=lambda row: sample(row["image"]))
        pairs = [{"image": row["image"], "caption": [row["name"]]} for row in one_style_each(records)]
        write_lines(unfinished / split / "captions.jsonl", pairs)
        write_lines(
            unfinished / split / "classes.jsonl", [{"image": row["image"], "label": row["class"]} for row in records]
        )
        print(f"{split}: {len(records)} images, {len(pairs)} retrieval pairs")
    names = SPLITS.values()
    (unfinished / "classnames.json").write_text(json.dumps({name: list(CLASSES) for name in names}, indent=1))
    (unfinished / "templates.json").write_text(json.dumps(dict.fromkeys(names, TEMPLATES), indent=1))
    shutil.rmtree(output, ignore_errors=True)
    unfinished.rename(output)


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=file_path, default=Path("data/demo/eval"), help="folder to write")
    unpack(parser.parse_args().output)


if __name__ == "__main__":
    run_command(main)

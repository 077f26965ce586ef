"""What raw pixels can do on the demo's benchmarks: the nearest training image, given every true name and class.

python scripts/demo/baseline.py --data-root data --output runs/quickstart/results/pixels.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `import alip`, from anywhere

from classes import CLASSES
from unpack import SPLITS, read_split

from alip.command import CommandParser, file_path
from alip.errors import run_command
from alip.eval.baseline import pixel_classification, pixel_retrieval
from alip.eval.datasets import open_classification, open_retrieval


def measure_pixels(data_root: Path) -> dict[str, dict[str, float]]:
    """{dataset: {metric: percent}}. data_root: folder that holds demo/eval."""
    numbers = {}
    tests = {  # first: a wrong folder is found before the work
        name: (open_retrieval(name, data_root), open_classification(name, data_root)) for name in SPLITS.values()
    }
    with tempfile.TemporaryDirectory() as folder:
        records = read_split("train", Path(folder) / "images")
        images = [Path(folder) / record["image"] for record in records]
        names = list(zip(images, (record["name"] for record in records), strict=True))
        labels = list(zip(images, (record["class"] for record in records), strict=True))
        for name, (pairs, classes) in tests.items():
            accuracy = pixel_classification(labels, classes, list(CLASSES))
            numbers[name] = {**pixel_retrieval(names, pairs), **accuracy}
    return numbers


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder that holds demo/eval")
    parser.add_argument(
        "--output", type=file_path, required=True, help="JSON file to write: {dataset: {metric: percent}}"
    )
    arguments = parser.parse_args()
    numbers = measure_pixels(arguments.data_root)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)

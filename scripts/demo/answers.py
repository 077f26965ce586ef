"""One plot of two models' answers to the same queries: CLIP's nearest images beside ALIP's.

    python scripts/demo/answers.py --run runs/quickstart --clip runs/quickstart-clip --output answers

The queries are spread evenly over the benchmark, so neither model's best are picked out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from alip import distributed
from alip import plot_style as style
from alip.checkpoint.load import load_model
from alip.command import CommandParser
from alip.errors import run_command
from alip.eval.datasets import open_retrieval
from alip.eval.features import Encoding
from alip.eval.image_readers import read_rgb
from alip.eval.retrieval import Retrieved, measure_retrieval

QUERIES, TOP = 10, 4


def draw_answers(found: dict[str, Retrieved], path: Path) -> None:
    """A row for each query: its text, then every model's nearest images, with the rank of the right one above them."""
    columns = [1.7, *([1.0] * TOP + [0.3]) * len(found)][:-1]
    dataset = next(iter(found.values())).dataset
    with style.figure(path, style.PAGE, 0.92 * QUERIES + 0.4) as figure:
        cells = figure.subplots(QUERIES, len(columns), squeeze=False, width_ratios=columns)
        for cell in cells.flat:
            cell.axis("off")
        for row, query in enumerate(np.linspace(0, len(dataset.captions) - 1, QUERIES).round().astype(int).tolist()):
            cells[row][0].text(0, 0.5, style.wrap(dataset.captions[query], 17, 4), va="center")
            owner = dataset.caption_owner[query]
            for block, (model, retrieved) in enumerate(found.items()):
                scores = retrieved.image_features.float() @ retrieved.caption_features[query].float()
                rank = int((scores >= scores[owner]).sum())  # ties count against the model
                first = 1 + block * (TOP + 1)
                title = f"{model}\n" if row == 0 else ""
                cells[row][first].set_title(f"{title}rank {rank:,}", loc="left")
                for cell, image in zip(cells[row][first : first + TOP], scores.topk(TOP).indices.tolist()):
                    _show(cell, read_rgb(dataset.images[image]), image == owner)
        figure.suptitle(f"nearest of {len(dataset.images):,} images in held-out styles; right answers framed")


def _show(cell, image, right: bool) -> None:
    cell.axis("on")
    cell.imshow(np.asarray(image))
    cell.set_xticks([])
    cell.set_yticks([])
    for spine in cell.spines.values():
        spine.set(visible=right, color=style.BLUE, linewidth=3)


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="ALIP's run folder")
    parser.add_argument("--clip", type=Path, required=True, help="run folder of CLIP on the raw texts")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder that holds demo/eval")
    parser.add_argument("--output", type=Path, required=True, help="plot to write, without suffix: .png and .svg")
    arguments = parser.parse_args()
    encoding = Encoding(distributed.start("auto"), batch_size=256, workers=2, precision="fp32")
    dataset = open_retrieval("demo-style", arguments.data_root)
    found = {
        name: measure_retrieval(load_model(folder, device=encoding.world.device), dataset, encoding)
        for name, folder in (("CLIP on the raw texts", arguments.clip), ("ALIP", arguments.run))
    }
    for path in style.plot_or_warn(lambda path: draw_answers(found, path), arguments.output):
        print(path)


if __name__ == "__main__":
    run_command(main)

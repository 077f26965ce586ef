"""One plot of two models' answers to the same queries: CLIP's nearest images beside ALIP's.

    python scripts/demo/answers.py --run runs/quickstart --output answers [--clip runs/quickstart-clip]

Without --clip, CLIP's answers are the recorded ones of benchmarks/demo_seeds.py. The queries are spread evenly over the
benchmark, so neither model's best are picked out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `import alip`, from anywhere

from recorded import CLIP, recorded_run

from alip import distributed
from alip import plot_style as style
from alip.checkpoint.load import load_model
from alip.command import CommandParser, file_path
from alip.errors import UserError, run_command
from alip.eval.datasets import open_retrieval
from alip.eval.features import Encoding
from alip.eval.image_readers import read_rgb
from alip.eval.retrieval import Retrieved, measure_retrieval

QUERIES, TOP = 10, 4


@dataclass(frozen=True)
class Answer:
    """A model's answer to one query: file names of the nearest images, best first, and the rank of the right one."""

    query: str
    right: str
    rank: int
    nearest: list[str]


def find_answers(retrieved: Retrieved) -> list[Answer]:
    """The answers to the plot's queries. Ties count against the model."""
    dataset, found = retrieved.dataset, []
    for query in np.linspace(0, len(dataset.captions) - 1, QUERIES).round().astype(int).tolist():
        scores = retrieved.image_features.float() @ retrieved.caption_features[query].float()
        owner = dataset.caption_owner[query]
        nearest = [dataset.images[image].name for image in scores.topk(TOP).indices.tolist()]
        rank = int((scores >= scores[owner]).sum())
        found.append(Answer(dataset.captions[query], dataset.images[owner].name, rank, nearest))
    return found


def recorded_answers(recorded: Path, queries: list[Answer]) -> list[Answer]:
    """CLIP's answers of its recorded run; UserError if they are to other queries."""
    found = [Answer(**one) for one in recorded_run(recorded).get("answers", [])]
    if [(one.query, one.right) for one in found] != [(one.query, one.right) for one in queries]:
        raise UserError(f"{recorded} holds answers to other queries: run `python benchmarks/demo_seeds.py` again")
    return found


def draw_answers(found: dict[str, list[Answer]], folder: Path, title: str, path: Path) -> None:
    """A row for each query: its text, then every model's nearest images, with the rank of the right one above them.

    folder: of the images.
    """
    columns = [1.7, *([1.0] * TOP + [0.3]) * len(found)][:-1]
    with style.figure(path, style.PAGE, 0.92 * QUERIES + 0.4) as figure:
        cells = figure.subplots(QUERIES, len(columns), squeeze=False, width_ratios=columns)
        for cell in cells.flat:
            cell.axis("off")
        for block, (model, answers) in enumerate(found.items()):
            first = 1 + block * (TOP + 1)
            for row, answer in enumerate(answers):
                cells[row][0].text(0, 0.5, style.wrap(answer.query, 17, 4), va="center")
                head = f"{model}\n" if row == 0 else ""
                cells[row][first].set_title(f"{head}rank {answer.rank:,}", loc="left")
                for cell, name in zip(cells[row][first : first + TOP], answer.nearest, strict=True):
                    _show(cell, read_rgb(folder / name), name == answer.right)
        figure.suptitle(title)


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
    parser.add_argument("--clip", type=Path, help="run folder of CLIP on the raw texts")
    parser.add_argument("--recorded", type=Path, default=CLIP, help="recorded runs, where --clip is not given")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder that holds demo/eval")
    parser.add_argument("--output", type=file_path, required=True, help="plot to write, without suffix: .png and .svg")
    arguments = parser.parse_args()
    encoding = Encoding(distributed.start("auto"), batch_size=256, workers=2, precision="fp32")
    dataset = open_retrieval("demo-style", arguments.data_root)

    def answers_of(run: Path) -> list[Answer]:
        return find_answers(measure_retrieval(load_model(run, device=encoding.world.device), dataset, encoding))

    alip = answers_of(arguments.run)
    clip = answers_of(arguments.clip) if arguments.clip else recorded_answers(arguments.recorded, alip)
    found = {"CLIP on the raw texts": clip, "ALIP": alip}
    title = f"nearest of {len(dataset.images):,} images in held-out styles; right answers framed"
    title += "" if arguments.clip else "; CLIP: a recorded run"
    folder = dataset.images[0].parent
    for path in style.plot_or_warn(lambda path: draw_answers(found, folder, title, path), arguments.output):
        print(path)


if __name__ == "__main__":
    run_command(main)

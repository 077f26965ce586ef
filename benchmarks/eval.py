"""Ranking for retrieval: counting in cached tiles against a plain sort of every row, in one run.

python benchmarks/eval.py                                            5,000 images × 25,000 captions (COCO's size)
python benchmarks/eval.py --images 100000 --captions 500000 --no-sort     memory and time where no matrix fits
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparisons import record

from alip.command import CommandParser, count
from alip.errors import run_command
from alip.eval.ranking import Ranks, ranks_from_features, ranks_from_scores


def sorted_ranks(scores: torch.Tensor, owner: torch.Tensor) -> Ranks:
    """The released way: sort each row (and each column) whole, then look for the right answer in it."""
    text_to_image = torch.empty(len(owner), dtype=torch.int64)
    for caption, row in enumerate(scores.T):
        order = torch.argsort(row, descending=True)
        text_to_image[caption] = torch.where(order == owner[caption])[0][0]
    right: list[list[int]] = [[] for _ in range(len(scores))]
    for caption, image in enumerate(owner.tolist()):
        right[image].append(caption)
    image_to_text = torch.empty(len(scores), dtype=torch.int64)
    for image, row in enumerate(scores):
        order = torch.argsort(row, descending=True)
        image_to_text[image] = min(int(torch.where(order == caption)[0][0]) for caption in right[image])
    return Ranks(image_to_text, text_to_image)


def plain_count(scores: torch.Tensor, owner: torch.Tensor) -> Ranks:
    """Counting without tiles: two comparisons of the whole matrix."""
    positives = scores[owner, torch.arange(len(owner))]
    best = torch.full((len(scores),), -9.0).scatter_reduce(0, owner, positives, "amax")
    own = torch.zeros(len(scores), dtype=torch.int64).scatter_add(0, owner, (positives >= best[owner]).long())
    return Ranks((scores >= best[:, None]).sum(1) - own, (scores >= positives).sum(0) - 1)


def timed(work: Callable[[], Ranks], repeats: int) -> tuple[float, Ranks]:
    """The best of `repeats` times, in seconds, and the answer."""
    best, answer = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        answer = work()
        best = min(best, time.perf_counter() - start)
    return best, answer


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=count, default=5000)
    parser.add_argument("--captions", type=count, default=25000)
    parser.add_argument("--width", type=count, default=512)
    parser.add_argument("--no-sort", action="store_true", help="features to ranks only; the matrix is never made")
    args = parser.parse_args()
    if args.captions < args.images:
        parser.error(f"--captions {args.captions}: give at least one for each of the {args.images} images")
    torch.manual_seed(0)
    owner = torch.arange(args.captions) * args.images // args.captions
    image_features = F.normalize(torch.randn(args.images, args.width), dim=1)
    caption_features = F.normalize(torch.randn(args.captions, args.width) + image_features[owner], dim=1)
    print(f"{args.images:,} images × {args.captions:,} captions, width {args.width}, {torch.get_num_threads()} threads")

    if args.no_sort:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds, _ = timed(lambda: ranks_from_features(image_features, caption_features, owner), 1)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
        whole = args.images * args.captions * 4 / 2**20
        print(f"features to ranks: {seconds:.1f} s, {grown:.0f} MB more memory; the whole matrix has {whole:,.0f} MB")
        return

    product, scores = timed(lambda: image_features @ caption_features.T, 3)
    ours, found = timed(lambda: ranks_from_scores(scores, owner), 3)
    plain, counted = timed(lambda: plain_count(scores, owner), 2)
    peer, expected = timed(lambda: sorted_ranks(scores, owner), 1)
    # A sort leaves it open which of two equal scores comes first; counting puts the wrong one first.
    differ = 0
    for way in ("image_to_text", "text_to_image"):
        mine, counts, sort = (getattr(ranks, way) for ranks in (found, counted, expected))
        assert torch.equal(mine, counts) and bool((mine >= sort).all())
        differ += int((mine != sort).sum())
    assert differ < 0.01 * (args.images + args.captions)
    whole, _ = timed(lambda: ranks_from_features(image_features, caption_features, owner), 2)

    for name, seconds in (("ours", ours), ("plain counting", plain), ("a sort of every row", peer)):
        record("ranks for retrieval", name, "s", [seconds], more_is_better=False)
    print("| scores → ranks, both ways  | seconds | times faster |")
    print("|----------------------------|--------:|-------------:|")
    for name, seconds in (("sort of every row", peer), ("plain counting", plain), ("ours", ours)):
        print(f"| {name.ljust(26)} | {seconds:7.3f} | {peer / seconds:12.1f} |")
    print("| **features → ranks**       |         |              |")
    for name, seconds in (("product, then sort", product + peer), ("ours", whole)):
        print(f"| {name.ljust(26)} | {seconds:7.3f} | {(product + peer) / seconds:12.1f} |")
    print(f"the three give the same ranks, but for {differ} of {args.images + args.captions:,} queries with exact ties")


if __name__ == "__main__":
    run_command(main)

"""Statistics of the captions: lengths in tokens, duplicates, and random pairs of image and caption."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alip.build.text_hash import number
from alip.tokens import lengths, tokenize

BINS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 75)  # tokens without start and end; 75 fill CLIP's context
SAMPLED = 20_000  # captions whose tokens are counted; more would take minutes and change nothing


class CaptionSummary:
    """Observes every merged line once (`observe`), then summarises (`result`). Memory: 8 bytes per caption."""

    def __init__(self, seed: int, wanted_keys: set[str] | None = None) -> None:
        self.lines = 0
        self._numbers = array("Q")
        self._random = random.Random(seed)
        self._sampled: list[str] = []
        self._wanted = wanted_keys or set()
        self.captions_of: dict[str, str] = {}

    def observe(self, line: dict[str, Any]) -> None:
        """One line of captions.jsonl."""
        self.lines += 1
        texts = line.get("captions") or [line["caption"] if "caption" in line else line["rewrite"]]
        for text in texts:
            self._numbers.append(number(text))
            if len(self._sampled) < SAMPLED:
                self._sampled.append(text)
            else:
                position = self._random.randrange(len(self._numbers))
                if position < SAMPLED:
                    self._sampled[position] = text
        if line["key"] in self._wanted:
            self.captions_of[line["key"]] = texts[0]

    def result(self) -> dict[str, Any]:
        """Plain values: captions, distinct, duplicate_fraction (captions that another image has too), most_common of
        the sampled ones, token statistics and the histogram [[from, to, fraction], …] of the sampled ones."""
        count = len(self._numbers)
        if count == 0:
            return {"captions": 0}
        _, times = np.unique(np.frombuffer(self._numbers, dtype=np.uint64), return_counts=True)
        tokens = np.concatenate(
            [lengths(tokenize(self._sampled[at : at + 1000])).numpy() - 2 for at in range(0, len(self._sampled), 1000)]
        )
        texts, text_times = np.unique(np.array(self._sampled, dtype=object), return_counts=True)
        common = np.argsort(-text_times, kind="stable")[:5]
        fractions = np.histogram(tokens, bins=[*BINS, 76])[0] / len(tokens)
        return {
            "captions": count,
            "distinct": len(times),
            "duplicate_fraction": round(float(times[times > 1].sum() / count), 6),
            "sampled": len(self._sampled),
            "most_common": [[texts[i], int(text_times[i])] for i in common if text_times[i] > 1],
            "tokens": {
                "mean": round(float(tokens.mean()), 2),
                **{f"p{p}": int(np.percentile(tokens, p)) for p in (5, 50, 95)},
                "max": int(tokens.max()),
                "truncated_fraction": round(float((tokens >= 75).mean()), 6),
                "histogram": [
                    [low, high - 1, round(float(part), 4)] for low, high, part in zip(BINS, [*BINS[1:], 76], fractions)
                ],
            },
        }


def as_text(result: dict[str, Any], width: int = 40) -> str:
    """The summary for a terminal: a histogram of bars, then the duplicates."""
    if not result["captions"]:
        return "no captions"
    tokens = result["tokens"]
    highest = max(part for _, _, part in tokens["histogram"]) or 1.0
    rows = [f"caption length in tokens (of {result['sampled']:,} random captions)"]
    for low, high, part in tokens["histogram"]:
        label = f"{low}-{high}" if low < 75 else "75+ (cut)"
        rows.append(f"  {label:>9}  {part:6.1%}  {'█' * round(width * part / highest)}".rstrip())
    rows.append(f"  mean {tokens['mean']}, median {tokens['p50']}, 5-95 % {tokens['p5']}-{tokens['p95']}")
    rows.append(
        f"captions shared by several images: {result['duplicate_fraction']:.1%} ({result['distinct']:,} distinct)"
    )
    rows += [f"  {times:,} × {text}" for text, times in result["most_common"]]
    return "\n".join(rows)


def plot_pairs(pairs: list[tuple[Image.Image, str, str]], path: Path, title: str) -> None:
    """Up to ten (image, key, caption) in one figure, `path` with the suffixes .png and .svg."""
    from alip import plot_style as style  # matplotlib takes a second to load

    columns = min(5, max(1, len(pairs)))
    rows = -(-len(pairs) // columns)
    with style.figure(path.with_suffix(""), style.PAGE, 2.1 * rows + 0.3) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, (image, key, caption) in zip(axes.flat, pairs):
            axis.imshow(np.asarray(image))
            axis.set_title(style.wrap(caption, 25, 6), fontsize=7, loc="left")
            name = style.shorten(key, 28, keep_end=True)
            axis.text(0, -0.04, name, fontsize=6, color="0.45", transform=axis.transAxes, va="top")
        figure.suptitle(style.wrap(title, 105, 2), color="0.3")

"""Statistics of the captions: lengths in tokens, duplicates, and random pairs of image and caption."""

from __future__ import annotations

import random
import textwrap
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alip.caption.store import number
from alip.files import atomic_path
from alip.tokens import lengths, tokenize

BINS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 75)  # tokens without start and end; 75 fill CLIP's context
SAMPLED = 20_000  # captions whose tokens are counted; more would take minutes and change nothing


class CaptionSummary:
    """Observes every merged line once (`observe`), then summarises (`result`). Memory: 8 bytes per caption."""

    def __init__(self, seed: int, wanted_keys: set[str] | None = None) -> None:
        self._numbers = array("Q")
        self._random = random.Random(seed)
        self._sampled: list[str] = []
        self._wanted = wanted_keys or set()
        self.captions_of: dict[str, str] = {}

    def observe(self, line: dict[str, Any]) -> None:
        """One line of captions.jsonl."""
        caption = line["caption"]
        self._numbers.append(number(caption))
        if len(self._sampled) < SAMPLED:
            self._sampled.append(caption)
        else:
            position = self._random.randrange(len(self._numbers))
            if position < SAMPLED:
                self._sampled[position] = caption
        if line["key"] in self._wanted:
            self.captions_of[line["key"]] = caption

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
    """Up to ten (image, key, caption) on one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(5, max(1, len(pairs)))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(3.0 * columns, 3.7 * rows + 0.4), dpi=110)
    FigureCanvasAgg(figure)
    for position, (image, key, caption) in enumerate(pairs, start=1):
        key = key.encode("utf-8", "replace").decode()  # file names need not be UTF-8; fonts do
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(np.asarray(image))
        axes.set_axis_off()
        text = textwrap.fill(textwrap.shorten(caption, 150, placeholder=" …"), 32)
        axes.set_title(text.replace("$", r"\$"), fontsize=10, loc="left", wrap=False)
        axes.text(
            0,
            -0.04,
            textwrap.shorten(key, 40, placeholder=" …").replace("$", r"\$"),
            fontsize=7,
            color="0.45",
            transform=axes.transAxes,
            va="top",
        )
    figure.suptitle(title.replace("$", r"\$"), fontsize=9, color="0.3")
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")

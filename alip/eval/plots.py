"""Pictures of results: retrieval gallery, confusion matrix, per-class accuracy, bars against the published methods."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from alip.eval.image_readers import read_rgb
from alip.eval.retrieval import Retrieved
from alip.eval.zeroshot import Classified

_RIGHT, _WRONG = "#1a9850", "#b0b0b0"
_OURS, _OTHERS = "#d95f02", "#8da0cb"
_OUR_RUNS = (_OURS, "#1b9e77", "#7570b3", "#e7298a", "#66a61e")


def gallery(found: Retrieved, path: Path, queries: int = 6, top: int = 5) -> None:
    """Captions and the `top` images nearest to each, the right one in a green frame; its rank is written beside it.

    The queries are spread evenly over the set: neither the best nor the worst are picked out.
    """
    dataset = found.dataset
    count, top = min(queries, len(dataset.captions)), min(top, len(dataset.images))
    chosen = np.linspace(0, len(dataset.captions) - 1, count).round().astype(int).tolist()
    scores = found.caption_features[chosen].float() @ found.image_features.float().T
    figure = Figure(figsize=(1.9 + 1.35 * top, 1.45 * count + 0.5), layout="constrained")
    axes = figure.subplots(count, top + 1, squeeze=False, width_ratios=[1.5] + [1] * top)
    for row, (caption, row_scores) in enumerate(zip(chosen, scores)):
        owner = dataset.caption_owner[caption]
        rank = int((row_scores >= row_scores[owner]).sum())
        words = textwrap.fill(dataset.captions[caption], 24, max_lines=5)
        axes[row][0].text(0.0, 0.5, f"{words}\n\nright one: place {rank:,}", va="center", fontsize=8)
        axes[row][0].axis("off")
        for place, image in enumerate(row_scores.topk(top).indices.tolist()):
            cell = axes[row][place + 1]
            picture = read_rgb(dataset.images[image])
            picture.thumbnail((160, 160))
            cell.imshow(np.asarray(picture))
            _frame(cell, _RIGHT if image == owner else _WRONG, 4 if image == owner else 0.8)
            if row == 0:
                cell.set_title(f"{place + 1}", fontsize=9)
    figure.suptitle(f"{dataset.name}: text → image, {len(dataset.images):,} images", fontsize=10)
    _save(figure, path)


def _frame(cell, colour: str, width: float) -> None:
    cell.set_xticks([])
    cell.set_yticks([])
    for spine in cell.spines.values():
        spine.set(color=colour, linewidth=width)


def confusion(found: Classified, path: Path, classes: int = 30) -> None:
    """The confusion matrix, rows = true classes, each row in percent; with many classes, those of the most images."""
    names = found.dataset.classnames
    counts = np.bincount(found.labels.numpy(), minlength=len(names))
    shown = np.sort(np.argsort(-counts, kind="stable")[: min(classes, int((counts > 0).sum()))])
    matrix = torch.zeros(len(names), len(names)).index_put_(
        (found.labels, found.predictions), torch.ones(len(found.labels)), accumulate=True
    )
    share = (100 * matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()[np.ix_(shown, shown)]
    size = 3.2 + 0.24 * len(shown)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    drawn = axis.imshow(share, cmap="viridis", vmin=0, vmax=100)
    labels = [textwrap.shorten(names[i], 28, placeholder="…") for i in shown]
    axis.set_xticks(range(len(shown)), labels, rotation=90, fontsize=7)
    axis.set_yticks(range(len(shown)), labels, fontsize=7)
    if len(shown) <= 12:
        for row in range(len(shown)):
            for column in range(len(shown)):
                value = share[row, column]
                axis.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="k" if value > 60 else "w"
                )
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    rest = f", {len(shown)} of {len(names)} classes" if len(shown) < len(names) else ""
    axis.set_title(f"{found.dataset.name}: % of each true class{rest}", fontsize=10)
    figure.colorbar(drawn, ax=axis, shrink=0.7)
    _save(figure, path)


def per_class(found: Classified, path: Path, classes: int = 60) -> None:
    """Accuracy of each class, best first; with many classes, the best and the worst."""
    names = found.dataset.classnames
    rows = []
    for number, name in enumerate(names):
        own = found.labels == number
        if int(own.sum()):
            rows.append((100.0 * float((found.predictions[own] == number).double().mean()), int(own.sum()), name))
    rows.sort(key=lambda row: (-row[0], row[2]))
    total = len(rows)
    if total > classes:
        rows = [*rows[: classes // 2], *rows[-classes // 2 :]]
    figure = Figure(figsize=(7, 1.2 + 0.2 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.barh(range(len(rows)), [row[0] for row in rows], color=_OTHERS)
    labels = [f"{textwrap.shorten(row[2], 36, placeholder='…')} ({row[1]})" for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    chance, mean = 100.0 / len(names), found.numbers["mean_per_class"]
    axis.axvline(chance, color="k", linewidth=0.8, linestyle="--", label=f"chance {chance:.1f}")
    axis.axvline(mean, color=_OURS, linewidth=1.2, label=f"mean per class {mean:.1f}")
    axis.legend(fontsize=7, loc="lower right")
    axis.set_xlim(0, 100)
    axis.set_xlabel("accuracy, % (images)")
    part = f"best and worst {classes // 2} of {total} classes" if total > classes else f"{total} classes"
    axis.set_title(f"{found.dataset.name}: accuracy by class, {part}", fontsize=10)
    _save(figure, path)


def bars(
    groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None], bool]], title: str, path: Path
) -> None:
    """Grouped bars. series: (method, a value or None for each group, is it ours); values in percent."""
    figure = Figure(figsize=(max(6.0, 0.17 * len(groups) * len(series) + 2.5), 3.8), layout="constrained")
    axis = figure.subplots()
    width = min(0.84 / len(series), 0.5)
    greys = np.linspace(0.82, 0.45, max(1, len(series)))
    for number, (name, values, ours) in enumerate(series):
        known = [(group, value) for group, value in enumerate(values) if value is not None]
        places = [group + (number - (len(series) - 1) / 2) * width for group, _ in known]
        colour = (greys[number],) * 3
        if ours:
            colour = _OUR_RUNS[sum(own for _, _, own in series[:number]) % len(_OUR_RUNS)]
        axis.bar(places, [value for _, value in known], width * 0.92, label=name, color=colour)
        if ours:
            for place, (_, value) in zip(places, known):
                axis.text(
                    place,
                    value + 0.8,
                    f"{value:.1f}",
                    ha="center",
                    fontsize=6,
                    rotation=90 * (len(series) > 2),
                    va="bottom",
                )
    axis.set_xticks(range(len(groups)), groups, fontsize=8)
    axis.set_ylabel("%")
    axis.set_ylim(0, 100)
    axis.margins(x=0.01)
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=7, ncols=min(len(series), 5), loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)

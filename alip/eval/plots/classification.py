"""Confusion matrix and accuracy by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap

from alip import plot_style as style
from alip.eval.zeroshot import Classified

_LIGHT = LinearSegmentedColormap.from_list("white to blue", ["#FFFFFF", "#C7D6E6", style.BLUE])
_NUMBERED = 12  # with more classes, the numbers in the cells are too small to read


def confusion(found: Classified, path: Path, classes: int = 30) -> None:
    """The confusion matrix: a row for a true class, in percent of its images, so that each row has the sum 100.

    With more than `classes` classes, those with the most images are shown; predictions of all others are in the last
    column, "other".
    """
    names = found.dataset.classnames
    counts = np.bincount(found.labels.numpy(), minlength=len(names))
    shown = np.sort(np.argsort(-counts, kind="stable")[: min(classes, int((counts > 0).sum()))])
    percent = confusion_percent(found, shown)
    other = percent.shape[1] > len(shown)
    narrow = len(shown) <= _NUMBERED
    labels = [style.shorten(names[i], 16 if narrow else 28) for i in shown]
    width, height = (style.COLUMN, 1.7 + 0.17 * len(shown)) if narrow else (style.PAGE, 1.6 + 0.17 * len(shown))
    with style.figure(path, width, height) as figure:
        axis = figure.subplots()
        image = axis.imshow(percent, cmap=_LIGHT, vmin=0, vmax=100, aspect="auto")
        axis.set_xticks(range(percent.shape[1]), [*labels, *(["other"] if other else [])], rotation=90)
        axis.set_yticks(range(len(shown)), labels)
        axis.spines[:].set_visible(True)
        if other:
            axis.axvline(len(shown) - 0.5, color="black", linewidth=0.6)
        if narrow:
            for (row, column), value in np.ndenumerate(percent):
                colour = "white" if value > 55 else "black"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        axis.set_xlabel("predicted class")
        axis.set_ylabel("true class")
        rest = f", {len(shown)} of {len(names)} classes" if len(shown) < len(names) else ""
        figure.suptitle(
            style.wrap(f"{found.dataset.name}: confusion matrix, % of each true class{rest}", 50 if narrow else 105, 2)
        )
        if not narrow:
            figure.colorbar(image, ax=axis, shrink=0.7, label="% of the true class")


def confusion_percent(found: Classified, shown: np.ndarray) -> np.ndarray:
    """(rows, columns): for each shown class the percentages of its images predicted as each shown class.

    Where other classes are predicted too, one more column has their sum. Each row's sum is 100.
    """
    count = len(found.dataset.classnames)
    pairs = (found.labels, found.predictions)
    matrix = torch.zeros(count, count, dtype=torch.float64)
    matrix.index_put_(pairs, torch.ones(len(found.labels), dtype=torch.float64), accumulate=True)
    rows = matrix.numpy()[shown]
    inside = rows[:, shown]
    other = rows.sum(1, keepdims=True) - inside.sum(1, keepdims=True)
    if len(shown) < count:
        inside = np.concatenate([inside, other], axis=1)
    return 100 * inside / rows.sum(1, keepdims=True)


def per_class(found: Classified, path: Path, classes: int = 60) -> None:
    """Accuracy of each class, best first; with more than `classes` classes, the best and the worst."""
    names = found.dataset.classnames
    rows = []
    for number, name in enumerate(names):
        own = found.labels == number
        if int(own.sum()):
            rows.append((100.0 * float((found.predictions[own] == number).double().mean()), int(own.sum()), name))
    rows.sort(key=lambda row: (-row[0], row[2]))
    total = len(rows)
    if total > classes:
        rows = [*rows[: classes // 2], *rows[-(classes // 2) :]]
    with style.figure(path, style.COLUMN, 1.2 + 0.135 * len(rows)) as figure:
        axis = figure.subplots()
        axis.barh(range(len(rows)), [row[0] for row in rows], color="#8FAFCF", edgecolor=style.BLUE, linewidth=0.3)
        axis.set_yticks(range(len(rows)), [f"{style.shorten(row[2], 26)} ({row[1]:,})" for row in rows], fontsize=6.5)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        chance, mean = 100.0 / len(names), found.numbers["mean_per_class"]
        axis.axvline(chance, color="black", linewidth=0.9, linestyle=":", label=f"chance {chance:.1f}")
        axis.axvline(mean, color=style.RED, linewidth=1.2, linestyle="--", label=f"mean of the classes {mean:.1f}")
        if total > classes:
            axis.axhline(classes // 2 - 0.5, color=style.GREY, linewidth=0.6)
        axis.set_xlim(0, 100)
        axis.grid(axis="x")
        axis.set_xlabel("accuracy (%)")
        axis.set_ylabel("class (images)")
        part = f"the best and worst {classes // 2} of {total:,} classes" if total > classes else f"{total:,} classes"
        figure.suptitle(style.wrap(f"{found.dataset.name}: accuracy by class, {part}", 50, 2))
        figure.legend(loc="outside lower center", ncols=2)

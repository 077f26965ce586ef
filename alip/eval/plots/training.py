"""A run of train.py over its steps, and what its gates make of matched and mismatched raw texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from alip import plot_style as style
from alip.errors import UserError
from alip.files import parse_json, read_text, real_path

Columns = dict[str, np.ndarray]
_PAIRS = (("text_caption", "tc"), ("image_text", "xt"), ("image_caption", "xc"))
_MOST_INSIDE = 5  # evaluations whose legend fits into their panel
_WEIGHTS = (("sample_weight", "Wˢ"), ("text_weight", "Wᵗ"), ("caption_weight", "Wᶜ"))


def read_metrics(run: Path, kind: str) -> Columns:
    """The columns of a run's metrics.jsonl lines of one kind: {name: (lines,)}, a missing number as NaN.

    Raises UserError when the run has no such lines. Lines of a resumed run replace earlier ones of the same step.
    """
    by_step: dict[int, dict] = {}
    for row in _lines(run):
        if row.get("kind") == kind and type(row.get("step")) is int:
            by_step[row["step"]] = row
    if not by_step:
        raise UserError(
            f"{run / 'metrics.jsonl'}: has no lines of kind {kind!r} yet; let the run log at least one step"
        )
    rows = [by_step[step] for step in sorted(by_step)]
    for row in rows:
        if "pairs_per_s" in row:  # until version 0.1
            row.setdefault("samples_per_s", row.pop("pairs_per_s"))
    names = sorted({name for row in rows for name, value in row.items() if _is_number(value)})
    return {name: np.array([_number(row.get(name)) for row in rows], dtype=float) for name in names}


def read_evaluations(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """{"task/dataset": (steps, primary metric at each)} of the evaluations during training."""
    found: dict[str, dict[int, float]] = {}
    for row in _lines(run):
        if row.get("kind") == "eval" and type(row.get("step")) is int:
            value = _primary(row)
            if value is not None:
                # `set` until version 0.1.
                name = f"{row.get('task')}/{row.get('dataset', row.get('set'))}"
                found.setdefault(name, {})[row["step"]] = value
    return {name: (sorted(values), [values[step] for step in sorted(values)]) for name, values in found.items()}


def _primary(row: dict) -> float | None:
    for name in ("primary", "headline"):
        if _is_number(row.get(name)):
            return float(row[name])
    recalls = [row.get(f"{way}_R@1") for way in ("image_to_text", "text_to_image")]
    return sum(recalls) / 2 if all(_is_number(value) for value in recalls) else None


def _lines(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the folder of a run of train.py")
    lines = read_text(path).splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line, f"{path}, line {number}")
        except UserError:
            if number == len(lines):  # a run that is being written, or was killed while it wrote
                continue
            raise
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: object) -> float:
    return float(value) if _is_number(value) else float("nan")


def curves(run: Path, path: Path) -> None:
    """Six panels over the steps: losses, similarities with their histories, mean weights, evaluations, learning rate
    and logit scale, speed."""
    train, evaluations = read_metrics(run, "train"), read_evaluations(run)
    below = len(evaluations) > _MOST_INSIDE  # their legend would cover them
    with style.figure(path, style.PAGE, 4.6 + below * 0.14 * -(-len(evaluations) // 3)) as figure:
        panels = figure.subplots(2, 3)
        (losses, similarities, weights), (scores, rates, speed) = panels
        _lines_of(
            losses, train, (("loss", "both paths"), ("text_loss", "image–text"), ("caption_loss", "image–caption"))
        )
        losses.set_ylabel("weighted loss (nats)")
        _similarities(similarities, train)
        _lines_of(weights, train, _WEIGHTS)
        weights.set_ylabel("mean gate weight")
        _evaluations(scores, evaluations)
        if below:
            scores.get_legend().remove()
            figure.legend(handles=list(scores.lines), loc="outside lower center", ncols=3, title="evaluations")
        _rates(rates, train)
        _lines_of(speed, train, (("samples_per_s", ""),), legend=False)
        speed.set_ylabel("samples / s")
        speed.set_ylim(bottom=0)
        for line in (line for axis in figure.axes for line in axis.lines):
            values = np.asarray(line.get_ydata(), dtype=float)
            alone = [0] if len(values) == 1 else _alone(values)
            if alone and line.get_marker() in ("None", "", None):  # points instead of lines without length
                line.set(marker="o", markersize=2.5, markevery=alone)
        for axis in panels.flat:
            axis.set_xlabel("optimizer step")
            axis.grid(True)
            axis.margins(x=0.01)
            if axis.lines:
                axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        lost = np.count_nonzero(~np.isfinite(train["loss"])) if "loss" in train else 0
        left_out = f" ({lost:,} logged steps have no finite loss, and no point here)" if lost else ""
        figure.suptitle(style.shorten(str(real_path(run).name), 80) + left_out)


def _alone(values: np.ndarray) -> list[int]:
    """Finite values without a finite neighbour, which a line does not show."""
    finite = np.isfinite(values)
    beside = np.zeros_like(finite)
    beside[1:] |= finite[:-1]
    beside[:-1] |= finite[1:]
    return np.flatnonzero(finite & ~beside).tolist()


def _lines_of(axis: Axes, train: Columns, names: Sequence[tuple[str, str]], legend: bool = True) -> None:
    for number, (name, label) in enumerate(names):
        if name in train:
            axis.plot(train["step"], train[name], style.DASHES[number], color=style.SERIES[number], label=label)
    if legend and axis.lines:
        axis.legend()


def _similarities(axis: Axes, train: Columns) -> None:
    for (name, short), colour in zip(_PAIRS, style.SERIES):
        for column, dash, label in (
            (f"{name}_similarity", "-", f"S {short}"),
            (f"history_{short}", "--", f"H {short}"),
        ):
            if column in train:
                axis.plot(train["step"], train[column], dash, color=colour, label=label)
    axis.set_ylabel("cosine similarity")
    if axis.lines:
        axis.legend(ncols=3, columnspacing=0.8, handlelength=1.4)


def _evaluations(axis: Axes, evaluations: dict[str, tuple[list[int], list[float]]]) -> None:
    for number, (name, (steps, values)) in enumerate(evaluations.items()):
        axis.plot(
            steps,
            values,
            style.DASHES[number % len(style.DASHES)],
            marker=style.MARKERS[number % len(style.MARKERS)],
            markersize=2.5,
            color=style.SERIES[number % len(style.SERIES)],
            label=style.shorten(name, 30),
        )
    axis.set_ylabel("primary metric (%)")
    if evaluations:
        axis.set_ylim(bottom=0)
        axis.legend()
    else:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.text(0.5, 0.5, "no evaluation\nduring training", ha="center", va="center", transform=axis.transAxes)


def _rates(axis: Axes, train: Columns) -> None:
    if "lr" in train:
        axis.plot(train["step"], train["lr"], color=style.BLUE, label="learning rate")
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axis.set_ylabel("learning rate")
    if "logit_scale" in train:
        scale = axis.twinx()
        scale.spines["right"].set_visible(True)
        scale.plot(train["step"], train["logit_scale"], "--", color=style.RED, label="logit scale")
        scale.set_ylabel("logit scale (dashed)")


def gates(scores: Columns, is_mismatched: np.ndarray, aucs: dict[str, float], path: Path) -> None:
    """Histograms of S tc and Wˢ·Wᵗ for matched and for mismatched raw texts.

    scores: text_caption_similarity and sample_text_weight, (samples,) each. is_mismatched: (samples,) booleans.
    aucs: by the same names, how well each separates them.
    """
    panels = (
        ("text_caption_similarity", "S tc: raw text and caption"),
        ("sample_text_weight", "Wˢ·Wᵗ: weight of image and raw text"),
    )
    with style.figure(path, style.PAGE, 2.5) as figure:
        for axis, (name, title) in zip(figure.subplots(1, 2), panels, strict=True):
            values = scores[name]
            bins = np.linspace(values.min(), values.max() + 1e-6, 41)
            for part, label, look in (
                (~is_mismatched, "matched", {"color": style.MATCHED, "alpha": 0.75}),
                (is_mismatched, "mismatched", {"color": style.MISMATCHED, "histtype": "step", "linewidth": 1.6}),
            ):
                if part.any():
                    text = f"{label}: mean {values[part].mean():.2f}"
                    axis.hist(values[part], bins, weights=np.full(part.sum(), 100 / part.sum()), label=text, **look)
            axis.set_xlabel(title)
            axis.set_ylabel("% of samples with this label")
            axis.set_ylim(0, axis.get_ylim()[1] * 1.25)  # room for the legend
            axis.set_title(f"AUC {aucs[name]:.2f}")
            axis.grid(axis="y")
            axis.legend()

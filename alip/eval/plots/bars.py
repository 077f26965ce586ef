"""Our runs as bars, published methods as markers beside them, chance as a dash across each group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alip import plot_style as style

Series = tuple[str, Sequence[float | None], bool]  # name, a value or None for each group, is it ours
_NARROW_GROUPS = 6
_SPACE = 0.86  # of a group's width is used
_NARROWEST_LABELLED = 0.075  # inches: a bar with its value above it
_CHARACTER = 0.055  # inches: a letter of a group's name
_MOST_UPRIGHT = 32  # letters of a group's name that stands upright


def bars(
    groups: Sequence[str],
    series: Sequence[Series],
    title: str,
    quantity: str,
    path: Path,
    chance: Sequence[float | None] | None = None,
) -> None:
    """Values in percent by group. quantity: the label of their axis. chance: a random answer's value for each group,
    None where it is not known.
    """
    ours = [one for one in series if one[2]]
    theirs = [one for one in series if not one[2]]
    narrow = len(groups) <= _NARROW_GROUPS
    width, columns = (style.COLUMN, 2) if narrow else (style.PAGE, 4)
    with style.figure(path, width, 2.2) as figure:
        axis = figure.subplots()
        # The bars are on the left of a group, the markers on its right.
        part = _SPACE * (len(ours) / max(1.0, len(ours) + 0.45 * len(theirs)))
        bar = min(part / max(1, len(ours)), 0.5)
        start = -(bar * len(ours) + (_SPACE - part)) / 2
        inches = bar * (width - 0.6) / len(groups)
        for number, (name, values, _) in enumerate(ours):
            shift = start + (number + 0.5) * bar
            _our_bars(axis, number, name, values, shift, bar)
            if inches >= _NARROWEST_LABELLED:
                _values_above(axis, values, shift, rotated=inches < 0.23)
        step = (_SPACE - part) / max(1, len(theirs))
        for number, (name, values, _) in enumerate(theirs):
            _their_markers(axis, number, name, values, start + bar * len(ours) + (number + 0.5) * step)
        by_chance = {group: value for group, value in enumerate(chance or []) if value is not None}
        for group, value in by_chance.items():
            label = "chance" if group == min(by_chance) else None
            axis.hlines(value, group - 0.47, group + 0.47, color="black", linewidth=0.9, linestyle=":", label=label)
        height = 2.2 + _name_groups(axis, groups, (width - 0.6) / max(1, len(groups)))
        axis.set_xlim(-0.5, len(groups) - 0.5)
        shown = [value for _, values, _ in series for value in values if value is not None]
        axis.set_ylim(0, max([*shown, *by_chance.values(), 1e-9]) * 1.14)
        axis.set_ylabel(quantity)
        axis.grid(axis="y")
        axis.tick_params(axis="x", length=0)
        figure.suptitle(style.wrap(title, 50 if narrow else 105, 2))
        handles = {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
        order = sorted(
            handles, key=lambda label: (label == "chance", label in {style.shorten(n, 24) for n, *_ in theirs})
        )
        _legend(figure, [handles[label] for label in order], order, columns, height)


def _name_groups(axis: Axes, groups: Sequence[str], room: float) -> float:
    """Each group's name below it, upright where its first line takes more than `room` inches; returns what height that
    adds."""
    lines = [list(map(style.printable, name.split("\n"))) for name in groups]
    longest = max((len(name[0]) for name in lines), default=0)
    if longest * _CHARACTER <= room:
        axis.set_xticks(range(len(groups)), ["\n".join(name) for name in lines])
        return 0.0
    names = [style.shorten(" ".join(name), _MOST_UPRIGHT) for name in lines]
    axis.set_xticks(range(len(groups)), names, rotation=90)
    return max(map(len, names)) * _CHARACTER


def _legend(figure: Figure, handles: list, labels: list[str], most: int, height: float) -> None:
    """Below the plot, in as many columns, at most `most`, as fit beside each other; the figure grows by its rows."""
    for columns in range(most, 0, -1):
        figure.set_size_inches(figure.get_figwidth(), height + 0.14 * -(-len(labels) // columns))
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        figure.draw_without_rendering()
        if legend.get_window_extent().width <= figure.bbox.width:
            return
        if columns > 1:
            legend.remove()


def _known(values: Sequence[float | None], shift: float) -> tuple[list[float], list[float]]:
    known = [(group + shift, value) for group, value in enumerate(values) if value is not None]
    return [position for position, _ in known], [value for _, value in known]


def _our_bars(axis: Axes, number: int, name: str, values: Sequence[float | None], shift: float, width: float) -> None:
    axis.bar(
        *_known(values, shift),
        0.9 * width,
        label=style.shorten(name, 48),
        color=style.SERIES[number % len(style.SERIES)],
        hatch=style.HATCHES[number // len(style.SERIES) % len(style.HATCHES)],
        edgecolor="white",
        linewidth=0.3,
    )


def _values_above(axis: Axes, values: Sequence[float | None], shift: float, rotated: bool) -> None:
    for position, value in zip(*_known(values, shift)):
        axis.annotate(
            f"{value:.1f}",
            (position, value),
            xytext=(0, 1.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6,
            rotation=90 if rotated else 0,
        )


def _their_markers(axis: Axes, number: int, name: str, values: Sequence[float | None], shift: float) -> None:
    axis.plot(
        *_known(values, shift),
        linestyle="",
        marker=style.MARKERS[number % len(style.MARKERS)],
        markersize=3.2,
        markeredgewidth=0.6,
        markeredgecolor="#404040",
        markerfacecolor="white" if number % 2 else style.LIGHT_GREY,
        label=style.shorten(name, 24),
    )

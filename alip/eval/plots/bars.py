"""Our runs as bars, published methods as markers beside them, chance as a dotted line across each group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from alip import plot_style as style

_NARROW_GROUPS = 6
_SPACE = 0.86  # of a group's width is used
_NARROWEST_LABELLED = 0.075  # inches: a bar with its value above it
_CHARACTER = 0.055  # inches: a letter of a group's name
_MOST_UPRIGHT = 32  # letters of a group's name that stands upright


class Series(NamedTuple):
    """One model. values: one of each group, None where there is none. ours: a bar, not a marker. deviations: the
    standard deviation over several runs beside each value, None for one run."""

    name: str
    values: Sequence[float | None]
    ours: bool
    deviations: Sequence[float | None] | None = None

    def known(self, shift: float) -> tuple[list[float], list[float], list[float]]:
        """Positions, values and deviations (0 for none) of the groups that have a value."""
        deviations = self.deviations or [None] * len(self.values)
        rows = [
            (group + shift, value, deviation or 0.0)
            for group, (value, deviation) in enumerate(zip(self.values, deviations, strict=True))
            if value is not None
        ]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


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
    ours = [one for one in series if one.ours]
    theirs = [one for one in series if not one.ours]
    narrow = len(groups) <= _NARROW_GROUPS
    width, columns = (style.COLUMN, 2) if narrow else (style.PAGE, 4)
    with style.figure(path, width, 2.2) as figure:
        axis = figure.subplots()
        # The bars are on the left of a group, the markers on its right.
        part = _SPACE * (len(ours) / max(1.0, len(ours) + 0.45 * len(theirs)))
        bar = min(part / max(1, len(ours)), 0.5)
        start = -(bar * len(ours) + (_SPACE - part)) / 2
        inches = bar * (width - 0.6) / len(groups)
        for number, one in enumerate(ours):
            shift = start + (number + 0.5) * bar
            _our_bars(axis, number, one, shift, bar)
            if inches >= _NARROWEST_LABELLED:
                _values_above(axis, one, shift, rotated=inches < 0.23)
        step = (_SPACE - part) / max(1, len(theirs))
        for number, one in enumerate(theirs):
            _their_markers(axis, number, one, start + bar * len(ours) + (number + 0.5) * step)
        by_chance = {group: value for group, value in enumerate(chance or []) if value is not None}
        for group, value in by_chance.items():
            label = "chance" if group == min(by_chance) else None
            axis.hlines(value, group - 0.47, group + 0.47, color="black", linewidth=0.9, linestyle=":", label=label)
        height = 2.2 + _name_groups(axis, groups, (width - 0.6) / max(1, len(groups)))
        axis.set_xlim(-0.5, len(groups) - 0.5)
        shown = [value + deviation for one in series for _, value, deviation in zip(*one.known(0.0), strict=True)]
        axis.set_ylim(0, max([*shown, *by_chance.values(), 1e-9]) * 1.14)
        axis.set_ylabel(quantity)
        axis.grid(axis="y")
        axis.tick_params(axis="x", length=0)
        figure.suptitle(style.wrap(title, 50 if narrow else 105, 2))
        handles = {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
        order = sorted(
            handles, key=lambda label: (label == "chance", label in {style.shorten(one.name, 24) for one in theirs})
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


def _our_bars(axis: Axes, number: int, series: Series, shift: float, width: float) -> None:
    positions, values, deviations = series.known(shift)
    axis.bar(
        positions,
        values,
        0.9 * width,
        label=style.shorten(series.name, 48),
        color=style.SERIES[number % len(style.SERIES)],
        hatch=style.HATCHES[number // len(style.SERIES) % len(style.HATCHES)],
        edgecolor="white",
        linewidth=0.3,
    )
    several = [row for row in zip(positions, values, deviations, strict=True) if row[2]]
    if several:
        axis.errorbar(*zip(*several), fmt="none", ecolor="#303030", elinewidth=0.7, capsize=1.5, capthick=0.7)


def _values_above(axis: Axes, series: Series, shift: float, rotated: bool) -> None:
    for position, value, deviation in zip(*series.known(shift), strict=True):
        axis.annotate(
            f"{value:.1f}",
            (position, value + deviation),
            xytext=(0, 1.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6,
            rotation=90 if rotated else 0,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],  # the line of chance may cross it
        )


def _their_markers(axis: Axes, number: int, series: Series, shift: float) -> None:
    axis.plot(
        *series.known(shift)[:2],
        linestyle="",
        marker=style.MARKERS[number % len(style.MARKERS)],
        markersize=3.2,
        markeredgewidth=0.6,
        markeredgecolor="#404040",
        markerfacecolor="white" if number % 2 else style.LIGHT_GREY,
        label=style.shorten(series.name, 24),
    )

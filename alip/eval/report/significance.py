"""Is the difference between two rows more than chance?

One run each: the same test items, by McNemar's exact test where the metric counts right images, else by the paired
bootstrap over items. Several runs each: Student's t-test on the pairs of runs with the same seed, or Welch's where the
seeds are not the same. All p values of a report are corrected together by Holm's method.
Sources: McNemar (1947), Psychometrika 12; Efron and Tibshirani (1993), chapter 16; Holm (1979), Scand. J. Stat. 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from alip.eval import bootstrap
from alip.eval.outcomes import Outcomes, same_items


@dataclass(frozen=True)
class Difference:
    """first − second of one metric, in its unit. interval: 95 %. p, adjusted: None where no test is possible.

    test: its name, or why there is none.
    """

    first: str
    second: str
    what: str
    value: float
    interval: tuple[float, float] | None
    p: float | None
    test: str
    adjusted: float | None = None


def between_items(
    names: tuple[str, str, str], one: Outcomes | None, other: Outcomes | None, values: tuple[float, float], metric: str
) -> Difference:
    """Of one run each. names: first, second, what. values: the metric of each. metric: what `primary` stands for."""
    difference = Difference(*names, values[0] - values[1], None, None, "")
    if one is None or other is None:
        return replace(difference, test="none: no outcomes of the items are kept; evaluate again")
    if not same_items(one, other):
        return replace(difference, test="none: not the same items")
    resampled = bootstrap.resampled_values([one, other], metric)
    if not all("primary" in found for found in resampled):
        return replace(difference, test=f"none for {metric}")
    first, second = (found["primary"] for found in resampled)
    interval = tuple(float(end) for end in np.quantile(first - second, [0.025, 0.975]))
    if metric == "top1" and one["rank"].ndim == other["rank"].ndim == 1:
        p = mcnemar(one["rank"] == 0, other["rank"] == 0)
        return replace(difference, interval=interval, p=p, test="McNemar, exact")
    return replace(difference, interval=interval, p=bootstrap_p(first - second), test="paired bootstrap")


def mean_over_datasets(
    names: tuple[str, str, str], parts: Sequence[tuple[Outcomes, Outcomes, str]], value: float
) -> Difference:
    """Of the mean over several datasets of one run each, which are resampled independently. parts: with the metric."""
    total = np.zeros(bootstrap.RESAMPLES)
    for number, (one, other, metric) in enumerate(parts):
        found = bootstrap.resampled_values([one, other], metric, seed=number)
        if not all("primary" in values for values in found):
            return Difference(*names, value, None, None, f"none for {metric}")
        total += bootstrap.as_many(found[0]["primary"] - found[1]["primary"], number) / len(parts)
    interval = tuple(float(end) for end in np.quantile(total, [0.025, 0.975]))
    return Difference(*names, value, interval, bootstrap_p(total), "paired bootstrap")


def between_runs(
    names: tuple[str, str, str],
    values: tuple[Sequence[float], Sequence[float]],
    seeds: tuple[Sequence[int | None], Sequence[int | None]],
) -> Difference:
    """Of several runs each. values, seeds: of the runs of both groups, in the same order."""
    from scipy import stats  # takes a second to import

    first, second = (np.asarray(one, dtype=float) for one in values)
    difference = Difference(*names, float(first.mean() - second.mean()), None, None, "")
    if min(len(first), len(second)) < 2:
        return replace(difference, test="none: one run against several; give both groups two runs or more")
    known = None not in seeds[0] and len(set(seeds[0])) == len(seeds[0])
    if known and len(seeds[0]) == len(seeds[1]) and set(seeds[0]) == set(seeds[1]):
        order = [list(seeds[1]).index(seed) for seed in seeds[0]]
        gaps = first - second[order]
        if np.ptp(gaps) == 0:  # no spread: the statistic is not defined
            return replace(difference, test="none: the difference is the same for every seed")
        found = stats.ttest_rel(first, second[order])
        name = f"paired t over {len(first)} seeds"
    else:
        if np.ptp(first) == 0 and np.ptp(second) == 0:
            return replace(difference, test="none: the runs of a group do not differ")
        found = stats.ttest_ind(first, second, equal_var=False)
        name = f"Welch's t, {len(first)} and {len(second)} runs"
    ends = found.confidence_interval(0.95)
    return replace(difference, interval=(float(ends.low), float(ends.high)), p=float(found.pvalue), test=name)


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided exact p: of the items that only one of the two has right, as many fall to either side by chance."""
    from scipy import stats

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one + only_other == 0:
        return 1.0
    return float(stats.binomtest(only_one, only_one + only_other, 0.5).pvalue)


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of no difference from resampled differences (n,); never below 2 / (n + 1)."""
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1)))


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same with adjusted p values: the family is all that have one."""
    tested = sorted((one.p, number) for number, one in enumerate(differences) if one.p is not None)
    adjusted: dict[int, float] = {}
    highest = 0.0
    for rank, (p, number) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        adjusted[number] = highest
    return [replace(one, adjusted=adjusted.get(number)) for number, one in enumerate(differences)]

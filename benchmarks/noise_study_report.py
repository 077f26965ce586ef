"""The noise study's tables and plots, from its lines of results."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alip import plot_style as style  # noqa: E402
from alip.files import atomic_write, read_json_lines  # noqa: E402

METRICS = ("text_to_image_R@1", "image_to_text_R@1")
TITLES = {"text_to_image_R@1": "text → image R@1", "image_to_text_R@1": "image → text R@1"}
MAIN = ("CLIP, raw texts", "CLIP, captions", "no gates", "ALIP")
GROUPS = {"right": "both texts right", "mismatched": "raw text mismatched", "caption_wrong": "caption wrong"}
AT = (40, 10)  # the rates of the arms that run at one pair of rates only
Values = dict[int, float]  # by seed


def read_rows(path: Path) -> list[dict]:
    """The finished runs."""
    return read_json_lines(path, ("key", "arm", "seed")) if path.exists() else []


def write(results: Path, total: int, page: Path, images: Path) -> None:
    """Writes the page of tables and both plots from the runs that are finished."""
    rows = read_rows(results)
    print(f"{len(rows)} of {total} runs are finished")
    if not rows:
        return
    with atomic_write(page, text=True) as file:
        file.write(tables(rows, total))
    print(page)
    for name, draw in (("noise_study", plot_rates), ("weights_during_training", plot_weights)):
        for path in style.plot_or_warn(lambda path, draw=draw: draw(rows, path), images / name):
            print(path)


def tables(rows: list[dict], total: int) -> str:
    """The page: Markdown with every table that has at least one run."""
    parts = [
        "# The noise study: what the gates are worth\n",
        f"Written by `python benchmarks/noise_study.py`; {len(rows)} of its {total} runs are finished. What it means: "
        "[docs/evidence.md](../../docs/evidence.md).\n",
        "Values in %, on held-out styles: mean ± standard error over the seeds; *1 seed* means that there is no spread "
        "to give. Differences are paired: the same seed, so the same initial weights, samples and augmentation.\n",
    ]
    for metric, title in TITLES.items():
        parts += [f"## {title[0].upper()}{title[1:]}\n", _main_table(rows, metric)]
    parts += ["## Paired differences, text → image R@1\n", _difference_table(rows)]
    parts += [f"## Gates one by one, and their settings ({AT[0]} % mismatched, {AT[1]} % captions wrong)\n"]
    parts += [_against(rows, "no gates", ("W^s only", "W^t only", "W^c only", "ALIP"))]
    settings = [arm for arm in _arms(rows) if arm.split()[0] in ("gamma", "momentum", "start")]
    parts += [_against(rows, "ALIP", settings)]
    parts += ["## Why: weights that know the labels, gates that do not change, W^s off the caption path\n"]
    parts += [_against(rows, "no gates", ("ALIP", "oracle", "gates of CLIP, captions", "W^s on texts only"))]
    parts += ["Three times the images (all concepts), so 5 instead of 14 epochs in as many steps:\n"]
    parts += [_against(rows, "no gates, all concepts", ("ALIP, all concepts", "oracle, all concepts"))]
    parts += ["## Cleaning: CLIP on the raw texts that are left\n", _cleaning_table(rows)]
    parts += ["## What the gates see: AUC of mismatched against matched raw texts, ALIP's last weights\n", _aucs(rows)]
    return "\n".join(part for part in parts if part)


def values(rows: list[dict], arm: str, rates: tuple[int, int], metric: str) -> Values:
    """{seed: value} of an arm's finished runs at these rates."""
    chosen = [row for row in rows if row["arm"] == arm and (row["mismatched"], row["wrong_captions"]) == rates]
    return {row["seed"]: row[metric] for row in chosen if metric in row}


def paired(first: Values, second: Values) -> Values:
    """{seed: first − second}, for the seeds that both have."""
    return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


def mean_and_error(found: Values) -> tuple[float, float]:
    """Mean and standard error; NaN for what there are too few values for."""
    numbers = list(found.values())
    mean = statistics.fmean(numbers) if numbers else math.nan
    return mean, statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan


def cell(found: Values, form: str = ".1f") -> str:
    mean, error = mean_and_error(found)
    if not found:
        return "–"
    spread = f" ± {error:{form.lstrip('+')}}" if len(found) > 1 else " (1 seed)"
    return f"{mean:{form}}{spread}" + (f" ({len(found)} seeds)" if len(found) == 2 else "")


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _arms(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows))


def _rates(rows: list[dict]) -> list[tuple[int, int]]:
    return sorted({(row["mismatched"], row["wrong_captions"]) for row in rows})


def _main_table(rows: list[dict], metric: str) -> str:
    body = [[f"{m} %", f"{c} %", *(cell(values(rows, arm, (m, c), metric)) for arm in MAIN)] for m, c in _rates(rows)]
    return table(["raw texts mismatched", "captions wrong", *MAIN], body)


def _difference_table(rows: list[dict]) -> str:
    pairs = [("ALIP", other) for other in ("no gates", "CLIP, captions", "CLIP, raw texts")]
    pairs.append(("no gates", "CLIP, captions"))
    body = []
    for rates in _rates(rows):
        differences = [paired(*(values(rows, arm, rates, METRICS[0]) for arm in pair)) for pair in pairs]
        body.append([f"{rates[0]} %", f"{rates[1]} %", *(cell(one, "+.1f") for one in differences)])
    return table(["raw texts mismatched", "captions wrong", *(f"{a} − {b}" for a, b in pairs)], body)


def _against(rows: list[dict], reference: str, arms: Sequence[str]) -> str:
    """Arms at AT with their paired differences to a reference; empty if none has run."""
    body = []
    for arm in (reference, *arms):
        cells = []
        for metric in METRICS:
            own = values(rows, arm, AT, metric)
            cells.append(cell(own))
            if metric == METRICS[0]:
                cells.append(cell(paired(own, values(rows, reference, AT, metric)), "+.1f") if arm != reference else "")
        if values(rows, arm, AT, METRICS[0]):
            body.append([arm, *cells])
    head = ["arm", TITLES[METRICS[0]], f"− {reference}", *(TITLES[metric] for metric in METRICS[1:])]
    return table(head, body) if len(body) > 1 else ""


def _cleaning_table(rows: list[dict]) -> str:
    arms = ["CLIP, raw texts", *(arm for arm in _arms(rows) if arm.startswith("CLIP, cleaned"))]
    body = []
    for arm in arms:
        own, plain = (values(rows, name, AT, METRICS[0]) for name in (arm, arms[0]))
        left = values(rows, arm, AT, "still_mismatched")
        count, _ = mean_and_error(values(rows, arm, AT, "samples"))
        if own:
            rest = f"{100 * mean_and_error(left)[0]:.1f} %"
            difference = cell(paired(own, plain), "+.1f") if arm != arms[0] else ""
            body.append([arm, f"{count:,.0f}", rest, cell(own), difference])
    head = ["arm", "samples", "of them mismatched", TITLES[METRICS[0]], "− uncleaned"]
    return table(head, body) if len(body) > 1 else "No run is finished yet.\n"


def _aucs(rows: list[dict]) -> str:
    names = {"auc_text_caption_similarity": "S_tc", "auc_image_text_similarity": "S_xt"}
    body = []
    for rates in _rates(rows):
        cells = [cell(values(rows, "ALIP", rates, name), ".3f") for name in names]
        if rates[0] and cells != ["–", "–"]:
            body.append([f"{rates[0]} %", f"{rates[1]} %", *cells])
    return table(["raw texts mismatched", "captions wrong", *names.values()], body)


def plot_rates(rows: list[dict], path: Path) -> None:
    """Text → image R@1 over the rate of mismatched raw texts, and over that of wrong captions."""
    panels: tuple[tuple[str, Callable, Callable], ...] = (
        (f"raw texts mismatched, % (captions wrong: {AT[1]} %)", lambda r: r[1] == AT[1], lambda r: r[0]),
        (f"captions wrong, % (raw texts mismatched: {AT[0]} %)", lambda r: r[0] == AT[0], lambda r: r[1]),
    )
    with style.figure(path, style.PAGE, 2.8) as figure:
        for axis, (label, belongs, position) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            rates = [one for one in _rates(rows) if belongs(one)]
            for number, arm in enumerate(MAIN):
                points = [(position(one), *mean_and_error(values(rows, arm, one, METRICS[0]))) for one in rates]
                points = [point for point in points if not math.isnan(point[1])]
                if points:
                    x, mean, error = zip(*points)
                    look = {"color": style.SERIES[number], "marker": style.MARKERS[number], "markersize": 4}
                    axis.errorbar(x, mean, error, linestyle=style.DASHES[number], capsize=2, label=arm, **look)
            axis.set_xlabel(label)
            axis.set_xticks([position(one) for one in rates])
            axis.set_ylim(bottom=0)
            axis.grid(axis="y")
        figure.axes[0].set_ylabel(f"{TITLES[METRICS[0]]}, %")
        figure.axes[0].legend()
        figure.suptitle("held-out styles; mean and standard error over the seeds")


def plot_weights(rows: list[dict], path: Path) -> None:
    """The paper's figure 4 from our runs, at AT: mean weights over the steps, for samples of each label."""
    traces = [row["trace"] for row in rows if row["arm"] == "ALIP" and (row["mismatched"], row["wrong_captions"]) == AT]
    if not traces:
        raise ValueError(f"no run of ALIP at {AT[0]} % mismatched and {AT[1]} % captions wrong is finished")
    names = {"sample_weight": "W^s", "text_weight": "W^t", "caption_weight": "W^c"}
    with style.figure(path, style.PAGE, 2.5) as figure:
        for axis, (name, title) in zip(figure.subplots(1, 3, sharey=True), names.items(), strict=True):
            for number, (group, label) in enumerate(GROUPS.items()):
                curves = [trace[f"{name}/{group}"] for trace in traces]
                mean = [statistics.fmean(at_step) for at_step in zip(*curves, strict=True)]
                look = {"color": style.SERIES[number], "linestyle": style.DASHES[number]}
                axis.plot(traces[0]["step"], mean, label=label, **look)
            axis.set_title(title)
            axis.set_xlabel("step")
            axis.grid(axis="y")
        figure.axes[0].set_ylabel("mean weight")
        figure.axes[0].legend()
        seeds = f"{len(traces)} seeds" if len(traces) > 1 else "1 seed"
        figure.suptitle(f"weights during training, {AT[0]} % mismatched, {AT[1]} % captions wrong; mean of {seeds}")

"""training.html: the curves of several runs over training, from their metrics.jsonl, in one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from alip.errors import UserError
from alip.eval.html_page import write_page
from alip.eval.plots.training import read_evaluations, read_metrics

FILE_NAME = "training.html"
POINTS = 1500  # of one curve, at most
_COLUMNS = {
    "loss": "loss",
    "text_loss": "loss, image and raw text",
    "caption_loss": "loss, image and caption",
    "sample_weight": "mean Wˢ",
    "text_weight": "mean Wᵗ",
    "caption_weight": "mean Wᶜ",
    "text_caption_similarity": "S tc, raw text and caption",
    "image_text_similarity": "S xt, image and raw text",
    "image_caption_similarity": "S xc, image and caption",
    "lr": "learning rate",
    "logit_scale": "logit scale",
    "grad_norm": "gradient norm",
    "samples_per_s": "samples/s",
    "data_wait_s": "waiting for data (s per log step)",
    "mfu": "model FLOPs utilisation",
    "gpu_memory_gib": "GPU memory (GiB)",
}
_AXES = ("step", "samples", "epoch", "time")


def write(folders: Mapping[str, Path], groups: Mapping[str, Sequence[str]], output: Path) -> list[Path]:
    """The page's path, or nothing where no run has a metrics.jsonl. folders: of the runs. groups: one colour each."""
    content = collect(folders, groups)
    if not content["runs"]:
        return []
    write_page(output / FILE_NAME, "Training runs", content, files("alip.eval.report") / "assets", "training")
    return [output / FILE_NAME]


def collect(folders: Mapping[str, Path], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Plain values for the page: runs in the order of their groups, each with its curves."""
    runs = []
    for number, (group, members) in enumerate(groups.items()):
        for run in members:
            curves = _curves(folders[run])
            if curves:
                runs.append({"name": run, "group": group, "colour": number, "curves": curves})
    return {"runs": runs, "labels": _COLUMNS}


def _curves(folder: Path) -> dict[str, dict[str, list]]:
    """{name: {step, samples, epoch, hours, value}}; evaluations as "eval TASK/DATASET". {} without a log.

    A damaged log is an error of the user's, as everywhere; one without a logged step has no curves.
    """
    if not (folder / "metrics.jsonl").is_file():
        return {}
    try:
        train = read_metrics(folder, "train")
    except UserError as error:
        if "has no lines of kind" in str(error):
            return {}
        raise
    axes = {name: train[name] for name in _AXES if name in train}
    if "time" in axes:
        axes["hours"] = (axes["time"] - np.nanmin(axes.pop("time"))) / 3600
    curves = {}
    for name in _COLUMNS:
        if name in train and np.isfinite(train[name]).any():
            curves[name] = _thinned({**axes, "value": train[name]})
    for name, (steps, values) in read_evaluations(folder).items():
        own = {axis: np.interp(steps, train["step"], along) for axis, along in axes.items()}
        curves[f"eval {name}"] = _thinned({**own, "value": np.asarray(values, float)})
    return curves


def _thinned(columns: Mapping[str, np.ndarray]) -> dict[str, list]:
    """At most POINTS of them, evenly, the last included; numbers with six digits, NaN as None."""
    count = len(columns["value"])
    chosen = np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))
    return {
        name: [float(f"{value:.6g}") if np.isfinite(value) else None for value in np.asarray(values, float)[chosen]]
        for name, values in columns.items()
    }

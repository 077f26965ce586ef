"""What eval_retrieval.py and eval_zeroshot.py do: load, measure, print, write results and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from alip.errors import UserError
from alip.eval import plots as pictures
from alip.eval import report, results
from alip.eval.cache import weights_fingerprint
from alip.eval.datasets import ClassificationSet, RetrievalSet
from alip.eval.features import Encoding
from alip.eval.probe import measure_probe
from alip.eval.retrieval import measure_retrieval
from alip.eval.zeroshot import measure_zeroshot


def split_names(given: Sequence[str]) -> list[str]:
    """Names from a flag that takes several words, commas, or both."""
    names = [name for word in given for name in word.split(",") if name]
    if not names:
        raise UserError("no dataset is named")
    return list(dict.fromkeys(names))


def results_folder(checkpoint: str, output: str | None) -> Path:
    """Where results go: as asked, else the run's own results/, else results/NAME."""
    if output:
        return Path(output)
    path = Path(checkpoint)
    if (path / "run.json").is_file() or (path / "checkpoints").is_dir():
        return path / "results"
    if path.parent.name == "checkpoints" and (path.parent.parent / "run.json").is_file():
        return path.parent.parent / "results"
    return Path("results") / path.name.replace(":", "-")


def retrieval(
    model: nn.Module,
    datasets: Sequence[RetrievalSet],
    encoding: Encoding,
    *,
    protocol: str,
    source: str,
    folder: Path,
    draw: bool = True,
) -> int:
    """Measures retrieval on each set; source is where the model came from, folder is for results and pictures.

    Returns the exit status: 1 when images had to be left out, else 0.
    """
    facts = _facts(model, source, encoding)
    entries, left_out = [], 0
    for dataset in datasets:
        found = measure_retrieval(model, dataset, encoding, protocol)
        left_out += len(found.unreadable)
        entries.append(results.entry("retrieval", dataset.name, protocol, found.numbers, facts, found.unreadable))
        if encoding.world.is_main and draw:
            pictures.gallery(found, folder / f"gallery-{dataset.name}.png")
        _warn(encoding, dataset.name, found.unreadable)
    _finish(encoding, folder, entries, draw)
    return 1 if left_out else 0


def zeroshot(
    model: nn.Module,
    datasets: Sequence[ClassificationSet],
    encoding: Encoding,
    *,
    protocol: str,
    source: str,
    folder: Path,
    draw: bool = True,
    task: str = "zeroshot",
) -> int:
    """Measures zero-shot classification on each set, or a linear probe, or both (task); the rest as for `retrieval`."""
    facts = _facts(model, source, encoding)
    entries, left_out = [], 0
    for dataset in datasets:
        if task in ("zeroshot", "both"):
            found = measure_zeroshot(model, dataset, encoding, protocol)
            left_out += len(found.unreadable)
            entry = results.entry("zeroshot", dataset.name, protocol, found.numbers, facts, found.unreadable)
            entries.append({**entry, "metric": dataset.metric})
            if encoding.world.is_main and draw:
                pictures.confusion(found, folder / f"confusion-{dataset.name}.png")
                pictures.per_class(found, folder / f"per-class-{dataset.name}.png")
            _warn(encoding, dataset.name, found.unreadable)
        if task in ("probe", "both"):
            numbers, unreadable = measure_probe(model, dataset, encoding)
            left_out += len(unreadable)
            entry = results.entry("probe", dataset.name, protocol, numbers, facts, unreadable)
            entries.append({**entry, "metric": dataset.metric})
            _warn(encoding, dataset.name, unreadable)
    _finish(encoding, folder, entries, draw)
    return 1 if left_out else 0


def _facts(model: nn.Module, source: str, encoding: Encoding) -> dict[str, Any]:
    return {
        "checkpoint": source,
        "weights_hash": weights_fingerprint(model),
        "precision": encoding.resolved_precision(),
    }


def retrieval_table(entries: Sequence[results.Entry]) -> str:
    """R@1/5/10 both ways, a row per set."""
    header = ["retrieval", "images", "image→text R@1", "R@5", "R@10", "text→image R@1", "R@5", "R@10", "median rank"]
    rows = []
    for entry in entries:
        numbers = entry["numbers"]
        recalls = [f"{numbers[f'{way}_R@{k}']:.2f}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
        rows.append([entry["dataset"], f"{numbers['images']:,}", *recalls, f"{numbers['text_to_image_median_rank']:g}"])
    return results.markdown(header, rows)


def classification_table(kind: str, entries: Sequence[results.Entry]) -> str:
    """Headline, top-1, top-5 and mean per class, a row per set."""
    header = [kind, "images", "classes", "chance", "headline", "top-1", "top-5", "mean per class"]
    rows = []
    for entry in entries:
        numbers = entry["numbers"]
        rows.append(
            [
                entry["dataset"],
                f"{numbers['images']:,}",
                f"{numbers['classes']}",
                f"{100 / numbers['classes']:.2f}",
                f"{numbers['headline']:.2f}",
                f"{numbers['top1']:.2f}",
                f"{numbers['top5']:.2f}" if "top5" in numbers else "–",
                f"{numbers['mean_per_class']:.2f}",
            ]
        )
    return results.markdown(header, rows)


def _finish(encoding: Encoding, folder: Path, entries: list[results.Entry], draw: bool) -> None:
    """On the main rank: prints the tables, adds to results.json, and writes the report anew from all that is in it."""
    if not encoding.world.is_main:
        return
    for kind, title in (("retrieval", ""), ("zeroshot", "zero-shot"), ("probe", "linear probe")):
        own = [entry for entry in entries if entry["kind"] == kind]
        if own:
            print(retrieval_table(own) if kind == "retrieval" else classification_table(title, own))
    path = results.save(folder, entries)
    name = Path(entries[0]["checkpoint"]).name
    if draw:
        report.write({name: results.load(path)}, folder)
    print(f"written: {path}" + (", report.md and pictures beside it" if draw else ""))


def _warn(encoding: Encoding, name: str, unreadable: Sequence[tuple[str, str]]) -> None:
    if unreadable and encoding.world.is_main:
        first, reason = unreadable[0]
        print(
            f"warning: {name}: {len(unreadable)} images cannot be read and are left out (named in results.json); "
            f"the first: {first}: {reason}"
        )

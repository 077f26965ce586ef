"""What eval_retrieval.py and eval_zeroshot.py do: measure, save the numbers, print, and plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from alip.errors import UserError
from alip.eval import bootstrap, outcomes, report, results
from alip.eval.datasets import ClassificationDataset, RetrievalDataset
from alip.eval.features import Encoding
from alip.eval.image_readers import ImageFiles
from alip.eval.plots import classification as classification_plots
from alip.eval.plots import retrieval as retrieval_plots
from alip.eval.probe import measure_probe
from alip.eval.prompts import retrieval_prefix
from alip.eval.retrieval import measure_retrieval
from alip.eval.zeroshot import measure_zeroshot
from alip.model.weights import weights_hash
from alip.plot_style import plot_or_warn
from alip.text_table import markdown_table

_TITLES = {"retrieval": "retrieval", "zeroshot": "zero-shot", "probe": "linear probe"}


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
    datasets: Sequence[RetrievalDataset],
    encoding: Encoding,
    *,
    protocol: str,
    source: str,
    folder: Path,
    plots: bool = True,
) -> int:
    """Measures retrieval on each dataset; source is where the model came from, folder is for results and plots.

    Returns the exit status: 1 when images had to be left out, else 0.
    """
    recorder = _Recorder(model, source, encoding, protocol, folder, plots)
    for dataset in datasets:
        found = measure_retrieval(model, dataset, encoding, protocol)
        if encoding.world.is_main:
            content = [ImageFiles(dataset.images).content_hash(), *dataset.captions, str(dataset.caption_owner)]
            recorder.record(
                "retrieval",
                dataset,
                found.numbers,
                found.unreadable,
                found.outcomes,
                dataset_hash=results.text_hash(content),
                expected_images=[dataset.expected_images] if dataset.expected_images else [],
                prompts_hash=results.text_hash([retrieval_prefix(protocol)]),
                primary_metric="mean R@1",
            )
            recorder.plot("gallery", lambda path, found=found: retrieval_plots.gallery(found, path))
        recorder.count(found.unreadable)
    return recorder.finish()


def zeroshot(
    model: nn.Module,
    datasets: Sequence[ClassificationDataset],
    encoding: Encoding,
    *,
    protocol: str,
    source: str,
    folder: Path,
    plots: bool = True,
    task: str = "zeroshot",
) -> int:
    """Measures zero-shot classification on each dataset, or a linear probe, or both (task); else as `retrieval`."""
    recorder = _Recorder(model, source, encoding, protocol, folder, plots)
    for dataset in datasets:
        if task in ("zeroshot", "both"):
            found = measure_zeroshot(model, dataset, encoding, protocol)
            if encoding.world.is_main:
                recorder.record(
                    "zeroshot",
                    dataset,
                    found.numbers,
                    found.unreadable,
                    found.outcomes,
                    dataset_hash=dataset.images.content_hash(),
                    expected_images=list(dataset.image_counts),
                    prompts_hash=results.text_hash(dataset.templates),
                    classnames_hash=results.text_hash(dataset.classnames),
                    primary_metric=dataset.metric,
                    given=dataset.given or {},
                )
                recorder.plot("confusion", lambda path, found=found: classification_plots.confusion(found, path))
                recorder.plot("per-class", lambda path, found=found: classification_plots.per_class(found, path))
            recorder.count(found.unreadable)
        if task in ("probe", "both"):
            numbers, unreadable = measure_probe(model, dataset, encoding)
            if encoding.world.is_main:
                parts = [dataset.images.content_hash(), dataset.train().content_hash()]
                recorder.record(
                    "probe",
                    dataset,
                    numbers,
                    unreadable,
                    {},
                    dataset_hash=results.text_hash(parts),
                    expected_images=list(dataset.image_counts),
                    primary_metric=dataset.metric,
                )
            recorder.count(unreadable)
    return recorder.finish()


class _Recorder:
    """Saves each measurement before anything is plotted. Only `count` and `finish` are for all ranks."""

    def __init__(self, model: nn.Module, source: str, encoding: Encoding, protocol: str, folder: Path, plots: bool):
        self.encoding, self.protocol, self.folder, self.plots = encoding, protocol, folder, plots
        results.check_folder(folder)
        self.entries: list[results.Entry] = []
        self.left_out = 0
        metadata = getattr(model, "metadata", {})
        self.about: dict[str, Any] = {
            "checkpoint": source,
            "step": metadata.get("step"),
            "weights": metadata.get("weights", "model"),
            "precision": encoding.resolved_precision(),
        }
        if encoding.world.is_main:
            self.about["weights_hash"] = weights_hash(model)

    def record(
        self, task: str, dataset: Any, numbers: dict, unreadable: Sequence, items: outcomes.Outcomes, **about: Any
    ) -> None:
        """Adds the entry, with intervals, to results.json; warns when its numbers are not the benchmark's.

        items: what happened to every item (may be empty), kept in a file beside it.
        """
        dataset_about = {"dataset": dataset.name, "benchmark": dataset.benchmark}
        if items:
            found = bootstrap.intervals(items, about["primary_metric"])
            about["intervals"] = {name: ends for name, ends in found.items() if name in numbers}
            about["interval_method"] = bootstrap.describe(items)
        one = results.entry(task, self.protocol, numbers, unreadable, **dataset_about, **self.about, **about)
        self.entries.append(one)
        if items:
            outcomes.save(self.folder, one["id"], items)
        results.save(self.folder, [one])
        if unreadable:
            first, reason = unreadable[0]
            print(
                f"warning: {dataset.name}: {len(unreadable)} images cannot be read and are left out (named in "
                f"results.json); the first: {first}: {reason}"
            )
        elif mark := results.mark_of(one):
            print(f"warning: {mark}: not comparable with published numbers; the row is marked in report.md")

    def count(self, unreadable: Sequence) -> None:
        """Images that were left out cost the exit status, on every rank."""
        self.left_out += len(unreadable)

    def plot(self, kind: str, draw: Callable[[Path], None]) -> None:
        """Draws KIND-DATASET of the newest entry; with the entry's id where another one has that name already."""
        if not self.plots:
            return
        one = self.entries[-1]
        slug = results.file_slug(one["dataset"])
        others = (
            other
            for other in results.load(self.folder)
            if other["task"] == one["task"] and results.identity(other) != one["id"]
        )
        if any(results.file_slug(other["dataset"]) == slug for other in others):
            slug += f"-{one['id'][:6]}"
        plot_or_warn(draw, self.folder / f"{kind}-{slug}")

    def finish(self) -> int:
        """Prints the tables and writes the report from everything in results.json; returns the exit status."""
        if self.encoding.world.is_main:
            for task, title in _TITLES.items():
                own = [one for one in self.entries if one["task"] == task]
                if own:
                    print(retrieval_table(own) if task == "retrieval" else classification_table(title, own))
            if self.plots:
                name = Path(self.about["checkpoint"]).name
                report.write({name: results.load(self.folder)}, self.folder)
            beside = ", report.md and plots beside it" if self.plots else ""
            print(f"written: {self.folder / results.FILE_NAME}{beside}")
        return 1 if self.left_out else 0


def with_interval(entry: results.Entry, name: str, digits: int = 2) -> str:
    """A number with its 95 % interval, where the entry has one: 46.80 (45.42–48.18)."""
    value = f"{entry['numbers'][name]:.{digits}f}"
    ends = entry.get("intervals", {}).get(name)
    return value if ends is None else f"{value} ({ends[0]:.{digits}f}–{ends[1]:.{digits}f})"


def retrieval_table(entries: Sequence[results.Entry]) -> str:
    """R@1/5/10 both ways with their intervals, a row per dataset."""
    header = ["retrieval", "images", "image→text R@1", "R@5", "R@10", "text→image R@1", "R@5", "R@10", "median rank"]
    rows = []
    for entry in entries:
        numbers = entry["numbers"]
        shown = [with_interval(entry, f"{way}_R@{k}") for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
        rows.append([entry["dataset"], f"{numbers['images']:,}", *shown, f"{numbers['text_to_image_median_rank']:g}"])
    return markdown_table(header, rows)


def classification_table(title: str, entries: Sequence[results.Entry]) -> str:
    """Primary metric, top-1, top-5 and mean per class with their intervals, a row per dataset."""
    header = [title, "images", "classes", "chance", "primary metric", "top-1", "top-5", "mean per class"]
    rows = []
    for entry in entries:
        numbers = entry["numbers"]
        rows.append(
            [
                entry["dataset"],
                f"{numbers['images']:,}",
                f"{numbers['classes']}",
                f"{100 / numbers['classes']:.2f}",
                with_interval(entry, "primary"),
                with_interval(entry, "top1"),
                with_interval(entry, "top5") if "top5" in numbers else "–",
                with_interval(entry, "mean_per_class"),
            ]
        )
    return markdown_table(header, rows)

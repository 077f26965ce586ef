"""What eval_retrieval.py and eval_zeroshot.py do: measure, save the numbers, print, and plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from alip.errors import UserError
from alip.eval import bootstrap, outcomes, results
from alip.eval.datasets import ClassificationDataset, RetrievalDataset
from alip.eval.features import Encoding, FeatureMemory
from alip.eval.metrics import chance_of
from alip.eval.probe import SHOTS, Probed, check_trainable, measure_few_shot, measure_probe
from alip.eval.prompts import retrieval_prefix
from alip.eval.retrieval import Retrieved, measure_retrieval
from alip.eval.selection import SelectionDataset, measure_selection
from alip.eval.selection_table import selection_table
from alip.eval.zeroshot import Classified, measure_zeroshot
from alip.model.weights import weights_hash
from alip.text_table import counted, markdown_table

_TITLES = {
    "retrieval": "retrieval",
    "zeroshot": "zero-shot",
    "probe": "linear probe",
    "few-shot": "few-shot probe",
    "selection": "selection",
}
CLASSIFICATION_TASKS = ("zeroshot", "probe", "few-shot")


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


def texts(
    model: nn.Module,
    datasets: Sequence[RetrievalDataset | SelectionDataset],
    encoding: Encoding,
    *,
    protocol: str,
    source: str,
    folder: Path,
    plots: bool = True,
) -> int:
    """Measures retrieval, or the choice between texts or images, on each dataset.

    source is where the model came from, folder is for results and plots. Returns the exit status: 1 when images had to
    be left out, else 0.
    """
    recorder = Recorder(model, source, encoding, protocol, folder, plots)
    for dataset in datasets:
        record_texts(recorder, model, dataset)
    return recorder.finish()


def record_texts(recorder: Recorder, model: nn.Module, dataset: RetrievalDataset | SelectionDataset) -> None:
    """Measures one dataset and saves its numbers. All ranks must call it."""
    encoding, protocol = recorder.encoding, recorder.protocol
    prompts = {"prompts_hash": results.text_hash([retrieval_prefix(protocol)])}
    if isinstance(dataset, SelectionDataset):
        chosen = measure_selection(model, dataset, encoding, protocol)
        if encoding.world.is_main:
            recorder.record(
                "selection",
                dataset,
                chosen.numbers,
                chosen.unreadable,
                chosen.outcomes,
                dataset_hash=results.text_hash([dataset.images.content_hash(), *dataset.content]),
                expected_questions=list(dataset.expected_questions),
                questions=dataset.questions,
                primary_metric=dataset.metric,
                **prompts,
            )
            _note_texts(model, dataset.name, chosen.numbers, len(dataset.texts), None)
        recorder.count(chosen.unreadable)
        return
    found = measure_retrieval(model, dataset, encoding, protocol)
    if encoding.world.is_main:
        content = [dataset.opened().content_hash(), *dataset.captions, str(dataset.caption_owner)]
        recorder.record(
            "retrieval",
            dataset,
            found.numbers,
            found.unreadable,
            found.outcomes,
            dataset_hash=results.text_hash(content),
            expected_images=[dataset.expected_images] if dataset.expected_images else [],
            primary_metric="mean R@1",
            **prompts,
        )
        if dataset.without_captions:
            print(f"note: {dataset.name}: {dataset.without_captions:,} images have no caption and are left out")
        recorder.plot("gallery", lambda path: _draw_gallery(found, path))
        _note_texts(model, dataset.name, found.numbers, len(dataset.captions), dataset.language)
    recorder.count(found.unreadable)


def _note_texts(model: nn.Module, name: str, numbers: dict[str, float], texts: int, language: str | None) -> None:
    """Prints what about the texts a reader of the numbers must know."""
    if numbers["texts_cut"]:
        limit, cut = model.text_format.context_length, int(numbers["texts_cut"])
        print(f"note: {name}: {cut:,} of {texts:,} texts have more than {limit} tokens; the rest of them is cut off")
    if language not in (None, "en") and model.text_format.is_clip:
        print(f"note: {name}: texts in the language {language!r}, read with CLIP's English tokenizer")


def zeroshot(
    model: nn.Module,
    datasets: Sequence[ClassificationDataset],
    encoding: Encoding,
    *,
    protocol: str,
    source: str,
    folder: Path,
    plots: bool = True,
    tasks: Sequence[str] = ("zeroshot",),
    shots: Sequence[int] = SHOTS,
    seeds: int = 3,
) -> int:
    """Measures the tasks (of CLASSIFICATION_TASKS) on each dataset; else as `retrieval`.

    shots, seeds: of the few-shot probes.
    """
    if {"probe", "few-shot"} & set(tasks):
        for dataset in datasets:  # before the first of them has taken its hour
            check_trainable(dataset)
    recorder = Recorder(model, source, encoding, protocol, folder, plots)
    for dataset in datasets:
        if "zeroshot" in tasks:
            record_zeroshot(recorder, model, dataset)
        if "probe" in tasks:
            _record_probe(recorder, "probe", dataset, measure_probe(model, dataset, recorder.encoding))
        if "few-shot" in tasks:
            for count, probed in measure_few_shot(model, dataset, recorder.encoding, shots, seeds).items():
                _record_probe(recorder, "few-shot", dataset, probed, shots=count, seeds=seeds)
    return recorder.finish()


def record_zeroshot(recorder: Recorder, model: nn.Module, dataset: ClassificationDataset) -> None:
    """Measures zero-shot classification on one dataset and saves its numbers. All ranks must call it."""
    found = measure_zeroshot(model, dataset, recorder.encoding, recorder.protocol)
    if recorder.encoding.world.is_main:
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
        if dataset.targets is None:
            recorder.plot("confusion", lambda path: _draw_confusion(found, path))
            recorder.plot("per-class", lambda path: _draw_per_class(found, path))
    recorder.count(found.unreadable)


# matplotlib is imported where something is plotted: it takes half a second, and --no-plots needs none of it.


def _draw_gallery(found: Retrieved, path: Path) -> None:
    from alip.eval.plots import retrieval

    retrieval.gallery(found, path)


def _draw_confusion(found: Classified, path: Path) -> None:
    from alip.eval.plots import classification

    classification.confusion(found, path)


def _draw_per_class(found: Classified, path: Path) -> None:
    from alip.eval.plots import classification

    classification.per_class(found, path)


def _record_probe(recorder: Recorder, task: str, dataset: ClassificationDataset, probed: Probed, **about: int) -> None:
    if recorder.encoding.world.is_main:
        recorder.record(
            task,
            dataset,
            probed.numbers,
            probed.unreadable,
            probed.outcomes,
            dataset_hash=recorder.train_and_test_hash(dataset),
            expected_images=list(dataset.image_counts),
            primary_metric=dataset.metric,
            **about,
        )
    recorder.count(probed.unreadable)


class Recorder:
    """Saves each measurement before anything is plotted. Only `count` and `finish` are for all ranks."""

    def __init__(self, model: nn.Module, source: str, encoding: Encoding, protocol: str, folder: Path, plots: bool):
        # Several tasks, and several lists of prompts for the same files, decode and encode the images once.
        self.encoding = replace(encoding, memory=FeatureMemory())
        self.protocol, self.folder, self.plots = protocol, folder, plots
        results.check_folder(folder)
        self.entries: list[results.Entry] = []
        self.left_out = 0
        self._probe_hashes: dict[int, tuple[ClassificationDataset, str]] = {}  # two datasets may have one name
        self._marks: set[str] = set()
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
            about["interval_method"] = bootstrap.describe(items, about["primary_metric"])
        one = results.entry(task, self.protocol, numbers, unreadable, **dataset_about, **self.about, **about)
        if mark := results.mark_of(one):
            one["mark"] = mark  # for those who show the number elsewhere
        self.entries.append(one)
        if items:
            outcomes.save(self.folder, one["id"], items)
        results.save(self.folder, [one])
        if unreadable:
            first, reason = unreadable[0]
            print(
                f"warning: {dataset.name}: {counted(len(unreadable), 'image')} cannot be read, and left out (named in "
                f"results.json); the first: {first}: {reason}"
            )
        elif (mark := results.mark_of(one)) and mark not in self._marks:
            self._marks.add(mark)  # once for all tasks of a dataset
            print(f"warning: {mark}: not comparable with published numbers; the row is marked in report.md")

    def train_and_test_hash(self, dataset: ClassificationDataset) -> str:
        """Of test and training images together; read once for all probes of a dataset."""
        if id(dataset) not in self._probe_hashes:
            parts = [dataset.images.content_hash(), dataset.train().content_hash()]
            self._probe_hashes[id(dataset)] = (dataset, results.text_hash(parts))
        return self._probe_hashes[id(dataset)][1]

    def count(self, unreadable: Sequence) -> None:
        """Images that were left out cost the exit status, on every rank."""
        self.left_out += len(unreadable)

    def plot(self, figure: str, draw: Callable[[Path], None]) -> None:
        """Plots FIGURE-DATASET of the newest entry; with the entry's id where another one has that name already."""
        if not self.plots:
            return
        from alip.plot_style import plot_or_warn

        one = self.entries[-1]
        slug = results.file_slug(one["dataset"])
        others = (
            other
            for other in results.load(self.folder)
            if other["task"] == one["task"] and results.identity(other) != one["id"]
        )
        if any(results.file_slug(other["dataset"]) == slug for other in others):
            slug += f"-{one['id'][:6]}"
        plot_or_warn(draw, self.folder / f"{figure}-{slug}")

    def finish(self) -> int:
        """Prints the tables and writes the report from everything in results.json; returns the exit status."""
        if self.encoding.world.is_main:
            for task, title in _TITLES.items():
                own = [one for one in self.entries if one["task"] == task]
                if own:
                    print(_table(task, title, own))
            if self.plots:
                from alip.eval import report

                runs: dict[str, list[results.Entry]] = {}
                for one in results.load(self.folder):  # other models' numbers may be there
                    runs.setdefault(results.model_name(one), []).append(one)
                report.write(runs, self.folder, folders=dict.fromkeys(runs, self.folder))
            beside = ", report.md and plots beside it" if self.plots else ""
            print(f"written: {self.folder / results.FILE_NAME}{beside}")
        return 1 if self.left_out else 0


def _table(task: str, title: str, entries: Sequence[results.Entry]) -> str:
    if task == "retrieval":
        return retrieval_table(entries)
    if task == "selection":
        return selection_table(entries)
    return few_shot_table(title, entries) if task == "few-shot" else classification_table(title, entries)


def retrieval_table(entries: Sequence[results.Entry]) -> str:
    """R@1/5/10 both ways with their intervals, a row per dataset."""
    header = ["retrieval", "images", "image→text R@1", "R@5", "R@10", "text→image R@1", "R@5", "R@10", "median rank"]
    rows = []
    for entry in entries:
        numbers = entry["numbers"]
        shown = [
            results.with_interval(entry, f"{way}_R@{k}")
            for way in ("image_to_text", "text_to_image")
            for k in (1, 5, 10)
        ]
        rows.append([entry["dataset"], f"{numbers['images']:,}", *shown, f"{numbers['text_to_image_median_rank']:g}"])
    return markdown_table(header, rows)


def classification_table(title: str, entries: Sequence[results.Entry]) -> str:
    """Primary metric, top-1, top-5 and mean per class with their intervals, a row per dataset."""
    header = [title, "images", "classes", "chance", "primary metric", "top-1", "top-5", "mean per class"]
    rows = []
    for entry in entries:
        numbers = entry["numbers"]
        chance = chance_of(entry.get("primary_metric") or "top1", numbers["classes"])
        rows.append(
            [
                entry["dataset"],
                f"{numbers['images']:,}",
                f"{numbers['classes']}",
                "–" if chance is None else f"{chance:.2f}",
                results.with_interval(entry, "primary"),
                results.with_interval(entry, "top1"),
                results.with_interval(entry, "top5") if "top5" in numbers else "–",
                results.with_interval(entry, "mean_per_class") if "mean_per_class" in numbers else "–",
            ]
        )
    return markdown_table(header, rows)


def few_shot_table(title: str, entries: Sequence[results.Entry]) -> str:
    """Means over the seeds with their standard deviation, a row per dataset and number of shots."""
    header = [title, "shots", "seeds", "images", "classes", "primary metric", "standard deviation", "top-1"]
    rows = []
    for entry in entries:
        numbers = entry["numbers"]
        spread = f"{numbers['primary_std']:.2f}" if "primary_std" in numbers else "–"
        counts = [str(entry["shots"]), str(entry["seeds"]), f"{numbers['images']:,}", str(numbers["classes"])]
        shown = [results.with_interval(entry, "primary"), spread, results.with_interval(entry, "top1")]
        rows.append([entry["dataset"], *counts, *shown])
    return markdown_table(header, rows)

"""The commands that tests/soak_kill.py kills: their input, how they are started, and what must come out.

To add one: a function that makes its input in a folder and returns a `Job`, named in TARGETS.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.kill_jobs import ANYWHERE, Job, command, files, run_here
from tests.helpers.shards import ROOT


def _keys(folder: Path) -> list[str]:
    """The keys of a dataset's samples; fails unless `--verify` calls it sound."""
    from alip.build.verify import dataset_faults, verify_shard
    from alip.data.shards import load_manifest, read_texts

    manifest = load_manifest(folder / "set")
    faults = dataset_faults(manifest)
    for number in range(len(manifest.shards)):
        faults += verify_shard(manifest, number, decode=False).faults
    if faults:
        raise RuntimeError(f"{folder / 'set'} is not sound: {faults[:3]}")
    return [row["key"] for row in read_texts(manifest)]


def _tars(work: Path, samples: int) -> Path:
    from tests.helpers.shards import make_tars

    if not (work / "tars").exists():
        make_tars(work / "tars", samples, per_tar=max(10, samples // 7), broken=(3, samples // 2, samples - 1))
    return work / "tars"


def build(work: Path, samples: int, workers: int, *more: str) -> Job:
    """data2rec.py from tars, some of whose images are broken."""
    flags = ["--input", _tars(work, samples), "--workers", workers, "--samples-per-shard", max(5, samples // 20)]
    return Job(command("data2rec", *flags, "--quiet", *more, output="set"), _keys)


def build_shuffled(work: Path, samples: int, workers: int) -> Job:
    """The same with an external shuffle."""
    return build(work, samples, workers, "--shuffle", "5")


def build_captions(work: Path, samples: int, workers: int, *more: str) -> Job:
    """data2rec.py with up to four captions per image, from two captions files, their sentences among them."""
    from tests.helpers.shards import make_captioned_tars

    tars, captions, other = work / "captioned", work / "captioned-captions.jsonl", work / "other.tsv"
    if not other.exists():
        make_captioned_tars(tars, samples, 3)
        lines = [f"{number:07d}\tAnother caption of {number}. It has two sentences.\n" for number in range(samples)]
        other.write_text("".join(lines))
    flags = ["--input", tars, "--workers", workers, "--samples-per-shard", max(5, samples // 20)]
    flags += ["--captions", captions, other, "--captions-per-image", 4, "--caption-sentences", "with-whole"]
    return Job(command("data2rec", *flags, "--quiet", *more, output="set"), _keys)


def build_captions_shuffled(work: Path, samples: int, workers: int) -> Job:
    """The same with an external shuffle."""
    return build_captions(work, samples, workers, "--shuffle", "5")


def merge(work: Path, samples: int, workers: int) -> Job:
    """data2rec.py --merge of two input shards."""
    shards = work / "shards"
    if not shards.exists():
        for shard in ("1/2", "2/2"):
            run_here(build(work, samples, workers, "--shard", shard).start, shards)
    return Job(
        command("data2rec", "--merge", "--overwrite", output="set"),
        _keys,
        prepare=lambda folder: shutil.copytree(shards, folder, copy_function=os.link, dirs_exist_ok=True),
        reach=ANYWHERE,
    )


def select(work: Path, samples: int, workers: int) -> Job:
    """data2rec.py --from: some samples of a dataset."""
    from tests.helpers.score_tables import write_made_up_table
    from tests.helpers.shards import build_shards, make_tars

    source, table = work / "source" / "set", work / "gates.parquet"
    if not table.exists():
        build_shards(make_tars(work / "source-tars", samples), source, samples_per_shard=max(5, samples // 10))
        write_made_up_table(source, table)
    flags = ["--from", source, "--scores", table, "--keep", "image_text_similarity > -0.5", "--quiet"]
    return Job(command("data2rec", *flags, "--samples-per-shard", max(5, samples // 20), output="set"), _keys)


def _captions(folder: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (folder / "captions.jsonl").read_text().splitlines()]


def _caption_content(folder: Path) -> dict[str, object]:
    """Lines in any order: which batch an image was in decides it. In the record, the counts of the whole output."""
    found = files(folder, without=("captions-samples.png",))
    for name in ("captions.jsonl", "captions-failures.jsonl"):
        found[name] = sorted(found.get(name, b"").splitlines())
    record = json.loads(found.pop("captions-run.json", b"{}"))
    counts = record.get("counts", {})
    counts["captioned"] = counts.pop("captioned_now", 0) + counts.pop("captioned_before", 0)
    names = ("format", "version", "settings", "complete", "counts", "summary")
    return found | {f"captions-run.json {name}": record.get(name) for name in names}


def _captioner(work: Path, samples: int, workers: int, *more: object) -> list[object]:
    from tests.helpers.captioning import write_captioner

    words = ["--input", _tars(work, samples), "--captioner", f"file:{write_captioner(work)}", "--device", "cpu"]
    return [*words, "--batch-size", 8, "--workers", workers, "--allow-failures", 1, *more]


def caption(work: Path, samples: int, workers: int) -> Job:
    """python -m alip.caption with a captioner file, on tars some of whose images are broken."""
    words = _captioner(work, samples, 0, "--option", "delay=0.002")  # workers would import everything at each start
    return Job(command("alip.caption.pipeline", *words, output="captions.jsonl"), _captions, _caption_content)


def caption_merge(work: Path, samples: int, workers: int) -> Job:
    """python -m alip.caption --merge of two shards."""
    parts = work / "parts"
    outputs = [parts / f"part{number}.jsonl" for number in (1, 2)]
    for number, output in enumerate(outputs, 1):
        if not output.exists():
            words = _captioner(work, samples, 0, "--shard", f"{number}/2")
            run_here(command("alip.caption.pipeline", *words, output=output.name), parts)
    start = command("alip.caption.pipeline", "--merge", *outputs, "--allow-failures", 1, output="captions.jsonl")
    return Job(start, _captions, _caption_content, reach=ANYWHERE)


def _dataset(work: Path, samples: int) -> Path:
    """Sound shards, in which every third raw text is labelled mismatched."""
    from PIL import Image

    source = work / "images"
    if not (work / "data" / "set.json").exists():
        source.mkdir(parents=True)
        rows = []
        for i in range(samples):
            Image.new("RGB", (40, 36), (i % 256, 7 * i % 256, 90)).save(source / f"{i}.png")
            row = {"key": f"k{i:04d}", "image": f"{i}.png", "text": f"number {i}", "caption": f"a colour {i % 9}"}
            rows.append(json.dumps({**row, "is_mismatched": i % 3 == 0}))
        (source / "table.jsonl").write_text("\n".join(rows) + "\n")
        words = ["--input", source / "table.jsonl", "--samples-per-shard", 50, "--workers", 0, "--quiet"]
        run_here(command("data2rec", *words, output="set"), work / "data")
    return work / "data" / "set"


def _model(work: Path) -> Path:
    from tests.helpers.steps import TINY_MODEL

    path = work / "tiny.json"
    path.write_text(json.dumps(TINY_MODEL))
    return path


def _training(work: Path, samples: int, *more: object) -> list[object]:
    words = ["--train-data", _dataset(work, samples), "--model", _model(work), "--device", "cpu", "--cpu-threads", 1]
    words += ["--precision", "fp32", "--reader", "torch", "--workers", 1, "--batch-size", 8, "--report-to", "none"]
    words += ["--log-every", 1, "--save-every", 7, "--ema", 0.9, "--mismatch-column", "is_mismatched"]
    return [*words, "--lr-scheduler", "const", "--warmup", 0, "--resume", "auto", *more]


def _steps(folder: Path) -> list[str]:
    from tests.helpers.train_runs import train_lines

    return [f"step {line['step']}" for line in train_lines(folder / "run")]


def _run_content(folder: Path) -> dict[str, object]:
    """Files by name; train lines without clocks, and every checkpoint's content."""
    import torch

    from tests.helpers.train_runs import train_lines

    run = folder / "run"
    found: dict[str, object] = {
        name: content if isinstance(content, str) else "there" for name, content in files(folder).items()
    }
    found["train lines"] = train_lines(run)
    for path in sorted((run / "checkpoints").glob("*.pt")):
        content = torch.load(path, weights_only=True)
        content.pop("ranks")  # sums of clocks, and random numbers, which no step of these runs takes
        found[f"content of {path.name}"] = _plain(content)
    return found


def _plain(value: Any) -> Any:
    """Tensors as bytes, so that == compares everything, bit for bit."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def train(work: Path, samples: int, workers: int) -> Job:
    """train.py: metrics and checkpoints must be equal, bit for bit."""
    words = _training(work, 100, "--epochs", 4)
    return Job(command("train", *words, output="run"), _steps, _run_content)


def train_ranks(work: Path, samples: int, workers: int) -> Job:
    """The same on two ranks, under the launcher: each start takes seconds."""
    words = [*_training(work, 100, "--epochs", 4), "--output"]
    launcher = [sys.executable, "-m", "alip.train.launch", "--standalone", "--nproc-per-node", "2", "--max-restarts"]

    def start(folder: Path) -> int:
        os.environ["PYTHONPATH"] = str(ROOT)
        script = [*launcher, "0", str(ROOT / "train.py"), *map(str, words), str(folder / "run")]
        os.execv(sys.executable, script)

    return Job(start, _steps, _run_content)


def _trained(work: Path) -> Path:
    if not (work / "trained" / "run").exists():
        run_here(command("train", *_training(work, 100, "--steps", 9), output="run"), work / "trained")
    return work / "trained" / "run"


def gates(work: Path, samples: int, workers: int) -> Job:
    """python -m alip.eval.gates: table, summary and page."""
    import pyarrow.parquet as pq

    words = ["--checkpoint", _trained(work), "--data", _dataset(work, 100), "--device", "cpu", "--batch-size", 8]
    words += ["--mismatch-column", "is_mismatched", "--quiet", "--workers", 1]
    return Job(
        command("alip.eval.gates.__main__", *words, output="gates"),
        lambda folder: pq.read_table(folder / "gates" / "gates.parquet")["key"].to_pylist(),
        reach=ANYWHERE,
    )


def _entries(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results" / "results.json").read_text())["entries"]


def _results_content(folder: Path) -> dict[str, object]:
    """All files, but the dates in the results and in the report."""
    found = files(folder, without=("report.md",))
    found.pop("results/results.json", None)
    found["entries"] = [{name: value for name, value in one.items() if name != "date"} for one in _entries(folder)]
    return found


def _evaluation(script: str, *arguments: object) -> Job:
    def start(folder: Path) -> int:
        words = [*map(str, arguments), "--output", str(folder / "results"), "--cache", str(folder / "cache")]
        return importlib.import_module(script).main(words)

    return Job(start, lambda folder: [one["id"] for one in _entries(folder)], _results_content, reach=ANYWHERE)


def retrieval(work: Path, samples: int, workers: int) -> Job:
    """eval_retrieval.py with its plots and cached features, beside results that are there already."""
    from tests.helpers.pairs import write_pairs

    if not (work / "pairs").exists():
        write_pairs(work / "pairs")
    words = ["--checkpoint", _trained(work), "--dataset", work / "pairs" / "captions.jsonl", "--device", "cpu"]
    return _evaluation("eval_retrieval", *words, "--workers", 2, "--batch-size", 5)


def zeroshot(work: Path, samples: int, workers: int) -> Job:
    """eval_zeroshot.py with its plots and cached features."""
    from tests.helpers.pairs import write_classes

    if not (work / "classes").exists():
        write_classes(work / "classes")
    words = ["--checkpoint", _trained(work), "--datasets", work / "classes", "--device", "cpu"]
    return _evaluation("eval_zeroshot", *words, "--workers", 2, "--batch-size", 5)


def export(work: Path, samples: int, workers: int) -> Job:
    """python -m alip.checkpoint export: the folder has its name only when it is whole."""

    def start(folder: Path) -> int | None:
        words = ["export", "--checkpoint", str(_trained(work)), "--to", "open_clip", "--overwrite"]
        sys.argv = ["alip.checkpoint", *words, "--output", str(folder / "model")]
        return importlib.import_module("alip.checkpoint.__main__").main()

    names = ("open_clip_config.json", "open_clip_model.safetensors")
    return Job(start, lambda folder: [name for name in names if (folder / "model" / name).is_file()], reach=ANYWHERE)


def import_weights(work: Path, samples: int, workers: int) -> Job:
    """python -m alip.checkpoint import: a folder without run.json is no run, and is written again."""

    def start(folder: Path) -> int | None:
        if (folder / "run" / "run.json").exists():
            return 0  # killed behind its end
        words = ["import", "--checkpoint", str(_trained(work)), "--output", str(folder / "run")]
        sys.argv = ["alip.checkpoint", *words]
        return importlib.import_module("alip.checkpoint.__main__").main()

    def content(folder: Path) -> dict[str, object]:
        return files(folder, without=("run.json",))  # it holds the time

    return Job(start, lambda folder: ["run"] * (folder / "run" / "run.json").is_file(), content, reach=ANYWHERE)


def score(work: Path, samples: int, workers: int) -> Job:
    """python -m alip.caption.score: a table of scores beside the captions."""
    import pyarrow.parquet as pq

    captions = work / "captioned" / "captions.jsonl"
    if not captions.exists():
        run_here(command("alip.caption.pipeline", *_captioner(work, samples, 0), output=captions.name), captions.parent)
    words = ["--input", _tars(work, samples), "--captions", captions, "--checkpoint", _trained(work)]
    words += ["--device", "cpu", "--batch-size", 8, "--workers", 0, "--allow-failures", 1]

    def content(folder: Path) -> dict[str, object]:
        table = pq.read_table(folder / "scores.parquet").to_pylist()
        rows = sorted(table, key=lambda row: (row["key"], row["number"]))
        return dict.fromkeys(files(folder), "there") | {"rows": json.dumps(rows, sort_keys=True)}

    def keys(folder: Path) -> list[str]:
        return pq.read_table(folder / "scores.parquet")["key"].to_pylist()

    return Job(command("alip.caption.score", *words, output="scores.parquet"), keys, content)


TARGETS: dict[str, Callable[[Path, int, int], Job]] = {
    "build": build,
    "build-shuffled": build_shuffled,
    "build-captions": build_captions,
    "build-captions-shuffled": build_captions_shuffled,
    "merge": merge,
    "select": select,
    "caption": caption,
    "caption-merge": caption_merge,
    "train": train,
    "train-ranks": train_ranks,
    "gates": gates,
    "retrieval": retrieval,
    "zeroshot": zeroshot,
    "export": export,
    "import": import_weights,
    "score": score,
}
# What the parent imports before it forks: a start then takes milliseconds instead of seconds.
IMPORTED = (
    *("data2rec", "train", "eval_retrieval", "eval_zeroshot", "alip.caption.pipeline", "alip.caption.user_file"),
    *("alip.caption.score", "pyarrow.parquet"),
    *("alip.eval.gates.__main__", "alip.eval.report", "alip.checkpoint.__main__", "alip.build.writer"),
    *("alip.build.merge", "alip.build.verify", "alip.build.select", "matplotlib.figure", "sklearn.metrics"),
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "alip.plot_style", "torch.utils.data"),
)

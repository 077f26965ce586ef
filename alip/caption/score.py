"""`python -m alip.caption.score`: scores of captions, as columns of a Parquet file beside the captions file.

python -m alip.caption.score --input 'tars/*.tar' --captions captions.jsonl --checkpoint ViT-B-32:openai
python data2rec.py --input 'tars/*.tar' --captions captions.jsonl --keep 'clip_score > 0.6' --output data/train
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alip.build.sources import Sample
from alip.caption.store import CaptionStore
from alip.errors import run_command


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    from alip import command
    from alip.build.caption_scores import scores_path
    from alip.build.input_shard import InputShard
    from alip.caption.command_line import input_flags
    from alip.model.precision import canonical

    parser = command.CommandParser(
        prog="python -m alip.caption.score",
        description="Scores captions: their fit to the image by a CLIP model, and rules for their text. Run it again "
        "after any interruption, or with new captions: it resumes. See docs/captions.md.",
    )
    group = parser.add_argument_group("input and output")
    input_flags(group, "FILE.parquet (default: CAPTIONS-scores.parquet, beside the captions)")
    group.add_argument("--captions", metavar="FILE", help="the captions, as data2rec.py takes them")
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--checkpoint", help="CLIP: a run, a checkpoint, a folder, or NAME:TAG of open_clip; without it only the rules"
    )
    group.add_argument("--model", help="open_clip name, for a bare state dict")
    group.add_argument("--text-prefix", default="", help="precedes each caption for the model, as 'A photo depicts '")
    group.add_argument("--language", action="store_true", help="find each caption's language (needs py3langid)")
    group = parser.add_argument_group("running")
    group.add_argument(
        "--precision", type=canonical, default="fp32", help="auto, amp_bf16, amp or fp32 (default: fp32)"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:K")
    group.add_argument(
        "--batch-size", type=command.count, default=64, help="images per step and rank (default: %(default)s)"
    )
    group.add_argument(
        "--workers", type=command.workers, default=4, help="decoding processes per rank (default: %(default)s)"
    )
    group.add_argument(
        "--shard",
        type=InputShard.parse,
        default=InputShard(),
        metavar="K/N",
        help="score shard K of N of the input, one on each machine; then --merge",
    )
    group.add_argument(
        "--merge", nargs="+", metavar="SHARD.parquet", help="join the tables of all shards into --output"
    )
    group.add_argument("--trust-keys", action="store_true", help="do not read images that have scores already")
    group.add_argument("--restart", action="store_true", help="discard the scores in --output and start over")
    group.add_argument(
        "--allow-failures", type=command.number(0, 1), default=0.0, metavar="FRACTION", help="as for alip.caption"
    )
    arguments = parser.parse_args(argv)
    if not arguments.captions and not (arguments.merge and arguments.output):
        parser.error("--captions FILE is needed: the captions to score" + " (or --output)" * bool(arguments.merge))
    if not arguments.input and not arguments.merge:
        parser.error("--input is needed: the images, the same as for the captions")
    if arguments.model and not arguments.checkpoint:
        parser.error("--model names the architecture of a bare --checkpoint: give that too")
    if not arguments.output:
        path = scores_path(arguments.captions)
        arguments.output = str(path.with_name(arguments.shard.name(path.stem) + path.suffix))
    arguments.seed = 0
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 if every image's captions have scores (or fewer failed than --allow-failures), 1 otherwise."""
    arguments = parse(argv)
    if arguments.merge:
        return merge_shards(arguments)
    from alip import distributed
    from alip.build.caption_table import CaptionTable
    from alip.caption.pipeline import from_rank_0, open_input, run_pass, world_of_ranks
    from alip.caption.scoring import ScoreStore

    source = open_input(arguments)
    with world_of_ranks(arguments.output) as world, tempfile.TemporaryDirectory(prefix="alip-captions-") as folder:
        store = ScoreStore(arguments.output)
        captions = CaptionTable([arguments.captions], Path(folder) / "captions.sqlite", several=True)
        job = score_job(captions, arguments, distributed.pick_device(arguments.device, world.local_rank))
        with contextlib.closing(store):
            run, tally = run_pass(source, job, store, world, arguments)
            tallies = distributed.gather_objects(tally, world)
            return from_rank_0(lambda: finish(store, run, tallies, arguments), world)


def score_job(captions: Any, arguments: argparse.Namespace, device: Any) -> Any:
    """The job: what is done with each image. UserError for a model that cannot be loaded."""
    from alip.caption.jobs import Job
    from alip.caption.preprocessing import Preprocessing, without_image
    from alip.caption.scoring import ScoredCaptions, ScoreWork
    from alip.caption.text_rules import language_finder

    model = None
    if arguments.checkpoint:
        from alip.checkpoint import load_model

        model = load_model(arguments.checkpoint, arguments.model, device)
    finder = language_finder() if arguments.language else None
    work = ScoreWork(captions, model, device, arguments.precision, arguments.text_prefix, finder)
    about = {name: model.metadata.get(name) for name in ("source", "fingerprint")} if model else {}
    settings = {"model": about.get("fingerprint"), "language": arguments.language}
    if arguments.shard.count > 1:
        settings["shard"] = [arguments.shard.index + 1, arguments.shard.count]
    if model:
        settings |= {"text_prefix": arguments.text_prefix, "precision": arguments.precision}

    @dataclass(frozen=True)
    class ScoreJob(Job):
        def known(self, store: CaptionStore) -> Callable[[Sample], str | None]:
            """Scores are known while the captions are those that were scored."""
            return ScoredCaptions(store, work, model is not None)

        def samples(self, samples: Iterator[Sample]) -> Iterator[Sample]:
            """Samples without captions are failures, and their images are not read."""
            for sample in samples:
                if without_image(sample) is None and not work.texts(sample.key):
                    sample.error = "no-caption: the captions file has none for it"
                yield sample

    if model is None:
        return ScoreJob(work, settings, about, content=work.content)
    return ScoreJob(work, settings, about, preprocessing=Preprocessing.of(work, None, arguments.max_pixels))


def finish(store: Any, run: int, tallies: list[Any], arguments: argparse.Namespace) -> int:
    """Rank 0: writes the table and the record, prints what was found. Returns the exit status."""
    from alip.caption.pipeline import complete_record
    from alip.caption.run import Tally

    total = Tally()
    for tally in tallies:
        total.add(tally)
    lines = 0

    def count(line: dict[str, Any]) -> None:
        nonlocal lines
        lines += 1

    store.merge(run, count)
    record = store.read_run()
    complete_record(record, total, lines, arguments.allow_failures)
    return report(store, record)


def merge_shards(arguments: argparse.Namespace) -> int:
    """`--merge SHARD.parquet …`: joins the tables of several machines (--shard K/N) into one."""
    from alip.caption.merging import merge_outputs
    from alip.caption.reporting import judge
    from alip.caption.scoring import ScoreStore

    store = ScoreStore(arguments.output)
    record = merge_outputs([ScoreStore(path) for path in arguments.merge], store, lambda line: None)
    counts = record["counts"]
    status = judge(counts["images"], counts["failed"], counts["unread_files"], arguments.allow_failures)
    record["complete"] = status == 0
    return report(store, record)


def report(store: Any, record: dict[str, Any]) -> int:
    """Writes the record with a summary of the table, and prints both. Returns the exit status."""
    record["summary"] = summarise(store.output)
    store.finish(record)
    counts = record["counts"]
    print(as_text(record["summary"]))
    done = counts["captioned_now"] + counts["captioned_before"]
    print(f"{counts['images']:,} images: the captions of {done:,} have scores ({counts['captioned_before']:,} before)")
    if counts["failed"]:
        reasons = ", ".join(f"{times:,} {reason}" for reason, times in counts["failed_by_reason"].items())
        print(f"{counts['failed']:,} have none: {reasons}; each one is named in {store.failures}")
    print(f"scores: {store.output}   record: {store.run_file}")
    return 0 if record["complete"] else 1


def summarise(path: Any) -> dict[str, Any]:
    """Plain values: captions, quantiles of the numbers, how many captions have a boilerplate or suspicious phrase."""
    import numpy as np

    from alip.build.caption_scores import CaptionScores

    table = CaptionScores(path)
    numbers = [name for name, kind in table.columns.items() if str(kind) == "float" or name in ("words", "tokens")]
    texts = [name for name in ("boilerplate", "suspicious_word") if name in table.columns]
    others = [name for name in ("script", "language") if name in table.columns]
    found: dict[str, list] = {name: [] for name in (*numbers, *texts, *others)}
    for batch in table.batches(list(found)):
        for name in found:
            found[name].append(batch[name])
    values = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in found.items()}
    points = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
    return {
        "captions": table.rows,
        "quantiles": {
            name: {f"{p:g}": round(float(np.quantile(values[name], p)), 4) for p in points} for name in numbers
        }
        if table.rows
        else {},
        "flagged": {name: int((values[name] != "").sum()) for name in texts},
        **{name: dict(zip(*_counted(values[name]))) for name in others},
    }


def _counted(values: Any) -> tuple[list[str], list[int]]:
    import numpy as np

    names, times = np.unique(values.astype(str), return_counts=True)
    order = np.argsort(-times, kind="stable")[:8]
    return names[order].tolist(), times[order].tolist()


def as_text(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    from alip.text_table import plain_table

    if not summary["captions"]:
        return "no captions"
    rows = [[name, *(f"{value:.3f}" for value in points.values())] for name, points in summary["quantiles"].items()]
    head = next(iter(summary["quantiles"].values()))
    lines = [f"quantiles over {summary['captions']:,} captions", plain_table(["", *head], rows)]
    lines += [f"{name}: {times:,} captions" for name, times in summary["flagged"].items()]
    for name in ("script", "language"):
        if name in summary:
            lines.append(f"{name}: " + ", ".join(f"{one or '-'} {times:,}" for one, times in summary[name].items()))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)

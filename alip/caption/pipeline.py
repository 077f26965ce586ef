"""The command `python -m alip.caption`: arguments → source, job, store → one pass → merge and summary."""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
from pathlib import Path
from typing import Any

from alip import distributed
from alip.build.open_source import open_source
from alip.build.sources import Fields, Source
from alip.caption.choice import CaptionerChoice
from alip.caption.command_line import parse
from alip.caption.jobs import Job, choice_of, job_of, settings_of
from alip.caption.lines import PartWriter
from alip.caption.merging import merge_outputs
from alip.caption.reporting import Bar, count_folder, describe_run, judge, read_pairs, report
from alip.caption.run import Output, Pass, RankShard, Tally
from alip.caption.store import CaptionStore
from alip.caption.summary import CaptionSummary, plot_pairs
from alip.cluster.pieces import Engine
from alip.cluster.ray_engine import engine_of
from alip.distributed import World
from alip.errors import UserError

WAIT_MINUTES = 60.0 * 24 * 30  # ranks may finish hours apart; a rank that dies is noticed at once anyway


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 every image has a caption (or fewer failed than --allow-failures), 1 otherwise."""
    arguments = parse(argv)
    if arguments.merge:
        return merge_parts(arguments)
    choice = choice_of(arguments)
    source = open_input(arguments)
    with world_of_ranks(arguments.output) as world:
        if arguments.engine == "ray":
            with engine_of(arguments, world.world_size) as engine:
                return caption_on_cluster(engine, source, choice, arguments)
        if arguments.engine == "vllm" and world.world_size > 1:
            raise UserError(
                "--engine vllm takes its GPUs itself: start it without torchrun, with --option tensor_parallel_size=N "
                "for one large model, or once for each GPU with --shard K/N"
            )
        store = CaptionStore(arguments.output) if arguments.output else None
        device = distributed.pick_device(arguments.device, world.local_rank)
        job = job_of(choice, arguments, device)
        with contextlib.closing(job):
            if arguments.dry_run:
                from alip.caption.dry_run import dry_run

                return dry_run(job, source, arguments)
            with contextlib.closing(store):
                return caption(source, job, store, world, arguments)


def open_input(arguments: argparse.Namespace) -> Source:
    """The source that the arguments name."""
    return open_source(
        arguments.input,
        arguments.source_type,
        fields=Fields(arguments.key_field, arguments.image_field, arguments.text_field),
        image_root=arguments.image_root,
        splits=arguments.splits,
    )


@contextlib.contextmanager
def world_of_ranks(output: Any) -> Any:
    """The ranks of this run; a full disk becomes one line."""
    try:
        # gloo: nothing but small messages goes between ranks
        with distributed.joined("cpu", timeout_minutes=WAIT_MINUTES) as world:
            yield world
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"the disk of {output} is full: free some space and run the command again, it resumes"
        ) from error


def caption_on_cluster(
    engine: Engine, source: Source, choice: CaptionerChoice, arguments: argparse.Namespace, quiet: bool = False
) -> int:
    """One pass by an engine over the source, the merge and the summary. Returns the exit status."""
    from alip.caption.on_cluster import caption_pieces

    with contextlib.closing(CaptionStore(arguments.output)) as store:
        metadata = describe_run({}, source, World())
        run = store.begin_run(settings_of(choice, arguments), metadata, arguments.restart)
        found = caption_pieces(engine, source, store, run, arguments, quiet)
        more = {"captioner": found.captioner, "failures": found.failures}
        return finish(store, run, [found.tally], True, arguments, **more)


def caption(source: Source, job: Job, store: CaptionStore, world: World, arguments: argparse.Namespace) -> int:
    """One pass of all ranks over the source, the merge and the summary. Returns the exit status, on every rank."""
    run, tally = run_pass(source, job, store, world, arguments)
    tallies = distributed.gather_objects(tally, world)
    return from_rank_0(lambda: finish(store, run, tallies, job.by_image, arguments), world)


def run_pass(
    source: Source, job: Job, store: CaptionStore, world: World, arguments: argparse.Namespace
) -> tuple[int, Tally]:
    """This rank's part of a pass. Returns the run's number and the tally."""
    metadata = describe_run(job.metadata, source, world)
    run = from_rank_0(lambda: store.begin_run(job.settings, metadata, arguments.restart), world)
    results, failures, costs = store.part_paths(run, world.rank)
    shard = RankShard(arguments.shard.index * world.world_size + world.rank, arguments.shard.count * world.world_size)
    with Bar(world, arguments.limit or count_folder(source)) if world.is_main else contextlib.nullcontext() as bar:
        tally = Pass(
            job.work,
            job.preprocessing,
            Output(
                PartWriter(results),
                PartWriter(failures),
                job.known(store),
                job.usage,
                PartWriter(costs) if job.usage else None,
            ),
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            content=job.content,
            identity=job.identity,
            trust_keys=arguments.trust_keys,
            figure_seed=arguments.seed,
            on_progress=bar,
        ).run(job.samples(shard.samples(source, arguments.limit, job.by_image)))
        if bar is not None:
            bar.finish(tally)
    return run, tally


def finish(
    store: CaptionStore,
    run: int,
    tallies: list[Tally],
    by_image: bool,
    arguments: argparse.Namespace,
    *,
    captioner: dict[str, Any] | None = None,
    failures: list[Path] | None = None,
) -> int:
    """Rank 0: merges the parts, writes the record and the figure, prints the summary. Returns the exit status.

    captioner: its metadata, where they were not known when the run began. failures: see CaptionStore.merge.
    """
    total = Tally()
    for tally in tallies:
        total.add(tally)
    summary = CaptionSummary(arguments.seed, {key for _, key, _ in total.sampled})
    record = begin_record(store)
    if captioner is not None:
        record["metadata"]["captioner"] = captioner
    store.merge(run, summary.observe, failures)
    result = summary.result()
    complete_record(record, total, summary.lines, arguments.allow_failures)
    record["summary"] = result
    if total.sampled and result["captions"] and by_image:
        pairs = read_pairs(total, summary.captions_of)
        if pairs:
            title = (
                f"{store.output.name}: {len(pairs)} of {result['captions']:,} pairs, sampled with seed {arguments.seed}"
            )
            from alip.plot_style import plot_or_warn  # matplotlib takes a second to load

            plot_or_warn(lambda path: plot_pairs(pairs, path, title), store.figure)
    store.finish(record)
    report(store, record, arguments.allow_failures)
    return 0 if record["complete"] else 1


def begin_record(store: CaptionStore) -> dict[str, Any]:
    """The record with what the runs have cost, saved before the merge removes the parts that say so."""
    record = store.read_run()
    costs = record.get("costs", {}) | store.costs()
    if costs:
        record["costs"] = costs
        store.write_run(record)
    return record


def complete_record(record: dict[str, Any], total: Tally, lines: int, allowed: float) -> None:
    """Adds the counts of a pass to the record, and whether it is complete."""
    failed = sum(total.failed.values())
    record["complete"] = judge(total.images, failed, total.unread, allowed) == 0
    record["counts"] = {
        "images": total.images,
        "captioned_now": total.captioned,
        "captioned_before": total.done,
        "failed": failed,
        "failed_by_reason": dict(total.failed.most_common()),
        "unread_files": total.unread,
        "captions_of_other_images": lines - total.captioned - total.done,
    }


def merge_parts(arguments: argparse.Namespace) -> int:
    """`--merge SHARD.jsonl …`: joins the outputs of several machines (--shard K/N) into one."""
    summary = CaptionSummary(arguments.seed)
    store = CaptionStore(arguments.output)
    record = merge_outputs([CaptionStore(path) for path in arguments.merge], store, summary.observe)
    record["summary"] = summary.result()
    counts = record["counts"]
    status = judge(counts["images"], counts["failed"], counts["unread_files"], arguments.allow_failures)
    record["complete"] = status == 0
    store.finish(record)
    report(store, record, arguments.allow_failures)
    return status


def from_rank_0(action: Any, world: World) -> Any:
    """Runs `action` on rank 0 and returns its result on every rank; its UserError ends every rank, printed once."""
    outcome: tuple[str, Any] = ("", None)
    if world.is_main:
        try:
            outcome = ("value", action())
        except UserError as error:
            outcome = ("error", str(error))
    status, value = distributed.broadcast_object(outcome, world)
    if status == "error":
        if world.is_main:
            raise UserError(value)
        sys.exit(2)
    return value

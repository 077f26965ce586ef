"""Joins the outputs of several machines (`--shard K/N`) into one captions file, or table of scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from alip.build.text_hash import number
from alip.caption.lines import identity, read_lines, to_line
from alip.caption.run_record import FORMAT, VERSION, check_settings
from alip.caption.store import CaptionStore, NumberSet
from alip.errors import UserError
from alip.files import atomic_write, real_path


def merge_outputs(
    parts: list[CaptionStore], output: CaptionStore, observe: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Writes the output's lines and failures, each key once, and returns its record (not yet written).

    observe: called with each line. Raises UserError for a shard that is missing, unfinished, or has other settings.
    """
    records = [_finished(part) for part in parts]
    _check_parts(parts, records)
    if any(real_path(part.output) == real_path(output.output) for part in parts):
        raise UserError(f"--output {output.output} is one of the inputs: choose another name")
    output.output.parent.mkdir(parents=True, exist_ok=True)
    record = _joined(parts, records)
    keys = NumberSet()

    def lines() -> Iterator[dict[str, Any]]:
        for part in parts:
            for line in part.lines_of(part.output):
                if keys.add(number(identity(line))):
                    observe(line)
                    yield line

    output.write_output(lines(), record)
    failures = (line for part in parts for line in read_lines(part.failures))
    with atomic_write(output.failures, text=True) as file:
        file.writelines(to_line(line) for line in failures)
    return record


def _joined(parts: list[CaptionStore], records: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of the output, from those of the shards."""
    counts = Counter()
    reasons: Counter = Counter()
    for record in records:
        reasons.update(record["counts"].pop("failed_by_reason"))
        counts.update(record["counts"])
    # A table of scores records its shard only where there are several.
    shard = {} if parts[0].suffix == ".parquet" else {"shard": [1, 1]}
    settings = {name: value for name, value in records[0]["settings"].items() if name != "shard"} | shard
    costs = {
        f"shard {_shard(record)[0]}, run {run}": cost
        for record in records
        for run, cost in record.get("costs", {}).items()
    }
    return {
        **({"costs": costs} if costs else {}),
        "format": FORMAT,
        "version": VERSION,
        "settings": settings,
        "runs": sum(record["runs"] for record in records),
        "metadata": records[0]["metadata"] | {"merged_from": [str(part.output) for part in parts]},
        "counts": {**counts, "failed_by_reason": dict(reasons.most_common())},
    }


def _finished(part: CaptionStore) -> dict[str, Any]:
    record = part.read_run()
    if record is None:
        raise UserError(f"{part.output} has no {part.run_file.name} beside it: it is not an output of this command")
    if "counts" not in record or any(part.parts.glob("*.jsonl")):
        raise UserError(f"{part.output} is unfinished: run its command again, it resumes where it stopped")
    return record


def _check_parts(parts: list[CaptionStore], records: list[dict[str, Any]]) -> None:
    first = {name: value for name, value in records[0]["settings"].items() if name != "shard"}
    for part, record in zip(parts, records):
        check_settings(
            first, {name: value for name, value in record["settings"].items() if name != "shard"}, part.output
        )
    of = {_shard(record)[1] for record in records}
    have = sorted(_shard(record)[0] for record in records)
    if len(of) != 1 or have != list(range(1, max(of) + 1)):
        raise UserError(f"--merge needs every shard once: these are shards {have} of {sorted(of)}")


def _shard(record: dict[str, Any]) -> list[int]:
    return record["settings"].get("shard", [1, 1])

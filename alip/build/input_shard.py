"""Shard K of N: what one of N machines reads of a source. The one parser of `K/N`, for building and captioning."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alip.build.sources import Sample, Source
from alip.errors import UserError


@dataclass(frozen=True)
class InputShard:
    """Shard `index` of `count`, counted from 0. As text (on the command line, in file names) it counts from 1."""

    index: int = 0
    count: int = 1

    @staticmethod
    def parse(text: str, flag: str = "--shard") -> InputShard:
        """From `K/N`, K from 1 to N. UserError names the flag otherwise."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
            raise UserError(f"{flag} is K/N with K from 1 to N, for example 2/4, not {text!r}")
        return InputShard(int(match.group(1)) - 1, int(match.group(2)))

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def units(self, source: Source) -> list[int]:
        """The files of a source that this shard reads: every count-th, or all where there are too few of them."""
        count = len(source.units)
        return list(range(self.index, count, self.count)) if count >= self.count else list(range(count))

    def takes(self, source: Source, sample: Sample) -> bool:
        """True if the sample belongs to this shard; where shards read the same files, they take turns."""
        return len(source.units) >= self.count or sample.number % self.count == self.index

    def name(self, name: str) -> str:
        """The name of this shard's own dataset."""
        return name if self.count == 1 else f"{name}-shard{self.index + 1}of{self.count}"

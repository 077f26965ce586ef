"""Damaged tables of gate scores, as data2rec.py reads them: refused, or every value is as it was written."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from alip.data.score_table import SCORES, ScoreTable
from alip.data.shards import Manifest, Shard
from alip.eval.gates.scoring import write_scores
from tests.fuzz import Target
from tests.helpers.score_tables import made_up_scores

ROWS = 300
MANIFEST = Manifest("fuzz", Path("."), ROWS, (Shard("fuzz-00000.rec", "fuzz-00000.idx", None, ROWS, 1),))


def _columns() -> dict:
    index = np.arange(ROWS)
    content = {"index": index, "key": [str(i) for i in index], "shard": ["fuzz-00000.rec"] * ROWS}
    content |= {"record": index.astype(np.int32), "text": [f"text {i}" for i in index], "caption": ["caption"] * ROWS}
    return content | made_up_scores(index)


def _damaged(rng: random.Random, folder: Path) -> Callable[[], object]:
    path = folder / "gates.parquet"
    write_scores(path, MANIFEST, iter([_columns()]), [])
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 30])):
        at = rng.choice([rng.randrange(len(content)), len(content) - 1 - rng.randrange(min(3000, len(content)))])
        content[at] = rng.choice([content[at] ^ (1 << rng.randrange(8)), rng.randrange(256)])
    if rng.random() < 0.2:
        del content[rng.randrange(len(content)) :]
    path.write_bytes(content)

    def read() -> None:
        with ScoreTable(path) as table:
            table.check_data(MANIFEST)
            names = [name for name in ("index", *SCORES) if name in table.columns]
            found = [batch[name] for batch in table.batches(names) for name in names]
        for name, values in zip(names, found, strict=True):
            assert np.array_equal(values, _columns()[name]), f"{name} changed in silence"

    return read


TARGETS = [Target("score table", _damaged)]

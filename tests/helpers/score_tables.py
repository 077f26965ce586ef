"""Tables of made-up gate scores, for tests of what reads them."""

from pathlib import Path

import numpy as np

from alip.data.score_table import ROWS, SCORES
from alip.data.shards import Manifest, load_manifest, read_texts, row_captions
from alip.eval.gates.scoring import write_scores


def made_up_scores(index: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """{score: (n,) float32} that depend on the samples' numbers only."""
    columns = [np.sin((index + 1) * (k + 1) * 12.9898 + seed) for k in range(len(SCORES))]
    return {name: column.astype(np.float32) for name, column in zip(SCORES, columns)}


def write_made_up_table(data: str | Path | Manifest, path: Path, label: str | None = None) -> Path:
    """Scores for every sample of a dataset, texts from its sidecars; label: metadata field for is_mismatched. Of
    several captions each has a row, and scores by the number of the row."""
    import json

    manifest = data if isinstance(data, Manifest) else load_manifest(data)

    several = manifest.captions_per_image > 1

    def rows():
        texts = [
            {**row, "caption": caption, "index": index, "caption_index": number}
            for index, row in enumerate(read_texts(manifest))
            for number, caption in enumerate(row_captions(row))
        ]
        for start in range(0, len(texts), ROWS // 2):
            some = texts[start : start + ROWS // 2]
            index = np.array([row["index"] for row in some])
            positions = [manifest.locate(int(i)) for i in index]
            content = {
                "index": index,
                "key": [row["key"] for row in some],
                "shard": [manifest.shards[shard].rec for shard, _ in positions],
                "record": np.array([number for _, number in positions], dtype=np.int32),
                "text": [row["text"] for row in some],
                "caption": [row["caption"] for row in some],
                **made_up_scores(np.arange(start, start + len(some))),
            }
            if several:
                content["caption_index"] = np.array([row["caption_index"] for row in some], dtype=np.int32)
            if label:
                content["is_mismatched"] = [json.loads(row["metadata"])[label] for row in some]
            yield content

    write_scores(path, manifest, rows(), ["is_mismatched"] if label else [])
    return path

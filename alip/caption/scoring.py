"""Scores of captions: how well each fits its image, seen by a CLIP model, and what the rules find in its text.

The table has a row for each caption, in the order of the images: see `SCORES` for its columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from alip.build.caption_scores import METADATA_KEY, ROWS, VERSION, CaptionScores
from alip.build.caption_table import CaptionTable
from alip.build.sources import Sample
from alip.build.text_hash import texts_digest
from alip.caption.lines import read_lines
from alip.caption.preprocessing import PreparedImage
from alip.caption.store import CaptionStore, DoneImages
from alip.caption.text_rules import boilerplate, phrases, repetition, script, suspicious_word, words_of
from alip.caption.work import Item, Result
from alip.files import atomic_path, parquet_path
from alip.model.precision import autocast
from alip.tokens import lengths, tokenize

CLIPSCORE_WEIGHT = 2.5  # w of Hessel et al., CLIPScore (EMNLP 2021), equation 1
SCORES = {
    "image_caption_similarity": pa.float32(),  # cosine
    "clip_score": pa.float32(),  # 2.5 · max(cosine, 0)
    "weakest_phrase": pa.string(),  # of the things that the caption names, the one that fits the image least …
    "weakest_phrase_similarity": pa.float32(),  # … and its cosine
    "words": pa.int32(),
    "tokens": pa.int32(),  # of CLIP, without start and end; 75 fill its context
    "repetition": pa.float32(),
    "boilerplate": pa.string(),
    "suspicious_word": pa.string(),
    "script": pa.string(),
    "language": pa.string(),
    "language_probability": pa.float32(),
}
_OF_MODEL = ("image_caption_similarity", "clip_score", "weakest_phrase", "weakest_phrase_similarity")
_OF_LANGUAGE = ("language", "language_probability")
Find = Callable[[str], tuple[str, float]]


def rule_scores(caption: str, find_language: Find | None = None) -> dict[str, Any]:
    """The scores that need no image."""
    words = words_of(caption)
    scores: dict[str, Any] = {
        "words": len(words),
        "tokens": int(lengths(tokenize([caption]))[0]) - 2,
        "repetition": round(repetition(words), 4),
        "boilerplate": boilerplate(caption),
        "suspicious_word": suspicious_word(caption),
        "script": script(caption),
    }
    if find_language is not None:
        scores["language"], probability = find_language(caption)
        scores["language_probability"] = round(probability, 4)
    return scores


class ScoreWork:
    """Scores the captions of images.

    captions: by key, of several rows of a key all. model: any CLIP of alip.checkpoint.load_model, on `device`; None:
    rules only, and no image is read. prefix: precedes each caption and phrase, for the model. find_language: see
    text_rules.language_finder.
    """

    ahead, patience = None, 0.0

    def __init__(
        self,
        captions: CaptionTable,
        model: nn.Module | None,
        device: torch.device,
        precision: str = "fp32",
        prefix: str = "",
        find_language: Find | None = None,
    ) -> None:
        self.captions, self.model, self.device, self.precision = captions, model, device, precision
        self.prefix, self.find_language = prefix, find_language
        if model is not None:
            self.prepare = ClipPixels(model.preprocess())

    def run(self, items: list[Item]) -> list[Result]:
        """A line for each image, with the scores of all of its captions."""
        captions = [self.texts(item.key) for item in items]
        scores = [[rule_scores(one, self.find_language) for one in of_image] for of_image in captions]
        if self.model is not None:
            flat = [one for of_image in captions for one in of_image]
            owners = [i for i, of_image in enumerate(captions) for _ in of_image]
            for target, found in zip((one for of in scores for one in of), self._similarities(items, flat, owners)):
                target.update(found)
        return [
            {"key": item.key, "image": item.digest, "digest": texts_digest(texts), "captions": texts, "scores": found}
            for item, texts, found in zip(items, captions, scores)
        ]

    @torch.inference_mode()
    def _similarities(self, items: list[Item], captions: list[str], owners: list[int]) -> Iterator[dict[str, Any]]:
        """For each caption its scores by the model. owners: the number of each caption's image in the batch."""
        named = [phrases(caption) for caption in captions]
        with autocast(self.precision, self.device):
            images = self._normal(
                self.model.encode_image(torch.stack([item.content for item in items]).to(self.device))
            )
        texts = self._text_features([*captions, *(phrase for of in named for phrase in of)])
        similarities = (images[owners] * texts[: len(captions)]).sum(1).tolist()
        at = len(captions)
        for owner, similarity, of in zip(owners, similarities, named):
            fits = (texts[at : at + len(of)] @ images[owner]).tolist()
            at += len(of)
            scores = {"image_caption_similarity": similarity, "clip_score": CLIPSCORE_WEIGHT * max(similarity, 0.0)}
            weakest = min(zip(fits, of), default=(similarity, ""))
            yield scores | {"weakest_phrase": weakest[1], "weakest_phrase_similarity": weakest[0]}

    def _text_features(self, texts: list[str]) -> Tensor:
        distinct = list(dict.fromkeys(texts))
        parts = []
        for start in range(0, len(distinct), 256):
            tokens = self.model.tokenizer([self.prefix + text for text in distinct[start : start + 256]])
            with autocast(self.precision, self.device):
                parts.append(self._normal(self.model.encode_text(tokens.to(self.device))))
        position = {text: i for i, text in enumerate(distinct)}
        return torch.cat(parts)[[position[text] for text in texts]]

    @staticmethod
    def _normal(features: Tensor) -> Tensor:
        return F.normalize(features.float(), dim=-1)

    def content(self, sample: Sample) -> PreparedImage:
        """Without a model: the captions take the image's place."""
        return self.missing(sample) or PreparedImage(self.texts_digest(sample), sample.key)

    def missing(self, sample: Sample) -> PreparedImage | None:
        """Why a sample cannot be scored: it has no captions; None if it can."""
        if self.texts(sample.key):
            return None
        return PreparedImage(reason="no-caption", detail="the captions file has none for it")

    def texts_digest(self, sample: Sample) -> str:
        """The digest of a sample's captions."""
        return texts_digest(self.texts(sample.key))

    def texts(self, key: str) -> list[str]:
        """The captions of a key, each once, in the file's order."""
        return list(dict.fromkeys(self.captions.get(key) or []))


class ClipPixels:
    """PIL image → pixels for a CLIP model; picklable, for the worker processes."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image)


class ScoredCaptions:
    """Which images' captions have scores. An image is known only while its captions are the ones that were scored."""

    def __init__(self, store: ScoreStore, work: ScoreWork, with_model: bool) -> None:
        self._images, self._texts, self._work, self._with_model = DoneImages(), DoneImages(), work, with_model
        for path in reversed(store.caption_files()):
            for line in store.lines_of(path):
                self._images.append(line["key"], line["image"])
                self._texts.append(line["key"], line["digest"])

    def __call__(self, sample: Sample) -> str | None:
        """The digest under which the sample's scores are known, None if they are not."""
        texts = self._work.texts_digest(sample)
        if self._texts.image(sample.key) != texts:
            return None
        return self._images.image(sample.key) if self._with_model else texts


class ScoreStore(CaptionStore):
    """The files of one table of scores: a Parquet file, written at the end of a pass from lines like a caption's."""

    suffix = ".parquet"

    def lines_of(self, path: Path) -> Iterator[dict[str, Any]]:
        """The lines of a part, or of the table."""
        return self._table_lines() if path == self.output else read_lines(path)

    def _table_lines(self) -> Iterator[dict[str, Any]]:
        table = CaptionScores(self.output)
        names = [name for name in table.columns if name not in ("key", "number", "image")]
        line: dict[str, Any] | None = None
        for batch in table.batches(["key", "number", "image", *names]):
            columns = {name: values.tolist() for name, values in batch.items()}
            for i, key in enumerate(columns["key"]):
                if columns["number"][i] == 0:
                    if line is not None:
                        yield line | {"digest": texts_digest(line["captions"])}
                    line = {"key": key, "image": columns["image"][i], "captions": [], "scores": []}
                line["captions"].append(columns["caption"][i])
                line["scores"].append({name: columns[name][i] for name in names if name != "caption"})
        if line is not None:
            yield line | {"digest": texts_digest(line["captions"])}

    def write_output(self, lines: Iterator[dict[str, Any]], record: dict[str, Any] | None = None) -> None:
        """Replaces the table, ROWS rows at a time."""
        record = record or self.read_run()
        metadata = {"version": VERSION, "settings": record["settings"], "model": record["metadata"]["captioner"]}
        schema = score_schema(record["settings"], metadata)
        rows = _rows(lines)
        with atomic_path(self.output) as temporary, pq.ParquetWriter(parquet_path(temporary), schema) as writer:
            while batch := list(islice(rows, ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def score_schema(settings: dict[str, Any], metadata: dict[str, Any]) -> pa.Schema:
    """The columns of a table that was made with these settings."""
    left_out = (() if settings["model"] else _OF_MODEL) + (() if settings["language"] else _OF_LANGUAGE)
    fields = [("key", pa.string()), ("number", pa.int32()), ("caption", pa.string()), ("image", pa.string())]
    fields += [(name, kind) for name, kind in SCORES.items() if name not in left_out]
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(metadata)})


def _rows(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        for number, (caption, scores) in enumerate(zip(line["captions"], line["scores"], strict=True)):
            yield {"key": line["key"], "number": number, "caption": caption, "image": line["image"], **scores}

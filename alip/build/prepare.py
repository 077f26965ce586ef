"""One sample → a record, or a reason why not. This is the part that runs in the worker processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from alip.build.images import ImageError, ImagePolicy, to_jpeg
from alip.build.sources import Sample
from alip.build.workers import start_worker
from alip.errors import UserError

CHUNK = 32  # samples sent to a worker at a time
_AHEAD = 4  # chunks in flight for each worker
WORDS = 100_000  # whose tokens are remembered; the web has millions, and memory should stay flat
MISSING_CAPTION = ("skip", "use-text", "error")
MISSING_TEXT = ("skip", "use-caption", "error")


@dataclass(frozen=True)
class Policy:
    """How samples become records. missing_caption: one of MISSING_CAPTION; missing_text: one of MISSING_TEXT."""

    image: ImagePolicy = field(default_factory=ImagePolicy)
    missing_caption: str = "skip"
    missing_text: str = "skip"


@dataclass(frozen=True)
class PreparedSample:
    """A record in the making. label: float32 (154,); row: key, text, caption, metadata, source as strings."""

    label: np.ndarray
    image: bytes
    row: tuple[str, str, str, str, str]
    untouched: bool
    unit: int
    number: int
    progress: float | None


@dataclass(frozen=True)
class Rejected:
    """A sample that is left out. fatal: the user asked to stop at such a sample."""

    key: str
    where: str
    reason: str
    message: str
    unit: int
    number: int
    progress: float | None
    fatal: bool = False


def prepare(samples: list[Sample], policy: Policy) -> list[PreparedSample | Rejected]:
    """The records of some samples, in their order."""
    from alip.tokens import clip_tokenizer, pack_label, tokenize

    results: list[PreparedSample | Rejected | tuple] = [_image_and_texts(sample, policy) for sample in samples]
    good = [result for result in results if isinstance(result, tuple)]
    text_tokens = tokenize([text for _, _, text, _ in good]).numpy()
    caption_tokens = tokenize([caption for _, _, _, caption in good]).numpy()
    _forget_rare_words(clip_tokenizer().cache)
    row = 0
    for i, result in enumerate(results):
        if isinstance(result, tuple):
            sample, stored, text, caption = result
            label = pack_label(text_tokens[row], caption_tokens[row])
            metadata = json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True, default=str)
            strings = tuple(_printable(one) for one in (sample.key, text, caption, metadata, sample.where))
            results[i] = PreparedSample(
                label, stored.data, strings, stored.untouched, sample.unit, sample.number, sample.progress
            )
            row += 1
    return results


def _forget_rare_words(cache: dict[str, str]) -> None:
    """open_clip's tokenizer remembers every word that it has seen. The early ones are mostly the frequent ones."""
    if len(cache) > WORDS:
        for word in list(cache)[WORDS // 2 :]:
            del cache[word]


def _printable(text: str) -> str:
    """The text without lone surrogates (file names that are no UTF-8, JSON escapes): no file format takes them."""
    return text.encode("utf-8", errors="replace").decode("utf-8") if not text.isascii() else text


def _image_and_texts(sample: Sample, policy: Policy):
    def reject(reason: str, message: str, fatal: bool = False) -> Rejected:
        place = (sample.unit, sample.number, sample.progress)
        return Rejected(_printable(sample.key), _printable(sample.where), reason, _printable(message), *place, fatal)

    if sample.error:
        reason, _, message = sample.error.partition(": ")
        return reject(reason, message)
    text, caption = sample.text, sample.caption
    if text is None and caption is None:
        fatal = "error" in (policy.missing_text, policy.missing_caption)
        return reject("missing-texts", "neither raw text nor caption", fatal)
    if text is None:
        if policy.missing_text != "use-caption":
            return reject("missing-text", "no raw text", policy.missing_text == "error")
        text = caption
    if caption is None:
        if policy.missing_caption != "use-text":
            return reject("missing-caption", "no caption", policy.missing_caption == "error")
        caption = text
    if sample.image_data is None:
        return reject("missing-image", "no image")
    try:
        stored = to_jpeg(sample.image, policy.image, sample.image_name)
    except ImageError as error:
        return reject(error.reason, str(error))
    except FileNotFoundError:
        return reject("missing-image", "no such file")
    except (OSError, ValueError) as error:
        return reject("unreadable", str(error))
    return sample, stored, text, caption


def prepare_all(samples: Iterable[Sample], policy: Policy, workers: int) -> Iterator[PreparedSample | Rejected]:
    """The records of a stream of samples, in order, made by `workers` processes (0: in this one).

    Memory holds a few chunks for each worker, however long the stream.
    """
    stream = iter(samples)
    chunks = iter(lambda: list(islice(stream, CHUNK)), [])
    if workers == 0:
        for chunk in chunks:
            yield from prepare(chunk, policy)
        return
    from alip.tokens import tokenize

    tokenize(["loaded before the workers are forked, so that they share it"])
    # Forked workers start at once and share the tokenizer. macOS cannot fork safely.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(os.getpid(),))
    try:
        yield from _in_order(pool, chunks, policy, workers * _AHEAD)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed (out of memory?): run the same command again, it goes on where it stopped; "
            "fewer --workers or a lower --max-pixels need less memory"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, chunks: Iterator[list[Sample]], policy: Policy, ahead: int):
    waiting: deque = deque()
    for chunk in chunks:
        waiting.append(pool.submit(prepare, chunk, policy))
        if len(waiting) >= ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()

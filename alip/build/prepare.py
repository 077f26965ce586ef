"""One sample → a record, or a reason why not. This is the part that runs in the worker processes."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from alip.build.images import ImageError, ImagePolicy, to_jpeg
from alip.build.sentences import split_sentences
from alip.build.sources import Sample, writable
from alip.build.worker_pool import WorkerDied, WorkerPool
from alip.errors import UserError
from alip.remote.access import RemoteError, in_use
from alip.remote.urls import redact

CHUNK = 32  # samples sent to a worker at a time
_AHEAD = 4  # chunks in flight for each worker
_HOPELESS = 16  # samples in a row that kill their worker: then it is not the samples
WORDS = 100_000  # whose tokens are remembered; the web has millions, and memory should stay flat
MAX_TEXT = 1_000_000  # characters of one text; a longer one is no caption, and would hold a worker up
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
MISSING_CAPTION = ("skip", "use-text", "error")
MISSING_TEXT = ("skip", "use-caption", "error")
SENTENCES = ("only", "with-whole")


@dataclass(frozen=True)
class CaptionPolicy:
    """How many captions a record gets. per_image: at most so many. sentences: one of SENTENCES, to store the sentences
    of each caption in its place or behind it; None: captions as they are."""

    per_image: int = 1
    sentences: str | None = None

    def candidates(self, captions: tuple[str, ...]) -> list[str]:
        """The texts that may become a sample's captions, in order."""
        if self.sentences is None:
            return list(dict.fromkeys(captions))[: self.per_image]
        found: dict[str, None] = {}
        for caption in captions:
            if len(found) >= self.per_image:
                break
            if len(caption) > MAX_TEXT:
                found[caption] = None
                continue
            sentences = split_sentences(caption)
            if self.sentences == "with-whole" or not sentences:
                found[caption] = None
            found.update(dict.fromkeys(sentences))
        return list(found)[: self.per_image]


@dataclass(frozen=True)
class Policy:
    """How samples become records. missing_caption: one of MISSING_CAPTION; missing_text: one of MISSING_TEXT."""

    image: ImagePolicy = field(default_factory=ImagePolicy)
    missing_caption: str = "skip"
    missing_text: str = "skip"
    captions: CaptionPolicy = CaptionPolicy()

    def options(self) -> dict[str, Any]:
        """What a build that resumes must have in common with its first run."""
        policy = asdict(self)
        captions = policy.pop("captions")
        several = captions["per_image"] if captions["per_image"] > 1 else None
        return {"policy": policy, "captions_per_image": several, "caption_sentences": captions["sentences"]}


@dataclass(frozen=True)
class PreparedSample:
    """A record to be written. label: float32, as tokens.pack_label makes it; row: key, text, caption, metadata, source
    as strings, and a list of all captions where there may be several. one_text: its text stands for the caption, too,
    or its caption for the text."""

    label: np.ndarray
    image: bytes
    row: tuple[str | list[str], ...]
    untouched: bool
    unit: int
    number: int
    progress: float | None
    one_text: bool = False


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


class _Reject(Exception):
    """The sample is left out. reason: one word for counting; fatal: the user asked to stop at such a sample."""

    def __init__(self, reason: str, message: str, fatal: bool = False):
        super().__init__(message)
        self.reason, self.fatal = reason, fatal


def prepare(samples: list[Sample], policy: Policy) -> list[PreparedSample | Rejected]:
    """The records of some samples, in their order. Whatever is wrong with one sample is a reject of that sample."""
    from alip.tokens import clip_tokenizer

    captions = [policy.captions.candidates(sample.captions) for sample in samples]
    texts = {sample.text for sample in samples if sample.text is not None}
    rows = _token_rows(texts.union(*captions))
    results = [_prepared(sample, one, rows, policy) for sample, one in zip(samples, captions)]
    _forget_rare_words(clip_tokenizer().cache)
    return results


def _token_rows(texts: set[str]) -> dict[str, np.ndarray | _Reject | None]:
    """For each text its token ids (77,), None where nothing is left of it, or why it cannot be used."""
    from alip.tokens import is_empty, tokenize

    rows: dict[str, np.ndarray | _Reject | None] = {text: _text_fault(text) for text in texts}
    good = [text for text, fault in rows.items() if fault is None]
    try:
        ids = tokenize(good).numpy()
    except Exception:  # one of them, and the others should not suffer for it
        ids = [_tokens_or_fault(text) for text in good]
    for text, row in zip(good, ids):
        rows[text] = row if isinstance(row, _Reject) or not is_empty(row) else None
    return rows


def _text_fault(text: str) -> _Reject | None:
    if len(text) > MAX_TEXT:
        return _Reject("bad-text", f"{len(text):,} characters, the limit is {MAX_TEXT:,}")
    if not text.isascii() and _LONE_SURROGATE.search(text):
        return _Reject("bad-text", "it holds a lone surrogate, which is half a character")
    return None


def _tokens_or_fault(text: str) -> np.ndarray | _Reject:
    from alip.tokens import tokenize

    try:
        return tokenize([text])[0].numpy()
    except Exception as error:
        return _Reject("bad-text", f"cannot be tokenized: {type(error).__name__} {error}")


def _forget_rare_words(cache: dict[str, str]) -> None:
    """open_clip's tokenizer remembers every word that it has seen. The early ones are mostly the frequent ones."""
    if len(cache) > WORDS:
        for word in list(cache)[WORDS // 2 :]:
            del cache[word]


def _prepared(sample: Sample, captions: list[str], rows: dict, policy: Policy) -> PreparedSample | Rejected:
    try:
        return _record(sample, captions, rows, policy)
    except _Reject as error:
        reason, message, fatal = error.reason, str(error), error.fatal
    except ImageError as error:
        reason, message, fatal = error.reason, str(error), False
    except RemoteError:  # the store, not the sample: the build stops, and resumes here
        raise
    except FileNotFoundError as error:
        tried = f": {redact(str(error.filename))}" if error.filename else ""  # --image-root is a part of it
        reason, message, fatal = "missing-image", f"no such file{tried}", False
    except (OSError, ValueError) as error:
        reason, message, fatal = "unreadable", str(error), False
    except Exception as error:
        reason, message, fatal = "failed", f"{type(error).__name__} {error}", False
    return _rejected(sample, reason, message, fatal)


def _rejected(sample: Sample, reason: str, message: str, fatal: bool = False) -> Rejected:
    key, where, message = (writable(one) for one in (sample.key, sample.where, " ".join(message.split())))
    return Rejected(key, where, reason, message, sample.unit, sample.number, sample.progress, fatal)


def _record(sample: Sample, captions: list[str], rows: dict, policy: Policy) -> PreparedSample:
    from alip.tokens import pack_label

    if sample.error:
        reason, _, message = sample.error.partition(": ")
        raise _Reject(reason, message)
    text, captions, one_text = _texts(sample.text, captions, rows, policy)
    if sample.image_data is None:
        raise _Reject("missing-image", "no image")
    stored = to_jpeg(sample.image, policy.image, sample.image_name)
    metadata = json.dumps(_strict(sample.metadata), ensure_ascii=False, sort_keys=True, default=str)
    row: tuple = tuple(writable(one) for one in (sample.key, text, captions[0], metadata, sample.where))
    if policy.captions.per_image > 1:
        row += ([writable(caption) for caption in captions],)
    label = pack_label(rows[text], rows[captions[0]], [rows[caption] for caption in captions[1:]])
    place = sample.unit, sample.number, sample.progress
    return PreparedSample(label, stored.data, row, stored.untouched, *place, one_text=one_text)


def _strict(value: Any) -> Any:
    """A value as JSON allows it: tables hold NaN and infinity, which only Python's reader takes."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    return [_strict(one) for one in value] if isinstance(value, list | tuple) else value


def _texts(text: str | None, captions: list[str], rows: dict, policy: Policy) -> tuple[str, list[str], bool]:
    """Raw text and captions, each with token ids, and whether one stands for both; _Reject where the policy demands it.

    Of captions with the same token ids the first counts. One that cannot be used is left out, save an only one.
    """
    known = None if text is None else rows[text]
    if isinstance(known, _Reject):
        raise _Reject(known.reason, f"the raw text: {known}")
    usable: dict[bytes, str] = {}
    for caption in captions:
        row = rows[caption]
        if isinstance(row, np.ndarray):
            usable.setdefault(row.tobytes(), caption)
        elif row is not None and len(captions) == 1:
            raise _Reject(row.reason, f"the caption: {row}")
    left = " of which anything is left after cleaning"
    if known is None and not usable:
        fatal = "error" in (policy.missing_text, policy.missing_caption)
        raise _Reject("missing-texts", f"neither raw text nor caption{left if text or captions else ''}", fatal)
    if known is None and policy.missing_text != "use-caption":
        raise _Reject("missing-text", f"no raw text{left if text else ''}", policy.missing_text == "error")
    if not usable and policy.missing_caption != "use-text":
        fatal = policy.missing_caption == "error"
        raise _Reject("missing-caption", f"no caption{left if captions else ''}", fatal)
    chosen = list(usable.values()) or [text]
    return (chosen[0] if known is None else text), chosen, known is None or not usable


def prepare_all(
    samples: Iterable[Sample], policy: Policy, workers: int, fork: bool = True
) -> Iterator[PreparedSample | Rejected]:
    """The records of a stream of samples, in order, made by `workers` processes (0: in this one). fork: False where
    threads run that must not be forked.

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
    pool = _Pool(policy, workers, fork)
    try:
        waiting: deque = deque()
        for chunk in chunks:
            waiting.append((chunk, pool.submit(chunk)))
            if len(waiting) >= workers * _AHEAD:
                yield from pool.result(*waiting.popleft())
        while waiting:
            yield from pool.result(*waiting.popleft())
    finally:
        pool.close()


class _Pool:
    """Worker processes that survive a sample which kills one of them, as images do that crash a decoder.

    Its whole chunk is lost then. The samples of that are tried again one by one, and one whose process dies once more
    a last time: so the killer is found and rejected, and the others are kept.
    """

    def __init__(self, policy: Policy, workers: int, fork: bool = True):
        self._policy = policy
        # Forked workers start at once and share the tokenizer. macOS cannot fork safely, nor can the threads that read
        # from a store.
        can_fork = fork and sys.platform == "linux" and not in_use()
        self._workers = WorkerPool(workers, multiprocessing.get_context("fork" if can_fork else "spawn"))
        self._killed = 0

    def submit(self, chunk: list[Sample]) -> Future:
        """Starts the work on a chunk."""
        return self._workers.submit(prepare, chunk, self._policy)

    def result(self, chunk: list[Sample], future: Future) -> list[PreparedSample | Rejected]:
        """The records of a chunk. UserError if worker processes die again and again."""
        try:
            return future.result()
        except WorkerDied:
            again = [(sample, self.submit([sample])) for sample in chunk]
        return [self._last_try(sample, future) for sample, future in again]

    def _last_try(self, sample: Sample, future: Future) -> PreparedSample | Rejected:
        with contextlib.suppress(WorkerDied):
            (one,) = self._workers.result(future, prepare, [sample], self._policy)
            self._killed = 0
            return one
        self._killed += 1
        if self._killed > _HOPELESS:
            raise UserError(
                "worker processes are killed again and again (out of memory?): run the same command again, it "
                "resumes where it stopped; fewer --workers or a lower --max-pixels need less memory"
            )
        return _rejected(sample, "killed-its-worker", "the process that worked on it died")

    def close(self) -> None:
        """Ends the processes."""
        self._workers.close()

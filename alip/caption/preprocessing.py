"""Preprocessing workers: read, decode and prepare images in their own processes, in order, ahead of the captioner."""

from __future__ import annotations

import pickle
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from PIL import Image

from alip.build.images import MAX_PIXELS, ImageError, decode_image
from alip.build.sources import ByteRange, Sample
from alip.build.text_hash import digest
from alip.build.worker_pool import WorkerDied, WorkerPool
from alip.caption.captioners import MAX_SIDE

_WORTH = 4  # images under way for each process before another one is started


@dataclass
class PreparedImage:
    """The result for one sample. Exactly one of three: content; reason (why it failed); unchanged=True.

    image: digest of the image's bytes, "" where they could not be read.
    """

    image: str = ""
    content: Any = None
    reason: str | None = None
    detail: str = ""
    unchanged: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """How a worker prepares an image; picklable.

    prepare: the captioner's function, pickled (a captioner file's functions can be unpickled only after that file
    is imported, so a worker gets bytes), or None. module_file: that file, or None. short_side: JPEGs may be decoded
    smaller, down to this short side; 0: full size. max_pixels: larger images are refused. max_side: without `prepare`
    larger images are shrunk to it.
    """

    prepare: bytes | None = None
    module_file: str | None = None
    short_side: int = 0
    max_pixels: int = MAX_PIXELS
    max_side: int = MAX_SIDE

    @classmethod
    def of(cls, captioner: Any, module_file: str | None, max_pixels: int, max_side: int = MAX_SIDE) -> Preprocessing:
        """The preprocessing that a captioner needs."""
        prepare = getattr(captioner, "prepare", None)
        side = int(getattr(captioner, "short_side", 0 if prepare else max_side))
        return cls(pickle.dumps(prepare) if prepare else None, module_file, side, max_pixels, max_side)

    def open(self) -> Callable[[ByteRange | bytes, str | None], PreparedImage]:
        """The function that prepares an image, for the process that calls this."""
        if self.module_file:
            from alip.caption.user_file import load_captioner_file

            load_captioner_file(self.module_file)
        prepare = pickle.loads(self.prepare) if self.prepare else lambda image: shrink(image, self.max_side)
        return lambda image_data, known: _prepare(image_data, known, prepare, self)


def _prepare(
    image_data: ByteRange | bytes, known: str | None, prepare: Callable[[Any], Any], preprocessing: Preprocessing
) -> PreparedImage:
    try:
        data = image_data.read() if isinstance(image_data, ByteRange) else image_data
    except (OSError, ValueError) as error:
        return PreparedImage(reason="unreadable", detail=str(error))
    image = digest(data)
    if image == known:
        return PreparedImage(image, unchanged=True)
    try:
        decoded = decode_image(data, preprocessing.max_pixels, short_side=preprocessing.short_side)
    except ImageError as error:
        return PreparedImage(image, reason=error.reason, detail=str(error))
    try:
        return PreparedImage(image, prepare(decoded))
    except Exception as error:
        return PreparedImage(image, reason="not-prepared", detail=f"{type(error).__name__}: {error}")


def shrink(image: Image.Image, max_side: int = MAX_SIDE) -> Image.Image:
    """The image, at most max_side pixels a side."""
    if max(image.size) > max_side:
        image = image.copy()
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return image


_work: Callable[[ByteRange | bytes, str | None], PreparedImage] | None = None


def _start_worker(preprocessing: Preprocessing) -> None:
    global _work
    _work = preprocessing.open()


def _run(image_data: ByteRange | bytes, known: str | None) -> PreparedImage:
    return _work(image_data, known)


class _Pool:
    """Worker processes; an image whose process dies is tried once more before it is named."""

    def __init__(self, preprocessing: Preprocessing, workers: int) -> None:
        self._workers = WorkerPool(workers, get_context("spawn"), _start_worker, (preprocessing,), worth=_WORTH)

    def submit(self, image_data: ByteRange | bytes, known: str | None) -> Future:
        return self._workers.submit(_run, image_data, known)

    def result(self, future: Future, image_data: ByteRange | bytes, known: str | None) -> PreparedImage:
        try:
            return self._workers.result(future, _run, image_data, known)
        except WorkerDied:
            return PreparedImage(reason="killed-its-worker", detail="the process that decoded it died")

    def close(self) -> None:
        self._workers.close(wait=False)


def feed(
    samples: Iterable[tuple[Sample, str | None]], preprocessing: Preprocessing, workers: int, ahead: int
) -> Iterator[tuple[Sample, PreparedImage]]:
    """Each sample with its prepared image, in the samples' order.

    samples: pairs of sample and known digest: an image with that digest is returned as unchanged, without decoding.
    workers: processes; 0 prepares in this one. ahead: at most this many images are in progress or waiting (a
    bound on memory).
    A sample without image data is returned as failed, with its own error as the reason.
    """
    if workers == 0:
        work = preprocessing.open()
        for sample, known in samples:
            yield sample, without_image(sample) or work(sample.image_data, known)
        return
    pool = _Pool(preprocessing, workers)
    try:
        waiting: deque[tuple[Sample, str | None, Future | PreparedImage]] = deque()
        for sample, known in samples:
            waiting.append((sample, known, without_image(sample) or pool.submit(sample.image_data, known)))
            if len(waiting) >= ahead:
                yield _collect(pool, *waiting.popleft())
        while waiting:
            yield _collect(pool, *waiting.popleft())
    finally:
        pool.close()


def _collect(
    pool: _Pool, sample: Sample, known: str | None, job: Future | PreparedImage
) -> tuple[Sample, PreparedImage]:
    return sample, job if isinstance(job, PreparedImage) else pool.result(job, sample.image_data, known)


def without_image(sample: Sample) -> PreparedImage | None:
    """The failure of a sample that has no image or whose record is broken; None if its image can be tried.

    Faults of its texts do not matter here.
    """
    if sample.error and not sample.error.startswith("bad-text"):
        reason, _, detail = sample.error.partition(": ")
        return PreparedImage(reason=reason, detail=detail)
    return (
        None
        if sample.image_data is not None
        else PreparedImage(reason="no-image", detail="the source has no image for it")
    )


def in_background(items: Iterator[Any], ahead: int) -> Iterator[Any]:
    """The same items, fetched in a thread up to `ahead` before they are needed. Its errors are raised here."""
    box: queue.Queue = queue.Queue(ahead)
    stopped = threading.Event()

    def put(entry: tuple[str, Any]) -> bool:
        while not stopped.is_set():
            try:
                box.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def fetch() -> None:
        try:
            for item in items:
                if not put(("item", item)):
                    break
            put(("end", None))
        except BaseException as error:
            put(("error", error))
        finally:
            items.close()

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while True:
            what, value = box.get()
            if what == "end":
                return
            if what == "error":
                raise value
            yield value
    finally:
        stopped.set()
        thread.join(timeout=10)

"""Worker processes that may die: the job of one that did fails, and nothing else does, nor waits.

Every worker has a pipe of its own, and a thread here that gives it one job after the other. So the end of a process is
the end of its pipe, at whatever byte. (A `ProcessPoolExecutor` has one pipe for all results: where a worker is killed
while it writes into that, the others wait for its lock, and the parent for the rest of the result, for ever.)
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

from alip.build.workers import start_worker
from alip.errors import UserError

_STARTS = 3  # tries to start a process before a job is given up: the system may have killed one for its memory
_Job = tuple[Future, Callable, tuple]
_Answer = tuple[Any, Exception | None, str]  # of a function: its result, or what it raised and where


class WorkerDied(Exception):
    """The process that worked on a job has ended before the job did."""


class WorkerPool:
    """Up to `most` processes of a context ("fork", "spawn"), each started when there is work for it.

    prepare: called first in each process, with `given` (bool() does nothing). worth: jobs under way, for each process
    that there is, before one more is started: where a job takes less time than the start of a process.
    """

    def __init__(self, most: int, context: BaseContext, prepare: Callable = bool, given: tuple = (), worth: int = 1):
        self._most, self._context, self._worth = most, context, worth
        self._first = (prepare, given)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._under_way = 0

    def submit(self, function: Callable, *given: Any) -> Future:
        """Starts the work on function(*given). The future's exception is `WorkerDied` where its process ends before
        it is done, UserError where none can be started."""
        future: Future = Future()
        with self._lock:
            self._under_way += 1
            enough = len(self._threads) >= min(self._most, -(-self._under_way // self._worth))
        if not enough:
            self._start()
        self._jobs.put((future, function, given))
        return future

    def result(self, future: Future, function: Callable, *given: Any) -> Any:
        """The result of a submitted job, which is tried once more where its process died; WorkerDied after that."""
        with contextlib.suppress(WorkerDied):
            return future.result()
        return self.submit(function, *given).result()

    def _start(self) -> None:
        worker = _Worker(self._context, self._first)
        thread = threading.Thread(target=self._serve, args=(worker,), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # as it says without the system's reason: no memory, or too many threads
            worker.close()
            raise UserError(f"no worker can be started ({error}): give fewer --workers") from error
        self._threads.append(thread)

    def close(self, wait: bool = True) -> None:
        """Ends the processes when they have done the jobs that they are at; no other job is begun."""
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _serve(self, worker: _Worker | None) -> None:
        """Gives jobs to a worker, and a worker to jobs when one has died."""
        while (job := self._jobs.get()) is not None:
            future, *work = job
            if not future.set_running_or_notify_cancel():
                continue
            value = error = None
            try:
                worker = self._ready(worker)
                value = worker.do(*work)
            except WorkerDied as died:
                worker, error = worker.close(), died
            except BaseException as failed:  # the job's own, or one of pickle, or the system starts no process
                error = failed
            with self._lock:
                self._under_way -= 1
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
            del job, future, work, value, error  # not held until the next job comes
        if worker:
            worker.close()

    def _ready(self, worker: _Worker | None) -> _Worker:
        """This worker, or another one in its place. UserError where processes die when they start."""
        for _ in range(_STARTS):
            worker = worker or _Worker(self._context, self._first)
            with contextlib.suppress(WorkerDied):
                return worker.prepared()
            worker = worker.close()
        raise UserError(
            "worker processes die when they start (out of memory?): give fewer --workers, or --workers 0 to see why"
        )


class _Worker:
    """A worker process, and this side of its pipe."""

    _starting = threading.Lock()  # a process forked meanwhile would keep the other end of the pipe open

    def __init__(self, context: BaseContext, first: tuple[Callable, tuple]):
        self._preparation: _Answer | None = None
        with self._starting:
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs, os.getpid()), daemon=True)
            try:
                self._process.start()
            except OSError as error:
                self._pipe.close()
                raise UserError(f"no worker process can be started ({error.strerror}): give fewer --workers") from error
            finally:
                theirs.close()
        with contextlib.suppress(OSError):  # dead at once: found when its answer is read
            # By the pipe: `start` would wait for a dead process to read it.
            self._pipe.send_bytes(pickle.dumps(first))

    def prepared(self) -> _Worker:
        """Itself, once the process is ready for jobs; raises what its preparation raised, or WorkerDied."""
        if self._preparation is None:
            self._preparation = self._answer()
        _value(*self._preparation)
        return self

    def do(self, function: Callable, given: tuple) -> Any:
        """The function's result; raises what it raised, or WorkerDied."""
        message = pickle.dumps((function, given), pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(OSError):  # dead: found when its answer is read
            self._pipe.send_bytes(message)
        del message
        return _value(*self._answer())

    def _answer(self) -> _Answer:
        try:
            answer = self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise WorkerDied from None
        return pickle.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(b"")
        self._pipe.close()
        self._process.join()


def _value(result: Any, error: Exception | None, where: str) -> Any:
    if error is not None:
        raise error from RuntimeError(where)
    return result


def _work(pipe: Connection, parent: int) -> None:
    """The worker process: prepares itself, then answers each message until an empty one comes."""
    start_worker(parent)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while message := pipe.recv_bytes():
            pipe.send_bytes(_answer_to(message))


def _answer_to(message: bytes) -> bytes:
    """The pickled _Answer of (function, arguments) in a pickle."""
    try:
        function, given = pickle.loads(message)
        return pickle.dumps((function(*given), None, ""), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        where = traceback.format_exc()
        with contextlib.suppress(Exception):
            answer = pickle.dumps((None, error, where))
            pickle.loads(answer)
            return answer
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), where))

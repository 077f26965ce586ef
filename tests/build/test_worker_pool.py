"""Worker processes that end at any moment: their job fails at once, and nothing waits or is lost."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import wait
from contextlib import closing
from multiprocessing.connection import Connection

import pytest

from alip.build.worker_pool import WorkerDied, WorkerPool
from alip.errors import UserError

FORK = multiprocessing.get_context("fork")  # forked workers have what is replaced here


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def own_id(seconds=0.0):
    time.sleep(seconds)
    return os.getpid()


def large(size):
    return b"x" * size


def be_stubborn():
    raise Stubborn(1, 2)


def fail(what):
    raise what


class Stubborn(Exception):
    def __init__(self, one, two):
        super().__init__(one)


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_while_it_sends_a_result_holds_nothing_up(monkeypatch):
    """With one pipe for all workers, as in ProcessPoolExecutor, this waited for ever."""
    parent, whole = os.getpid(), Connection._send

    def half(self, data, *others):
        if os.getpid() != parent and len(data) > 900_000:
            os.write(self.fileno(), bytes(data[:5000]))
            die()
        return whole(self, data, *others)

    monkeypatch.setattr(Connection, "_send", half)
    with closing(WorkerPool(2, FORK)) as pool:
        futures = [pool.submit(large, one) for one in [50_000] * 6 + [10**6] + [50_000] * 6]
        wait(futures)
        assert [len(one.result()) for one in futures[:6] + futures[7:]] == [50_000] * 12
        assert isinstance(futures[6].exception(), WorkerDied)


def test_the_job_of_a_dead_worker_fails_alone():
    with closing(WorkerPool(2, FORK)) as pool:
        futures = [pool.submit(die if number in (3, 4, 9) else own_id) for number in range(12)]
        assert [isinstance(one.exception(), WorkerDied) for one in futures] == [i in (3, 4, 9) for i in range(12)]


def test_a_large_job_for_a_dead_worker():
    with closing(WorkerPool(1, FORK)) as pool:
        os.kill(pool.submit(own_id).result(), signal.SIGKILL)
        assert isinstance(pool.submit(len, bytes(10**7)).exception(), WorkerDied)
        assert pool.submit(len, bytes(10**7)).result() == 10**7


def test_workers_that_die_when_they_start_end_in_a_line():
    with closing(WorkerPool(2, FORK, die)) as pool:
        for future in [pool.submit(own_id) for _ in range(3)]:
            with pytest.raises(UserError, match="die when they start"):
                future.result()


def test_a_failed_preparation_is_every_jobs_error():
    with closing(WorkerPool(1, FORK, fail, (KeyError("seven"),))) as pool:
        for future in [pool.submit(own_id) for _ in range(3)]:
            with pytest.raises(KeyError, match="seven"):
                future.result()


def test_a_system_without_threads(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    with closing(WorkerPool(2, FORK)) as pool:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(UserError, match="fewer --workers"):
            pool.submit(own_id)
    assert not multiprocessing.active_children()


def test_a_system_without_processes(monkeypatch):
    def refuse(_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(FORK.Process, "start", refuse)
    with closing(WorkerPool(2, FORK)) as pool, pytest.raises(UserError, match="fewer --workers"):
        pool.submit(own_id)


def test_what_cannot_be_sent_is_the_jobs_error():
    with closing(WorkerPool(1, FORK)) as pool:
        errors = [
            pool.submit(lambda: 1).exception(),
            pool.submit(fail, UserError("a mistake")).exception(),
            pool.submit(be_stubborn).exception(),
            pool.submit(threading.Lock).exception(),  # a result that cannot be pickled
        ]
        assert [type(error).__name__ for error in errors[1:3]] == ["UserError", "RuntimeError"]
        assert all(errors) and "in fail" in str(errors[1].__cause__)
        assert pool.submit(len, "abc").result() == 3


@pytest.mark.parametrize("jobs, worth, processes", [(1, 1, 1), (3, 1, 3), (8, 1, 4), (3, 4, 1), (12, 4, 3)])
def test_there_are_no_more_processes_than_the_work_is_worth(jobs, worth, processes):
    with closing(WorkerPool(4, FORK, worth=worth)) as pool:
        futures = [pool.submit(own_id, 0.05) for _ in range(jobs)]
        assert len({future.result() for future in futures}) <= processes == len(pool._threads)


def test_jobs_that_are_not_begun_are_cancelled():
    pool = WorkerPool(1, FORK)
    futures = [pool.submit(own_id, 0.2) for _ in range(5)]
    while not futures[0].running():
        time.sleep(0.001)
    pool.close()
    assert futures[0].result() and all(future.cancelled() for future in futures[1:])
    assert not multiprocessing.active_children()

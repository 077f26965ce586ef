"""A matrix visited in chunks; on a CPU by several threads, each with chunks of its own.

One operation on all cores ends when the slowest core does: with many short operations, as in the loss, a single core
that is busy with something else (data loading, say) slows every one of them down. Threads that take whole chunks one
after the other wait for nobody, and a slow core only does fewer of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

Visit = Callable[[int, slice, slice, list[Tensor]], None]


def default_chunk(device: torch.device) -> int:
    """Side of a chunk: on a CPU its buffers stay in the cache; on a GPU larger, to launch fewer kernels."""
    if device.type == "cpu":
        return 1024
    if device.type != "cuda":
        return 4096
    return chunk_for_memory(torch.cuda.get_device_properties(device).total_memory)


def chunk_for_memory(total: int) -> int:
    """Side of a chunk on a GPU with `total` bytes: 2048, 4096 or 8192, whose three fp32 buffers are at most 1/64."""
    side = 8192
    while side > 2048 and 3 * 4 * side**2 > total // 64:
        side //= 2
    return side


def tiling(height: int, width: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    """The chunks of a height × width matrix, row by row; those at the edges may be smaller."""
    for top in range(0, height, chunk):
        for left in range(0, width, chunk):
            yield slice(top, min(top + chunk, height)), slice(left, min(left + chunk, width))


def visit_chunks(like: Tensor, height: int, width: int, chunk: int, buffers: int, visit: Visit) -> None:
    """Calls visit(number, i, j, scratch) for every chunk of a height × width matrix.

    number: counts the chunks row by row. i, j: the chunk's rows and columns. scratch: `buffers` contiguous tensors of
    the chunk's shape and of the type and device of `like`, with arbitrary content; reused after the call returns.

    A chunk is visited after its left and its upper neighbour have been: what is summed up over a row or a column of
    chunks is summed in the same order whatever the number of threads, so results do not depend on timing.
    """
    chunks = list(tiling(height, width, chunk))
    per_row = -(-width // chunk)
    threads = _threads(like.device, -(-height // chunk), per_row)
    size = min(chunk, height) * min(chunk, width)
    if threads == 1:
        flat = like.new_empty(buffers, size)
        for number, (i, j) in enumerate(chunks):
            visit(number, i, j, _shaped(flat, i, j))
        return
    # By diagonals: the neighbours of a chunk come early enough to be done, as a rule, when its turn comes.
    order = iter(sorted(range(len(chunks)), key=lambda number: (sum(divmod(number, per_row)), number)))
    done = [threading.Event() for _ in chunks]
    next_one, failed = threading.Lock(), threading.Event()
    total = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(max(1, total // threads))  # of this thread; the caller's stays
        flat = like.new_empty(buffers, size)
        try:
            with torch.no_grad():
                while not failed.is_set():
                    with next_one:
                        number = next(order, None)
                    if number is None:
                        return
                    for neighbour in _before(number, per_row):
                        done[neighbour].wait()
                    if not failed.is_set():
                        visit(number, *chunks[number], _shaped(flat, *chunks[number]))
                    done[number].set()
        except BaseException:
            failed.set()
            for event in done:  # nobody waits for a chunk that will not come
                event.set()
            raise

    with ThreadPoolExecutor(threads) as pool:
        for worker in [pool.submit(work) for _ in range(threads)]:
            worker.result()
    torch.set_num_threads(total)  # for threads that start later; torch hands the last setting to them


def _threads(device: torch.device, rows: int, columns: int) -> int:
    """How many threads visit chunks: on a CPU up to half the shorter side, so that a diagonal keeps them busy."""
    if device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), min(rows, columns) // 2))


def _before(number: int, per_row: int) -> Iterator[int]:
    """The chunks that must have been visited before this one: left and above."""
    if number % per_row:
        yield number - 1
    if number >= per_row:
        yield number - per_row


def _shaped(flat: Tensor, i: slice, j: slice) -> list[Tensor]:
    """One contiguous tensor per row of `flat`, of the chunk's shape."""
    shape = (i.stop - i.start, j.stop - j.start)
    return [row[: shape[0] * shape[1]].view(shape) for row in flat]

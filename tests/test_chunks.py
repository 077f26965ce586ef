"""Chunks visited by several threads: every chunk once, neighbours first, failures passed on, the same sums."""

import threading

import pytest
import torch

from alip.chunks import chunk_for_memory, tiling, visit_chunks
from alip.loss import AdaptiveContrastiveLoss
from tests.helpers.loss_reference import make_features


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("height, width, chunk", [(1, 1, 4), (17, 40, 4), (40, 17, 4), (64, 64, 8), (5, 100, 7)])
def test_every_chunk_once_and_its_neighbours_first(threads, height, width, chunk):
    visited, seen_by, lock = [], set(), threading.Lock()
    per_row = -(-width // chunk)

    def visit(number, i, j, scratch):
        assert [part.shape for part in scratch] == [(i.stop - i.start, j.stop - j.start)] * 3
        with lock:
            assert number % per_row == 0 or number - 1 in visited
            assert number < per_row or number - per_row in visited
            visited.append(number)
            seen_by.add(threading.get_ident())
        assert (i, j) == list(tiling(height, width, chunk))[number]

    visit_chunks(torch.empty(0), height, width, chunk, 3, visit)
    assert sorted(visited) == list(range(len(list(tiling(height, width, chunk)))))
    assert len(seen_by) <= threads
    assert torch.get_num_threads() == threads


def test_a_failure_ends_all_threads(threads):
    def visit(number, i, j, scratch):
        if number == 9:
            raise FloatingPointError("chunk 9")

    with pytest.raises(FloatingPointError, match="chunk 9"):
        visit_chunks(torch.empty(0), 64, 64, 8, 1, visit)
    assert torch.get_num_threads() == threads


def test_the_loss_does_not_depend_on_the_number_of_threads(threads):
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        leaves = [f.clone().requires_grad_() for f in make_features(160, 16, 0)]
        scale = torch.tensor(30.0, requires_grad=True)
        output = AdaptiveContrastiveLoss(chunk_size=16, logits_cache_bytes=20 * 1024)(*leaves, scale)
        output.loss.backward()
        results.append([output.loss.detach(), scale.grad, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("gigabytes, side", [(2, 2048), (8, 2048), (16, 4096), (40, 4096), (80, 8192), (141, 8192)])
def test_chunks_for_a_gpus_memory(gigabytes, side):
    assert chunk_for_memory(gigabytes << 30) == side

"""--batch-size auto: the largest micro-batch that fits, for a step of the same size; with a stand-in for the memory."""

from types import SimpleNamespace

import pytest
import torch

from alip.distributed import World
from alip.errors import UserError
from alip.train.arguments import parse_arguments
from alip.train.batch_size import (
    CudaMemory,
    DryStep,
    Found,
    divide,
    find_largest,
    largest_that_fits,
    planned_batch,
    resolve_batch,
)
from tests.helpers.ranks import on_ranks
from tests.helpers.steps import CPU, TINY_MODEL

GPU = torch.device("cuda", 0)


class Memory:
    """A device of `total` bytes, of which a step of n samples takes fixed + n * per_sample."""

    def __init__(self, total, fixed=1000, per_sample=50):
        self.total, self.fixed, self.per_sample = total, fixed, per_sample
        self.tried, self.held = [], 0

    def step(self, size):
        assert self.held == 0, "what the step before held was not freed"
        self.tried.append(size)
        self.held = self.fixed + self.per_sample * size
        if self.held > self.total:
            raise torch.OutOfMemoryError(f"{self.held} of {self.total}")

    def forget(self):
        self.held = 0

    def peak(self):
        return self.held


@pytest.mark.parametrize("samples", [1, 7, 12, 96, 360, 4096])
def test_the_largest_divisor_that_fits_in_few_tries(samples):
    sizes = [n for n in range(1, samples + 1) if samples % n == 0]
    for fitting in sizes:
        memory = Memory(total=1000 + 50 * fitting)
        found = largest_that_fits(samples, memory.step, memory)
        assert found.size == fitting and found.peak == memory.total == found.total
        assert len(memory.tried) <= 2 + 2 * len(sizes).bit_length() + samples.bit_length()
        assert memory.held == 0
        if fitting > 1:
            assert found.per_sample == 50


def test_nothing_fits():
    memory = Memory(total=1020)
    with pytest.raises(UserError, match="not even one sample"):
        largest_that_fits(8, memory.step, memory)


@pytest.mark.parametrize(
    "words", ["CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUDA error: out of memory"]
)
def test_a_library_without_room_for_its_workspace_is_a_lack_of_memory(words):
    memory = Memory(total=1000 + 50 * 4)

    def step(size):
        try:
            memory.step(size)
        except torch.OutOfMemoryError:
            raise RuntimeError(words) from None

    assert largest_that_fits(8, step, memory).size == 4


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken(size):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        largest_that_fits(8, broken, Memory(2000))


def test_what_is_printed_says_what_a_sample_costs():
    gib = 2**30
    found = Found(size=2048, peak=66 * gib, per_sample=30 * 2**20, total=80 * gib)
    assert str(found) == (
        "30.0 MiB a sample, 6.0 GiB for the rest; 2048 at a time take 66.0 of 80.0 GiB (8% stay free)"
    )


def test_what_stays_free_is_not_counted_as_taken(monkeypatch):
    """A dry step holds the margin too, so that a run does not need it."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 700 + 80)
    memory = CudaMemory(GPU)
    assert (memory.total, memory.margin, memory.peak()) == (1000, 80, 700)


def _smallest(world):
    def find(samples):
        assert samples == 16
        return Found(8 if world.rank else 4, 1, 1.0, 1)

    lines = []
    gpu = World(world.rank, world.rank, world.world_size, GPU)
    return resolve_batch("auto", 1, 32, gpu, find, lines.append), len(lines)


def test_all_ranks_take_the_smallest_and_the_step_stays():
    assert on_ranks(2, _smallest) == [((4, 4), 1)] * 2


def _one_fails(world):
    def find(samples):
        if world.rank == 1:
            raise UserError("not even one sample at a time fits")
        return Found(8, 1, 1.0, 1)

    try:
        resolve_batch("auto", 1, 32, World(world.rank, world.rank, world.world_size, GPU), find)
    except UserError as error:
        return str(error)


def test_a_rank_on_which_nothing_fits_ends_all():
    assert on_ranks(2, _one_fails) == ["--batch-size auto, rank 1: not even one sample at a time fits"] * 2


def test_numbers_are_taken_as_they_are():
    def never(samples):
        raise AssertionError

    world = World(world_size=4)
    assert planned_batch(32, 3, None, world) == (32, 3)
    assert planned_batch(32, 1, 4096, world) == (32, 32)
    assert resolve_batch(32, 1, 4096, World(), never) == (32, 128)
    assert planned_batch("auto", 1, None, World(world_size=4, device=GPU)) == (1024, 1)
    with pytest.raises(UserError, match="not a multiple of 3 ranks"):
        planned_batch("auto", 1, 4096, World(world_size=3, device=GPU))
    with pytest.raises(UserError, match="not a multiple of 33 samples"):
        divide(4096, 33, 1)
    with pytest.raises(UserError, match="needs a CUDA device"):
        planned_batch("auto", 1, None, world)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--batch-size", "auto", "--accum-freq", "2"], "leave one of them out"),
        (["--global-batch-size", "64", "--accum-freq", "2"], "leave one of them out"),
        (["--batch-size", "auto", "--fsdp", "full"], "give a number"),
        (["--batch-size", "much"], "--batch-size"),
        (["--batch-size", "0"], "from 1 to"),
    ],
)
def test_flags_that_do_not_go_together(words, message):
    with pytest.raises(UserError, match=message):
        parse_arguments(["--train-data", "x", "--output", "y", *words])


@pytest.mark.parametrize("size", [4, 2])
def test_a_dry_step_is_a_training_step_at_the_longest_texts(size, monkeypatch):
    options = {"samples": 4, "precision": "amp_bf16", "ema": True, "margin": 1000, "device": CPU}
    dry = DryStep(TINY_MODEL, {"pretrained": "not read", "compile": True}, {"lr": 1e-3}, **options)
    seen, ballast, empty = [], [], torch.empty
    run = dry.step
    dry.step = lambda batches, lr: seen.append(batches) or run(batches, lr)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: ballast.append((a, k)) or empty(*a, **k))
    dry(size)
    (batches,) = seen
    assert [len(batch.image) for batch in batches] == ([4] if size == 4 else [2, 2])
    assert all(batch.text_plan.longest == 77 and batch.text_plan.groups == ((2 * size, 77),) for batch in batches)
    images = 3 * size  # those being decoded; the step's own are in its batches
    assert ((1000 + images * 3 * 32 * 32,), {"dtype": torch.uint8, "device": CPU}) in ballast
    assert all(p.grad is not None for p in dry.model.parameters())
    dry.tokens = 20
    dry(size)
    assert all(batch.text_plan.groups == ((2 * size, 20),) for batch in seen[-1])


class Step:
    """Fits where its tokens do. samples: of the step."""

    tokens = 77

    def __init__(self, memory):
        self.memory = memory

    def __call__(self, size):
        self.memory.step(size * self.tokens)


@pytest.mark.parametrize("room, sizes", [(77 * 4 + 10, (4, 8)), (77 * 3, (2, 8)), (77 * 8, (8, None)), (100, (1, 4))])
def test_what_fits_with_typical_texts_is_said(room, sizes):
    memory = Memory(room, 0, 1)
    found = find_largest(8, Step(memory), memory)
    assert (found.size, found.with_typical_texts) == sizes
    assert ("of 20 tokens each" in str(found)) == (sizes[1] is not None)


def test_more_samples_than_attention_takes():
    with pytest.raises(UserError, match="a GPU takes 32767 at a time; give --accum-freq, too"):
        planned_batch(65536, 1, None, World(device=GPU))
    memory = Memory(2**40)
    assert largest_that_fits(65536, memory.step, memory).size == 16384

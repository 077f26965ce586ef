"""The loss on 1, 2 and 3 ranks (gloo processes) equals the reference on the whole batch; so do parameters' gradients.

The processes of one world size are started once and run all cases: starting them takes longer than the cases.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alip.distributed import World
from alip.loss import AdaptiveContrastiveLoss
from tests.helpers.loss_reference import NAMES, Watch, check_against, make_features, reference_step
from tests.helpers.ranks import on_ranks

# Samples of each rank; a world of W ranks takes the first W. Even, uneven, with empty ranks, one sample in all.
SIZES = [(12, 12, 12), (40, 33, 7), (9, 0, 5), (0, 21, 0), (1, 0, 0), (130, 130, 130), (400, 310, 290)]
INPUTS = [  # of features, logit scale, type
    ("noisy", 1.0, torch.float32),
    ("noisy", 100.0, torch.float32),
    ("noisy", 50.0, torch.bfloat16),
    ("random", 100.0, torch.float32),
    ("opposite", 100.0, torch.float32),
    ("mixed", 100.0, torch.float32),
    ("identical", 60.0, torch.bfloat16),
    ("duplicates", 20.0, torch.float32),
]


def compare(expected: SimpleNamespace, got: SimpleNamespace, rows: slice, world: int, what: str) -> None:
    """Undoes the factor of the documented contract, completes logit_scale's gradient, and compares."""
    gradients = {name: gradient.float() / world for name, gradient in got.gradients.items()}
    dist.all_reduce(gradients["logit_scale"])
    if got.gradients["image_features"].dtype == torch.bfloat16:
        gradients = {k: g if k == "logit_scale" else g.bfloat16() for k, g in gradients.items()}
    got.gradients = gradients
    check_against(expected, got, rows, what)


def case_equals_reference(rank: int, world: int) -> None:
    trial = 0
    for sizes in SIZES:
        sizes = sizes[:world]
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        if sum(sizes) == 0:
            continue
        for case, scale, dtype in INPUTS if sum(sizes) < 500 else INPUTS[:2]:
            trial += 1
            history = [1.0] * 3 if trial % 2 else None
            loss_fn = AdaptiveContrastiveLoss(
                chunk_size=(5, 16, 64, None)[trial % 4],
                logits_cache_bytes=(0, 3000, 1 << 20)[trial % 3],
                history_init=history and 1.0,
                check_finite=trial % 5 > 0,
                even_batches=len(set(sizes)) == 1 and trial % 2 == 0,
            )
            for step in range(2 if trial % 4 == 0 else 1):
                features = make_features(sum(sizes), 24, trial + 100 * step, case, dtype)
                expected = reference_step(*features, scale, history)
                leaves = [f[rows].clone().requires_grad_() for f in features]
                logit_scale = torch.tensor(scale, requires_grad=True)
                output = loss_fn(*leaves, logit_scale)
                output.loss.backward()
                gradients = dict(zip(NAMES, [leaf.grad for leaf in (*leaves, logit_scale)]))
                got = SimpleNamespace(**vars(output), history=loss_fn.history.clone(), gradients=gradients)
                compare(expected, got, rows, world, f"rank {rank} of {world}: {sizes} {case} {scale} {dtype}")

                same = torch.stack([output.loss.detach(), output.text_loss.detach(), *loss_fn.history])
                everyone = [torch.empty_like(same) for _ in range(world)]
                dist.all_gather(everyone, same)
                assert all(torch.equal(same, other) for other in everyone), "ranks disagree"
                history = expected.history.tolist()


class Towers(nn.Module):
    """The smallest model of the right form: one linear image tower, one linear text tower for both texts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(10, 6), nn.Linear(9, 6)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def forward(self, image, text, caption):
        features = (self.image(image), self.text(text), self.text(caption))
        return *(F.normalize(f, dim=1) for f in features), self.logit_scale.exp()


def case_parameters_under_ddp(rank: int, world: int) -> None:
    """DDP's gradients, also of micro-batches that share negatives, are those of one process; logit_scale's too."""
    sizes = [(9, 14, 4)[k] for k in range(world)]
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(sum(sizes), width, generator=generator) for width in (10, 9, 9)]

    alone = Towers()
    *features, scale = alone(*inputs)
    expected = reference_step(*features, float(scale), [1.0] * 3)
    torch.autograd.backward([*features, scale], [expected.gradients[name].float() for name in NAMES])

    mine = [value[rows] for value in inputs]
    for parts in (1, 3):
        model = DistributedDataParallel(Towers())
        loss_fn = AdaptiveContrastiveLoss(chunk_size=8)
        if parts == 1:
            loss_fn(*model(*mine)).loss.backward()
        else:
            micro = list(zip(*(value.tensor_split(parts) for value in mine)))
            with torch.no_grad():
                *features, scale = zip(*(model(*batch) for batch in micro))
            leaves = [torch.cat(f).requires_grad_() for f in features]
            scale = scale[0].clone().requires_grad_()
            loss_fn(*leaves, scale).loss.backward()
            gradients = [leaf.grad.tensor_split(parts) for leaf in leaves]
            for k, batch in enumerate(micro):
                last = k == parts - 1
                with nullcontext() if last else model.no_sync():
                    *features, again = model(*batch)
                    scale_gradient = scale.grad if last else torch.zeros_like(scale)
                    torch.autograd.backward([*features, again], [g[k] for g in gradients] + [scale_gradient])
        for (name, parameter), wanted in zip(model.module.named_parameters(), alone.parameters()):
            assert torch.allclose(parameter.grad, wanted.grad, rtol=1e-4, atol=1e-6), f"{name}, {parts} micro-batches"


def case_non_finite_on_one_rank(rank: int, world: int) -> None:
    """One rank's NaN raises on all, names tensor and rank, moves no history; and the next step works again."""
    loss_fn = AdaptiveContrastiveLoss()
    features = [f[rank * 5 : rank * 5 + 5] for f in make_features(5 * world, 6, 0)]
    scale = torch.tensor(10.0)
    for k, name in enumerate(NAMES):
        broken = [f.clone() for f in (*features, scale)]
        if rank == world - 1:
            broken[k].view(-1)[0] = math.nan
        with pytest.raises(FloatingPointError, match=f"^{name} ") as error:
            loss_fn(*broken)
        assert name == "logit_scale" or f"1 on rank {world - 1}" in str(error.value)
        assert (loss_fn.history == 1).all()
    assert loss_fn(*features, scale).loss.isfinite()
    assert (loss_fn.history < 1).all()

    with pytest.raises(ValueError, match="empty"):
        loss_fn(*(f[:0] for f in features), scale)


def case_a_part_of_the_ranks(rank: int, world: int) -> None:
    """A process group of its own: each rank alone here, so that each sees only its own batch."""
    groups = [dist.new_group([k]) for k in range(world)]
    features = make_features(11, 6, rank)
    loss = copy.deepcopy(AdaptiveContrastiveLoss(process_group=groups[rank]))  # of a module around it
    assert loss.process_group is groups[rank]
    output = loss(*features, torch.tensor(10.0))
    expected = reference_step(*features, 10.0, [1.0] * 3)
    assert math.isclose(output.loss.item(), expected.loss.item(), rel_tol=1e-6)


def case_own_rows_only(rank: int, world: int) -> None:
    """A rank multiplies its own images with all texts, once per path: N² of work is shared out, not repeated."""
    sizes = (60, 50, 40)[:world]
    n, total, dim = sizes[rank], sum(sizes), 8
    leaves = [f.requires_grad_() for f in make_features(n, dim, rank)]
    with Watch() as forward:
        output = AdaptiveContrastiveLoss(chunk_size=16, logits_cache_bytes=0)(*leaves, torch.tensor(10.0))
    with Watch() as backward:
        output.loss.backward()
    assert forward.products == 2 * n * total * dim
    assert backward.products == 3 * forward.products
    assert max(forward.largest, backward.largest) <= max(max(sizes) * world * dim, 3 * 16**2, 2 * total + 1)


CASES = (
    case_equals_reference,
    case_own_rows_only,
    case_parameters_under_ddp,
    case_non_finite_on_one_rank,
    case_a_part_of_the_ranks,
)


def run_cases(world: World) -> None:
    for case in CASES:
        case(world.rank, world.world_size)
        dist.barrier()


@pytest.mark.parametrize("world", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_equal_one_process(world):
    on_ranks(world, run_cases)

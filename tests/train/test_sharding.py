"""--fsdp: the same run as with DistributedDataParallel, the same checkpoints, and less memory on each rank."""

import copy
import dataclasses
import json
import os
import warnings

import pytest
import torch
from PIL import Image
from torch._dynamo.backends.debugging import aot_eager
from torch.distributed.tensor import DTensor

from alip.checkpoint import load_model
from alip.data.batch import Batch
from alip.distributed import World
from alip.errors import UserError
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from alip.train import sharding
from alip.train.ema import EMA
from alip.train.optimizer import create_optimizer, own_parameters
from alip.train.parallel import parallelise
from alip.train.sharding import full_state, is_sharded, shard
from alip.train.step import TrainStep
from tests.helpers.ranks import on_ranks
from tests.helpers.train_runs import train_lines, train_on_rank, weights_of

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2},
}


def make_batch(seed, size=5):
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(size, 3, 32, 32, generator=g)
    texts = torch.randint(1, 60, (2, size, 77), generator=g)
    ends = torch.randint(2, 20, (2, size, 1), generator=g)
    texts = torch.where(torch.arange(77) == ends, 63, torch.where(torch.arange(77) > ends, 0, texts))
    return Batch(image, *texts, torch.arange(size))


def _steps(world, scope, micro, precision="fp32", checkpointing=False, count=3, config=CONFIG, compile=False):
    """Losses, gradient norms, final weights, EMA and moments of a few steps."""
    torch.manual_seed(0)
    model = create_model(copy.deepcopy(config), grad_checkpointing=checkpointing, compile=compile)
    if scope:
        shard(model, world, scope)
        assert is_sharded(model)
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True, history_momentum=0.5)
    optimizer = create_optimizer(model, lr=1e-3)
    ema = EMA(model, 0.9)
    step = TrainStep(
        model, loss, optimizer, world.device, parallel_model=parallelise(model, world), precision=precision, ema=ema
    )
    numbers = []
    for k in range(count):
        batches = [make_batch(1000 * k + 10 * world.rank + m) for m in range(micro)]
        if k == 1:
            batches[0].image[0] = float("nan")  # left out, on every rank, as a whole
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="FSDP2-wrapped")
            result = step(batches, 1e-3)
        numbers.append((float(result.outcome.loss), float(result.grad_norm), bool(result.skipped)))
    averaged = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in ema.state_dict().items()}
    return numbers, full_state(model), averaged


@pytest.mark.parametrize(
    "ranks, micro, precision, checkpointing",
    [(2, 1, "fp32", False), (3, 2, "fp32", True), (2, 2, "amp_bf16", False)],
)
def test_as_with_ddp(ranks, micro, precision, checkpointing):
    plain = on_ranks(ranks, _steps, None, micro, precision, checkpointing)
    divided = on_ranks(ranks, _steps, "full", micro, precision, checkpointing)
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert [n[2] for n in plain[0][0]] == [False, True, False]
    for rank in range(ranks):
        for before, now in zip(plain[rank][0], divided[rank][0]):
            assert now[2] == before[2]
            assert now[:2] == pytest.approx(before[:2], rel=tolerance, nan_ok=True)
        for expected, found in zip(plain[rank][1:], divided[rank][1:]):
            assert found.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(found[name], expected[name], atol=tolerance * 0.1, rtol=tolerance)


def _small(world, compile):
    config = copy.deepcopy(CONFIG)
    config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = 2, 1
    return _steps(world, "full", 1, count=2, config=config, compile=compile)


def _compiled(world):
    """Traced as in use, but without the C++ compiler behind it, which takes minutes. With the number of graphs."""
    torch_compile, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch.compile = lambda function, **options: torch_compile(function, backend=backend, **options)
    return _small(world, True), len(graphs)


@pytest.mark.slow
def test_compiled_blocks_of_a_divided_model():
    """They give what plain ones give."""
    for (found, graphs), expected in zip(on_ranks(2, _compiled), on_ranks(2, _small, False)):
        assert graphs > 0
        for before, now in zip(expected[0], found[0]):
            assert now[2] == before[2] and now[:2] == pytest.approx(before[:2], rel=1e-5, nan_ok=True)
        for name, value in expected[1].items():
            torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-5)


def _what_a_rank_holds(world):
    model = create_model(CONFIG)
    every = sum(p.numel() for p in model.parameters())
    shard(model, world, "full")
    mine = sum(p.numel() for p in own_parameters(model).values())
    names = {n for n, p in model.named_parameters() if not isinstance(p, DTensor)}
    blocks = [m for m in model.modules() if is_sharded(m)]
    return every, mine, names, len(blocks)


def test_each_rank_holds_its_part():
    held = on_ranks(3, _what_a_rank_holds)
    every = held[0][0]
    for _, mine, whole, blocks in held:
        assert mine < every / 3 * 1.1  # rows are divided: up to one more on some ranks
        assert whole == {"logit_scale"} and blocks == 5 + 1
    assert sum(mine for _, mine, _, _ in held) == every + 2  # the scalar is on each


def _timeouts(world):
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    mesh = sharding._mesh(dataclasses.replace(world, timeout_minutes=3.0), "node")
    groups = [group._get_backend(torch.device("cpu")) for group in mesh.get_all_groups()]
    return [group.options._timeout.total_seconds() for group in groups]


def test_with_several_machines_every_group_obeys_dist_timeout():
    assert on_ranks(2, _timeouts) == [[180.0, 180.0]] * 2


def _timm_tower(world):
    torch.manual_seed(0)
    config = {**CONFIG, "vision_cfg": {"timm_model_name": "test_vit", "image_size": 32, "timm_model_pretrained": False}}
    config["vision_cfg"]["timm_proj"] = "linear"
    return _steps(world, None, 1, count=1, config=config), _steps(world, "full", 1, count=1, config=config)


def test_a_timm_tower():
    """Its blocks run by their own forward."""
    for plain, divided in on_ranks(2, _timm_tower):
        assert divided[0][0] == pytest.approx(plain[0][0], rel=1e-5)
        for name, value in plain[1].items():
            torch.testing.assert_close(divided[1][name], value, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_divided(tmp_path):
    model = create_model(CONFIG)
    with pytest.raises(UserError, match="timm/lamb"):
        shard(model, World(), "full", opt="timm/lamb")
    with pytest.raises(UserError, match="amp_bf16"):
        shard(model, World(), "full", precision="amp")
    shard(model, World(), "full")
    assert not is_sharded(model)  # one rank has nothing to divide


@pytest.fixture
def captions(tmp_path):
    lines = []
    for i in range(12):
        Image.new("RGB", (40, 36), (20 * i, 255 - 20 * i, 7)).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": [f"number {i}"]}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "captions.jsonl"


def test_a_run_goes_from_one_to_the_other(data, model_file, captions, tmp_path):
    """An epoch with DDP, the next one divided, also over another number of ranks; and the other way round."""
    common = ["--train-data", data, "--model", model_file, "--device", "cpu", "--precision", "fp32", "--ema", "0.9"]
    common += ["--log-every", "1", "--report-to", "none", "--workers", "1", "--eval-retrieval", captions]
    two, three = [*common, "--batch-size", "6"], [*common, "--batch-size", "4"]
    whole = tmp_path / "whole"
    assert on_ranks(2, train_on_rank, [*two, "--output", whole, "--epochs", "2"]) == [0, 0]
    ways = {
        "divided": ((2, two), (2, [*two, "--fsdp", "full"])),
        "over-three": ((2, two), (3, [*three, "--fsdp", "full"])),
        "back": ((2, [*two, "--fsdp", "node"]), (2, two)),
    }
    for name, ((ranks, first), (ranks_after, then)) in ways.items():
        run = tmp_path / name
        assert on_ranks(ranks, train_on_rank, [*first, "--output", run, "--epochs", "2"]) == [0] * ranks
        oldest, newest = sorted((run / "checkpoints").glob("step-*.pt"))
        newest.unlink()  # as if it had ended after the first epoch
        again = [*then, "--output", run, "--epochs", "2", "--resume", "auto"]
        assert on_ranks(ranks_after, train_on_rank, again) == [0] * ranks_after
        assert "step-00000004" in oldest.name
        for key, value in weights_of(whole).items():
            torch.testing.assert_close(weights_of(run)[key], value, atol=2e-5, rtol=1e-4)
        assert train_lines(run)[-1]["loss"] == pytest.approx(train_lines(whole)[-1]["loss"], rel=1e-4)
        found, expected = (_evaluations(folder) for folder in (run, whole))
        assert found[-1] == pytest.approx(expected[-1], abs=1e-6)
    load_model(tmp_path / "divided")  # as any other run


def _evaluations(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if isinstance(v, int | float) and k != "time"}
        for line in lines
        if line["kind"] == "eval"
    ]
